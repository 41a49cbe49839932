"""Whole cells out of a matrix wherever it lies: memory, HDF5, zarr or dask, stored by rows, by columns or dense.

Every source hands out the rows `start:stop` as CSR with the columns of the matrix; memory is bounded by what is asked.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zarr
from numpy.typing import NDArray
from scipy import sparse

from cytoglot.data.normalize import is_sparse
from cytoglot.errors import InputError

_DENSE_BLOCK = 1 << 24
"""values of a dense block that is read at once"""
_SPILL_BLOCK = 1 << 21
"""stored values of a column-wise matrix that are moved at once"""
_BUCKET = 1 << 22
"""stored values wished for in one bucket of a spilled matrix"""
_POINTERS = 1 << 18
"""row pointers that are kept in memory, or checked at once where there are more"""


class CellRows(Protocol):
    """A cells × genes matrix that can be read by whole cells."""

    shape: tuple[int, int]

    @property
    def n_values(self) -> int:
        """Number of stored values; of a dense matrix an estimate of those that are not zero."""
        ...

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Return the cells `start:stop` as CSR; the memory may be shared with the matrix."""
        ...

    def sample(self, cells: NDArray[np.int64]) -> sparse.csr_matrix:
        """Return those cells (ascending positions) as CSR."""
        ...

    def close(self) -> None:
        """Delete temporary files, if there are any."""
        ...


class _Rows:
    """What the sources by rows share."""

    shape: tuple[int, int]

    @property
    def n_values(self) -> int:
        """Return an estimate from up to 256 cells in 32 places."""
        n_cells = self.shape[0]
        if not n_cells:
            return 0
        starts = np.unique(np.linspace(0, max(n_cells - 8, 0), 32).astype(np.int64))
        cells = np.unique(np.minimum(starts[:, None] + np.arange(8), n_cells - 1))
        return round(int(self.sample(cells).nnz) * n_cells / cells.size)

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        raise NotImplementedError

    def sample(self, cells: NDArray[np.int64]) -> sparse.csr_matrix:
        """Return those cells as CSR, reading each run of neighbours at once."""
        if not cells.size:
            return sparse.csr_matrix(self.rows(0, 0))
        runs = np.split(cells, np.flatnonzero(np.diff(cells) != 1) + 1)
        return sparse.csr_matrix(sparse.vstack([self.rows(int(r[0]), int(r[-1]) + 1) for r in runs], format="csr"))

    def close(self) -> None:
        """Nothing to delete."""


class MemoryRows(_Rows):
    """A sparse or dense matrix in memory. CSC is converted to CSR once, which needs its memory again."""

    def __init__(self, matrix: Any) -> None:
        self._matrix = matrix.tocsr() if is_sparse(matrix) else np.asarray(matrix)
        self.shape = (int(matrix.shape[0]), int(matrix.shape[1]))

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Return the cells `start:stop`; all of a CSR comes back itself, not a copy."""
        if (start, stop) == (0, self.shape[0]) and isinstance(self._matrix, sparse.csr_matrix):
            return self._matrix
        return sparse.csr_matrix(self._matrix[start:stop])


class DiskCsr(_Rows):
    """CSR arrays on disk (h5ad, zarr, or 10x HDF5, whose CSC of genes × cells is the same thing)."""

    def __init__(self, *, data: Any, indices: Any, indptr: Any, shape: tuple[int, int]) -> None:
        self._data, self._indices = data, indices
        self.shape = shape
        _check_indptr(indptr, shape[0], int(data.shape[0]), "rows")
        # the pointers of millions of cells stay on disk: they would be what memory grows by
        self._indptr = indptr if shape[0] > _POINTERS else np.asarray(indptr[:], dtype=np.int64)

    @property
    def n_values(self) -> int:
        """Number of stored values."""
        return int(self._data.shape[0])

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read the cells `start:stop`."""
        pointers = np.asarray(self._indptr[start : stop + 1], dtype=np.int64)
        low, high = int(pointers[0]), int(pointers[-1])
        indices = _checked_indices(self._indices[low:high], self.shape[1])
        indptr = (pointers - low).astype(indices.dtype)
        data = np.asarray(self._data[low:high])
        return sparse.csr_matrix((data, indices, indptr), shape=(stop - start, self.shape[1]))


