"""Cells that a corpus holds twice: the same ranked genes, or the same id within a study.

Two steps with bounded memory: hashes of all cells are dealt to files by their first bits, then the files are sorted and
looked through one after another. How cells that are only nearly the same are found is in `near_duplicates`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytoglot.corpus.assign.duplicates import CELLS_AT_ONCE
from cytoglot.corpus.format.folder import PARTS, Corpus, Part
from cytoglot.corpus.inspect.scan import ROW_BITS, ScannedBlock
from cytoglot.hashing import NO_HASH, STEP, content_hashes, hash_text, hash_texts

_HASH_AND_PLACE = np.dtype([("hash", np.uint64), ("place", np.uint64)])
_MOST_FILES = 512
PART_PAIRS: tuple[tuple[Part, Part], ...] = (("train", "validation"), ("train", "test"), ("validation", "test"))


class HashFiles:
    """Hashes with the places of their cells, on disk unless there are few.

    Parameters
    ----------
    folder
        For files of 16 bytes a hash; they stay there.
    n_hashes
        How many there will be at most.
    at_once
        Hashes in memory at a time, about.
    """

    def __init__(self, folder: Path, *, n_hashes: int, at_once: int = CELLS_AT_ONCE) -> None:
        self._n_files = min(max(math.ceil(n_hashes / at_once), 1), _MOST_FILES)
        self._paths = [folder / f"{number:03d}.hashes" for number in range(self._n_files)]
        self._kept: list[NDArray[np.void]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, hashes: NDArray[np.uint64], places: NDArray[np.uint64]) -> None:
        """Note (m,) hashes; `NO_HASH` is left out."""
        known = hashes != NO_HASH
        table = np.empty(int(known.sum()), _HASH_AND_PLACE)
        table["hash"], table["place"] = hashes[known], places[known]
        if self._n_files == 1:
            self._kept.append(table)
            return
        number = ((table["hash"] >> np.uint64(32)) * np.uint64(self._n_files)) >> np.uint64(32)
        table = table[np.argsort(number, kind="stable")]
        edges = np.concatenate([[0], np.cumsum(np.bincount(number.astype(np.int64), minlength=self._n_files))])
        for i in np.flatnonzero(np.diff(edges)).tolist():
            with self._paths[i].open("ab") as file:
                table[edges[i] : edges[i + 1]].tofile(file)

    def tables(self) -> Iterator[NDArray[np.void]]:
        """Yield tables of hash and place, sorted by both; equal hashes are in one table."""
        if self._n_files == 1:
            parts = self._kept or [np.empty(0, _HASH_AND_PLACE)]
            yield np.sort(np.concatenate(parts), order=("hash", "place"))
            return
        for path in self._paths:
            if path.is_file():
                yield np.sort(np.fromfile(path, _HASH_AND_PLACE), order=("hash", "place"))


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Cells that are there more than once."""

    across: Mapping[str, int]
    """"train/test" → cells of the second part that are in the first, too"""
    within: Mapping[Part, int]
    """cells of a part beyond the first of their kind in it"""
    examples: tuple[tuple[int, int], ...]
    """some pairs of places, those across parts first"""


