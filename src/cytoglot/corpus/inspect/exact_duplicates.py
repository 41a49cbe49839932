"""Cells that a corpus holds twice: the same ranked genes, or the same id within a study.

How cells that are only nearly the same are found is in `near_duplicates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytoglot.corpus.assign.duplicates import CELLS_AT_ONCE, Table, repeated_hashes, sort_hashes
from cytoglot.corpus.format.folder import PARTS, Corpus, Part
from cytoglot.corpus.inspect.scan import ROW_BITS, ScannedBlock, name_cells
from cytoglot.hashing import NO_HASH, STEP, content_hashes, hash_text, hash_texts

PART_PAIRS: tuple[tuple[Part, Part], ...] = (("train", "validation"), ("train", "test"), ("validation", "test"))


class SameCells:
    """A visitor that compares sentences and ids, by tables of hashes of each row group: on disk if cells are many.

    Ids that are numbers alone are left out: they count rows, and say nothing of a cell. Cells of fewer genes than
    `hashing.MIN_GENES` are left out of the comparison of sentences.
    """

    def __init__(self, corpus: Corpus, folder: Path, *, at_once: int = CELLS_AT_ONCE) -> None:
        self._corpus = corpus
        self._folder = folder if corpus.description.total("n_cells") > at_once else None
        self._at_once = at_once
        self._tables: dict[str, list[Table]] = {"contents": [], "ids": []}
        self._first: list[np.uint64] = []
        """place of the first cell of each row group"""
        self._salts = {s.name: hash_text(s.study or s.name) for s in corpus.description.sources}
        self._part_of_shard = np.array([PARTS.index(shard.part) for shard in corpus.description.shards], np.int8)
        self.n_without_id = 0
        """cells whose id is a number"""
        self.n_short = 0
        """cells with too few genes to be compared"""

    def update(self, seen: ScannedBlock) -> None:
        """Note the hashes of a row group."""
        if not len(seen.block):
            return
        contents = content_hashes(seen.block.offsets, seen.block.gene_ids)
        codes, sources = seen.codes("source")
        salts = np.array([self._salts[name] for name in sources], np.uint64)[codes]
        ids = hash_ids(seen.block.cell_ids, salts)
        self.n_short += int((contents == NO_HASH).sum())
        self.n_without_id += int((ids == NO_HASH).sum())
        self._first.append(seen.places[0])
        for what, hashes in (("contents", contents), ("ids", ids)):
            table = sort_hashes(hashes)
            path = None if self._folder is None else self._folder / f"{what}-{len(self._first):06d}.npy"
            if path is not None:
                np.save(path, table)
            self._tables[what].append(table if path is None else path)

    def repeated(self, what: Literal["contents", "ids"], *, examples: int = 20) -> dict[str, Any]:
        """Count the cells with the ranked genes of another cell, or with the id of another cell of their study.

        Returned are plain JSON values: `across`, for "train/test" the cells of the second part that are in the first,
        too; `within`, the cells of a part beyond the first of their kind in it; and some pairs as `examples`, those
        across parts first.
        """
        firsts = np.array(self._first, np.uint64)
        within = dict.fromkeys(PARTS, 0)
        across = dict.fromkeys(PART_PAIRS, 0)
        shown: dict[bool, list[tuple[int, int]]] = {True: [], False: []}  # by whether they are across parts
        for kind, block, row in repeated_hashes(self._tables[what], cells_at_once=self._at_once):
            places = firsts[block] + row
            part = self._part_of_shard[(places >> np.uint64(ROW_BITS)).astype(np.int64)]
            first_of = np.full((len(PARTS), kind[-1] + 1), -1, np.int64)
            for number in range(len(PARTS)):
                here = np.flatnonzero(part == number)[::-1]
                first_of[number, kind[here]] = here  # of equal kinds the last one written stays, which is the first
            for a, b in [*PART_PAIRS, *zip(PARTS, PARTS, strict=True)]:
                here = np.flatnonzero(part == PARTS.index(b))
                other = first_of[PARTS.index(a), kind[here]]
                chosen = (other >= 0) & (other != here)
                pairs = np.column_stack([places[other[chosen]], places[here[chosen]]])
                found = shown[a != b]
                found += map(tuple, pairs[: max(examples - len(found), 0)].tolist())
                if a == b:
                    within[a] += len(pairs)
                else:
                    across[a, b] += len(pairs)
        pairs_shown = [*shown[True], *shown[False]][:examples]
        cells = name_cells(self._corpus, [place for pair in pairs_shown for place in pair])
        return {
            "across": {f"{a}/{b}": n for (a, b), n in across.items()},
            "within": within,
            "examples": [{"cell": vars(cells[a]), "other": vars(cells[b])} for a, b in pairs_shown],
        }


def hash_ids(ids: pa.StringArray, salts: NDArray[np.uint64] | Sequence[int]) -> NDArray[np.uint64]:
    """Return (n,) hashes of texts, each with its salt; `NO_HASH` for texts of digits alone and for empty ones."""
    _, offsets, data = ids.buffers()
    at = np.frombuffer(offsets, np.int32)[ids.offset : ids.offset + len(ids) + 1]
    characters = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    hashes = hash_texts(at, characters, np.uint64(0)) ^ (np.asarray(salts, np.uint64) * STEP)
    n_others = np.concatenate([[0], np.cumsum((characters < ord("0")) | (characters > ord("9")))])
    hashes[n_others[at[1:]] == n_others[at[:-1]]] = NO_HASH
    return hashes
