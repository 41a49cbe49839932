"""Reading: every format, the order of matrices, what is refused and with which words."""

from __future__ import annotations

import gzip
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path

import anndata
import cell_files
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from cell_files import FORMATS, cells_with_duplicates, h5ad, mtx_folder, tenx_h5, totals_by_gene, zarr
from scipy import sparse

from cytoglot.data.normalize import normalize_log
from cytoglot.data.readers.read import matrix_state_of, read
from cytoglot.data.readers.stream import open_cells
from cytoglot.data.synthetic import make_cells
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.sentence.encode import encode


@pytest.fixture
def cells() -> AnnData:
    return make_cells(n_cells=60, n_genes=80, seed=1)


def logs(adata: AnnData) -> sparse.csr_matrix:
    return normalize_log(adata.X, base=math.e)


def scaled(adata: AnnData) -> np.ndarray:
    return logs(adata).toarray() - 0.25


class TestFormats:
    @pytest.mark.parametrize("name", FORMATS)
    def test_every_format_gives_the_same_counts_by_gene(self, name: str, tmp_path: Path) -> None:
        adata = cells_with_duplicates()
        result = read(FORMATS[name](adata, tmp_path))
        assert isinstance(result.X, sparse.csr_matrix)
        assert result.X.has_canonical_format
        expected = totals_by_gene(adata)
        assert list(result.var_names) == list(expected.columns)
        assert list(result.obs_names) == list(adata.obs_names)
        assert np.array_equal(result.X.toarray(), expected.to_numpy())
        record = result.uns["cytoglot"]["matrix"]
        assert (record["source"], record["state"]) == ("X", "counts")
        assert "2 duplicated columns ('G2', 'G3'): summed" in record["message"]

    @pytest.mark.parametrize("name", ["h5ad_csr", "zarr3_csr"])
    def test_obs_obsm_and_uns_are_kept(self, name: str, cells: AnnData, tmp_path: Path) -> None:
        cells.obsm["X_pca"] = np.arange(120.0).reshape(60, 2)
        cells.uns["study"] = {"title": "a"}
        cells.var["length"] = np.arange(80)
        result = read(FORMATS[name](cells, tmp_path))
        pd.testing.assert_frame_equal(result.obs, cells.obs)
        assert np.array_equal(result.obsm["X_pca"], cells.obsm["X_pca"])
        assert result.uns["study"]["title"] == "a"
        assert result.var["length"].tolist() == list(range(80))

    def test_the_result_can_be_written_and_read_again(self, cells: AnnData, tmp_path: Path) -> None:
        first = read(h5ad(cells, tmp_path / "a.h5ad"))
        again = read(h5ad(first, tmp_path / "b.h5ad"))
        assert (first.X != again.X).nnz == 0
        assert matrix_state_of(again).kind == "counts"

    @pytest.mark.parametrize("suffix", ["", ".h5ad", ".zarr"])
    def test_what_was_said_to_read_need_not_be_said_again(self, suffix: str, cells: AnnData, tmp_path: Path) -> None:
        cells.var["feature_name"] = [f"SYM{i}" for i in range(cells.n_vars)]
        cells.var_names = [f"ENSG{i:011d}" for i in range(cells.n_vars)]
        assert read(cells).var_names[1] == "SYM1", "unless a column is named, symbols are found"
        known = read(cells, gene_column="var_names", gene_mapping={cells.var_names[2]: "OTHER"})
        source: AnnData | Path = known
        if suffix:
            path = tmp_path / f"known{suffix}"
            source = h5ad(known, path) if suffix == ".h5ad" else zarr(known, path, version=3)
        for again in (read(source), read(read(source))):
            assert list(again.var_names) == list(known.var_names)
            assert {cells.var_names[1], "OTHER"} <= set(again.var_names)
        with open_cells(source) as stream:
            assert stream.vocabulary.symbols == tuple(known.var_names)
        assert encode(source).vocabulary.symbols == tuple(known.var_names)
        assert read(source, gene_column="feature_name").var_names[1] == "SYM1", "what is said again holds"

    @pytest.mark.parametrize("record", ["a text", {"annotation": {"key": "x"}}])
    def test_a_record_of_another_verb_says_nothing_of_genes(
        self, record: object, cells: AnnData, tmp_path: Path
    ) -> None:
        cells.var["feature_name"] = [f"SYM{i}" for i in range(cells.n_vars)]
        cells.var_names = [f"ENSG{i:011d}" for i in range(cells.n_vars)]
        cells.uns["cytoglot"] = record
        cells.write_h5ad(tmp_path / "c.h5ad")
        for source in (cells, tmp_path / "c.h5ad"):
            assert read(source).var_names[1] == "SYM1"

    def test_symbols_come_from_feature_name_and_ids_are_kept(self, cells: AnnData, tmp_path: Path) -> None:
        cells.var["feature_name"] = [f"SYM{i}" for i in range(80)]
        cells.var_names = [f"ENSG{i:011d}.3" for i in range(80)]
        path = h5ad(cells, tmp_path / "a.h5ad")
        result = read(path)
        assert result.var_names[0] == "SYM0"
        assert result.var["gene_ids"].iloc[7] == "ENSG00000000007.3"
        mapped = read(path, gene_mapping={"SYM0": "TP53"})
        assert mapped.var_names[0] == "TP53"
        assert read(path, gene_column="feature_name").var_names[1] == "SYM1"

    def test_antibodies_of_10x_are_left_out(self, cells: AnnData, tmp_path: Path) -> None:
        types = ["Gene Expression"] * 70 + ["Antibody Capture"] * 10
        result = read(tenx_h5(cells, tmp_path / "a.h5", version=3, feature_types=types))
        assert result.n_vars == 70
        assert np.array_equal(result.X.toarray(), cells.X[:, :70].toarray())
        assert "10 columns of other features" in result.uns["cytoglot"]["matrix"]["message"]

    def test_an_anndata_is_read_like_a_file_and_not_changed(self, cells: AnnData) -> None:
        cells.layers["counts"], cells.X = cells.X.copy(), logs(cells)
        before = cells.copy()
        result = read(cells)
        assert np.array_equal(result.X.toarray(), cells.layers["counts"].toarray())
        result.X.data[:] = 0
        assert (cells.layers["counts"] != before.layers["counts"]).nnz == 0

    def test_a_dense_layer_and_no_x_can_be_read(self, cells: AnnData, tmp_path: Path) -> None:
        without_x = AnnData(obs=cells.obs, var=cells.var, layers={"umi": cells.X.toarray()})
        for path in (h5ad(without_x, tmp_path / "a.h5ad"), zarr(without_x, tmp_path / "a.zarr", version=3)):
            assert read(path).uns["cytoglot"]["matrix"]["source"] == "layers['umi']"

    def test_no_cells_are_read_as_no_cells(self, cells: AnnData, tmp_path: Path) -> None:
        assert read(h5ad(cells[:0].copy(), tmp_path / "a.h5ad")).shape == (0, 80)


