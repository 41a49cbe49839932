"""One pass over all cells of a corpus, for audit and statistics."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cytoglot.corpus.format.folder import Corpus, Part
from cytoglot.corpus.format.shard_file import CellBlock
from cytoglot.progress import progress_bar

ROW_BITS = 32


@dataclass(frozen=True)
class ScannedBlock:
    """A row group and where it stands. Axis: n cells."""

    block: CellBlock
    part: Part
    shard: int
    """position in the description"""
    first_row: int
    """of the row group within its shard"""

    @cached_property
    def places(self) -> NDArray[np.uint64]:
        """(n,) number of the shard and row within it, as one number for each cell; rises along the corpus."""
        first = (self.shard << ROW_BITS) + self.first_row
        return np.arange(first, first + len(self.block), dtype=np.uint64)

    def codes(self, column: str) -> tuple[NDArray[np.int32], list[str]]:
        """Return as `CellBlock.values` does codes (n,) and texts, with blank texts as unknown."""
        codes, texts = self.block.values(column)
        blank = np.array([not text.strip() for text in texts], bool)
        if blank.any():
            codes = np.where((codes >= 0) & blank[codes], np.int32(-1), codes)
        return codes, texts


class BlockVisitor(Protocol):
    """Something that counts or compares all cells, block by block."""

    def update(self, seen: ScannedBlock) -> None:
        """Take note of a row group."""


def scan_corpus(
    corpus: Corpus, visitors: Sequence[BlockVisitor], *, skip: Collection[str] = (), description: str = "cells"
) -> None:
    """Read each row group once, in the order of the shards, and show it to all; shards named in `skip` are left out."""
    shards = [(i, shard) for i, shard in enumerate(corpus.description.shards) if shard.file not in skip]
    with progress_bar(total=sum(s.n_cells for _, s in shards), description=description, unit="cell") as bar:
        for number, shard in shards:
            first_row = 0
            with corpus.open(shard) as file:
                for row_group in range(file.n_row_groups):
                    seen = ScannedBlock(file.row_group(row_group), shard.part, number, first_row)
                    for visitor in visitors:
                        visitor.update(seen)
                    first_row += len(seen.block)
                    bar.update(len(seen.block))


@dataclass(frozen=True, kw_only=True)
class NamedCell:
    """A cell as a person would point at it."""

    part: Part
    source: str
    cell_id: str


def name_cells(corpus: Corpus, places: Collection[int]) -> dict[int, NamedCell]:
    """Return place → the cell that stands there; reads ids and sources of the shards concerned."""
    by_shard: dict[int, list[int]] = {}
    for place in set(places):
        by_shard.setdefault(place >> ROW_BITS, []).append(place & ((1 << ROW_BITS) - 1))
    named = {}
    for number, rows in by_shard.items():
        shard = corpus.description.shards[number]
        with corpus.open(shard) as file:
            first_row = 0
            for row_group, n_cells in enumerate(file.row_group_cells):
                here = sorted(row - first_row for row in rows if first_row <= row < first_row + n_cells)
                if here:
                    table = file.row_group(row_group, columns=("cell_id", "source")).table.take(pa.array(here))
                    texts = zip(here, table["cell_id"].to_pylist(), pc.cast(table["source"], pa.string()).to_pylist(),
                                strict=True)  # fmt: skip
                    for row, cell_id, source in texts:
                        place = (number << ROW_BITS) + first_row + row
                        named[place] = NamedCell(source=source, cell_id=cell_id, part=shard.part)
                first_row += n_cells
    return named


def group_edges(group: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first row and the number of cells of each cell group of a block, in order."""
    if not len(group):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(group)) + 1]).astype(np.int64)
    sizes = np.diff(np.append(starts, len(group)))
    is_group = group[starts] >= 0
    return starts[is_group], sizes[is_group]
