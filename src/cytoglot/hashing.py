"""Hashes that are the same on every machine and in every run: of texts, of the content of cells, and mixed counters.

All compiled ones rest on SplitMix64 (Steele, Lea and Flood 2014): a counter that moves by `STEP`, and a finaliser.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import hashlib
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

STEP, MIX_1, MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
"""the step of SplitMix64's counter, and the multipliers of its finaliser"""
MIN_GENES = 20
"""Cells of fewer ranked genes are never called duplicates: a few genes in one order are often no coincidence."""
NO_HASH = 0

_options = {"cache": True, "nogil": True, "error_model": "numpy"}


def hash_text(text: str) -> int:
    """Return 64 bits of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def content_hashes(
    offsets: NDArray[np.integer], gene_ids: NDArray[Any], *, min_genes: int = MIN_GENES
) -> NDArray[np.uint64]:
    """Return (n,) hashes of the ranked ids of each cell, `NO_HASH` for cells of fewer than `min_genes`.

    The order of the genes counts, the type of the ids does not. `offsets` (n + 1,) and `gene_ids` (w,) are those of a
    `CellBlock`.
    """
    return _hash_cells(np.asarray(offsets, np.int64), np.ascontiguousarray(gene_ids), min_genes)


@numba.njit(**_options)
def mixed(value):
    """Return 64 bits that each depend on all bits of `value` (SplitMix64's finaliser)."""
    value = (value ^ (value >> np.uint64(30))) * MIX_1
    value = (value ^ (value >> np.uint64(27))) * MIX_2
    return value ^ (value >> np.uint64(31))


@numba.njit(**_options)
def hash_texts(offsets, text, seed):
    """Return 64 bits for each text: FNV-1a over its UTF-8 bytes, then mixed with the seed."""
    hashes = np.empty(len(offsets) - 1, np.uint64)
    for number in range(len(hashes)):
        value = np.uint64(0xCBF29CE484222325)
        for byte in range(offsets[number], offsets[number + 1]):
            value = (value ^ np.uint64(text[byte])) * np.uint64(0x100000001B3)
        hashes[number] = mixed(value ^ mixed(seed + STEP))
    return hashes


@numba.njit(**_options)
def _hash_cells(offsets, gene_ids, min_genes):
    hashes = np.zeros(len(offsets) - 1, np.uint64)
    for cell in range(len(hashes)):
        if offsets[cell + 1] - offsets[cell] < min_genes:
            continue
        value = STEP
        for position in range(offsets[cell], offsets[cell + 1]):
            value = mixed(value ^ np.uint64(gene_ids[position])) + STEP
        hashes[cell] = value if value != 0 else np.uint64(1)
    return hashes
