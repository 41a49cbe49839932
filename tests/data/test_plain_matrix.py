"""Matrices of every type and index width are read as what they are, and damaged ones are refused before they crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest
import zarr
from anndata import AnnData
from scipy import sparse

from cytoglot.data.plain_matrix import csr_of, plain_matrix
from cytoglot.data.readers.cell_rows import MemoryCsc, cell_rows
from cytoglot.data.readers.read import open_cells, read
from cytoglot.data.synthetic import make_cells
from cytoglot.errors import InputError
from cytoglot.sentence.encode import encode, encode_matrix

NARROW = ["uint8", "int8", "uint16", "int16", "uint32", ">i4", "int64", "uint64"]
TYPES = ["float16", "longdouble", "bool", "uint64", "int8", ">f4", ">i8", "uint16"]


@pytest.fixture
def cells() -> AnnData:
    return make_cells(n_cells=70, n_genes=50, seed=2)


def with_arrays(matrix: Any, **arrays: np.ndarray) -> Any:
    """The matrix with arrays that its constructor would have changed."""
    result = matrix.copy()
    for name, array in arrays.items():
        setattr(result, name, array)
    return result


def rewritten(group: Any, name: str, values: np.ndarray) -> None:
    attributes = dict(group[name].attrs)
    del group[name]
    if isinstance(group, h5py.Group):
        group.create_dataset(name, data=values).attrs.update(attributes)
    else:
        group.create_array(name, data=values).attrs.update(attributes)


def on_disk(adata: AnnData, path: Path) -> Path:
    if path.suffix == ".zarr":
        with anndata.settings.override(zarr_write_format=2):
            adata.write_zarr(path)
    else:
        adata.write_h5ad(path)
    return path


def opened(path: Path) -> Any:
    return zarr.open_group(path, mode="r+", use_consolidated=False) if path.suffix == ".zarr" else h5py.File(path, "r+")


class TestIndices:
    @pytest.mark.parametrize("dtype", NARROW)
    @pytest.mark.parametrize("layout", [sparse.csr_matrix, sparse.csc_matrix])
    def test_of_any_width_in_memory(self, dtype: str, layout: Callable[[Any], Any], cells: AnnData) -> None:
        matrix = layout(cells.X)
        narrow = with_arrays(matrix, indices=matrix.indices.astype(dtype))
        expected = list(encode(cells))
        assert list(encode(AnnData(obs=cells.obs, var=cells.var, layers={"counts": narrow}))) == expected
        assert np.array_equal(cell_rows(narrow).rows(3, 60).toarray(), cells.X[3:60].toarray())
        assert np.array_equal(plain_matrix(narrow).toarray(), cells.X.toarray())

    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int64"])
    @pytest.mark.parametrize("name", ["a.h5ad", "a.zarr"])
    @pytest.mark.parametrize("place", ["X", "layers/counts", "raw/X"])
    @pytest.mark.filterwarnings("ignore:.*zarr")
    def test_of_any_width_on_disk(self, dtype: str, name: str, place: str, tmp_path: Path) -> None:
        cells = make_cells(n_cells=300, n_genes=100, seed=2)  # more values than 16 bits can count in a column type of 8
        layout = sparse.csr_matrix if place == "X" else sparse.csc_matrix
        counts = layout(cells.X)
        stored = AnnData(X=counts, obs=cells.obs, var=cells.var)
        if place == "layers/counts":
            stored.layers["counts"] = counts
        elif place == "raw/X":
            stored.raw = stored.copy()
        path = on_disk(stored, tmp_path / name)
        handle = opened(path)
        group = handle[place]
        fits = group["indices"][:].max() <= np.iinfo(dtype).max
        if fits:
            rewritten(group, "indices", group["indices"][:].astype(dtype))
        if isinstance(handle, h5py.File):
            handle.close()
        else:
            (path / ".zmetadata").unlink()  # a copy of what was rewritten
        expected = list(encode(cells))
        with open_cells(path) as stream:
            assert list(encode(stream)) == expected
        assert np.array_equal(read(path).X.toarray(), cells.X.toarray())

    @pytest.mark.parametrize("bad", [-1, 50, 10_000])
    @pytest.mark.parametrize("layout", ["csr", "csc", "coo"])
    def test_outside_of_the_matrix_are_refused(self, bad: int, layout: str, cells: AnnData) -> None:
        matrix = cells.X.asformat(layout).copy()
        if layout == "csc":
            bad += 20 if bad > 0 else 0  # its indices are cells
        (matrix.col if layout == "coo" else matrix.indices)[7] = bad
        with pytest.raises(InputError, match=f"expected indices from 0 to .* found .*{bad}"):
            encode_matrix(matrix, encode(cells).vocabulary)
        if layout == "coo":  # no layer of an AnnData
            return
        with pytest.raises(InputError, match="the sparse matrix is damaged"):
            encode(AnnData(obs=cells.obs, var=cells.var, layers={"counts": matrix}), layer="counts")

    def test_pointers_that_fall_are_refused(self, cells: AnnData) -> None:
        pointers = cells.X.indptr.copy()
        pointers[10] = pointers[12]
        with pytest.raises(InputError, match="expected row pointers for 70 rows"):
            plain_matrix(with_arrays(cells.X, indptr=pointers))

    def test_narrow_pointers_in_a_part(self) -> None:
        block = csr_of(
            np.ones(3, np.float32), np.array([2, 0, 1], np.uint8), np.array([250, 251, 253], np.int64), n_columns=3
        )
        assert block.toarray().tolist() == [[0, 0, 1], [1, 1, 0]]

    def test_arrays_longer_than_the_pointers_say(self, cells: AnnData) -> None:
        longer = with_arrays(cells.X, data=np.append(cells.X.data, 9), indices=np.append(cells.X.indices, 0))
        assert list(encode_matrix(longer, encode(cells).vocabulary)) == list(encode(cells))


class TestValues:
    @pytest.mark.parametrize("dtype", TYPES)
    @pytest.mark.parametrize("form", ["dense", "csr", "csc", "dask"])
    def test_of_any_type(self, dtype: str, form: str, cells: AnnData) -> None:
        values = np.minimum(cells.X.toarray(), 100).astype(dtype)
        expected = encode_matrix(values.astype(np.float64), encode(cells).vocabulary)
        if form == "dask":
            matrix = pytest.importorskip("dask.array").from_array(values, chunks=(11, 20))
        elif form == "dense":
            matrix = values
        else:
            matrix = sparse.csr_matrix(values.astype(np.float64)).asformat(form)
            matrix.data = matrix.data.astype(dtype)
        found = encode(AnnData(obs=cells.obs, var=cells.var, layers={"counts": matrix}), layer="counts")
        assert list(found) == list(expected)

    @pytest.mark.parametrize("form", ["dense", "sparse"])
    @pytest.mark.parametrize("dtype", ["float16", ">f4", "bool"])
    def test_on_disk(self, form: str, dtype: str, cells: AnnData, tmp_path: Path) -> None:
        values = np.minimum(cells.X.toarray(), 100).astype(np.float32)
        stored = AnnData(
            X=values if form == "dense" else sparse.csr_matrix(values), obs=cells.obs, var=cells.var
        )
        path = on_disk(stored, tmp_path / "a.h5ad")
        with h5py.File(path, "r+") as handle:
            group, name = (handle, "X") if form == "dense" else (handle["X"], "data")
            rewritten(group, name, group[name][:].astype(dtype))
        expected = encode_matrix(values.astype(dtype).astype(np.float32), encode(cells).vocabulary)
        with open_cells(path) as stream:
            assert list(encode(stream)) == list(expected)
        assert np.array_equal(read(path).X.toarray(), values.astype(dtype).astype(np.float32))

    @pytest.mark.parametrize("dtype", ["complex64", "U3", "datetime64[s]"])
    def test_that_are_no_numbers_are_refused(self, dtype: str) -> None:
        with pytest.raises(InputError, match=r"expected numbers .* found values of type"):
            plain_matrix(np.ones((2, 2)).astype(np.int64).astype(dtype))


def test_a_plain_matrix_is_itself(cells: AnnData) -> None:
    assert plain_matrix(cells.X) is cells.X
    csr = cells.X
    block = cell_rows(csr).rows(5, 20)
    assert np.shares_memory(block.data, csr.data)


def test_a_large_csc_is_taken_in_few_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cytoglot.data.readers.cell_rows.BLOCK_VALUES", 10)
    matrix = sparse.csc_matrix(make_cells(n_cells=100, n_genes=30).X)
    rows = MemoryCsc(matrix)
    assert len(rows._edges) - 1 <= 16
    for step in (1, 9, 100):
        stacked = [rows.rows(a, min(a + step, 100)).toarray() for a in range(0, 100, step)]
        assert np.array_equal(np.vstack(stacked), matrix.toarray())


def test_backed_cells_are_taken_into_memory(cells: AnnData, tmp_path: Path) -> None:
    from cytoglot.data.readers.read import loaded

    cells.layers["counts"] = cells.X.copy()
    path = on_disk(cells, tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(path, backed="r")
    for adata in (backed, read(path, backed=True)):
        found = loaded(adata)
        assert not found.isbacked
        assert np.array_equal(found.X.toarray(), cells.X.toarray())
    backed.file.close()
    assert loaded(cells) is cells
