"""Whole cells out of a matrix wherever it lies: memory, HDF5, zarr or dask, stored by rows, by columns or dense.

Every source hands out the rows `start:stop` as CSR with the columns of the matrix; memory is bounded by what is asked.
"""

from __future__ import annotations

import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from scipy import sparse

from cytoglot.data.plain_matrix import check_indices, check_pointers, csr_of, is_sparse, plain_matrix, plain_values
from cytoglot.errors import InputError

#: Stored values of a block of cells: 64 MB of float32 with their columns.
BLOCK_VALUES = 1 << 23
#: Cells of a block at most, and at least where they express many genes.
BLOCK_CELLS, _FEW_CELLS = 8192, 128

_DENSE_BLOCK = 1 << 24
"""values of a dense block that is read at once"""
_SPILL_BLOCK = 1 << 21
"""stored values of a column-wise matrix that are moved at once"""
_BUCKET = 1 << 22
"""stored values wished for in one bucket of a matrix that is not stored by cells"""
_PASSES = 16
"""buckets of a CSC in memory at most: each takes a pass over the whole matrix"""
_POINTERS = 1 << 18
"""row pointers of a file that are kept in memory"""


class CellRows(ABC):
    """A cells × genes matrix that can be read by whole cells."""

    shape: tuple[int, int]

    @property
    def n_values(self) -> int:
        """Number of stored values; of a dense matrix an estimate, from up to 256 cells in 32 places."""
        n_cells = self.shape[0]
        if not n_cells:
            return 0
        starts = np.unique(np.linspace(0, max(n_cells - 8, 0), 32).astype(np.int64))
        cells = np.unique(np.minimum(starts[:, None] + np.arange(8), n_cells - 1))
        return round(int(self.sample(cells).nnz) * n_cells / cells.size)

    @abstractmethod
    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Return the cells `start:stop` as CSR; the memory may be shared with the matrix."""

    def sample(self, cells: NDArray[np.int64]) -> sparse.csr_matrix:
        """Return those cells (ascending positions) as CSR, reading each run of neighbors at once."""
        if not cells.size:
            return sparse.csr_matrix(self.rows(0, 0))
        runs = np.split(cells, np.flatnonzero(np.diff(cells) != 1) + 1)
        return sparse.csr_matrix(sparse.vstack([self.rows(int(r[0]), int(r[-1]) + 1) for r in runs], format="csr"))

    def close(self) -> None:  # noqa: B027 - most have none
        """Delete temporary files, if there are any."""


class CsrRows(CellRows):
    """CSR arrays in memory, of which blocks are views, or on disk.

    On disk: h5ad, zarr, or 10x HDF5, whose CSC of genes × cells is the same thing.
    """

    def __init__(self, *, data: Any, indices: Any, indptr: Any, shape: tuple[int, int]) -> None:
        self._data, self._indices = data, indices
        self.shape = shape
        check_pointers(indptr, shape[0], int(data.shape[0]))
        # the pointers of millions of cells stay on disk: they would be what memory grows by
        self._indptr = indptr if shape[0] > _POINTERS else np.asarray(indptr[:], dtype=np.int64)

    @property
    def n_values(self) -> int:
        """Number of stored values."""
        return int(self._data.shape[0])

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read the cells `start:stop`."""
        pointers = np.asarray(self._indptr[start : stop + 1], dtype=np.int64)
        stored = slice(int(pointers[0]), int(pointers[-1]))
        return csr_of(plain_values(self._data[stored]), np.asarray(self._indices[stored]), pointers, self.shape[1])


class DenseRows(CellRows):
    """A dense array in memory or on disk (h5py, zarr), of which at most 16 million values are dense at a time."""

    def __init__(self, array: Any) -> None:
        self._array = array  # made plain block by block: to do it at once would be a second matrix
        self.shape = (int(array.shape[0]), int(array.shape[1]))

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read the cells `start:stop`."""
        step = max(1, _DENSE_BLOCK // max(1, self.shape[1]))
        starts = range(start, stop, step) if stop > start else [start]
        blocks = [sparse.csr_matrix(plain_values(self._array[a : min(a + step, stop)])) for a in starts]
        return blocks[0] if len(blocks) == 1 else sparse.csr_matrix(sparse.vstack(blocks, format="csr"))


class _BucketRows(CellRows):
    """A matrix that is not stored by cells: neighboring cells are made CSR together and kept for the next call."""

    _edges: NDArray[np.int64]
    """first cell of each bucket, and the number of cells"""
    _kept: tuple[int, sparse.csr_matrix] | None = None

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Return the cells `start:stop` out of the buckets that hold them."""
        first, last = np.searchsorted(self._edges, start, side="right") - 1, np.searchsorted(self._edges, stop)
        parts = []
        for number in range(int(first), int(last)):
            if self._kept is None or self._kept[0] != number:
                self._kept = (number, self._bucket(number))
            low, bucket = int(self._edges[number]), self._kept[1]
            whole = start <= low and stop >= low + bucket.shape[0]
            parts.append(bucket if whole else bucket[max(start - low, 0) : stop - low])
        if not parts:
            return sparse.csr_matrix((0, self.shape[1]), dtype=np.float32)
        return parts[0] if len(parts) == 1 else sparse.csr_matrix(sparse.vstack(parts, format="csr"))

    @abstractmethod
    def _bucket(self, number: int) -> sparse.csr_matrix: ...


