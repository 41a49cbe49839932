"""One contract for every embedder that is registered, and each against its definition computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix
from scipy.stats import norm

from cytoglot.benchmark.embedders import EMBEDDERS, fit_embedder, needs_fit, sees_all_cells
from cytoglot.benchmark.embedders.base import checked_vectors
from cytoglot.benchmark.embedders.gene_vectors import mean_gene_vectors, positive_pmi
from cytoglot.benchmark.embedders.precomputed import Precomputed
from cytoglot.benchmark.embedders.rank_components import normal_scores
from cytoglot.data.synthetic import make_cells
from cytoglot.errors import CytoglotError, InputError, VocabularyMismatchError
from cytoglot.protocols import CellEmbedder

CELLS = make_cells(n_cells=160, n_genes=120, n_types=3, seed=2)
CELLS.obs["batch"] = np.where(np.arange(160) % 2, "one", "two")
CELLS.obsm["X_other"] = np.arange(320, dtype=np.float64).reshape(160, 2)
TRAIN, TEST = CELLS[:100].copy(), CELLS[100:].copy()


# A runner is a process: tests/benchmark/runners/test_run.py.
@pytest.fixture(params=[name for name in EMBEDDERS if name != "runner"])
def embedder(request: pytest.FixtureRequest, tmp_path: Path, tiny_model_folder: Path) -> CellEmbedder:
    """An embedder of every registered kind, fitted."""
    options: dict[str, dict[str, object]] = {
        "gene_table": {"path": tmp_path / "genes.parquet"},
        "file": {"path": tmp_path / "cells.parquet"},
        "obsm": {"key": "X_other"},
        "language_model": {"model": tiny_model_folder},
    }
    rng = np.random.default_rng(0)
    pd.DataFrame(rng.normal(size=(120, 3)), index=CELLS.var_names).to_parquet(tmp_path / "genes.parquet")
    vectors = pd.DataFrame(rng.normal(size=(160, 3)), index=pd.Index(CELLS.obs_names, name="cell_id"))
    vectors.columns = vectors.columns.astype(str)
    vectors.iloc[::-1].reset_index().to_parquet(tmp_path / "cells.parquet")
    return fit_embedder(EMBEDDERS[request.param](**options.get(request.param, {})), TRAIN)


def test_vectors_are_finite_float32_in_the_order_of_the_cells_and_the_input_is_untouched(
    embedder: CellEmbedder,
) -> None:
    cells = CELLS.copy() if sees_all_cells(embedder) else TEST.copy()
    before = cells.copy()
    vectors_nd = embedder.embed(cells)
    assert (vectors_nd.dtype, vectors_nd.ndim, len(vectors_nd)) == (np.float32, 2, cells.n_obs)
    assert np.isfinite(vectors_nd).all()
    assert vectors_nd.std(axis=0).max() > 0
    assert (cells.X != before.X).nnz == 0
    assert cells.obs.equals(before.obs)
    np.testing.assert_array_equal(embedder.embed(cells), vectors_nd)


def test_a_cell_has_the_same_vector_whatever_cells_are_beside_it_unless_the_method_says_otherwise(
    embedder: CellEmbedder,
) -> None:
    if sees_all_cells(embedder):
        assert not needs_fit(embedder) or type(embedder).__name__ == "ObsmVectors"
        return
    order = np.random.default_rng(1).permutation(TEST.n_obs)
    whole = embedder.embed(TEST)
    np.testing.assert_allclose(embedder.embed(TEST[order].copy()), whole[order], atol=1e-4)
    np.testing.assert_allclose(embedder.embed(TEST[:3].copy()), whole[:3], atol=1e-4)


@pytest.mark.parametrize("name", ["hvg", "pca", "rank_pca", "random_projection", "sppmi"])
def test_what_is_fitted_depends_on_training_cells_alone_and_needs_their_genes(name: str) -> None:
    first = fit_embedder(EMBEDDERS[name](), TRAIN).embed(TEST)
    changed = TEST.copy()
    changed.X = changed.X * 3  # another test set
    embedder = fit_embedder(EMBEDDERS[name](), TRAIN)
    embedder.embed(changed)
    np.testing.assert_array_equal(embedder.embed(TEST), first)
    with pytest.raises(VocabularyMismatchError, match="genes of the training cells are not in these cells"):
        embedder.embed(TEST[:, 1:].copy())


def test_normal_scores_are_the_quantiles_of_mean_ranks() -> None:
    scores = normal_scores(csr_matrix([[0.0, 3.0, 0.0, 1.0]]))
    np.testing.assert_allclose(scores[0], norm.ppf([1 / 4, 3.5 / 4, 1 / 4, 2.5 / 4]), rtol=1e-6)


def test_logs_and_depth_change_nothing_for_ranks() -> None:
    embedder = fit_embedder(EMBEDDERS["rank_pca"](), TRAIN)
    logged = TEST.copy()
    logged.X = (TEST.X.astype(np.float64) * 7).log1p().log1p()
    np.testing.assert_allclose(embedder.embed(logged), embedder.embed(TEST), atol=1e-5)


def test_positive_pmi_is_that_of_three_sentences() -> None:
    """Sentences AB, AB, BC: C = [[0,2,0],[2,0,1],[0,1,0]], N = 6, PMI(A,B) = PMI(B,C) = ln 2, PMI(A,C) = -inf."""
    presence = csr_matrix([[1, 1, 0], [1, 1, 0], [0, 1, 1]])
    ln2 = 0.6931471805599453
    np.testing.assert_allclose(positive_pmi(presence).toarray(), [[0, ln2, 0], [ln2, 0, ln2], [0, ln2, 0]])
    assert positive_pmi(presence, negatives=2.5).nnz == 0


def test_a_cell_is_the_weighted_mean_of_its_genes() -> None:
    found = mean_gene_vectors(csr_matrix([[1.0, 3.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0]]))
    np.testing.assert_allclose(found, [[0.25, 0.75], [0, 0]])


def test_genes_that_meet_are_near_in_the_vectors_of_sppmi() -> None:
    rng = np.random.default_rng(3)
    block = np.kron(rng.random((200, 2)) < 0.5, np.ones(10))  # two groups of ten genes, each all or nothing
    counts = csr_matrix(block * rng.integers(1, 9, size=block.shape))
    cells = AnnData(counts, obs=pd.DataFrame(index=[f"c{i}" for i in range(200)]))
    embedder = EMBEDDERS["sppmi"](n_components=4).fit(cells)
    unit = embedder.gene_vectors_gd / np.linalg.norm(embedder.gene_vectors_gd, axis=1, keepdims=True)
    similar = unit @ unit.T
    assert similar[:10, :10].min() > 0.9
    assert similar[:10, 10:].max() < 0.5


def test_faults_of_given_vectors_are_named() -> None:
    with pytest.raises(CytoglotError, match="NaN or infinite values for 1 of 2 cells"):
        checked_vectors(np.array([[1.0], [np.nan]]), 2, name="it")
    with pytest.raises(CytoglotError, match=r"shape \(3, 1\) for 2 cells"):
        checked_vectors(np.ones((3, 1)), 2, name="it")
    with pytest.raises(InputError, match="1 cells twice"):
        Precomputed(np.array(["a", "a"], dtype=object), np.ones((2, 1)), source="it")
    with pytest.raises(InputError, match="has no vector for 60 of 60 cells"):
        Precomputed(np.array(["a"], dtype=object), np.ones((1, 1)), source="it").embed(TEST)
    with pytest.raises(InputError, match="no obsm"):
        EMBEDDERS["obsm"](key="X_umap").embed(TEST)
    with pytest.raises(InputError, match="does not exist"):
        EMBEDDERS["gene_table"](path="nowhere.tsv")


@pytest.mark.parametrize("name", ["harmony", "combat"])
def test_a_correction_needs_batches(name: str) -> None:
    single = TEST.copy()
    single.obs["batch"] = "one"
    with pytest.raises(InputError, match="needs two batches, found 1"):
        EMBEDDERS[name]().embed(single)
    del single.obs["batch"]
    with pytest.raises(InputError, match=r"needs obs\['batch'\]"):
        EMBEDDERS[name]().embed(single)


@pytest.mark.parametrize("name", ["harmony", "combat"])
def test_a_correction_brings_shifted_batches_together(name: str) -> None:
    shifted = make_cells(n_cells=400, n_genes=120, n_types=2, seed=4)
    batch = np.arange(400) % 2
    dense = shifted.X.toarray()
    dense[batch == 1, :40] *= 4
    shifted.X = csr_matrix(dense)
    shifted.obs["batch"] = batch.astype(str)

    def apart(vectors_nd: np.ndarray) -> float:
        gap = vectors_nd[batch == 0].mean(axis=0) - vectors_nd[batch == 1].mean(axis=0)
        return float(np.linalg.norm(gap) / np.linalg.norm(vectors_nd.std(axis=0)))

    before = apart(fit_embedder(EMBEDDERS["pca"](), shifted).embed(shifted))
    assert apart(EMBEDDERS[name]().embed(shifted)) < 0.6 * before
