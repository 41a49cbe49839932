"""Matrices in the few forms that scipy and compiled loops can take, whatever a file or a caller hands over.

Half and extended floats, foreign byte orders, narrow or mixed index types: numpy and HDF5 hold them, scipy misreads
them or crashes. An index outside of the matrix would make compiled code read foreign memory, so each is looked at.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from cytoglot.errors import InputError

_INDEX_TYPES = (np.dtype(np.int32), np.dtype(np.int64))
_POINTERS = 1 << 18
"""row pointers that are looked at in one go: those of a large file are not all held in memory"""


def is_sparse(matrix: Any) -> bool:
    """Whether `matrix` is a scipy sparse matrix or array, of any format."""
    return bool(sparse.issparse(matrix))


def plain_matrix(matrix: Any) -> Any:
    """Return `matrix` as CSR, CSC or a 2-D array of plain numbers; itself where it is that already.

    Other sparse formats become CSR. The indices of the columns (rows of a CSC) are not compared with the shape here:
    `csr_of` and `check_indices` do it for the part that is read.

    Raises
    ------
    InputError
        It has not two axes, holds no numbers, or its pointers do not fit its values.
    """
    if not is_sparse(matrix):
        array = plain_values(matrix)
        if array.ndim != 2:
            raise InputError(f"expected a matrix of cells × genes with two axes, found an array of shape {array.shape}")
        return array
    dtype = _plain_type(matrix.dtype)
    matrix = matrix if dtype == matrix.dtype else matrix.astype(dtype)
    if matrix.format == "coo":
        for at, n in zip((matrix.row, matrix.col), matrix.shape, strict=True):
            check_indices(at, n)
    if matrix.format not in ("csr", "csc"):
        matrix = matrix.tocsr()
    n_stored = int(matrix.indptr[-1])  # arrays may be longer, as scipy allows
    n_major = matrix.shape[0 if matrix.format == "csr" else 1]
    check_pointers(matrix.indptr, n_major, min(n_stored, matrix.data.size, matrix.indices.size))
    if matrix.indices.dtype in _INDEX_TYPES and matrix.indptr.dtype == matrix.indices.dtype:
        return matrix
    return _assembled(
        sparse.csr_matrix if matrix.format == "csr" else sparse.csc_matrix,
        matrix.data,
        matrix.indices,
        matrix.indptr,
        matrix.shape,
    )


def plain_values(values: Any) -> NDArray[Any]:
    """Return an array whose type scipy can store: float16 becomes float32, long double float64, byte order the own."""
    array = np.asarray(values)
    return array.astype(_plain_type(array.dtype), copy=False)


def csr_of(data: NDArray[Any], indices: NDArray[Any], pointers: NDArray[np.int64], n_columns: int) -> sparse.csr_matrix:
    """Return a CSR that shares the memory of `data` (and of `indices` where their type allows).

    `pointers` are int64 and may count from anywhere; `data` and `indices` are the part that they span.

    Raises
    ------
    InputError
        An index is outside of the matrix.
    """
    check_indices(indices, n_columns)
    return _assembled(sparse.csr_matrix, data, indices, pointers - pointers[0], (len(pointers) - 1, n_columns))


def check_indices(indices: NDArray[Any], n: int) -> None:
    """Raise `InputError` where an index is negative or not below `n`."""
    if not indices.size:
        return
    if indices.dtype.kind not in "iu":
        raise InputError(f"the sparse matrix is damaged: expected whole numbers as indices, found {indices.dtype}")
    # as unsigned numbers negative ones are the largest, so one pass finds both
    if int(indices.view(indices.dtype.str.replace("i", "u")).max()) >= n:
        raise InputError(
            f"the sparse matrix is damaged: expected indices from 0 to {n - 1}, found {indices.min()} to "
            f"{indices.max()}; write or download the file again"
        )


def check_pointers(pointers: Any, n_major: int, n_values: int, what: str = "rows") -> None:
    """Raise `InputError` unless the pointers rise from 0 to the number of values; they are read in blocks."""
    n_pointers = int(pointers.shape[0])
    last, fits = 0, n_pointers == n_major + 1
    for start in range(0, n_pointers, _POINTERS):
        block = np.asarray(pointers[start : start + _POINTERS])
        if block.dtype.kind not in "iu":
            raise InputError(f"the sparse matrix is damaged: expected whole numbers as pointers, found {block.dtype}")
        block = block.astype(np.int64, copy=False)
        fits = fits and int(block[0]) >= last and bool((np.diff(block) >= 0).all()) and (start > 0 or block[0] == 0)
        last = int(block[-1])
    if not fits or last != n_values:
        raise InputError(
            f"the sparse matrix is damaged: expected row pointers for {n_major} {what} and {n_values} values, found "
            f"{n_pointers} pointers up to {last if n_pointers else 'nothing'}; write or download the file again"
        )


def _plain_type(dtype: Any) -> np.dtype[Any]:
    dtype = np.dtype(dtype)
    if dtype.kind not in "biuf":
        raise InputError(f"expected numbers (integers, floats or booleans), found values of type {dtype}")
    if dtype.kind == "f" and dtype.itemsize not in (4, 8):
        return np.dtype(np.float32 if dtype.itemsize < 4 else np.float64)
    return dtype.newbyteorder("=")


def _assembled(
    kind: type[Any], data: NDArray[Any], indices: NDArray[Any], indptr: NDArray[Any], shape: tuple[int, int]
) -> Any:
    """The sparse matrix of these arrays, which the constructor would copy where they are parts of others."""
    index = indices.dtype
    if index not in _INDEX_TYPES or data.size > np.iinfo(index).max:
        index = np.dtype(np.int32 if max(data.size, *shape) <= np.iinfo(np.int32).max else np.int64)
    matrix = kind(shape, dtype=data.dtype)
    matrix.data = data
    matrix.indices, matrix.indptr = indices.astype(index, copy=False), indptr.astype(index, copy=False)
    return matrix