class SameCells:
    """A look at sentences and ids.

    Ids that are numbers alone are left out: they count rows, and say nothing of a cell. Cells of fewer genes than
    `hashing.MIN_GENES` are left out of the comparison of sentences.
    """

    def __init__(self, corpus: Corpus, folder: Path, *, at_once: int = CELLS_AT_ONCE) -> None:
        n_cells = corpus.description.total("n_cells")
        self._contents = HashFiles(folder / "contents", n_hashes=n_cells, at_once=at_once)
        self._ids = HashFiles(folder / "ids", n_hashes=n_cells, at_once=at_once)
        self._salts = {s.name: hash_text(s.study or s.name) for s in corpus.description.sources}
        self._part_of_shard = np.array([PARTS.index(shard.part) for shard in corpus.description.shards], np.int8)
        self.n_without_id = 0
        """cells whose id is a number"""
        self.n_short = 0
        """cells with too few genes to be compared"""

    def update(self, seen: ScannedBlock) -> None:
        """Note the hashes of a row group."""
        contents = content_hashes(seen.block.offsets, seen.block.gene_ids)
        self.n_short += int((contents == NO_HASH).sum())
        self._contents.add(contents, seen.places)
        codes, sources = seen.codes("source")
        salts = np.array([self._salts[name] for name in sources], np.uint64)[codes]
        ids = hash_ids(seen.block.cell_ids, salts)
        self.n_without_id += int((ids == NO_HASH).sum())
        self._ids.add(ids, seen.places)

    def repeated_contents(self, *, examples: int = 20) -> Repeats:
        """Return the cells with the ranked genes of another cell."""
        return self._repeats(self._contents, examples)

    def repeated_ids(self, *, examples: int = 20) -> Repeats:
        """Return the cells with the id of another cell of their study."""
        return self._repeats(self._ids, examples)

    def _repeats(self, files: HashFiles, n_examples: int) -> Repeats:
        across = dict.fromkeys(PART_PAIRS, 0)
        within = dict.fromkeys(PARTS, 0)
        apart: list[tuple[int, int]] = []
        together: list[tuple[int, int]] = []
        for table in files.tables():
            for a, b, pairs in _repeated_in(table, self._part_of_shard):
                if a == b:
                    within[PARTS[a]] += len(pairs)
                    together += pairs[: n_examples - len(together)].tolist()
                else:
                    across[PARTS[a], PARTS[b]] += len(pairs)
                    apart += pairs[: max(n_examples - len(apart), 0)].tolist()
        pairs_shown = [*apart, *together][:n_examples]
        return Repeats(
            across={f"{a}/{b}": n for (a, b), n in across.items()},
            within=within,
            examples=tuple((int(a), int(b)) for a, b in pairs_shown),
        )


def _repeated_in(
    table: NDArray[np.void], part_of_shard: NDArray[np.int8]
) -> Iterator[tuple[int, int, NDArray[np.uint64]]]:
    """Yield for each pair of parts (m, 2) places: the first cell of a kind in the one, each of that kind in the other.

    Within a part the first of a kind is not paired with itself.
    """
    new = np.ones(len(table), bool)
    new[1:] = table["hash"][1:] != table["hash"][:-1]
    lonely = new & np.append(new[1:], True)
    table, new = table[~lonely], new[~lonely]
    if not len(table):
        return
    kind = np.cumsum(new) - 1
    places = table["place"]
    part = part_of_shard[(places >> np.uint64(ROW_BITS)).astype(np.int64)]
    first_of = np.full((len(PARTS), kind[-1] + 1), -1, np.int64)
    for number in range(len(PARTS)):
        here = np.flatnonzero(part == number)[::-1]
        first_of[number, kind[here]] = here  # of equal kinds the last one written stays, which is the first
    for a, b in [(PARTS.index(a), PARTS.index(b)) for a, b in PART_PAIRS] + [(i, i) for i in range(len(PARTS))]:
        here = np.flatnonzero(part == b)
        other = first_of[a, kind[here]]
        chosen = (other >= 0) & (other != here)
        yield a, b, np.column_stack([places[other[chosen]], places[here[chosen]]])


def hash_ids(ids: pa.StringArray, salts: NDArray[np.uint64] | Sequence[int]) -> NDArray[np.uint64]:
    """Return (n,) hashes of texts, each with its salt; `NO_HASH` for texts of digits alone and for empty ones."""
    _, offsets, data = ids.buffers()
    at = np.frombuffer(offsets, np.int32)[ids.offset : ids.offset + len(ids) + 1]
    characters = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    hashes = hash_texts(at, characters, np.uint64(0)) ^ (np.asarray(salts, np.uint64) * STEP)
    n_others = np.concatenate([[0], np.cumsum((characters < ord("0")) | (characters > ord("9")))])
    hashes[n_others[at[1:]] == n_others[at[:-1]]] = NO_HASH
    return hashes
