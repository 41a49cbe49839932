"""Streaming: the same cells as reading whole, whatever the format and the chunk, in bounded memory."""

from __future__ import annotations

import errno
import tracemalloc
from pathlib import Path

import dask.array
import numpy as np
import pytest
from anndata import AnnData
from cell_files import FORMATS, cells_with_duplicates, h5ad, mtx_folder, totals_by_gene, with_x
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cytoglot.data.normalize import normalize_log
from cytoglot.data.readers.cell_rows import DiskCsc, SpilledRows, cell_rows
from cytoglot.data.readers.read import read
from cytoglot.data.readers.stream import open_cells
from cytoglot.data.synthetic import make_cells
from cytoglot.errors import InputError


def stacked(stream: object, chunk_cells: int, **options: int) -> np.ndarray:
    return np.vstack([block.toarray() for _, block in stream.chunks(chunk_cells, **options)])  # type: ignore[attr-defined]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make small files need many blocks and buckets."""
    monkeypatch.setattr("cytoglot.data.readers.cell_rows._SPILL_BLOCK", 50)
    monkeypatch.setattr("cytoglot.data.readers.cell_rows._BUCKET", 60)
    monkeypatch.setattr("cytoglot.data.readers.cell_rows._DENSE_BLOCK", 100)
    monkeypatch.setattr("cytoglot.data.readers.tenx._LINES", 70)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.usefixtures("small_blocks")
def test_chunks_of_any_size_are_the_file(name: str, tmp_path: Path) -> None:
    adata = cells_with_duplicates()
    expected = totals_by_gene(adata)
    with open_cells(FORMATS[name](adata, tmp_path)) as stream:
        assert stream.n_cells == 37
        assert list(stream.vocabulary.symbols) == list(expected.columns)
        assert stream.state.kind == "counts"
        assert list(stream.obs.index) == list(adata.obs_names)
        for chunk_cells in (1, 7, 37, 1000):
            positions = [cells for cells, _ in stream.chunks(chunk_cells)]
            assert [c.start for c in positions] == list(range(0, 37, chunk_cells))
            assert positions[-1].stop == 37
            assert np.array_equal(stacked(stream, chunk_cells), expected.to_numpy())
        assert np.array_equal(stacked(stream, 5, first_cell=11), expected.to_numpy()[11:])


@pytest.mark.parametrize(
    "make",
    [
        sparse.csr_matrix,
        sparse.csc_matrix,
        sparse.csr_array,
        lambda x: x.toarray(),
        lambda x: np.asfortranarray(x.toarray()),
        lambda x: dask.array.from_array(x.toarray(), chunks=(10, 9)),
        lambda x: dask.array.from_array(x, chunks=(10, -1)),
    ],
    ids=["csr", "csc", "csr_array", "dense", "fortran", "dask_dense", "dask_sparse"],
)
def test_an_anndata_streams_from_any_layout(make: object) -> None:
    adata = with_x(cells_with_duplicates(), make)
    expected = totals_by_gene(cells_with_duplicates())
    with open_cells(adata) as stream:
        assert stream.source == "X"
        assert np.array_equal(stacked(stream, 8), expected.to_numpy())


def test_a_stream_and_a_read_agree_on_logs(tmp_path: Path) -> None:
    adata = with_x(cells_with_duplicates(), normalize_log)
    path = h5ad(adata, tmp_path / "a.h5ad")
    with open_cells(path) as stream:
        assert np.array_equal(stacked(stream, 10), read(path).X.toarray())
        assert "the first kept" in stream.message
        assert (stream.state.log_base, stream.path) == (10.0, path)


def test_a_fault_outside_the_sample_is_found_in_its_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cytoglot.data.readers.matrix_choice._SAMPLE_RUNS", 2)
    monkeypatch.setattr("cytoglot.data.readers.matrix_choice._SAMPLE_RUN", 2)
    adata = make_cells(n_cells=50, n_genes=30)
    values = adata.X.astype(np.float32).tolil()
    values[21, 4] = np.nan
    adata.X = sparse.csr_matrix(values)
    path = h5ad(adata, tmp_path / "a.h5ad")
    with open_cells(path) as stream:
        chunks = stream.chunks(10)
        assert [next(chunks)[0].start for _ in range(2)] == [0, 10]
        with pytest.raises(InputError, match=r"found nan in cell 'cell_21' .*, gene 'GENE4' .* of X"):
            next(chunks)
    with pytest.raises(InputError, match="found nan in cell 'cell_21'"):
        read(path)


def test_a_chunk_has_at_least_one_cell() -> None:
    with pytest.raises(InputError, match="expected chunk_cells of at least 1, found 0"):
        next(open_cells(make_cells(n_cells=3, n_genes=4)).chunks(0))