class DiskDense(_Rows):
    """A dense array on disk (h5py or zarr), read in blocks of 16 million values at most."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.shape = (int(array.shape[0]), int(array.shape[1]))

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read the cells `start:stop`."""
        step = max(1, _DENSE_BLOCK // max(1, self.shape[1]))
        starts = range(start, stop, step) if stop > start else [start]
        blocks = [sparse.csr_matrix(np.asarray(self._array[a : min(a + step, stop)])) for a in starts]
        return blocks[0] if len(blocks) == 1 else sparse.csr_matrix(sparse.vstack(blocks, format="csr"))


class DaskRows(_Rows):
    """A dask array of dense or sparse chunks; the chunks that overlap the cells asked for are computed."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.shape = (int(array.shape[0]), int(array.shape[1]))

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Compute the cells `start:stop`."""
        return sparse.csr_matrix(self._array[start:stop].compute())


class SpilledRows(_Rows):
    """A matrix whose values came in another order, sorted by cell into temporary files of neighbouring cells.

    Needs 8 bytes and the value's own for each stored value on disk, in `folder` (default: the system's temporary
    folder); memory is one bucket of about four million values, more where neighbouring cells are far above average.
    """

    def __init__(self, *, shape: tuple[int, int], dtype: np.dtype, n_values: int, folder: Path | None = None) -> None:
        self.shape = shape
        self._record = np.dtype([("row", np.int32), ("column", np.int32), ("value", dtype)])
        n_buckets = max(1, min(-(-n_values // _BUCKET), shape[0], 1 << 15))
        self._cells_per_bucket = max(1, -(-shape[0] // n_buckets))
        self._folder = Path(tempfile.mkdtemp(prefix="cytoglot-", dir=folder))
        self._bucket: tuple[int, sparse.csr_matrix] | None = None
        self._n_values = n_values

    @property
    def n_values(self) -> int:
        """Number of values, as it was announced."""
        return self._n_values

    def add(self, rows: NDArray, columns: NDArray, values: NDArray) -> None:
        """Append values, in any order of rows; those of one cell keep the order in which they came."""
        if not values.size:
            return
        buckets = (rows // self._cells_per_bucket).astype(np.uint16)
        order = np.argsort(buckets, kind="stable")
        records = np.empty(order.size, dtype=self._record)
        records["row"], records["column"], records["value"] = rows[order], columns[order], values[order]
        present, starts = np.unique(buckets[order], return_index=True)
        for bucket, part in zip(present, np.split(records, starts[1:]), strict=True):
            with self._path(int(bucket)).open("ab") as handle:  # not kept open: there may be thousands
                part.tofile(handle)

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read the cells `start:stop`; one bucket is kept for the next call."""
        per = self._cells_per_bucket
        parts = []
        for bucket in range(start // per, max(-(-stop // per), start // per + 1)):
            first = bucket * per
            parts.append(self._load(bucket)[max(start - first, 0) : max(stop - first, 0)])
        return parts[0] if len(parts) == 1 else sparse.csr_matrix(sparse.vstack(parts, format="csr"))

    def close(self) -> None:
        """Delete the temporary files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket}.bin"

    def _load(self, bucket: int) -> sparse.csr_matrix:
        if self._bucket is None or self._bucket[0] != bucket:
            first = bucket * self._cells_per_bucket
            n_cells = max(0, min(self._cells_per_bucket, self.shape[0] - first))
            path = self._path(bucket)
            records = np.fromfile(path, dtype=self._record) if path.exists() else np.empty(0, dtype=self._record)
            coordinates = (records["row"] - first, records["column"])
            csr = sparse.csr_matrix((records["value"], coordinates), shape=(n_cells, self.shape[1]))
            self._bucket = (bucket, csr)
        return self._bucket[1]


class DiskCsc:
    """CSC arrays on disk: stored by genes, so that no cell can be read alone.

    A sample costs one pass over the file in blocks of two million values. The first call of `rows` sorts the whole
    file by cell into temporary files (one pass; 12 bytes of disk for each value of 4 bytes), later calls read those.
    """

    def __init__(
        self, *, data: Any, indices: Any, indptr: Any, shape: tuple[int, int], folder: Path | None = None
    ) -> None:
        self._data, self._indices = data, indices
        self.shape = shape
        self._folder = folder
        self._spilled: SpilledRows | None = None
        _check_indptr(indptr, shape[1], int(data.shape[0]), "columns")
        self._indptr = np.asarray(indptr[:], dtype=np.int64)

    @property
    def n_values(self) -> int:
        """Number of stored values."""
        return int(self._indptr[-1])

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read the cells `start:stop` from the temporary files."""
        if self._spilled is None:
            n_values = int(self._indptr[-1])
            dtype = np.dtype(self._data.dtype)
            self._spilled = SpilledRows(shape=self.shape, dtype=dtype, n_values=n_values, folder=self._folder)
            for rows, columns, values in self._blocks():
                self._spilled.add(rows, columns, values)
        return self._spilled.rows(start, stop)

    def sample(self, cells: NDArray[np.int64]) -> sparse.csr_matrix:
        """Return those cells, in one pass over the file."""
        position = np.full(self.shape[0], -1, dtype=np.int32)
        position[cells] = np.arange(cells.size)
        rows, columns, values = [], [], [np.empty(0, dtype=self._data.dtype)]
        for block_rows, block_columns, block_values in self._blocks():
            wanted = position[block_rows] >= 0
            rows.append(position[block_rows[wanted]])
            columns.append(block_columns[wanted])
            values.append(block_values[wanted])
        empty = np.empty(0, dtype=np.int32)
        coordinates = (np.concatenate([empty, *rows]), np.concatenate([empty, *columns]))
        return sparse.csr_matrix((np.concatenate(values), coordinates), shape=(cells.size, self.shape[1]))

    def close(self) -> None:
        """Delete the temporary files, if there are any."""
        if self._spilled is not None:
            self._spilled.close()

    def _blocks(self) -> Iterator[tuple[NDArray, NDArray, NDArray]]:
        """Rows, columns and values in the order of the file."""
        n_values = int(self._indptr[-1])
        for low in range(0, n_values, _SPILL_BLOCK):
            high = min(low + _SPILL_BLOCK, n_values)
            first, last = (int(c) for c in np.searchsorted(self._indptr, (low, high - 1), side="right") - 1)
            bounds = np.clip(self._indptr[first : last + 2], low, high)
            columns = np.repeat(np.arange(first, last + 1, dtype=np.int32), np.diff(bounds))
            rows = _checked_indices(self._indices[low:high], self.shape[0])
            yield rows, columns, np.asarray(self._data[low:high])


def in_memory(matrix: Any) -> bool:
    """Whether `matrix` is a sparse or dense matrix in memory."""
    return is_sparse(matrix) or isinstance(matrix, np.ndarray)


def cell_rows(matrix: Any, *, spill_folder: Path | None = None) -> CellRows:
    """Return the reader by cells that fits `matrix`.

    Known are scipy sparse, numpy, dask, h5py and zarr arrays, AnnData's backed sparse matrices, and the readers here.

    Raises
    ------
    TypeError
        The matrix is of no known kind.
    """
    if isinstance(matrix, _Rows | DiskCsc):
        return matrix
    if in_memory(matrix):
        return MemoryRows(matrix)
    home = type(matrix).__module__.partition(".")[0]
    if home == "dask":  # told by name, because dask is an optional dependency
        return DaskRows(matrix)
    if home in ("h5py", "zarr"):
        return DiskDense(matrix)
    if home == "anndata":
        return sparse_group_rows(matrix.group, shape=matrix.shape, layout=matrix.format, spill_folder=spill_folder)
    raise TypeError(f"cannot read cells from a {type(matrix).__module__}.{type(matrix).__name__}")


def sparse_group_rows(
    group: Any, *, shape: tuple[int, int], layout: str, spill_folder: Path | None = None
) -> DiskCsr | DiskCsc:
    """Return the reader of an HDF5 or zarr group with `data`, `indices` and `indptr`, `layout` "csr" or "csc"."""
    arrays = {name: group[name] for name in ("data", "indices", "indptr")}
    shape = (int(shape[0]), int(shape[1]))
    _check_chunks(arrays, n_major=shape[0] if layout == "csr" else shape[1])
    return DiskCsr(**arrays, shape=shape) if layout == "csr" else DiskCsc(**arrays, shape=shape, folder=spill_folder)


def _check_chunks(arrays: dict[str, Any], *, n_major: int) -> None:
    """Refuse a sparse zarr with lost chunk files, which zarr reads as zeros without a word.

    Chunks of zeros are not written, so a chunk may rightly be absent where no row has two values: all are of column 0.
    """
    for name in ("data", "indices"):
        array = arrays[name]
        if isinstance(array, zarr.Array) and array.shape[0] > n_major and array.nchunks_initialized < array.nchunks:
            raise InputError(
                f"the sparse matrix is damaged: expected {array.nchunks} chunks of {array.name}, found "
                f"{array.nchunks_initialized}; copy or download the folder again"
            )


def _check_indptr(indptr: Any, n_major: int, n_values: int, what: str) -> None:
    """Refuse pointers that do not rise from 0 to the number of values; they are read in blocks."""
    n_pointers = int(indptr.shape[0])
    last, fits = 0, n_pointers == n_major + 1
    for start in range(0, n_pointers, _POINTERS):
        block = np.asarray(indptr[start : start + _POINTERS], dtype=np.int64)
        fits = fits and int(block[0]) >= last and bool((np.diff(block) >= 0).all()) and (start > 0 or block[0] == 0)
        last = int(block[-1])
    if not fits or last != n_values:
        raise InputError(
            f"the sparse matrix is damaged: expected row pointers for {n_major} {what} and {n_values} values, found "
            f"{n_pointers} pointers up to {last if n_pointers else 'nothing'}; write or download the file again"
        )


def _checked_indices(indices: Any, n_minor: int) -> NDArray:
    """Refuse indices outside the matrix, which would make compiled code read foreign memory."""
    indices = np.asarray(indices)
    if indices.size and not (indices.min() >= 0 and indices.max() < n_minor):
        raise InputError(
            f"the sparse matrix is damaged: expected indices from 0 to {n_minor - 1}, found {indices.min()} to "
            f"{indices.max()}; write or download the file again"
        )
    return indices
