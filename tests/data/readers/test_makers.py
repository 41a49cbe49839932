"""Files as other makers write them: placeholders, feature types, species, layouts, containers and filters."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from cell_files import h5ad, zarr
from scipy import sparse
from scipy.io import mmwrite

from cytoglot.data.audit import audit
from cytoglot.data.genes.columns import are_identifiers
from cytoglot.data.genes.names import wrapped_names
from cytoglot.data.genes.options import DEFAULT_GENES
from cytoglot.data.genes.vocabulary import resolve_genes
from cytoglot.data.normalize import matrix_state, normalize_log
from cytoglot.data.readers.read import read
from cytoglot.data.readers.stream import open_cells
from cytoglot.data.synthetic import make_cells
from cytoglot.data.whole_file import whole_file
from cytoglot.errors import InputError


@pytest.fixture
def cells() -> AnnData:
    return make_cells(n_cells=60, n_genes=80, seed=1)


class TestPlaceholders:
    @pytest.mark.parametrize("fill", [0, 1, 7])
    @pytest.mark.parametrize("place", ["layer", "raw"])
    def test_a_matrix_without_differences_gives_way(
        self, fill: int, place: str, cells: AnnData, tmp_path: Path
    ) -> None:
        counts = cells.X.copy()
        cells.X = normalize_log(counts)
        filled = sparse.csr_matrix((np.full(counts.nnz, fill), counts.indices, counts.indptr), shape=counts.shape)
        if place == "layer":
            cells.layers["counts"] = filled
        else:
            cells.raw = AnnData(X=filled, obs=cells.obs, var=cells.var)
        for source in (cells, h5ad(cells, tmp_path / "a.h5ad")):
            with open_cells(source) as stream:
                assert (stream.source, stream.state.kind) == ("X", "log1p")
                assert "passed over" in stream.message
            assert read(source).uns["cytoglot"]["matrix"]["source"] == "X"

    def test_a_mask_in_x_gives_way_to_logs_in_raw(self, cells: AnnData, caplog: pytest.LogCaptureFixture) -> None:
        cells.raw = AnnData(X=normalize_log(cells.X), obs=cells.obs, var=cells.var)
        cells.X = (cells.X > 0).astype(np.float32)
        with caplog.at_level(logging.WARNING, logger="cytoglot"), open_cells(cells) as stream:
            assert stream.source == "raw.X"
        assert "X is not read: integer counts, no value above 1" in caplog.text

    def test_a_mask_whose_logs_differ_between_cells_only(self, cells: AnnData) -> None:
        state = matrix_state(normalize_log((cells.X > 0).astype(np.float32)))
        assert state.is_flat
        assert not matrix_state(cells.X).is_flat

    def test_alone_they_are_read_and_the_audit_says_so(self, cells: AnnData) -> None:
        cells.X = sparse.csr_matrix(cells.shape, dtype=np.float32)
        with open_cells(cells) as stream:
            assert stream.message == "read X: integer counts, all zero"
        finding = next(f for f in audit(cells).findings if f.check == "matrix")
        assert (finding.level, finding.message) == ("warning", "read X: integer counts, all zero")

    def test_beside_an_unknown_layer_with_values_they_are_refused(self, cells: AnnData) -> None:
        cells.layers["spliced"], cells.X = cells.X.copy(), sparse.csr_matrix(cells.shape, dtype=np.float32)
        with pytest.raises(
            InputError, match=r"found X: integer counts, all zero; pass layer='spliced' \(integer counts"
        ):
            open_cells(cells)
        with open_cells(cells, layer="X") as stream:
            assert stream.source == "X"

    def test_layers_that_are_not_named_for_counts(self, cells: AnnData) -> None:
        layers = AnnData(obs=cells.obs, var=cells.var, layers={"spliced": cells.X, "unspliced": cells.X})
        with pytest.raises(
            InputError,
            match=r"found no X, no raw.X and no layer named for counts; pass layer='spliced' .* or layer='un",
        ):
            open_cells(layers)


class TestFeatureTypes:
    @pytest.mark.parametrize(
        ("gene", "other"),
        [
            ("Gene Expression", "Antibody Capture"),
            ("GEX", "ADT"),
            ("gene expression", "antibody capture"),
            ("Gene_Expression", "CRISPR Guide Capture"),
            ("rna", "protein"),
            ("RNA", "prot"),
            ("Gene Expression", "Multiplexing Capture"),
            ("gex", "HTO"),
            ("Gene Expression", "Peaks"),
            ("gene", "sgRNA"),
            ("protein_coding", "ADT"),
            ("lncRNA", "Antibody Capture"),
            ("something", "Custom"),
        ],
    )
    @pytest.mark.parametrize("column", ["feature_types", "feature_type", "Feature Types", "modality"])
    def test_other_features_are_left_out(self, gene: str, other: str, column: str) -> None:
        var = pd.DataFrame({column: [gene] * 4 + [other] * 2}, index=["A", "B", "C", "D", "CD19", "A"])
        genes = resolve_genes(var)
        assert genes.vocabulary.symbols == ("A", "B", "C", "D")
        assert genes.report.n_other_modality == 2
        assert genes.report.unknown_features == (("something",) if gene == "something" else ())

    def test_several_biotypes_are_genes(self) -> None:
        types = [
            "protein_coding",
            "lncRNA",
            "IG_C_gene",
            "processed_pseudogene",
            "TR_V_gene",
            "Mt_rRNA",
            "TEC",
            "scaRNA",
        ]
        genes = resolve_genes(pd.DataFrame({"feature_type": types}, index=[f"G{i}" for i in range(8)]))
        assert len(genes.vocabulary) == 8
        assert genes.report.messages() == []

    @pytest.mark.parametrize("types", [["foo", "bar", "foo"], ["Antibody Capture"] * 3])
    def test_what_says_nothing_of_genes_is_kept_with_a_warning(
        self, types: list[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        adata = make_cells(n_cells=9, n_genes=3)
        adata.var["feature_types"] = types
        with caplog.at_level(logging.WARNING, logger="cytoglot"), open_cells(adata) as stream:
            assert len(stream.vocabulary) == 3
        assert f"the feature types '{types[0]}'" in caplog.text
        assert any(f.check == "feature types" and f.level == "warning" and f.fix for f in audit(adata).findings)


class TestIdentifiers:
    @pytest.mark.parametrize(
        "make",
        [
            "ENSG{:011d}", "ENSDARG{:011d}.2", "FBgn{:07d}", "WBGene{:08d}", "AT1G{:05d}", "At3g{:05d}", "YAL{:03d}W",
            "SPAC{}.03c", "PF3D7_{:07d}", "ZDB-GENE-000210-{}", "MGI:{}", "NM_{:06d}.3", "{}", "Os01g{:07d}",
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("column", ["feature_name", "Gene.Symbol", "gene"])
    def test_symbols_are_taken_from_the_column(self, make: str, column: str) -> None:
        ids = [make.format(i + 1) for i in range(60)]
        var = pd.DataFrame({column: [f"sym{i}" for i in range(60)]}, index=ids)
        genes = resolve_genes(var)
        assert genes.vocabulary.symbols[:2] == ("sym0", "sym1")
        assert genes.report.source == f"var[{column!r}]"
        alone = audit(AnnData(X=make_cells(n_cells=20, n_genes=60).X, var=var[[]]))
        assert any(f.check == "gene names" and f.level == "warning" for f in alone.findings)

    def test_symbols_are_no_identifiers(self) -> None:
        symbols = ["TP53", "Actb", "CG1234", "sna-1", "Y-box", "QRFP", "ATG5", "AT1", "YAP1", "SPA17", "ENSA", "FBN1"]
        assert not are_identifiers(symbols)
        var = pd.DataFrame({"feature_name": ["x"] * len(symbols)}, index=symbols)
        assert resolve_genes(var).report.source == "var_names"

    def test_many_names_are_judged_as_few(self) -> None:
        ids = [f"FBgn{i:07d}" for i in range(9000)]
        assert are_identifiers(ids)
        assert are_identifiers([*ids[:4600], *(f"Sym{i}" for i in range(4400))])
        assert not are_identifiers([*ids[:4400], *(f"Sym{i}" for i in range(4600))])

    @pytest.mark.parametrize(
        ("name", "symbol"),
        [
            ("b'ACTB'", "ACTB"), ('b"ACTB"', "ACTB"), ("GRCh38_ACTB", "ACTB"), ("mm10___Actb", "Actb"),
            ("hg19_MT-CO1", "MT-CO1"), ("ACTB_ENSG00000075624", "ACTB"), ("HLA-A|ENSG00000206503.13", "HLA-A"),
            ("ENSG00000075624_ACTB", "ACTB"), ("'ACTB'", "ACTB"), ("GRCh38_premrna_ACTB", "ACTB"),
        ],
    )  # fmt: skip
    def test_wrapped_names_are_told_and_unwrapped(self, name: str, symbol: str) -> None:
        assert wrapped_names([name, "ACTB", "HLA-A", "MT-CO1", "RP11-34P13.7", "hsa-mir-1", "MM1"]) == {name: symbol}
        adata = make_cells(n_cells=20, n_genes=3)
        adata.var_names = [name, "CD3E", "LYZ"]
        assert any(f.check == "gene names" and f.level == "warning" and f.fix for f in audit(adata).findings)


class TestContainers:
    @pytest.mark.parametrize("kind", ["h5mu", "zarr"])
    @pytest.mark.filterwarnings("ignore:.*zarr")
    def test_mudata_names_its_modalities(self, kind: str, cells: AnnData, tmp_path: Path) -> None:
        path = tmp_path / f"a.{kind}"
        if kind == "h5mu":
            with h5py.File(path, "w") as handle:
                for name in ("rna", "prot"):
                    anndata.io.write_elem(handle.require_group("mod"), name, cells)
        else:
            import zarr as zarr_module

            group = zarr_module.open_group(path, mode="w", zarr_format=2)
            anndata.io.write_elem(group.require_group("mod"), "rna", cells)
        for reader in (read, open_cells, audit, lambda p: whole_file(str(p), layer=None, genes=DEFAULT_GENES)):
            with pytest.raises(InputError, match=r"is a MuData file.* modalities .*'rna'.*\['rna'\].write_h5ad"):
                reader(path)

    def test_a_mudata_object_is_told_as_well(self) -> None:
        class MuData:
            mod = {"rna": None}

        with pytest.raises(InputError, match=r"found MuData; pass one of its modalities, source\[name\], here 'rna'"):
            read(MuData())  # type: ignore[arg-type]

    @pytest.mark.parametrize("word", ["AnnData", "dict", None])
    @pytest.mark.parametrize("write", [h5ad, lambda a, p: zarr(a, p, version=2)], ids=["h5ad", "zarr"])
    def test_the_root_may_say_what_it_likes(
        self, word: str | None, write: Callable[[AnnData, Path], Path], cells: AnnData, tmp_path: Path
    ) -> None:
        import zarr as zarr_module

        cells.layers["counts"], cells.raw = cells.X.copy(), cells.copy()
        cells.obsm["X_pca"], cells.uns["about"] = np.ones((60, 2)), {"title": "a"}
        path = write(cells, tmp_path / "a")
        if path.is_dir():
            root = zarr_module.open_group(path, mode="r+", use_consolidated=False)
            (path / ".zmetadata").unlink()
            root.attrs.put({} if word is None else {"encoding-type": word})
        else:
            with h5py.File(path, "r+") as handle:
                del handle.attrs["encoding-type"]
                if word is not None:
                    handle.attrs["encoding-type"] = word
        assert read(path).shape == cells.shape
        whole = whole_file(str(path), layer=None, genes=DEFAULT_GENES).adata
        pd.testing.assert_frame_equal(whole.obs, cells.obs)
        for found, expected in ((whole.X, cells.X), (whole.layers["counts"], cells.X), (whole.raw.X, cells.X)):
            assert (found != expected).nnz == 0
        assert whole.obsm["X_pca"].shape == (60, 2)
        assert whole.uns["about"]["title"] == "a"

    def test_what_anndata_cannot_read_is_all_that_is_lost(
        self, cells: AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        cells.uns["good"], cells.uns["odd"] = "a", "b"
        cells.layers["half"] = cells.X.astype(np.float32)
        path = h5ad(cells, tmp_path / "a.h5ad")
        with h5py.File(path, "r+") as handle:
            handle["uns/odd"].attrs["encoding-type"] = "of the future"
            values, attributes = handle["layers/half/data"][:], dict(handle["layers/half/data"].attrs)
            del handle["layers/half/data"]
            handle["layers/half"].create_dataset("data", data=values.astype(np.float16)).attrs.update(attributes)
        whole = whole_file(str(path), layer=None, genes=DEFAULT_GENES).adata
        assert dict(whole.uns) == {"good": "a"}
        assert "uns['odd'] cannot be read and is left out" in " ".join(caplog.text.replace('"', "'").split())
        assert np.array_equal(whole.layers["half"].toarray(), cells.X.toarray())

    def test_a_filter_that_is_not_installed_is_named(self, cells: AnnData, tmp_path: Path) -> None:
        path = h5ad(cells, tmp_path / "a.h5ad")
        with h5py.File(path, "r+") as handle:
            values, attributes = handle["X/data"][:], dict(handle["X/data"].attrs)
            del handle["X/data"]
            created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            created.set_chunk((len(values),))
            created.set_filter(32099, h5py.h5z.FLAG_OPTIONAL, (3,))
            space = h5py.h5s.create_simple((len(values),))
            made = h5py.h5d.create(handle["X"].id, b"data", h5py.h5t.py_create(values.dtype), space, created)
            made.write_direct_chunk((0,), values.tobytes(), 0)
            h5py.Dataset(made).attrs.update(attributes)
        for reader in (read, open_cells):
            with pytest.raises(InputError, match=r"filter 32099\), which this installation .* pip install hdf5plugin"):
                reader(path)

    def test_nullable_strings_are_read_and_written(self, cells: AnnData, tmp_path: Path) -> None:
        from cytoglot.data.write import write_h5ad

        cells.obs["cell_type"] = pd.array(["T", None] * 30, dtype="string")
        cells.obs["site"] = pd.Categorical(["a", None, "b"] * 20)
        cells.obs_names, cells.var_names = cells.obs_names.astype("string"), cells.var_names.astype("string")
        with anndata.settings.override(allow_write_nullable_strings=True):
            path = h5ad(cells, tmp_path / "a.h5ad")
        with open_cells(path) as stream:
            assert stream.cell_ids.tolist() == [f"cell_{i}" for i in range(60)]
            assert stream.obs["cell_type"].isna().sum() == 30
            assert stream.vocabulary.symbols[:2] == ("GENE0", "GENE1")
        whole = whole_file(str(path), layer=None, genes=DEFAULT_GENES).adata
        write_h5ad(whole, tmp_path / "b.h5ad")
        again = anndata.read_h5ad(tmp_path / "b.h5ad")
        assert list(again.obs_names) == [f"cell_{i}" for i in range(60)]
        assert again.obs["cell_type"].isna().tolist() == [False, True] * 30
        assert again.obs["site"].astype(object).fillna("-").tolist() == ["a", "-", "b"] * 20


class TestMtx:
    def test_a_square_matrix_is_read_with_a_warning(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        square = make_cells(n_cells=40, n_genes=40)
        mmwrite(tmp_path / "matrix.mtx", square.X.T)
        (tmp_path / "genes.tsv").write_text("\n".join(square.var_names))
        (tmp_path / "barcodes.tsv").write_text("\n".join(square.obs_names))
        with caplog.at_level(logging.WARNING, logger="cytoglot"):
            assert np.array_equal(read(tmp_path).X.toarray(), square.X.toarray())
        assert "is square, so its layout cannot be told: read as genes × cells" in caplog.text

    def test_a_byte_order_mark_is_no_part_of_a_name(self, cells: AnnData, tmp_path: Path) -> None:
        mmwrite(tmp_path / "matrix.mtx", cells.X.T)
        (tmp_path / "genes.tsv").write_text("\n".join(cells.var_names), encoding="utf-8-sig")
        (tmp_path / "barcodes.tsv").write_text("\n".join(cells.obs_names), encoding="utf-8-sig")
        adata = read(tmp_path)
        assert (adata.obs_names[0], adata.var_names[0]) == ("cell_0", "GENE0")
