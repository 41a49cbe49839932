"""Cells of a SOMA experiment laid out as CELLxGENE Census is, made here; the release itself is on the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from cytoglot.corpus.sources.expand import CorpusSource, expand, open_corpus_source
from cytoglot.corpus.sources.recipe import CorpusRecipe
from cytoglot.errors import InputError, MissingExtraError

N_CELLS, N_GENES = 300, 8


def cells() -> AnnData:
    rng = np.random.default_rng(0)
    counts_ng = rng.poisson(0.7, size=(N_CELLS, N_GENES)).astype(np.float32)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(rng.choice(["T cell", "B cell", "unknown"], N_CELLS)),
            "donor_id": pd.Categorical(rng.choice(["d1", "d2", "d3"], N_CELLS)),
            "tissue_general": pd.Categorical(rng.choice(["lung", "gut"], N_CELLS)),
            "is_primary_data": rng.random(N_CELLS) < 0.7,
            "nnz": np.count_nonzero(counts_ng, axis=1),
        },
        index=[f"c{i}" for i in range(N_CELLS)],
    )
    names = ["CD3E", "GNB2L1", "RACK1", "CD8A", "MS4A1", "NKG7", "CD3E", "LYZ"]  # CD3E twice, RACK1 by two names
    var = pd.DataFrame(
        {"feature_id": [f"ENSG{i:011d}" for i in range(N_GENES)], "feature_name": names},
        index=[str(i) for i in range(N_GENES)],
    )
    return AnnData(X=sparse.csr_matrix(counts_ng), obs=obs, var=var)


@pytest.fixture(scope="module")
def soma() -> Any:
    reason = "tiledbsoma is not installed (pip install 'cytoglot[census]')"
    pytest.importorskip("tiledbsoma.io", reason=reason)
    return pytest.importorskip("tiledbsoma", reason=reason)


@pytest.fixture(scope="module")
def experiment(soma: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("census")
    uri = folder / "human"
    soma.io.from_anndata(str(uri), cells(), measurement_name="RNA", X_layer_name="raw")
    with soma.Collection.create(str(folder / "census")) as census:
        data = census.add_new_collection("census_data")
        data.set("homo_sapiens", soma.open(str(uri)), use_relative_uri=False)
    return uri


@pytest.fixture
def opened(experiment: Path) -> Callable[..., CorpusSource]:
    def open_(*, base: Path | None = None, uri: str | None = "human", **fields: Any) -> CorpusSource:
        census = {"uri": uri, **fields.pop("census", {})}
        recipe = CorpusRecipe.model_validate({"sources": [{"name": "lung", "census": census, **fields}]})
        base = base or experiment.parent
        return open_corpus_source(expand(recipe, base)[0], recipe.genes, base)

    return open_


def expected(chosen: np.ndarray) -> np.ndarray:
    """Counts of the chosen cells over CD3E, RACK1, CD8A, MS4A1, NKG7, LYZ."""
    counts_ng = cells().X.toarray()[chosen]
    columns = [counts_ng[:, [0, 6]].sum(1), counts_ng[:, [1, 2]].sum(1), *counts_ng[:, [3, 4, 5, 7]].T]
    return np.stack(columns, axis=1)


def read(source: CorpusSource, first: int, last: int, chunk: int = 50) -> np.ndarray:
    return sparse.vstack(list(source.blocks(first, last, chunk))).toarray()


def test_primary_cells_come_in_order_over_harmonized_genes(opened: Callable[..., CorpusSource]) -> None:
    primary = cells().obs["is_primary_data"].to_numpy()
    with opened() as source:
        assert source.symbols == ("CD3E", "RACK1", "CD8A", "MS4A1", "NKG7", "LYZ")
        assert source.n_cells == primary.sum()
        assert source.is_counts
        assert source.n_values == cells().obs["nnz"][primary].sum()
        assert np.array_equal(read(source, 0, source.n_cells), expected(primary))
        assert source.cell_ids(0, source.n_cells).tolist() == cells().obs_names[primary].tolist()
        assert source.kept(0, source.n_cells).all()
        assert any("integer counts" in message for message in source.messages)


def test_spans_are_slices(opened: Callable[..., CorpusSource]) -> None:
    primary = cells().obs["is_primary_data"].to_numpy()
    with opened() as source:
        assert np.array_equal(read(source, 17, 63, 10), expected(primary)[17:63])
        assert source.cell_ids(17, 20).tolist() == cells().obs_names[primary][17:20].tolist()
        whole, part = source.metadata(0, source.n_cells).astype(object), source.metadata(17, 63).astype(object)
        pd.testing.assert_frame_equal(part, whole[17:63].reset_index(drop=True))
        assert list(source.blocks(5, 5, 10)) == []


def test_metadata_are_canonical(opened: Callable[..., CorpusSource]) -> None:
    obs = cells().obs[cells().obs["is_primary_data"]]
    with opened(metadata={"disease": "normal"}) as source:
        frame = source.metadata(0, source.n_cells)
        assert frame["tissue"].tolist() == obs["tissue_general"].tolist()
        assert frame["donor_id"].tolist() == obs["donor_id"].tolist()
        assert frame["cell_type"].isna().tolist() == (obs["cell_type"] == "unknown").tolist()
        assert set(frame["organism"]) == {"human"}
        assert set(frame["disease"]) == {"normal"}


def test_the_query_chooses_cells(opened: Callable[..., CorpusSource]) -> None:
    obs = cells().obs
    lung = (obs["tissue_general"] == "lung").to_numpy()
    primary = obs["is_primary_data"].to_numpy()
    query = {"value_filter": "tissue_general == 'lung' or donor_id == 'd1'"}
    wanted = (lung | (obs["donor_id"] == "d1").to_numpy()) & primary
    with opened(census=query) as source:
        assert np.array_equal(read(source, 0, source.n_cells), expected(wanted))
        first = source.fingerprint
    with opened(primary_only=False) as source:
        assert source.n_cells == N_CELLS
        assert np.array_equal(read(source, 0, N_CELLS, 1000), expected(np.ones(N_CELLS, dtype=bool)))
        assert source.fingerprint != first
    with opened(census=query) as source:
        assert source.fingerprint == first
    with opened(keep={"tissue_general": ["lung"]}) as source:
        assert source.kept(0, source.n_cells).tolist() == lung[primary].tolist()


def test_a_release_is_opened_by_its_build(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, opened: Callable[..., CorpusSource]
) -> None:
    package = pytest.importorskip("cellxgene_census", reason="cellxgene-census is not installed")
    soma, build = pytest.importorskip("tiledbsoma"), ["2025-01-30"]
    asked = []

    def open_soma(*, census_version: str, tiledb_config: dict[str, Any]) -> Any:
        asked.append(census_version)
        context = soma.SOMATileDBContext(tiledb_config=tiledb_config)
        return soma.open(str(experiment.parent / "census"), context=context)

    monkeypatch.setattr(package, "open_soma", open_soma)
    monkeypatch.setattr(package, "get_census_version_description", lambda _: {"release_build": build[0]})
    fingerprints = []
    for build[0] in ("2025-01-30", "2025-01-30", "2025-11-08"):
        with opened(uri=None) as source:
            assert source.path == f"CELLxGENE Census {build[0]}"
            assert source.n_cells == cells().obs["is_primary_data"].sum()
            fingerprints.append(source.fingerprint)
    assert asked == ["2025-01-30", "2025-01-30", "2025-11-08"]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]  # `stable` moves on


def test_a_whole_census_holds_an_experiment_for_each_organism(opened: Callable[..., CorpusSource]) -> None:
    with opened(uri="census") as source:
        assert source.n_cells == cells().obs["is_primary_data"].sum()
    with pytest.raises(InputError, match=r"source 'lung': unknown organism 'mus_musculus'.*homo_sapiens"):
        opened(uri="census", organism="mouse")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"uri": "none"}, "cannot be read .DoesNotExistError"),
        ({"census": {"value_filter": "tissu == 'lung'"}}, "cannot be read .*tissu"),
        ({"census": {"value_filter": "tissue_general = 1"}}, "cannot be read .*tissue_general = 1"),
        ({"census": {"value_filter": "donor_id == 'd9'"}}, "finds no cell"),
        ({"census": {"layer": "normalized"}}, "unknown X layer 'normalized'; known: 'raw'"),
        ({"census": {"measurement": "ATAC"}}, "unknown measurement 'ATAC'; known: 'RNA'"),
        ({"columns": {"batch": "plate"}}, "names the column 'plate'"),
        ({"organism": "mouse"}, "expected symbols of mouse genes.*look like human symbols"),
    ],
)
def test_faults_are_named(opened: Callable[..., CorpusSource], fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=f"^source 'lung': .*{message}"):
        opened(**fields)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(module: str) -> Any:
        raise ModuleNotFoundError(name=module)

    monkeypatch.setattr("cytoglot.extras.importlib.import_module", absent)
    recipe = CorpusRecipe.model_validate({"sources": [{"census": {"version": "2025-01-30"}}]})
    (source,) = expand(recipe, tmp_path)
    assert source.name == "census"
    with pytest.raises(MissingExtraError, match=r"pip install 'cytoglot\[census\]'"):
        open_corpus_source(source, recipe.genes, tmp_path)
