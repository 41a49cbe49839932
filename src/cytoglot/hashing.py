"""64 well mixed bits, and the content of a cell as 64 bits: the same in any file, format and order of the genes."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

NO_CONTENT = 0
"""the hash of a cell without one expressed gene: such cells are equal for want of content"""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def mixed(value):
    """Return 64 well mixed bits (the finaliser of SplitMix64, Steele, Lea and Flood 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def cell_hashes(matrix_ng: Any, genes: Sequence[str] | None = None, *, by_rank: bool = False) -> NDArray[np.uint64]:
    """Return (n,) hashes of the pairs of gene and value of each cell, `NO_CONTENT` for a cell without any.

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
        gene_keys = np.arange(1, csr.shape[1] + 1, dtype=np.uint64) * _GOLDEN
    else:
        texts = (hashlib.blake2b(str(gene).encode(), digest_size=8).digest() if gene else bytes(8) for gene in genes)
        gene_keys = np.frombuffer(b"".join(texts), dtype="<u8").astype(np.uint64)
    if len(gene_keys) != csr.shape[1]:
        raise ValueError(f"expected a name for each of {csr.shape[1]} columns, found {len(gene_keys)}")
    return _hash_rows(csr.indptr, csr.indices, np.asarray(csr.data, np.float32), gene_keys, by_rank)


@numba.njit(cache=True, nogil=True, error_model="numpy")
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
            total += mixed(gene ^ mixed(what + _GOLDEN))
            n_genes += 1
        if n_genes > 0:
            hashes[row] = total if total != 0 else np.uint64(1)
    return hashes