class MemoryCsc(_BucketRows):
    """A CSC matrix in memory, taken in buckets of cells: one pass over the matrix for each, 16 at most.

    Memory is one bucket, which is a sixteenth of the matrix where that is more than eight million values.
    """

    def __init__(self, matrix: Any) -> None:
        self._matrix = plain_matrix(matrix)
        self.shape = (int(matrix.shape[0]), int(matrix.shape[1]))
        check_indices(self._matrix.indices, self.shape[0])
        self._edges = _even_edges(self.shape[0], min(_PASSES, -(-self.n_values // BLOCK_VALUES)))

    @property
    def n_values(self) -> int:
        """Number of stored values."""
        return int(self._matrix.indptr[-1])

    def sample(self, cells: NDArray[np.int64]) -> sparse.csr_matrix:
        """Return those cells, in one pass over the matrix."""
        return sparse.csr_matrix(self._matrix[cells])

    def _bucket(self, number: int) -> sparse.csr_matrix:
        part = slice(int(self._edges[number]), int(self._edges[number + 1]))
        return sparse.csr_matrix(self._matrix if part == slice(0, self.shape[0]) else self._matrix[part])


class DaskRows(_BucketRows):
    """A dask array of dense or sparse chunks; each chunk of cells is computed once, in this thread."""

    def __init__(self, array: Any) -> None:
        if any(np.isnan(n) for n in array.shape):
            raise InputError("the dask array does not know its shape; call compute_chunk_sizes() on it first")
        self._array = array.rechunk({1: -1}) if array.numblocks[1] > 1 else array
        self.shape = (int(array.shape[0]), int(array.shape[1]))
        self._edges = np.cumsum([0, *array.chunks[0]], dtype=np.int64)

    def _bucket(self, number: int) -> sparse.csr_matrix:
        chunk = self._array.blocks[number, 0].compute(scheduler="synchronous")
        return cell_rows(chunk).rows(0, int(chunk.shape[0]))


class SpilledRows(_BucketRows):
    """A matrix whose values came in another order, sorted by cell into temporary files of neighboring cells.

    Needs 8 bytes and the value's own for each stored value on disk, in `folder` (default: the system's temporary
    folder); memory is one bucket of about four million values, more where neighboring cells are far above average.
    """

    def __init__(self, *, shape: tuple[int, int], dtype: np.dtype, n_values: int, folder: Path | None = None) -> None:
        self.shape = shape
        self._record = np.dtype([("row", np.int32), ("column", np.int32), ("value", dtype)])
        self._edges = _even_edges(shape[0], min(-(-n_values // _BUCKET), 1 << 15))
        self._folder = Path(tempfile.mkdtemp(prefix="cytoglot-", dir=folder))
        self._n_values = n_values

    @property
    def n_values(self) -> int:
        """Number of values, as it was announced."""
        return self._n_values

    def add(self, rows: NDArray, columns: NDArray, values: NDArray) -> None:
        """Append values, in any order of rows; those of one cell keep the order in which they came."""
        if not values.size:
            return
        buckets = (rows // int(self._edges[1])).astype(np.uint16)
        order = np.argsort(buckets, kind="stable")
        records = np.empty(order.size, dtype=self._record)
        records["row"], records["column"], records["value"] = rows[order], columns[order], values[order]
        present, starts = np.unique(buckets[order], return_index=True)
        for bucket, part in zip(present, np.split(records, starts[1:]), strict=True):
            with self._path(int(bucket)).open("ab") as handle:  # not kept open: there may be thousands
                part.tofile(handle)

    def close(self) -> None:
        """Delete the temporary files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket}.bin"

    def _bucket(self, number: int) -> sparse.csr_matrix:
        first, path = int(self._edges[number]), self._path(number)
        records = np.fromfile(path, dtype=self._record) if path.exists() else np.empty(0, dtype=self._record)
        shape = (int(self._edges[number + 1]) - first, self.shape[1])
        return sparse.csr_matrix((records["value"], (records["row"] - first, records["column"])), shape=shape)


class DiskCsc(CellRows):
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
        check_pointers(indptr, shape[1], int(data.shape[0]), "columns")
        self._indptr = np.asarray(indptr[:], dtype=np.int64)

    @property
    def n_values(self) -> int:
        """Number of stored values."""
        return int(self._indptr[-1])

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read the cells `start:stop` from the temporary files."""
        if self._spilled is None:
            n_values = int(self._indptr[-1])
            dtype = plain_values(self._data[:0]).dtype
            self._spilled = SpilledRows(shape=self.shape, dtype=dtype, n_values=n_values, folder=self._folder)
            for rows, columns, values in self._blocks():
                self._spilled.add(rows, columns, values)
        return self._spilled.rows(start, stop)

    def sample(self, cells: NDArray[np.int64]) -> sparse.csr_matrix:
        """Return those cells, in one pass over the file."""
        position = np.full(self.shape[0], -1, dtype=np.int32)
        position[cells] = np.arange(cells.size)
        rows, columns, values = [], [], [plain_values(self._data[:0])]
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
            rows = np.asarray(self._indices[low:high])
            check_indices(rows, self.shape[0])
            yield rows.astype(np.int64, copy=False), columns, plain_values(self._data[low:high])


def cells_per_block(rows: CellRows) -> int:
    """Return the number of cells that hold about `BLOCK_VALUES` stored values, from 128 to 8,192."""
    values_per_cell = rows.n_values / max(1, rows.shape[0])
    return int(np.clip(BLOCK_VALUES / max(1.0, values_per_cell), _FEW_CELLS, BLOCK_CELLS))


def blocks(rows: CellRows, block_cells: int) -> Iterator[tuple[slice, sparse.csr_matrix]]:
    """Yield all cells in order, a block at a time, with their positions; not to be changed."""
    for start in range(0, rows.shape[0], block_cells):
        cells = slice(start, min(start + block_cells, rows.shape[0]))
        yield cells, rows.rows(cells.start, cells.stop)


def in_memory(matrix: Any) -> bool:
    """Whether `matrix` is a sparse or dense matrix in memory."""
    return is_sparse(matrix) or isinstance(matrix, np.ndarray)


def cell_rows(matrix: Any, *, spill_folder: Path | None = None) -> CellRows:
    """Return the reader by cells that fits `matrix`.

    Known are scipy sparse, numpy, dask, h5py and zarr arrays, AnnData's backed sparse matrices, and the readers here.

    Raises
    ------
    InputError
        The matrix is of no known kind, or has not two axes.
    """
    if len(getattr(matrix, "shape", ())) != 2:
        found = getattr(matrix, "shape", type(matrix).__name__)
        raise InputError(f"expected a matrix of cells × genes with two axes, found {found}; pass a sparse or dense one")
    if isinstance(matrix, CellRows):
        return matrix
    if in_memory(matrix):
        if not is_sparse(matrix):
            return DenseRows(np.asarray(matrix))
        if matrix.format == "csc":
            return MemoryCsc(matrix)
        csr = plain_matrix(matrix)
        stored = slice(int(csr.indptr[-1]))  # arrays may be longer, as scipy allows
        return CsrRows(data=csr.data[stored], indices=csr.indices[stored], indptr=csr.indptr, shape=csr.shape)
    home = type(matrix).__module__.partition(".")[0]
    if home == "dask":  # told by name, because dask is an optional dependency
        return DaskRows(matrix)
    if home in ("h5py", "zarr"):
        return DenseRows(matrix)
    if home == "anndata":
        arrays = {name: matrix.group[name] for name in ("data", "indices", "indptr")}
        shape = (int(matrix.shape[0]), int(matrix.shape[1]))
        n_major = shape[0] if matrix.format == "csr" else shape[1]
        # zarr reads lost chunk files as zeros without a word. Chunks of zeros are not written, so that one may rightly
        # be absent where no row has two values: all are of column 0.
        for array in (arrays["data"], arrays["indices"]):
            if isinstance(array, zarr.Array) and array.shape[0] > n_major and array.nchunks_initialized < array.nchunks:
                raise InputError(
                    f"the sparse matrix is damaged: expected {array.nchunks} chunks of {array.name}, found "
                    f"{array.nchunks_initialized}; copy or download the folder again"
                )
        if matrix.format == "csr":
            return CsrRows(**arrays, shape=shape)
        return DiskCsc(**arrays, shape=shape, folder=spill_folder)
    raise InputError(f"cannot read cells from a {type(matrix).__module__}.{type(matrix).__name__}; pass numpy or scipy")


def _even_edges(n_cells: int, n_buckets: int) -> NDArray[np.int64]:
    """First cells of at most `n_buckets` buckets of equal size, and the number of cells."""
    size = max(1, -(-n_cells // max(1, n_buckets)))
    return np.append(np.arange(0, n_cells, size), max(n_cells, 0)).astype(np.int64)
