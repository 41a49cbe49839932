"""Sources of a corpus: files as cells over harmonized genes, read by spans, faults named by source."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from cytoglot.corpus.sources.expand import CorpusSource, expand, open_corpus_source
from cytoglot.corpus.sources.recipe import CorpusRecipe, GeneRecipe, SourceRecipe
from cytoglot.data.readers.obs_table import CellNames, GroupObs
from cytoglot.errors import InputError

HGNC = """\
symbol\tprev_symbol\talias_symbol\tensembl_gene_id
RACK1\tGNB2L1\t\tENSG00000204628
IL6\t\tBSF2\tENSG00000136244
"""
COUNTS = np.array(
    [[1, 0, 2, 0], [0, 3, 0, 0], [4, 5, 0, 6], [0, 0, 0, 7], [8, 0, 0, 0]],
    dtype=np.float32,
)


def five_cells(names: tuple[str, ...] = ("GNB2L1", "CD3E", "RACK1", "CD8A")) -> AnnData:
    obs = pd.DataFrame(
        {
            "celltype": pd.Categorical(["T cell", " T cell", "unknown", "B cell", None]),
            "donor": ["d1", "d2", "doublet", "d1", "d2"],
            "age": [61.5, 60.0, np.nan, 61.5, 60.0],
            "is_primary_data": [True, True, False, True, True],
            "tissue": pd.Categorical(["lung", "lung", "gut", "gut", "lung"]),
            "organism": pd.Categorical(["Homo sapiens"] * 4 + [None]),
        },
        index=[f"cell{i}" for i in range(5)],
    )
    var = pd.DataFrame(index=list(names))
    return AnnData(X=sparse.csr_matrix(COUNTS), obs=obs, var=var)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "hgnc.tsv").write_text(HGNC)
    five_cells().write_h5ad(tmp_path / "five.h5ad")
    return tmp_path


def opened(folder: Path, *, genes: dict | None = None, **fields: object) -> CorpusSource:
    recipe = CorpusRecipe.model_validate(
        {"sources": [{"path": "five.h5ad", **fields}], "genes": {"hgnc": "hgnc.tsv", **(genes or {})}}
    )
    (source,) = expand(recipe, folder)
    return open_corpus_source(source, recipe.genes, folder)


def values(source: CorpusSource, first: int, last: int, chunk: int = 2) -> np.ndarray:
    blocks = list(source.blocks(first, last, chunk))
    assert all(block.shape[0] <= chunk for block in blocks)
    return sparse.vstack(blocks).toarray()


def test_columns_of_one_gene_are_summed_under_todays_symbol(folder: Path) -> None:
    with opened(folder) as source:
        assert source.symbols == ("RACK1", "CD3E", "CD8A")
        expected = np.stack([COUNTS[:, 0] + COUNTS[:, 2], COUNTS[:, 1], COUNTS[:, 3]], axis=1)
        assert np.array_equal(values(source, 0, 5), expected)
        assert np.array_equal(values(source, 1, 4), expected[1:4])
        assert source.is_counts
        assert (source.n_cells, source.n_values) == (5, np.count_nonzero(COUNTS))
        assert any("1 previous symbol(s)" in message for message in source.messages)


def test_logs_are_not_summed_and_the_approved_column_is_kept(folder: Path) -> None:
    logs = five_cells()
    logs.X = sparse.csr_matrix(np.log1p(COUNTS / 3))
    logs.write_h5ad(folder / "five.h5ad")
    with opened(folder) as source:
        assert not source.is_counts
        assert source.symbols == ("RACK1", "CD3E", "CD8A")
        assert np.allclose(values(source, 0, 5)[:, 0], np.log1p(COUNTS / 3)[:, 2])


def test_without_repair_names_stay(folder: Path) -> None:
    with opened(folder, genes={"repair": False}) as source:
        assert source.symbols == ("GNB2L1", "CD3E", "RACK1", "CD8A")


def test_metadata_are_canonical_text(folder: Path) -> None:
    with opened(folder, metadata={"disease": "normal", "tissue": "skin", "sex": "female"}) as source:
        frame = source.metadata(0, 5)
        assert {str(dtype) for dtype in frame.dtypes} == {"category"}
        shown = frame.astype(object).where(frame.notna(), None)
        assert shown["cell_type"].tolist() == ["T cell", "T cell", None, "B cell", None]
        assert shown["donor_id"].tolist() == ["d1", "d2", None, "d1", "d2"]  # doublet is no donor
        assert shown["development_stage"].tolist() == ["61.5", "60", None, "61.5", "60"]
        assert shown["organism"].tolist() == ["human"] * 5
        assert shown["disease"].tolist() == ["normal"] * 5
        assert shown["tissue"].tolist() == ["lung", "lung", "gut", "gut", "lung"]
        assert shown["sex"].tolist() == ["female"] * 5


@pytest.mark.parametrize("span", [(0, 2), (2, 5), (4, 5), (3, 3), (3, 99)])
def test_a_span_is_a_slice_of_the_whole(folder: Path, span: tuple[int, int]) -> None:
    first, last = span
    with opened(folder, keep={"tissue": ["lung"]}) as source:
        whole, part = source.metadata(0, 5).astype(object), source.metadata(first, last).astype(object)
        pd.testing.assert_frame_equal(part, whole.iloc[first:last].reset_index(drop=True), check_dtype=False)
        assert source.cell_ids(first, last).tolist() == [f"cell{i}" for i in range(5)][first:last]
        assert source.kept(first, last).tolist() == source.kept(0, 5).tolist()[first:last]


def test_primary_data_and_keep_decide_together(folder: Path) -> None:
    with opened(folder) as source:
        assert source.kept(0, 5).tolist() == [True, True, False, True, True]
    with opened(folder, primary_only=False) as source:
        assert source.kept(0, 5).all()
    with opened(folder, keep={"tissue": ["gut"], "donor_id": ["d1"]}) as source:  # a canonical field will do
        assert source.kept(0, 5).tolist() == [False, False, False, True, False]


def test_columns_of_the_recipe_come_before_those_recognized(folder: Path) -> None:
    with opened(folder, columns={"donor_id": "tissue"}) as source:
        assert source.metadata(0, 2)["donor_id"].tolist() == ["lung", "lung"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"columns": {"donor_id": "donr"}}, "source 'five': columns: donor_id names the column 'donr'.*'donor'"),
        ({"keep": {"tisue": ["lung"]}}, "source 'five': keep names the column 'tisue'.*did you mean 'tissue'"),
        ({"keep": {"tissue": ["lungs"]}}, "keep wants tissue 'lungs', which no cell has; did you mean 'lung'"),
        ({"layer": "counts"}, "source 'five': unknown layer 'counts'"),
        ({"gene_column": "symbol"}, "source 'five': unknown column of var 'symbol'"),
        ({"gene_mapping": "none.tsv"}, "source 'five': gene mapping .*none.tsv does not exist"),
        ({"genes": {"vocabulary": "genes.txt"}}, "source 'five': expected at least 50% .* found 33.3%"),
        ({"genes": {"vocabulary": "none.txt"}}, "none.txt does not exist"),
        ({"organism": "mouse"}, "source 'five': expected symbols of mouse genes.*look like human symbols"),
    ],
)
def test_what_a_source_lacks_is_said_with_its_name(folder: Path, fields: dict, message: str) -> None:
    (folder / "genes.txt").write_text("CD3E\nA\nB\nC\nD\n")
    genes = fields.pop("genes", None)
    with pytest.raises(InputError, match=message):
        opened(folder, genes=genes, **fields)


def test_a_vocabulary_that_fits_is_accepted(folder: Path) -> None:
    (folder / "genes.txt").write_text("CD3E\nRACK1\nB\nC\nD\n")
    with opened(folder, genes={"vocabulary": "genes.txt"}) as source:
        assert source.symbols == ("RACK1", "CD3E", "CD8A")  # restricting is for the ranking


def test_ensembl_ids_become_symbols_or_are_refused(folder: Path) -> None:
    ids = ("ENSG00000204628.9", "ENSG00000136244", "RACK1", "CD8A")
    five_cells(ids).write_h5ad(folder / "five.h5ad")
    with opened(folder) as source:
        assert source.symbols == ("RACK1", "IL6", "CD8A")
    unknown = tuple(f"ENSMUSG{i:011d}" for i in range(4))
    five_cells(unknown).write_h5ad(folder / "five.h5ad")
    with pytest.raises(InputError, match=r"source 'five': .*look like Ensembl ids of mouse: pass genes\.hgnc"):
        opened(folder)
    with opened(folder, genes={"min_overlap": 0}) as source:
        assert source.symbols == unknown


def test_mouse_becomes_human_by_orthologs(folder: Path) -> None:
    (folder / "orthologs.tsv").write_text("human_symbol\tmouse_symbol\nGNB2L1\tRack1\nCD3E\tCd3e\n")
    five_cells(("Rack1", "Cd3e", "Gm1", "Cd8a")).write_h5ad(folder / "five.h5ad")
    genes = {"mouse": "to_human", "orthologs": "orthologs.tsv"}
    with opened(folder, organism="mouse", genes=genes) as source:
        assert source.symbols == ("RACK1", "CD3E")
        assert np.array_equal(values(source, 0, 5), COUNTS[:, :2])
    with opened(folder, organism="mouse") as source:
        assert source.symbols == ("Rack1", "Cd3e", "Gm1", "Cd8a")
    five_cells(("Gm1", "Gm2", "Gm3", "Gm4")).write_h5ad(folder / "five.h5ad")
    with pytest.raises(InputError, match="found none of 4 names among the orthologs"):
        opened(folder, organism="mouse", genes=genes)


def truncated(folder: Path) -> None:
    path = folder / "five.h5ad"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def no_file(folder: Path) -> None:
    (folder / "five.h5ad").unlink()


def foreign(folder: Path) -> None:
    (folder / "five.h5ad").write_text("<html>not found</html>")


def no_cells(folder: Path) -> None:
    with h5py.File(folder / "five.h5ad", "w") as handle:
        handle["x"] = [1]


def short_column(folder: Path) -> None:
    with h5py.File(folder / "five.h5ad", "a") as handle:
        attributes = dict(handle["obs/donor"].attrs)
        del handle["obs/donor"]
        handle["obs/donor"] = np.array(["d1"], dtype=h5py.string_dtype())
        handle["obs/donor"].attrs.update(attributes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "truncated or damaged"),
        (no_file, "neither a file or folder"),
        (foreign, "it is a web page"),
        (no_cells, "holds no cells"),
        (short_column, "column 'donor' has 1 values"),
    ],
)
def test_a_bad_file_is_named(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(InputError, match=f"^source 'five': .*{message}"):
        opened(folder)


def test_damage_further_on_is_named_when_it_is_reached(folder: Path) -> None:
    n = 3000  # more than are tested when the file is opened
    counts = sparse.random(n, 4, density=0.5, format="csr", random_state=0, dtype=np.float32)
    counts.data = np.ceil(counts.data * 9)
    obs = pd.DataFrame({"cell_type": pd.Categorical(["T"] * n)}, index=[f"c{i}" for i in range(n)])
    adata = AnnData(X=counts, obs=obs, var=pd.DataFrame(index=["A", "B", "C", "D"]))
    adata.X.data[counts.indptr[70]] = np.nan
    adata.write_h5ad(folder / "five.h5ad")
    with opened(folder) as source, pytest.raises(InputError, match=r"^source 'five': .*found nan in cell 'c70'"):
        values(source, 0, n, 50)
    adata.X.data[counts.indptr[70]] = 1
    adata.write_h5ad(folder / "five.h5ad")
    with h5py.File(folder / "five.h5ad", "a") as handle:
        handle["obs/cell_type/codes"][2999] = 7
    with opened(folder) as source:
        assert source.metadata(0, 2999)["cell_type"].notna().all()
        with pytest.raises(InputError, match=r"^source 'five': obs\['cell_type'\] is damaged.*to 7"):
            source.metadata(2990, 3000)


def test_opening_and_spans_do_not_read_the_whole_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[tuple[int, int]] = []
    names = GroupObs.names
    monkeypatch.setattr(GroupObs, "names", lambda self, a, b: spans.append((a, b)) or names(self, a, b))
    monkeypatch.setattr(GroupObs, "frame", lambda _: pytest.fail("the whole table was read"))
    with opened(folder) as source:
        list(source.blocks(0, 5, 2))
        source.metadata(0, 5)
        source.kept(0, 5)
        assert spans == []
        source.cell_ids(1, 3)
        assert spans == [(1, 3)]


def test_names_are_read_when_they_are_looked_at(folder: Path) -> None:
    with h5py.File(folder / "five.h5ad") as handle:
        names = CellNames(GroupObs(handle["obs"]), 1, 4)
        assert list(names) == ["cell1", "cell2", "cell3"]
        assert (names[-1], names[1:], len(names)) == ("cell3", ["cell2", "cell3"], 3)
        with pytest.raises(IndexError):
            names[3]


def test_other_formats_give_the_same_cells(folder: Path) -> None:
    adata = five_cells()
    dense, by_column = adata.copy(), adata.copy()
    dense.X, by_column.X = COUNTS, sparse.csc_matrix(COUNTS)
    dense.write_h5ad(folder / "dense.h5ad")
    by_column.write_h5ad(folder / "csc.h5ad")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Writing zarr v2|zarr v3 autosharding|Consolidated metadata")
        adata.write_zarr(folder / "cells.zarr")
    with opened(folder) as expected:
        for name in ("dense.h5ad", "csc.h5ad", "cells.zarr"):
            with opened(folder, path=name) as found:
                assert found.symbols == expected.symbols
                assert np.array_equal(values(found, 0, 5), values(expected, 0, 5))
                pd.testing.assert_frame_equal(found.metadata(0, 5), expected.metadata(0, 5))
                assert found.n_values == np.count_nonzero(COUNTS)
                assert found.cell_ids(0, 5).tolist() == expected.cell_ids(0, 5).tolist()


def test_the_fingerprint_sees_an_edit_in_place_that_leaves_size_and_time(folder: Path) -> None:
    """One value of a file of 7 MB: a sample of its blocks would miss most of such edits."""
    path = folder / "five.h5ad"
    AnnData(
        X=np.random.default_rng(0).poisson(1.0, (3000, 600)).astype(np.float32),
        obs=pd.DataFrame(index=[f"cell{i}" for i in range(3000)]),
        var=pd.DataFrame(index=[f"GENE{i}" for i in range(600)]),
    ).write_h5ad(path)
    with opened(folder) as source:
        seen, stamp = {source.fingerprint}, source.stamp
    times = path.stat()
    for row in range(5, 3000, 600):
        with h5py.File(path, "r+") as file:
            file["X"][row, 3] += 1
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        with opened(folder) as source:
            assert source.stamp != stamp
            assert source.fingerprint not in seen
            seen.add(source.fingerprint)
    assert path.stat().st_size == times.st_size


def test_the_fingerprint_follows_the_file(folder: Path) -> None:
    with opened(folder) as source:
        first = source.fingerprint
    os.utime(folder / "five.h5ad", (0, 0))
    with opened(folder, title="another") as source:
        assert source.fingerprint == first
    changed = five_cells()
    changed.X = sparse.csr_matrix(COUNTS * 2)
    changed.write_h5ad(folder / "five.h5ad")
    with opened(folder) as source:
        assert source.fingerprint != first


def test_a_folder_is_a_source_for_each_file(folder: Path) -> None:
    many = folder / "atlas"
    many.mkdir()
    for name in ("b.h5ad", "a.h5ad", "notes.txt"):
        (many / name).write_bytes((folder / "five.h5ad").read_bytes())
    recipe = CorpusRecipe.model_validate(
        {"sources": [{"path": "atlas", "licence": "CC0"}, {"path": "five.h5ad", "study": "s"}]}
    )
    sources = expand(recipe, folder)
    assert [s.name for s in sources] == ["atlas/a", "atlas/b", "five"]
    assert [s.study for s in sources] == ["atlas", "atlas", "s"]
    assert [s.path for s in sources] == ["atlas/a.h5ad", "atlas/b.h5ad", "five.h5ad"]  # no path of this machine
    assert sources[0].licence == "CC0"
    with open_corpus_source(sources[1], GeneRecipe(), folder) as source:
        assert (source.name, source.n_cells) == ("atlas/b", 5)


def test_a_folder_without_cells_and_names_that_clash_are_refused(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=r"source 'empty': the folder .* holds no file of cells"):
        expand(CorpusRecipe.model_validate({"sources": [{"path": "empty"}]}), folder)
    (folder / "empty" / "x.h5ad").touch()
    sources = [{"path": "empty"}, {"path": "five.h5ad", "name": "empty/x"}]
    with pytest.raises(InputError, match="found 'empty/x' more than once"):
        expand(CorpusRecipe.model_validate({"sources": sources}), folder)


def test_a_misspelt_data_set_has_a_suggestion(folder: Path) -> None:
    source = SourceRecipe(path="pbmc68k_reducd")
    with pytest.raises(InputError, match=r"nor the name of a data set \(did you mean 'pbmc68k_reduced'"):
        open_corpus_source(source, GeneRecipe(), folder)


@pytest.mark.data
def test_real_files_by_name(data_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    kang = data_path("kang_ifnb_pbmc_832_fullgenes.h5ad")
    monkeypatch.setenv("CYTOGLOT_DATA", str(kang.parent))
    recipe = CorpusRecipe.model_validate(
        {
            "sources": [
                {"path": kang.stem, "metadata": {"tissue": "blood"}},
                {"path": "cellbench_mixology_5batches", "keep": {"batch": ["CEL-seq2_5cl_p2"]}},
            ]
        }
    )
    first, second = expand(recipe, "/nowhere")
    with open_corpus_source(first, recipe.genes, "/nowhere") as source:
        assert {"RACK1", "SEPTIN7", "CXCL8"} <= set(source.symbols)
        assert not {"GNB2L1", "SEPT7", "IL8"} & set(source.symbols)
        assert sum(block.sum() for block in source.blocks(0, 832, 300)) == h5py.File(kang)["X/data"][:].sum()
        frame = source.metadata(0, 832)
        assert frame["condition"].cat.categories.tolist() == ["ctrl", "stim"]
        assert set(frame["tissue"]) == {"blood"}
    with open_corpus_source(second, recipe.genes, "/nowhere") as source:
        assert source.kept(0, source.n_cells).sum() == 307
