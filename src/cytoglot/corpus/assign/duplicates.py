"""Cells with the same hash, found among many with bounded memory: those whose ranked genes are an earlier cell's.

Every span of cells leaves a small table of hashes, sorted; the tables are then read side by side, a range of hashes at
a time. Cells are found by their genes and their order alone, so ids, sources and metadata may differ. What is not
found: the same cell with another gene vocabulary or other genes filtered away, and cells ranked with ties at random.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytoglot.hashing import NO_HASH

CELLS_AT_ONCE = 1 << 21
HASH_OF_ROW = np.dtype([("hash", np.uint64), ("row", np.uint32)])
Table = str | Path | NDArray[np.void]
"""what `sort_hashes` returned, or a .npy file of it"""


def sort_hashes(hashes: NDArray[np.uint64]) -> NDArray[np.void]:
    """Return (m,) hashes with their rows (`HASH_OF_ROW`), sorted by both; cells without a hash are left out."""
    rows = np.flatnonzero(hashes != NO_HASH)
    rows = rows[np.argsort(hashes[rows], kind="stable")]
    table = np.empty(len(rows), HASH_OF_ROW)
    table["hash"], table["row"] = hashes[rows], rows
    return table


def repeated_hashes(
    tables: Sequence[Table], *, cells_at_once: int = CELLS_AT_ONCE
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.int32], NDArray[np.uint32]]]:
    """Yield for a range of hashes at a time the cells that share theirs: number of the hash, table and row.

    Equal hashes are always together, in the order of their tables and rows; hashes rise. Memory: some 60 bytes for each
    of `cells_at_once` cells, which is about how many are compared at a time.
    """
    n_cells = sum(len(_opened(table)) for table in tables)
    n_ranges = max(math.ceil(n_cells / cells_at_once), 1)
    edges = [(2**64 * i) // n_ranges for i in range(n_ranges)] + [2**64]
    for low, high in pairwise(edges if tables else []):
        parts = []
        for table in tables:
            # A mapped file is let go before the next is opened, so that its pages do not add up.
            entries = _opened(table)
            # searchsorted would copy the column, which has gaps in memory
            first = bisect_left(entries["hash"], np.uint64(low))
            last = len(entries) if high == 2**64 else bisect_left(entries["hash"], np.uint64(high))
            parts.append(np.array(entries[first:last]))
        number = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
        joined = np.concatenate(parts)
        order = np.argsort(joined["hash"], kind="stable")  # equal hashes stay in the order of tables and rows
        hashes = joined["hash"][order]
        is_same = np.concatenate([[False], hashes[1:] == hashes[:-1], [False]])
        is_shared = is_same[1:] | is_same[:-1]
        if is_same.any():
            shared = order[is_shared]
            yield np.cumsum(~is_same[:-1][is_shared]) - 1, number[shared], joined["row"][shared]


def find_duplicates(
    spans: Sequence[Table], source_of_span: Sequence[str], *, cells_at_once: int = CELLS_AT_ONCE
) -> tuple[dict[int, NDArray[np.uint32]], dict[tuple[str, str], int]]:
    """Return the cells that repeat an earlier one: of an earlier span, or of an earlier row of the same.

    First the rising rows of each span that has such cells, by its number; then for each pair of sources, that of the
    duplicate and that of the cell that stays, their number. `spans` are in the order of sources and rows.
    """
    dropped: dict[int, list[NDArray[np.uint32]]] = {}
    counts: dict[tuple[str, str], int] = {}
    for kind, span, row in repeated_hashes(spans, cells_at_once=cells_at_once):
        first = np.flatnonzero(np.diff(kind, prepend=-1))
        repeats, kept_in = np.delete(np.arange(len(kind)), first), span[first[kind]]
        for number in np.unique(span[repeats]).tolist():
            here = repeats[span[repeats] == number]
            dropped.setdefault(number, []).append(row[here])
            for kept, n in zip(*np.unique(kept_in[here], return_counts=True), strict=True):
                pair = (source_of_span[number], source_of_span[int(kept)])
                counts[pair] = counts.get(pair, 0) + int(n)
    rows_of_span = {span: np.sort(np.concatenate(rows)) for span, rows in sorted(dropped.items())}
    return rows_of_span, dict(sorted(counts.items()))


def _opened(table: Table) -> NDArray[np.void]:
    return table if isinstance(table, np.ndarray) else np.load(table, mmap_mode="r")
