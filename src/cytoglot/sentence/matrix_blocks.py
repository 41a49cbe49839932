"""Any cells × genes matrix → CSR blocks of whole rows, never more of it in memory than one block.

Blocks of a CSR matrix in memory are views of it. Dense ones are dense
no longer than it takes to find the expressed genes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cytoglot.errors import InputError
from cytoglot.extras import require
from cytoglot.sentence.kernels import csc_counts, csc_fill

#: Stored (or dense) values of one block: 32 MB of float32, 64 MB with the columns.
BLOCK_VALUES = 1 << 23
#: Stored values of one view of a CSR matrix; its ranked ids take 64 MB for up to 65,536 genes.
VIEW_VALUES = 1 << 25


def csr_blocks(matrix: Any) -> Iterator[sp.csr_matrix]:
    """Iterate over the rows of `matrix` in order, as CSR; what cannot be read is refused at once.

    Parameters
    ----------
    matrix
        CSR, CSC or any other scipy sparse matrix or array; a dense array; a dask array (chunks may be dense or sparse);
        a dense or CSR data set of a backed AnnData or of h5py (read in slices of rows).

    Raises
    ------
    InputError
        It is none of these, or has not two axes.
    """
    if len(getattr(matrix, "shape", ())) != 2 or not hasattr(matrix, "dtype"):
        found = getattr(matrix, "shape", type(matrix).__name__)
        raise InputError(f"expected a matrix of cells × genes with two axes, found {found}; pass a sparse or dense one")
    if np.dtype(matrix.dtype).kind not in "buif":
        raise InputError(f"expression must be integers, floats or booleans, found {matrix.dtype}; convert it first")
    if sp.issparse(matrix):
        return _sparse_blocks(matrix)
    return _dask_blocks(matrix) if type(matrix).__module__.split(".")[0] == "dask" else _sliced_blocks(matrix)


def _sparse_blocks(matrix: Any) -> Iterator[sp.csr_matrix]:
    return _csc_blocks(matrix) if matrix.format == "csc" else _csr_views(matrix.tocsr())  # itself if CSR already


def _csr_views(matrix: Any) -> Iterator[sp.csr_matrix]:
    n_cells, n_genes = matrix.shape
    block_cells = max(1, int(VIEW_VALUES * n_cells / max(matrix.nnz, 1)))
    for begin in range(0, n_cells, block_cells):
        indptr = matrix.indptr[begin : begin + block_cells + 1]
        stored = slice(int(indptr[0]), int(indptr[-1]))
        view = sp.csr_matrix((len(indptr) - 1, n_genes), dtype=matrix.dtype)
        # set one by one: the constructor would copy slices that are less than half of their array
        view.data, view.indices, view.indptr = matrix.data[stored], matrix.indices[stored], indptr - indptr[0]
        yield view


def _csc_blocks(matrix: Any) -> Iterator[sp.csr_matrix]:
    """Transpose block by block: each column keeps a cursor, so that all blocks together read every entry once."""
    n_cells, n_genes = matrix.shape
    block_cells = max(1, int(BLOCK_VALUES * n_cells / max(matrix.nnz, 1)))
    if not matrix.has_sorted_indices:  # a cursor needs rows that rise
        matrix = matrix.sorted_indices()
    cursors = matrix.indptr[:-1].astype(np.int64)
    for begin in range(0, n_cells, block_cells):
        end = min(begin + block_cells, n_cells)
        lengths = np.zeros(end - begin + 1, np.int64)
        csc_counts(matrix.indptr, matrix.indices, cursors, begin, end, lengths[1:])
        indptr = np.cumsum(lengths)
        columns, values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], matrix.dtype)
        row_ends = indptr[:-1].copy()
        csc_fill(matrix.indptr, matrix.indices, matrix.data, cursors, begin, end, row_ends, columns, values)
        yield sp.csr_matrix((values, columns, indptr), shape=(end - begin, n_genes))


def _sliced_blocks(matrix: Any) -> Iterator[sp.csr_matrix]:
    n_cells, n_genes = matrix.shape
    block_cells = max(1, BLOCK_VALUES // max(n_genes, 1))
    for begin in range(0, n_cells, block_cells):
        yield sp.csr_matrix(_storable(np.asarray(matrix[begin : begin + block_cells])))


def _storable(values: NDArray[Any]) -> NDArray[Any]:
    """Return float16 as float32 and foreign byte orders as the machine's own, which is all that scipy's CSR stores."""
    dtype = np.dtype(np.float32) if values.dtype == np.float16 else values.dtype.newbyteorder("=")
    return values.astype(dtype, copy=False)


def _dask_blocks(matrix: Any) -> Iterator[sp.csr_matrix]:
    require("dask.array", extra="dask", purpose="ranking the chunks of a dask array")
    matrix = matrix.rechunk({1: -1}) if matrix.numblocks[1] > 1 else matrix
    for number in range(matrix.numblocks[0]):
        yield from csr_blocks(matrix.blocks[number, 0].compute(scheduler="synchronous"))
