"""Hashes that are the same on every machine and in every run: of texts, of the content of cells, and mixed counters.

All compiled ones rest on SplitMix64 (Steele, Lea and Flood 2014): a counter that moves by `STEP`, and a finalizer.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

STEP, MIX_1, MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
"""the step of SplitMix64's counter, and the multipliers of its finalizer"""
MIN_GENES = 20
"""Cells of fewer ranked genes are never called duplicates: a few genes in one order are often no coincidence."""
NO_HASH = 0
"""the hash of a cell that is compared with no other, such as one without an expressed gene"""

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


def cell_hashes(matrix_ng: Any, genes: Sequence[str] | None = None, *, by_rank: bool = False) -> NDArray[np.uint64]:
    """Return (n,) hashes of the pairs of gene and value of each cell, `NO_HASH` for a cell without any.

    Pairs are added up, so the order of the columns does not matter; nor do stored zeros, the format of the matrix and
    its type (values are compared as 32-bit floats).

    Parameters
    ----------
    matrix_ng
        Any sparse or dense matrix of cells × genes, not changed.
    genes
        Names of the columns; "" for a column that does not count. By default columns are told by their places.
    by_rank
        Take the place of each value among the different values of its cell instead of the value. Counts and their
        logarithms then hash alike, and so do counts and twice these counts.
    """
    csr = sparse.csr_matrix(matrix_ng)
    if not csr.has_canonical_format:  # a gene that is stored twice in a row counts once, with the sum
        csr = csr.copy()
        csr.sum_duplicates()
    if genes is None:
        gene_keys = np.arange(1, csr.shape[1] + 1, dtype=np.uint64) * STEP
    else:
        texts = (hashlib.blake2b(str(gene).encode(), digest_size=8).digest() if gene else bytes(8) for gene in genes)
        gene_keys = np.frombuffer(b"".join(texts), dtype="<u8").astype(np.uint64)
    if len(gene_keys) != csr.shape[1]:
        raise ValueError(f"expected a name for each of {csr.shape[1]} columns, found {len(gene_keys)}")
    return _hash_rows(csr.indptr, csr.indices, np.asarray(csr.data, np.float32), gene_keys, by_rank)


@numba.njit(**_options)
def mixed(value):
    """Return 64 bits that each depend on all bits of `value` (SplitMix64's finalizer)."""
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


@numba.njit(**_options)
def _hash_rows(starts, columns, values, gene_keys, by_rank):
    hashes = np.zeros(len(starts) - 1, np.uint64)
    bits = values.view(np.uint32)
    same = np.float32(1 + 2.0**-22)  # the last bits of a logarithm depend on the machine that took it
    for row in range(len(hashes)):
        begin, end = starts[row], starts[row + 1]
        order = np.arange(begin, end)
        if by_rank:
            order = begin + np.argsort(values[begin:end], kind="mergesort")
        total, n_genes, rank, last = np.uint64(0), 0, np.uint64(0), np.float32(0)
        for position in order:
            gene, value = gene_keys[columns[position]], values[position]
            if gene == 0 or value == 0:
                continue
            if value > last * same:
                rank += np.uint64(1)
            last = value
            what = rank if by_rank else np.uint64(bits[position])
            total += mixed(gene ^ mixed(what + STEP))
            n_genes += 1
        if n_genes > 0:
            hashes[row] = total if total != 0 else np.uint64(1)
    return hashes
