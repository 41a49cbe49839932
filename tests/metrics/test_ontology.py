"""Errors on an ontology, structure of types, walks, roughness and groups of genes: values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA

from cytoglot import metrics as m
from cytoglot.data.knowledge.ontology_graph import OntologyGraph
from cytoglot.data.synthetic import make_cells

#: cell > leukocyte > {lymphocyte > {T > {CD4 T, CD8 T}, B}, monocyte}
TREE = OntologyGraph(
    {"leuk": ["cell"], "lymph": ["leuk"], "T": ["lymph"], "CD4": ["T"], "CD8": ["T"], "B": ["lymph"], "mono": ["leuk"]}
)


@pytest.mark.parametrize(
    ("truth", "predicted", "steps"),
    [("CD4", "CD8", 1), ("CD4", "B", 2), ("B", "CD4", 1), ("CD4", "T", 1), ("T", "CD4", 0), ("B", "B", 0)],
)
def test_steps_go_from_the_common_ancestor_down_to_the_truth(truth: str, predicted: str, steps: int) -> None:
    assert m.lca_steps(TREE, truth, predicted) == steps


def test_of_several_common_ancestors_the_nearest_counts() -> None:
    two = OntologyGraph({"beta": ["endocrine", "secretes"], "alpha": ["endocrine", "far"], "far": ["secretes"]})
    assert m.lca_steps(two, "alpha", "beta") == 1
    assert m.lca_steps(two, "beta", "alpha") == 1


def test_errors_of_four_cells() -> None:
    """CD4→CD8 costs 1, CD4 is right, B→mono costs 2, mono is right; a label without a term is counted."""
    found = m.ontology_errors(["CD4", "CD4", "B", "mono", None], ["CD8", "CD4", "mono", "mono", "B"], TREE)
    assert (found.lcad, found.lcad_all) == (1.5, 0.75)
    assert (found.n_rated, found.n_wrong, found.n_unmapped, found.n_unrelated) == (4, 2, 1, 0)
    assert found.path == (2 + 3) / 2
    assert math.isnan(m.lcad(["B"], ["B"], TREE))
    assert math.isnan(m.lcad(["B"], [None], TREE))
    apart = OntologyGraph({"a": ["x"], "b": ["y"]})
    assert m.ontology_errors(["a"], ["b"], apart).n_unrelated == 1


def test_a_prediction_above_the_truth_loses_recall_alone() -> None:
    # Below the root: CD4 has itself, T, lymph, leuk; T has three of them.
    found = m.hierarchical_scores(["CD4"], ["T"], TREE)
    assert (found.precision, found.recall) == (1.0, 0.75)
    assert m.hierarchical_f1(["CD4"], ["CD4"], TREE) == 1
    assert m.hierarchical_f1(["CD4"], ["CD8"], TREE) > m.hierarchical_f1(["CD4"], ["mono"], TREE)


def test_p_values_are_raised_step_by_step() -> None:
    np.testing.assert_allclose(m.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(m.holm([0.5, np.nan, 0.9]), [1.0, np.nan, 1.0])
    sm = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(0).random(30) ** 3
    np.testing.assert_allclose(m.holm(p), sm.multipletests(p, method="holm")[1])


def test_a_walk_on_a_chain_of_three() -> None:
    q = m.restart_walk(csr_matrix([[0, 1, 0], [1, 0, 1], [0, 1, 0]]))
    wanted = [[0.734615, 0.230769, 0.034615], [0.115385, 0.769231, 0.115385], [0.034615, 0.230769, 0.734615]]
    np.testing.assert_allclose(q, wanted, atol=1e-6)
    np.testing.assert_allclose(q.sum(axis=1), 1)
    alone = m.restart_walk(csr_matrix((2, 2)))
    np.testing.assert_allclose(alone, np.eye(2))
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        m.restart_walk(csr_matrix((2, 2)), restart=0)


def test_near_terms_have_near_vectors() -> None:
    parents = {"CD4": ["T"], "CD8": ["T"], "T": ["lymph"], "B": ["lymph"], "lymph": ["cell"], "mono": ["cell"]}
    found = m.term_distances(m.term_vectors(parents), ["CD4", "CD8", "mono", "unknown"])
    assert found.types == ("CD4", "CD8", "mono")
    of = found.distances_tt[0]
    assert of[0] == 0
    assert of[1] < of[2]


def test_the_distance_of_a_type_to_itself_flatters_any_embedding() -> None:
    rng = np.random.default_rng(0)
    kept, dropped = [], []
    for _ in range(60):
        types = [f"type {i}" for i in range(8)]
        first, second = (m.type_distances(rng.normal(size=(8, 10)), types, min_cells=1) for _ in range(2))
        kept.append(m.structure_scores(first, second, diagonal="keep").pearson)
        dropped.append(m.structure_scores(first, second).pearson)
    assert np.mean(kept) > 0.6
    assert abs(np.mean(dropped)) < 0.1


def test_three_types_have_no_structure() -> None:
    places, types = np.random.default_rng(0).normal(size=(60, 3)), np.repeat(["a", "b", "c"], 20)
    assert math.isnan(m.scgraph(places, types, m.type_distances(places, types)))


def test_structure_of_real_components_is_above_chance_and_that_of_random_vectors_is_not() -> None:
    cells = make_cells(n_cells=600, n_genes=200, n_types=6, seed=9)
    log = cells.X.astype(np.float64).log1p().tocsr()
    types = cells.obs["cell_type"].astype(str).to_numpy()
    batches = np.where(np.arange(600) % 2, "one", "two")
    reference = m.consensus_distances(log, types, batches, n_variable=150)
    vectors = PCA(10, random_state=0).fit_transform(log.toarray())
    real = m.structure_against_chance(vectors, types, reference, n_permutations=40)
    assert real.value > 0.8
    assert real.p_value < 0.05
    assert abs(real.mean) < 0.35
    random = m.scgraph(np.random.default_rng(1).normal(size=(600, 10)), types, reference)
    assert random < real.value - 0.3


def test_variable_genes_are_those_of_scanpy() -> None:
    sc = pytest.importorskip("scanpy")
    cells = make_cells(n_cells=300, n_genes=300, n_types=4, seed=3)
    cells.X = cells.X.astype(np.float32).log1p()
    table = sc.pp.highly_variable_genes(cells, n_top_genes=50, flavor="seurat", inplace=False)
    ours = m.variable_genes(cells.X, n_top=50)
    theirs = np.flatnonzero(table["highly_variable"].to_numpy())
    assert len(set(ours) & set(theirs)) >= 48  # equal values at the limit may differ
    with pytest.raises(ValueError, match="need log1p"):
        m.variable_genes(cells.X * -1)


@pytest.mark.parametrize(
    ("x", "y", "value"),
    [
        ([[0.0], [1.0], [2.0], [3.0]], [0.0, 1.0, 2.0, 3.0], 0.2877967),
        ([[0.0], [1.0], [2.0], [3.0]], [0.0, 1.0, 0.0, 1.0], 0.8333333),
        ([[0.0], [1.0], [2.0], [3.0]], [0.0, 0.0, 1.0, 1.0], 0.3333333),
    ],
)
def test_roughness_by_hand(x: list[list[float]], y: list[float], value: float) -> None:
    assert m.rogi(x, y) == pytest.approx(value, abs=1e-7)


def test_roughness_is_that_of_the_authors_package() -> None:
    distances = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    value = m.rogi(distances, np.arange(5.0), distance="precomputed")
    assert value == pytest.approx(0.1530913965143058, abs=1e-10)


def test_a_smooth_property_is_told_from_its_null() -> None:
    found = m.rogi_against_chance(np.arange(60.0)[:, None], np.arange(60.0), n_permutations=30)
    assert found.p_value == pytest.approx(1 / 31)
    rng = np.random.default_rng(0)
    nothing = m.rogi_against_chance(rng.normal(size=(60, 3)), rng.normal(size=60), n_permutations=30)
    assert nothing.p_value > 0.02
    assert math.isnan(m.rogi([[0.0], [1.0]], [1.0, 1.0]))


def test_groups_of_genes_by_hand_and_beside_chance() -> None:
    found = m.partition_agreement(list("001122"), list("001111"))
    np.testing.assert_allclose(found, [0.444444, 0.654654, 0.733680], atol=1e-6)
    assert np.mean(found) == pytest.approx(0.610926, abs=1e-6)
    rng = np.random.default_rng(0)
    groups = np.repeat(list("abc"), 20)
    learned = m.attribute_learning(rng.normal(size=(60, 2)) + 9 * np.eye(3)[np.repeat(range(3), 20)][:, :2], groups)
    assert learned.index == pytest.approx(1, abs=0.05)
    assert learned.chance.p_value < 0.02
    assert learned.chance.mean > 0.05  # one of the three is not corrected for chance
    assert m.attribute_learning(rng.normal(size=(60, 2)), groups).chance.p_value > 0.02
    assert math.isnan(m.attribute_learning_index(rng.normal(size=(5, 2)), ["a"] * 5))
