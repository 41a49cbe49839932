"""Cells whose ranked genes are those of an earlier cell: the same cell in two studies, or twice in one.

Every span of cells leaves a small table of hashes, sorted; the tables are then read side by side, a range of hashes at
a time. Cells are found by their genes and their order alone, so ids, sources and metadata may differ. What is not
found: the same cell with another gene vocabulary or other genes filtered away, and cells ranked with ties at random.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytoglot.hashing import NO_HASH, content_hashes

__all__ = ["Duplicates", "content_hashes", "find_duplicates", "sort_hashes"]

CELLS_AT_ONCE = 1 << 21
HASH_OF_ROW = np.dtype([("hash", np.uint64), ("row", np.uint32)])


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Which cells are to be left out."""

    rows_of_span: Mapping[int, NDArray[np.uint32]]
    """number of the span → rising rows; spans without duplicates are absent"""
    counts: Mapping[tuple[str, str], int]
    """(source of the duplicate, source of the cell that stays) → cells"""

    def rows(self, span: int) -> NDArray[np.uint32]:
        """Return the rows of a span that repeat an earlier cell, rising."""
        return self.rows_of_span.get(span, np.empty(0, np.uint32))

    @property
    def total(self) -> int:
        """Number of cells to leave out."""
        return sum(self.counts.values())


def sort_hashes(hashes: NDArray[np.uint64]) -> NDArray[np.void]:
    """Return (m,) hashes with their rows (`HASH_OF_ROW`), sorted by both; cells without a hash are left out."""
    rows = np.flatnonzero(hashes != NO_HASH)
    rows = rows[np.argsort(hashes[rows], kind="stable")]
    table = np.empty(len(rows), HASH_OF_ROW)
    table["hash"], table["row"] = hashes[rows], rows
    return table


def find_duplicates(
    spans: Sequence[str | Path | NDArray[np.void]],
    source_of_span: Sequence[str],
    *,
    cells_at_once: int = CELLS_AT_ONCE,
) -> Duplicates:
    """Return the cells that repeat an earlier one: of an earlier span, or of an earlier row of the same.

    Memory: some 60 bytes for each of `cells_at_once`, and 4 for each duplicate.

    Parameters
    ----------
    spans
        For each span what `sort_hashes` returned, or a .npy file of it, in the order of sources and rows.
    source_of_span
        Name of the source of each span.
    cells_at_once
        Cells compared at a time, about. Equal hashes are always compared together.
    """
    n_cells = sum(len(_table(span)) for span in spans)
    n_ranges = max(math.ceil(n_cells / cells_at_once), 1)
    edges = [(2**64 * i) // n_ranges for i in range(n_ranges)] + [2**64]
    dropped: dict[int, list[NDArray[np.uint32]]] = {}
    counts: dict[tuple[str, str], int] = {}
    for low, high in pairwise(edges):
        for span, rows, kept_in in _repeats([_between(_table(span), low, high) for span in spans]):
            dropped.setdefault(span, []).append(rows)
            for kept, n in zip(*np.unique(kept_in, return_counts=True), strict=True):
                pair = (source_of_span[span], source_of_span[int(kept)])
                counts[pair] = counts.get(pair, 0) + int(n)
    rows_of_span = {span: np.sort(np.concatenate(rows)) for span, rows in sorted(dropped.items())}
    return Duplicates(rows_of_span=rows_of_span, counts=dict(sorted(counts.items())))


def _repeats(tables: list[NDArray[np.void]]) -> list[tuple[int, NDArray[np.uint32], NDArray[np.int32]]]:
    """Return for each span with duplicates its number, their rows, and the spans in which the first ones are."""
    span = np.repeat(np.arange(len(tables), dtype=np.int32), [len(table) for table in tables])
    hashes = np.concatenate([table["hash"] for table in tables]) if tables else np.empty(0, np.uint64)
    rows = np.concatenate([table["row"] for table in tables]) if tables else np.empty(0, np.uint32)
    order = np.argsort(hashes, kind="stable")  # equal hashes stay in the order of spans and rows
    span, hashes, rows = span[order], hashes[order], rows[order]
    is_first = np.ones(len(hashes), bool)
    is_first[1:] = hashes[1:] != hashes[:-1]
    repeats = np.flatnonzero(~is_first)
    first_span = span[np.flatnonzero(is_first)][np.cumsum(is_first)[repeats] - 1]
    return [
        (int(number), rows[repeats[span[repeats] == number]], first_span[span[repeats] == number])
        for number in np.unique(span[repeats])
    ]


def _table(span: str | Path | NDArray[np.void]) -> NDArray[np.void]:
    return span if isinstance(span, np.ndarray) else np.load(span, mmap_mode="r")


def _between(table: NDArray[np.void], low: int, high: int) -> NDArray[np.void]:
    """Return a copy of the entries with a hash of at least `low` and below `high`."""
    # A mapped file is let go before the next is opened, so that its pages do not add up.
    hashes = table["hash"]
    first = bisect_left(hashes, np.uint64(low))  # searchsorted would copy the column, which has gaps in memory
    last = len(table) if high == 2**64 else bisect_left(hashes, np.uint64(high))
    return np.array(table[first:last])