class TestOrder:
    def test_a_counts_layer_wins_over_raw_and_x(self, cells: AnnData) -> None:
        cells.raw = cells.copy()
        cells.layers["raw_counts"], cells.layers["spliced"] = cells.X.copy(), cells.X.copy()
        cells.X = logs(cells)
        assert open_cells(cells).source == "layers['raw_counts']"

    def test_raw_counts_win_over_log_x_and_bring_their_genes(self, cells: AnnData, tmp_path: Path) -> None:
        cells.raw = cells.copy()
        cells.X = logs(cells)
        chosen = cells[:, :30].copy()
        choice = open_cells(chosen)
        assert (choice.source, choice.state.kind, len(choice.vocabulary)) == ("raw.X", "counts", 80)
        result = read(h5ad(chosen, tmp_path / "a.h5ad"))
        assert result.shape == (60, 80)
        assert result.uns["cytoglot"]["matrix"]["message"].startswith("read raw.X: integer counts")

    def test_counts_in_x_win_over_logs_in_raw(self, cells: AnnData) -> None:
        with_logs = cells.copy()
        with_logs.X = logs(cells)
        cells.raw = with_logs
        choice = open_cells(cells)
        assert choice.source == "X"
        assert "passed over raw.X: log1p (natural), likely target sum 10,000" in choice.message

    def test_a_layer_named_counts_that_holds_none_is_no_counts(self, cells: AnnData) -> None:
        cells.layers["counts"] = logs(cells)
        choice = open_cells(cells)
        assert choice.source == "X"
        assert "passed over layers['counts']: log1p" in choice.message

    def test_scaled_x_gives_way_to_logs_in_raw_and_the_message_says_why(self, cells: AnnData, tmp_path: Path) -> None:
        with_logs = cells.copy()
        with_logs.X = logs(cells)
        cells.raw = with_logs
        cells.X = scaled(cells)
        result = read(h5ad(cells, tmp_path / "a.h5ad"))
        record = result.uns["cytoglot"]["matrix"]
        assert (record["source"], record["state"]) == ("raw.X", "log1p")
        assert record["log_base"] == pytest.approx(math.e)
        assert record["target_sum"] == pytest.approx(1e4, rel=1e-3)
        assert "passed over X: signed values (scaled, centred or differences), found -0.25 in cell" in record["message"]
        assert matrix_state_of(result).target_sum == record["target_sum"]

    def test_the_layer_asked_for_is_read_and_no_other(self, cells: AnnData, tmp_path: Path) -> None:
        cells.layers["lognorm"], cells.layers["X"] = logs(cells), cells.X * 2
        cells.raw = cells.copy()
        path = h5ad(cells, tmp_path / "a.h5ad")
        assert read(path, layer="lognorm").uns["cytoglot"]["matrix"]["state"] == "log1p"
        assert (read(path, layer="X").X != cells.X).nnz == 0
        assert read(path, layer="raw").uns["cytoglot"]["matrix"]["source"] == "raw.X"
        assert read(path, layer="raw.X").uns["cytoglot"]["matrix"]["source"] == "raw.X"
        with pytest.raises(UnknownNameError, match=r"unknown layer 'lognrom'; did you mean 'lognorm'\?"):
            read(path, layer="lognrom")

    def test_duplicates_of_logs_keep_the_first_and_say_so(self, tmp_path: Path) -> None:
        adata = cells_with_duplicates()
        values = logs(adata)
        adata = cell_files.with_x(adata, lambda _: values)
        result = read(h5ad(adata, tmp_path / "a.h5ad"))
        assert np.array_equal(result[:, "G2"].X.toarray(), values[:, 2].toarray())
        assert "2 duplicated columns ('G2', 'G3'): the first kept" in result.uns["cytoglot"]["matrix"]["message"]
        with pytest.raises(InputError, match="found 2 repeated columns in var_names: 'G2', 'G3'"):
            read(tmp_path / "a.h5ad", duplicates="error")

    def test_one_line_is_logged(self, cells: AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = h5ad(cells, tmp_path / "a.h5ad")
        with caplog.at_level(logging.INFO, logger="cytoglot"):
            read(path)
        assert [r.message.split(";")[0] for r in caplog.records] == [f"{path}: read X: integer counts"]
        assert "60 cells × 80 genes" in caplog.text

    def test_what_the_sample_missed_changes_the_state(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("cytoglot.data.readers.matrix_choice._SAMPLE_RUNS", 2)
        monkeypatch.setattr("cytoglot.data.readers.matrix_choice._SAMPLE_RUN", 3)
        adata = make_cells(n_cells=60, n_genes=80, seed=1)
        values = adata.X.astype(np.float32).tolil()
        values[30, 5] = 0.37
        adata.layers["counts"], adata.X = sparse.csr_matrix(values), adata.X
        record = read(h5ad(adata, tmp_path / "a.h5ad")).uns["cytoglot"]["matrix"]
        assert (record["source"], record["state"]) == ("X", "counts")
        assert "passed over layers['counts']: non-negative values" in record["message"]
        with open_cells(tmp_path / "a.h5ad") as stream:
            assert stream.message == "read layers['counts']: integer counts (tested on 6 of 60 cells)"


class TestRefused:
    def test_scaled_alone_says_what_each_matrix_is_and_what_to_pass(self, cells: AnnData, tmp_path: Path) -> None:
        with_scaled = AnnData(X=scaled(cells), obs=cells.obs, var=cells.var)
        with_scaled.raw = with_scaled.copy()
        with pytest.raises(
            InputError, match=r"found raw.X: signed values .*; X: signed values .*; pass a file with counts or log1p"
        ):
            read(h5ad(with_scaled, tmp_path / "a.h5ad"))
        with_scaled.layers["lognorm"] = logs(cells)
        with pytest.raises(InputError, match=r"pass layer='lognorm' \(log1p \(natural\), likely target sum 10,000\)"):
            read(h5ad(with_scaled, tmp_path / "b.h5ad"))
        with pytest.raises(InputError, match=r"found X: signed values .*; pass layer='lognorm'"):
            read(tmp_path / "b.h5ad", layer="X")

    @pytest.mark.parametrize(
        ("value", "words"), [(np.nan, "found nan"), (np.inf, "found inf"), (-3.0, "whole numbers, found -3")]
    )
    def test_a_fault_among_counts_is_named(self, value: float, words: str, cells: AnnData, tmp_path: Path) -> None:
        faulty = cells.X.astype(np.float32).tolil()
        faulty[12, 7] = value
        cells.X = sparse.csr_matrix(faulty)
        message = rf"{words} in cell 'cell_12' \(number 12\), gene 'GENE7' \(number 7\)"
        path = h5ad(cells, tmp_path / "a.h5ad")
        for reader in (read, open_cells):
            with pytest.raises(InputError, match=message):
                reader(path)

    def test_a_faulty_layer_is_passed_over_with_a_warning(
        self, cells: AnnData, caplog: pytest.LogCaptureFixture
    ) -> None:
        cells.layers["counts"] = cells.X.astype(np.float32)
        cells.layers["counts"].data[0] = np.nan
        with caplog.at_level(logging.WARNING, logger="cytoglot"):
            assert open_cells(cells).source == "X"
        assert "layers['counts'] is not read: found nan in cell 'cell_0'" in caplog.text
        with pytest.raises(InputError, match=r"found layers\['counts'\]: found nan"):
            open_cells(cells, layer="counts")

    def test_two_cells_of_one_name(self, cells: AnnData, tmp_path: Path) -> None:
        names = list(cells.obs_names)
        cells.obs_names = [*names[:58], names[0], names[1]]
        message = r"expected unique cell names, found 2 repeated, such as 'cell_0', 'cell_1'; .*obs_names_make_unique"
        path = h5ad(cells, tmp_path / "a.h5ad")
        for reader in (read, open_cells):
            with pytest.raises(InputError, match=message):
                reader(path)
        with pytest.raises(InputError, match=message):
            open_cells(cells)

    def test_a_missing_file_names_its_neighbor(self, cells: AnnData, tmp_path: Path) -> None:
        h5ad(cells, tmp_path / "pbmc3k.h5ad")
        with pytest.raises(InputError, match=r"there is no file .*pbmc3.h5ad; did you mean 'pbmc3k.h5ad'"):
            read(tmp_path / "pbmc3.h5ad")
        with pytest.raises(InputError, match=r"there is no file .*a.h5ad$"):
            read(tmp_path / "no_folder" / "a.h5ad")

    @pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
    def test_a_truncated_h5ad(self, share: float, cells: AnnData, tmp_path: Path) -> None:
        path = h5ad(cells, tmp_path / "a.h5ad")
        os.truncate(path, int(path.stat().st_size * share))
        for reader in (read, open_cells):
            with pytest.raises(
                InputError, match=r"a.h5ad cannot be read, it is truncated or damaged .*write or download"
            ):
                reader(path)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "it is empty"),
            (b"<!DOCTYPE html><html>404</html>", "a web page or XML"),
            (gzip.compress(b"x", mtime=0), "a gzip file; decompress it first"),
            (b"PK\x03\x04....", "a zip file"),
            (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
            (b"gene,cell1\nA,1\n", "it starts with b'gene,cell1"),
        ],
    )
    def test_what_is_not_hdf5_is_told(self, content: bytes, words: str, tmp_path: Path) -> None:
        path = tmp_path / "a.h5ad"
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"a.h5ad is not an HDF5 file: .*{words}.*; expected an AnnData file"):
            read(path)

    def test_damaged_chunks_inside_a_whole_file(self, cells: AnnData, tmp_path: Path) -> None:
        path = tmp_path / "a.h5ad"
        cells.write_h5ad(path, compression="gzip")
        with h5py.File(path) as handle:
            chunk = handle["X/data"].id.get_chunk_info(0)
        content = bytearray(path.read_bytes())
        content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
        path.write_bytes(content)
        for reader in (read, open_cells):
            with pytest.raises(InputError, match="cannot be read, it is truncated or damaged"):
                reader(path)

    def test_pointers_and_indices_that_do_not_fit(self, cells: AnnData, tmp_path: Path) -> None:
        path = h5ad(cells, tmp_path / "a.h5ad")
        with h5py.File(path, "r+") as handle:
            handle["X/indices"][3] = 999
        with pytest.raises(InputError, match="expected indices from 0 to 79, found 0 to 999"):
            read(path)
        with h5py.File(path, "r+") as handle:
            handle["X/indptr"][-1] = 5
        with pytest.raises(InputError, match="expected row pointers for 60 rows"):
            read(path)

    def test_matrices_that_do_not_fit_obs(self, cells: AnnData, tmp_path: Path) -> None:
        path = h5ad(cells, tmp_path / "a.h5ad")
        with h5py.File(path, "r+") as handle:
            handle["X"].attrs["shape"] = (59, 80)
        with pytest.raises(
            InputError, match=r"expected X of 60 cells × 80 genes, as obs and var have, found \(59, 80\)"
        ):
            read(path)

    @pytest.mark.parametrize("version", [2, 3])
    def test_a_zarr_that_lost_a_chunk(self, version: int, tmp_path: Path) -> None:
        path = zarr(make_cells(n_cells=60, n_genes=80), tmp_path / "a.zarr", version=version)
        chunk = path / "X" / "indices" / ("0" if version == 2 else "c/0")
        chunk.unlink()
        for reader in (read, open_cells):
            with pytest.raises(InputError, match=r"expected 1 chunks of /X/indices, found 0"):
                reader(path)

    def test_a_zarr_of_one_gene_lacks_its_chunk_of_zeros_rightly(self, tmp_path: Path) -> None:
        adata = AnnData(X=sparse.csr_matrix(np.ones((3, 1), dtype=np.int32)))
        assert read(zarr(adata, tmp_path / "a.zarr", version=3)).X.toarray().tolist() == [[1], [1], [1]]

    @pytest.mark.parametrize("name", ["zarr.json", "X/zarr.json", "obs/zarr.json"])
    def test_a_zarr_with_damaged_metadata(self, name: str, cells: AnnData, tmp_path: Path) -> None:
        path = zarr(cells, tmp_path / "a.zarr", version=3)
        for file in {path / name, path / "zarr.json"}:  # the root holds a copy of all metadata
            file.write_text(file.read_text()[:40])
        with pytest.raises(InputError, match=r"a.zarr cannot be read, it is truncated or damaged"):
            read(path)

    def test_hdf5_without_cells(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as handle:
            handle["weights"] = [1.0]
        with pytest.raises(InputError, match="is HDF5 but holds no cells: found weights"):
            read(tmp_path / "a.h5")
        with h5py.File(tmp_path / "a.loom", "w") as handle:
            handle.create_group("row_attrs")
            handle.create_group("col_attrs")
        with pytest.raises(InputError, match="is a loom file"):
            read(tmp_path / "a.loom")

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="is neither zarr nor 10x; it holds: nothing"):
            read(tmp_path)
        (tmp_path / "notes.txt").write_text("x")
        with pytest.raises(InputError, match=r"it holds: notes.txt"):
            read(tmp_path)

    def test_no_matrix_at_all(self, cells: AnnData, tmp_path: Path) -> None:
        for path in (
            h5ad(AnnData(obs=cells.obs, var=cells.var), tmp_path / "a.h5ad"),
            zarr(AnnData(obs=cells.obs, var=cells.var), tmp_path / "a.zarr", version=2),
        ):
            with pytest.raises(InputError, match=r"found none: no X, no raw.X and no layer"):
                read(path)

    def test_state_is_not_known_of_foreign_anndata(self, cells: AnnData) -> None:
        with pytest.raises(InputError, match=r"not read by cytoglot.*pass cytoglot.read"):
            matrix_state_of(cells)