def test_no_cells_give_no_chunks() -> None:
    assert list(open_cells(make_cells(n_cells=0, n_genes=4)).chunks(10)) == []


@pytest.mark.parametrize("name", ["h5ad_csc", "mtx_gz"])
def test_temporary_files_are_deleted(name: str, tmp_path: Path) -> None:
    path = FORMATS[name](cells_with_duplicates(), tmp_path)
    spill = tmp_path / "spill"
    spill.mkdir()
    with open_cells(path, spill_folder=spill) as stream:
        stacked(stream, 10)
        assert list(spill.rglob("*.bin"))
    assert list(spill.iterdir()) == []


def test_temporary_files_are_deleted_after_an_error(tmp_path: Path) -> None:
    folder = mtx_folder(make_cells(n_cells=9, n_genes=5), tmp_path / "a", zipped=False)
    text = (folder / "matrix.mtx").read_text()
    (folder / "matrix.mtx").write_text(text + "1 1 1\n")
    spill = tmp_path / "spill"
    spill.mkdir()
    with pytest.raises(InputError, match="is truncated: expected"):
        open_cells(folder, spill_folder=spill)
    assert list(spill.iterdir()) == []


def test_a_chunk_that_cannot_be_read_is_an_input_error(tmp_path: Path) -> None:
    adata = make_cells(n_cells=40, n_genes=30)
    with open_cells(h5ad(adata, tmp_path / "a.h5ad")) as stream:
        stream.close()
        with pytest.raises(InputError, match=r"a.h5ad cannot be read"):
            list(stream.chunks(5))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_spilled_and_column_wise_rows_equal_the_matrix(data: st.DataObject) -> None:
    n_cells, n_genes = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 6))
    values = data.draw(st.lists(st.sampled_from([0, 0, 1, 3]), min_size=n_cells * n_genes, max_size=n_cells * n_genes))
    csc = sparse.csc_matrix(np.array(values, dtype=np.int32).reshape(n_cells, n_genes))
    start = data.draw(st.integers(0, n_cells))
    stop = data.draw(st.integers(start, n_cells))
    cells = np.array(sorted(data.draw(st.sets(st.integers(0, n_cells - 1)))), dtype=np.int64)
    source = DiskCsc(data=csc.data, indices=csc.indices, indptr=csc.indptr, shape=csc.shape)
    spilled = SpilledRows(shape=csc.shape, dtype=np.dtype(np.int32), n_values=1 << 24)
    try:
        coo = csc.tocoo()
        for part in np.array_split(np.arange(coo.nnz), 3):
            spilled.add(coo.row[part], coo.col[part], coo.data[part])
        for rows in (source, spilled, cell_rows(csc)):
            assert np.array_equal(rows.rows(start, stop).toarray(), csc.toarray()[start:stop])
            assert np.array_equal(rows.sample(cells).toarray(), csc.toarray()[cells])
    finally:
        source.close()
        spilled.close()


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(InputError, match="expected a matrix of cells × genes with two axes, found list"):
        cell_rows([[1, 2]])


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
def test_memory_is_bounded_by_the_chunk(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cytoglot.data.readers.cell_rows._SPILL_BLOCK", 1 << 16)
    monkeypatch.setattr("cytoglot.data.readers.cell_rows._BUCKET", 1 << 16)
    monkeypatch.setattr("cytoglot.data.readers.cell_rows._DENSE_BLOCK", 1 << 18)
    monkeypatch.setattr("cytoglot.data.readers.matrix_choice._SAMPLE_RUNS", 4)
    rng = np.random.default_rng(0)
    n_cells, n_genes = 6000, 1000
    counts = sparse.random(n_cells, n_genes, density=0.4, format=layout if layout != "dense" else "csr", rng=rng)
    counts.data = np.ceil(counts.data * 5).astype(np.float32)
    adata = AnnData(X=counts.toarray() if layout == "dense" else counts)
    path = h5ad(adata, tmp_path / "a.h5ad")
    matrix_bytes = counts.nnz * 8
    del adata
    tracemalloc.start()
    with open_cells(path) as stream:
        total = sum(float(block.sum()) for _, block in stream.chunks(100))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == pytest.approx(float(counts.sum()))
    assert peak < 0.4 * matrix_bytes


def test_a_full_disk_is_not_blamed_on_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = FORMATS["h5ad_csc"](cells_with_duplicates(), tmp_path)
    monkeypatch.setattr(SpilledRows, "add", full)
    with open_cells(path) as stream, pytest.raises(OSError, match="No space left on device") as caught:
        stacked(stream, 5)
    assert not isinstance(caught.value, InputError)
