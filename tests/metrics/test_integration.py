"""Scores of an embedding: numbers of scib-metrics 0.5.10 on the same cells, and what must hold of any embedding."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import silhouette_samples as sklearn_silhouettes
from sklearn.neighbors import NearestNeighbors

from cytoglot import metrics as m

RNG = np.random.default_rng(11)
LABELS, BATCHES = RNG.integers(0, 4, 600), RNG.integers(0, 3, 600)
LABELS[:40], BATCHES[:40] = 4, 0
VECTORS = RNG.normal(size=(600, 10)) + 2 * np.eye(10)[LABELS] + 0.8 * np.eye(10)[5 + BATCHES]
SCORES = m.integration_scores(VECTORS, LABELS, BATCHES)
#: scib-metrics 0.5.10 on these cells, with exact neighbors: silhouette_label, isolated_labels, silhouette_batch, bras,
#: ilisi_knn and clisi_knn of 90 neighbors, graph_connectivity of 15 (the cell itself counted)
SCIB = {
    "asw_label": 0.5362701416015625,
    "isolated_labels": 0.5291079878807068,
    "asw_batch": 0.9483189582824707,
    "bras": 0.8921872973442078,
    "ilisi": 0.6899223327636719,
    "clisi": 0.7193791270256042,
    "graph_connectivity": 0.8721659233771513,
}


@pytest.mark.parametrize("name", SCIB)
def test_scores_are_those_of_scib_metrics(name: str) -> None:
    assert SCORES[name] == pytest.approx(SCIB[name], abs=1e-5)


def test_lisi_of_each_cell_is_that_of_scib_metrics() -> None:
    found = m.lisi(m.nearest_neighbors(VECTORS, 89), BATCHES)
    np.testing.assert_allclose(found[:5], [2.2505655, 2.6762555, 2.1622422, 2.5688887, 1.9954091], atol=1e-4)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_silhouettes_are_those_of_scikit_learn(distance: str) -> None:
    ours = m.silhouette_samples(VECTORS, LABELS, distance=distance)
    np.testing.assert_allclose(ours, sklearn_silhouettes(VECTORS, LABELS, metric=distance), atol=1e-9)


def test_neighbors_are_exact_and_ties_are_in_the_order_of_the_cells() -> None:
    near = m.nearest_neighbors(VECTORS, 20)
    distances, indices = NearestNeighbors(n_neighbors=21, algorithm="brute").fit(VECTORS).kneighbors(VECTORS)
    np.testing.assert_array_equal(near.indices_nk, indices[:, 1:])
    np.testing.assert_allclose(near.distances_nk, distances[:, 1:], atol=1e-9)
    same = m.nearest_neighbors(np.zeros((5, 2)), 2)
    assert same.indices_nk.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]
    far = VECTORS[:50] + 1e6  # a common offset must not cost digits
    np.testing.assert_array_equal(
        m.nearest_neighbors(far, 5).indices_nk, m.nearest_neighbors(VECTORS[:50], 5).indices_nk
    )


def test_a_rotation_and_another_order_of_cells_change_nothing() -> None:
    rotation, _ = np.linalg.qr(RNG.normal(size=(10, 10)))
    order = RNG.permutation(600)
    again = m.integration_scores((VECTORS @ rotation)[order], LABELS[order], BATCHES[order])
    for name, value in SCORES.items():
        # k-means starts from other cells
        assert again[name] == pytest.approx(value, abs=0.05 if "kmeans" in name or "total" in name else 1e-6), name


def test_labels_at_random_are_at_chance_and_mixed_batches_at_the_top() -> None:
    vectors, labels, batches = RNG.normal(size=(900, 8)), RNG.integers(0, 3, 900), RNG.integers(0, 2, 900)
    scores = m.integration_scores(vectors, labels, batches)
    assert scores["knn_accuracy"] == pytest.approx(1 / 3, abs=0.06)
    assert scores["asw_label"] == pytest.approx(0.5, abs=0.01)
    assert abs(scores["ari_kmeans"]) < 0.02
    assert scores["ilisi"] > 0.9
    assert scores["kbet"] == pytest.approx(0.95, abs=0.03)
    apart = vectors + 20 * batches[:, None]
    shifted = m.integration_scores(apart, labels, batches)
    assert shifted["ilisi"] < 0.01
    assert shifted["kbet"] < 0.01
    assert shifted["asw_batch"] < 0.2


def test_shuffling_cells_within_their_type_is_rewarded_by_the_total_so_it_is_no_headline() -> None:
    """An adversary: every cell gets the centre of its type and noise, so that nothing of the cell is left."""
    centres = np.stack([VECTORS[label == LABELS].mean(axis=0) for label in range(5)])
    empty = centres[LABELS] + 0.01 * RNG.normal(size=VECTORS.shape)
    assert m.integration_scores(empty, LABELS, BATCHES)["scib_total"] > SCORES["scib_total"] + 0.1


def test_votes_of_neighbors_by_hand() -> None:
    near = m.nearest_neighbors([[0.0], [1.0], [2.1], [10.0], [11.0]], 4)
    labels, batches = ["a", "a", "b", "b", "b"], ["x", "y", "x", "x", "y"]
    assert m.knn_accuracy(near, labels, k=1) == pytest.approx(4 / 5)  # the third is nearest to an a
    # Votes of the other batch alone: 1, 0, 1, 4 and 3 are the nearest.
    assert m.knn_accuracy(near, labels, k=1, batches=batches) == pytest.approx(4 / 5)
    assert math.isnan(m.knn_accuracy(near, labels, batches=["x"] * 5))


def test_what_is_not_defined_is_nan() -> None:
    alone = m.integration_scores(VECTORS[:50], LABELS[:50])
    for name in ("ilisi", "kbet", "bras", "asw_batch", "scib_total", "knn_accuracy_other_batch"):
        assert math.isnan(alone[name]), name
    assert math.isnan(m.asw_label(VECTORS, ["a"] * 600))
    assert math.isnan(m.ilisi(VECTORS, ["a"] * 600))
    with pytest.raises(ValueError, match="NaN or infinity in 1 of 600"):
        m.silhouette(np.where(np.arange(6000).reshape(600, 10) == 7, np.nan, VECTORS), LABELS)
    with pytest.raises(ValueError, match="k is from 1"):
        m.nearest_neighbors(VECTORS[:5], 5)


@pytest.mark.parametrize(
    ("x", "y", "of_x", "both"),
    [
        (np.eye(3), np.eye(3), 0.0, 0.0),
        (np.eye(3), [[1, 0, 0], [1, 0.2, 0], [0, 0, 1]], 0.0, 1 / 12),
        ([[1, 0], [0, 1], [1, 1]], [[0, 1], [1, 0], [1, 1]], 2 / 3, 2 / 3),
    ],
)
def test_closer_than_the_true_match_by_hand(x: object, y: object, of_x: float, both: float) -> None:
    assert m.foscttm_per_pair(x, y)[0].mean() == pytest.approx(of_x)
    assert m.foscttm(x, y) == pytest.approx(both)


def test_matching_is_that_of_all_similarities_in_double_precision() -> None:
    x, y = RNG.normal(size=(5000, 16)), RNG.normal(size=(5000, 16))
    y += 0.3 * x
    x[:50], y[:50] = x[0], y[0]  # many to one: copies of the match are not closer
    unit_x, unit_y = (
        part.astype(np.float32).astype(np.float64)
        for part in (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    )
    similar = unit_x @ unit_y.T
    match = np.diag(similar)
    of_x, of_y = m.foscttm_per_pair(x, y)
    slack = 1e-12
    np.testing.assert_array_equal(of_x, (similar > match[:, None] + slack).sum(axis=1) / 4999)
    np.testing.assert_array_equal(of_y, (similar > match[None, :] + slack).sum(axis=0) / 4999)


def test_a_common_offset_is_taken_out_by_centring() -> None:
    x = RNG.normal(size=(400, 32))
    y = x + 3 * RNG.normal(size=x.shape)
    assert m.foscttm(x + 5, y + 5) > m.foscttm(x, y)
    assert m.foscttm(x + 5, y + 5, centered=True) == pytest.approx(m.foscttm(x, y, centered=True), abs=1e-3)
    assert m.foscttm(x, RNG.normal(size=x.shape)) == pytest.approx(0.5, abs=0.02)
    assert math.isnan(m.foscttm(x[:1], y[:1]))
    with pytest.raises(ValueError, match="one shape"):
        m.foscttm(x, y[:5])