class TestTenx:
    def test_a_truncated_matrix(self, cells: AnnData, tmp_path: Path) -> None:
        folder = mtx_folder(cells, tmp_path / "plain", zipped=False)
        lines = (folder / "matrix.mtx").read_text().splitlines()
        (folder / "matrix.mtx").write_text("\n".join(lines[:-5]) + "\n")
        with pytest.raises(InputError, match=rf"is truncated: expected {cells.X.nnz} entries, found {cells.X.nnz - 5}"):
            read(folder)
        (folder / "matrix.mtx").write_text("\n".join(lines[:-5]) + "\n12 ")
        with pytest.raises(InputError, match=r"an entry of the matrix is damaged or cut off|is truncated"):
            read(folder)

    def test_a_truncated_gzip(self, cells: AnnData, tmp_path: Path) -> None:
        folder = mtx_folder(cells, tmp_path / "zipped", zipped=True)
        os.truncate(folder / "matrix.mtx.gz", (folder / "matrix.mtx.gz").stat().st_size // 2)
        for reader in (read, open_cells):
            with pytest.raises(InputError, match=r"matrix.mtx.gz is damaged gzip .*; copy it again"):
                reader(folder)

    def test_files_of_two_runs(self, cells: AnnData, tmp_path: Path) -> None:
        folder = mtx_folder(cells, tmp_path / "a", zipped=False)
        (folder / "barcodes.tsv").write_text("\n".join(cells.obs_names[:50]))
        with pytest.raises(InputError, match=r"80 genes, found 50 barcodes and 80 features"):
            read(folder)

    def test_missing_features(self, cells: AnnData, tmp_path: Path) -> None:
        folder = mtx_folder(cells, tmp_path / "a", zipped=False)
        (folder / "features.tsv").unlink()
        with pytest.raises(InputError, match=r"has matrix.mtx but none of features.tsv.gz, features.tsv, genes.tsv"):
            read(folder)

    def test_two_matrices_in_a_folder(self, cells: AnnData, tmp_path: Path) -> None:
        folder = mtx_folder(cells, tmp_path / "a", zipped=False, prefix="s1_")
        (folder / "s2_matrix.mtx").write_text("x")
        with pytest.raises(InputError, match=r"expected one matrix in .*, found s1_matrix.mtx, s2_matrix.mtx"):
            read(folder)

    @pytest.mark.parametrize(
        ("lines", "words"),
        [
            (["hello"], "as first line of"),
            (["%%MatrixMarket matrix array real general", "2 2"], "as first line of"),
            (["%%MatrixMarket matrix coordinate integer general", "80 60"], "expected rows, columns and entries"),
            (["%%MatrixMarket matrix coordinate integer general", "80 60 1", "81 1 4"], "expected genes from 1 to 80"),
            (["%%MatrixMarket matrix coordinate integer general", "80 60 1", "0 1 4"], "expected genes from 1 to 80"),
            (["%%MatrixMarket matrix coordinate integer general", "80 60 1", "1 x 4"], "damaged or cut off"),
        ],
    )
    def test_a_damaged_matrix(self, lines: list[str], words: str, cells: AnnData, tmp_path: Path) -> None:
        folder = mtx_folder(cells, tmp_path / "a", zipped=False)
        (folder / "matrix.mtx").write_text("\n".join(lines) + "\n")
        with pytest.raises(InputError, match=words):
            read(folder)

    def test_real_and_pattern_entries(self, cells: AnnData, tmp_path: Path) -> None:
        folder = mtx_folder(cells, tmp_path / "a", zipped=False)
        header = "%%MatrixMarket matrix coordinate {} general\n80 60 2\n"
        (folder / "matrix.mtx").write_text(header.format("real") + "1 1 0.5\n80 60 2\n")
        assert read(folder).uns["cytoglot"]["matrix"]["state"] == "nonnegative"
        (folder / "matrix.mtx").write_text(header.format("pattern") + "1 1\n80 60\n")
        result = read(folder)
        assert result.X.sum() == 2
        assert result.X[59, 79] == 1

    def test_several_genomes_of_version_2(self, cells: AnnData, tmp_path: Path) -> None:
        path = tenx_h5(cells, tmp_path / "a.h5", version=2)
        with h5py.File(path, "r+") as handle:
            handle.copy("hg19", "mm10")
        with pytest.raises(InputError, match="expected one genome, found hg19, mm10"):
            read(path)


class TestBacked:
    @pytest.mark.parametrize("name", ["h5ad_csr", "h5ad_csc", "h5ad_dense", "zarr3_csr", "zarr2_dense"])
    def test_x_stays_on_disk_and_reads_the_same(self, name: str, cells: AnnData, tmp_path: Path) -> None:
        path = FORMATS[name](cells, tmp_path)
        result = read(path, backed=True)
        assert not isinstance(result.X, np.ndarray | sparse.spmatrix)
        values = [block.toarray() for _, block in open_cells(result).chunks(17)]
        assert np.array_equal(np.vstack(values), cells.X.toarray())
        assert open_cells(result).source == "X"

    def test_a_layer_can_be_backed(self, cells: AnnData, tmp_path: Path) -> None:
        cells.layers["counts"], cells.X = cells.X.copy(), logs(cells)
        result = read(h5ad(cells, tmp_path / "a.h5ad"), backed=True)
        assert np.array_equal(result[5:9].X.toarray(), cells.layers["counts"][5:9].toarray())

    def test_columns_that_would_have_to_move_are_refused(self, tmp_path: Path) -> None:
        path = h5ad(cells_with_duplicates(), tmp_path / "a.h5ad")
        with pytest.raises(
            InputError, match=r"2 duplicated columns \('G2', 'G3'\): summed; use backed=False, or open_"
        ):
            read(path, backed=True)

    def test_10x_cannot_be_backed(self, cells: AnnData, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="backed=True reads h5ad and zarr"):
            read(tenx_h5(cells, tmp_path / "a.h5", version=3), backed=True)

    def test_an_anndata_opened_backed_by_anndata_itself(self, cells: AnnData, tmp_path: Path) -> None:
        cells.raw = cells.copy()
        cells.X = scaled(cells)
        backed = anndata.read_h5ad(h5ad(cells, tmp_path / "a.h5ad"), backed="r")
        assert open_cells(backed).source == "raw.X"
        assert np.array_equal(read(backed).X.toarray(), cells.raw.X.toarray())
        backed.file.close()


class TestRealFiles:
    def test_pbmc68k_of_scanpy_reads_the_logs_in_raw_and_says_why(self) -> None:
        scanpy = pytest.importorskip("scanpy")
        path = Path(scanpy.__file__).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"
        result = read(path)
        record = result.uns["cytoglot"]["matrix"]
        assert result.shape == (700, 765)
        assert (record["source"], record["state"]) == ("raw.X", "log1p")
        assert record["log_base"] == pytest.approx(math.e)
        assert record["message"].startswith("read raw.X: log1p (natural)")
        assert "passed over X: signed values" in record["message"]
        assert result.obs["bulk_labels"].nunique() == 10
        with pytest.raises(InputError, match=r"found X: signed values .*; pass layer='raw' \(log1p \(natural\)"):
            read(path, layer="X")

    @pytest.mark.data
    def test_pbmc3k(self, data_path: Callable[[str], Path]) -> None:
        result = read(data_path("pbmc3k_counts_labeled.h5ad"))
        assert result.shape == (2700, 16634)
        assert result.X.nnz == 2_286_884
        assert matrix_state_of(result).kind == "counts"
        assert "'C2orf15 / C2ORF15'" in result.uns["cytoglot"]["matrix"]["message"]

    @pytest.mark.data
    def test_perturbseq_reads_counts_and_the_layer_when_asked(self, data_path: Callable[[str], Path]) -> None:
        path = data_path("norman_mcfaline_perturbseq_500hvg.h5ad")
        assert read(path).uns["cytoglot"]["matrix"]["source"] == "X"
        state = matrix_state_of(read(path, layer="lognorm"))
        assert (state.kind, state.log_base) == ("log1p", math.e)

    @pytest.mark.data
    def test_differential_signatures_are_refused(self, data_path: Callable[[str], Path]) -> None:
        with pytest.raises(InputError, match=r"found X: signed values .* gene 'PSME1'.*; pass a file with counts"):
            read(data_path("l1000_level5_3drugs_65lines.h5ad"))

    @pytest.mark.data
    def test_average_profiles_are_welcome(self, data_path: Callable[[str], Path]) -> None:
        assert matrix_state_of(read(data_path("human_celltype_pseudobulk_profiles.h5ad"))).kind == "nonnegative"
