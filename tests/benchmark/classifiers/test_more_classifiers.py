"""Classifiers with a definition of their own, against that definition; and classifiers on an embedding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler

from cytoglot.benchmark.classifiers import CLASSIFIERS
from cytoglot.benchmark.classifiers.celltypist import ScaledGenes
from cytoglot.benchmark.classifiers.mlp import MlpClassifier
from cytoglot.benchmark.classifiers.nearest_centroid import CentroidClassifier
from cytoglot.benchmark.embedders import EMBEDDERS
from cytoglot.data.synthetic import make_cells
from cytoglot.errors import CytoglotError, InputError

CELLS = make_cells(n_cells=240, n_genes=120, n_types=3, seed=1)
LABELS = CELLS.obs["cell_type"].astype(str).to_numpy(dtype=object)
TRAIN, TEST = CELLS[:160].copy(), CELLS[160:].copy()


def accuracy(name: str, **options: object) -> float:
    made = CLASSIFIERS[name](**options).fit(TRAIN, LABELS[:160])
    best = np.array(made.labels, dtype=object)[made.predict_proba(TEST).argmax(axis=1)]
    return float((best == LABELS[160:]).mean())


@pytest.mark.parametrize(
    "name", ["logistic_regression", "nearest_neighbors", "linear_svm", "nearest_centroid", "mlp", "celltypist"]
)
def test_a_classifier_reads_an_embedding_and_nothing_of_random_vectors(name: str) -> None:
    assert accuracy(name, embedder=EMBEDDERS["pca"]()) > 0.75
    assert accuracy(name, embedder=EMBEDDERS["random_vectors"]()) < 0.55


def test_an_embedding_with_nan_is_an_error_and_not_a_score() -> None:
    class Broken:
        def embed(self, adata: object) -> np.ndarray:
            return np.full((getattr(adata, "n_obs"), 2), np.nan, dtype=np.float32)  # noqa: B009

    with pytest.raises(CytoglotError, match="Broken gave NaN"):
        CLASSIFIERS["logistic_regression"](embedder=Broken()).fit(TRAIN, LABELS[:160])


def test_the_span_of_the_training_cells_loses_nothing() -> None:
    rng = np.random.default_rng(0)
    x_ng, y = rng.gamma(1.0, size=(40, 90)).astype(np.float32), rng.integers(0, 3, 40)
    x_ng[:, :3] += 2 * np.eye(3)[y].astype(np.float32)
    new_ng = rng.gamma(1.0, size=(20, 90)).astype(np.float32)
    scaler = StandardScaler().fit(x_ng)

    def cut(matrix: np.ndarray) -> np.ndarray:
        return np.minimum(scaler.transform(matrix), 10)

    model = OneVsRestClassifier(LogisticRegression(C=1.0, max_iter=2000, tol=1e-8))
    by_hand = model.fit(cut(x_ng), y).decision_function(cut(new_ng))
    span = ScaledGenes().fit(x_ng)
    ours = model.fit(span.transform(x_ng), y).decision_function(span.transform(new_ng))
    assert span.transform(x_ng).shape[1] <= 40
    np.testing.assert_allclose(ours, by_hand, atol=2e-3)


def test_scmap_assigns_where_two_similarities_agree_above_the_threshold() -> None:
    profiles = np.array([[9.0, 1, 1, 0], [1, 9, 1, 0], [1, 1, 9, 0]])
    made = CentroidClassifier(n_top=4).fit(np.repeat(profiles, 3, axis=0), np.repeat(["a", "b", "c"], 3))
    cell = np.array([[9.0, 2, 1, 0]])
    cosine = (cell @ profiles[0]) / (np.linalg.norm(cell) * np.linalg.norm(profiles[0]))
    found = made.similarities(cell)
    np.testing.assert_allclose(found[0, 0, 0], cosine[0])
    np.testing.assert_allclose(found[1, 0, 0], np.corrcoef(cell[0], profiles[0])[0, 1])
    assert made.predict_proba(cell).argmax() == 0
    scmap = CLASSIFIERS["nearest_centroid"](threshold=0.3).fit(TRAIN, LABELS[:160])
    assert scmap.assigned(TEST).mean() > 0.1
    noise = TEST.copy()
    noise.X = noise.X.copy()
    noise.X.data = np.random.default_rng(0).permutation(noise.X.data)
    assert scmap.known(noise).mean() < scmap.known(TEST).mean()


def test_the_mlp_is_the_one_of_the_study_and_stops_early() -> None:
    import torch

    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    x = rng.normal(size=(200, 8)) + 2 * y[:, None]
    made = MlpClassifier(epochs=40, patience=3).fit(x, y)
    kinds = [type(layer) for layer in made._network]
    block = [torch.nn.Linear, torch.nn.BatchNorm1d, torch.nn.GELU, torch.nn.Dropout]
    assert kinds == [*block, *block, torch.nn.Linear]
    assert [layer.out_features for layer in made._network if isinstance(layer, torch.nn.Linear)] == [512, 256, 2]
    assert (made.predict_proba(x).argmax(axis=1) == y).mean() > 0.95
    state = torch.get_rng_state()
    again = MlpClassifier(epochs=40, patience=3).fit(x, y)
    np.testing.assert_array_equal(made.predict_proba(x), again.predict_proba(x))
    assert torch.equal(state, torch.get_rng_state())  # the caller's random numbers are his own


def test_given_labels_are_taken_as_they_are() -> None:
    cells = CELLS.copy()
    cells.obs["guess"] = np.where(np.arange(240) % 2 == 0, LABELS, "something else")
    made = CLASSIFIERS["given"](column="guess").fit(cells[:100].copy(), LABELS[:100])
    found = made.predict_proba(cells[100:].copy())
    best = np.array(made.labels, dtype=object)[found.argmax(axis=1)]
    assert (best == cells.obs["guess"].to_numpy()[100:]).all()
    with pytest.raises(InputError, match="no column 'nothing'"):
        CLASSIFIERS["given"](column="nothing").fit(cells, LABELS)


@pytest.mark.slow
def test_a_cell_model_is_trained_once_for_all_ways_to_ask_it(tmp_path: Path) -> None:
    few = {"optim.steps": 20, "sentence.top_genes": 20, "views": 1}
    made = CLASSIFIERS["cytoglot"](folder=tmp_path, settings=few, method="score", device="cpu")
    probabilities = made.fit(TRAIN, LABELS[:160], TEST, LABELS[160:]).predict_proba(TEST)
    assert probabilities.shape == (TEST.n_obs, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    folders = sorted(tmp_path.iterdir())
    stamp = {path: path.stat().st_mtime_ns for path in folders[0].rglob("*.safetensors")}
    head = CLASSIFIERS["cytoglot"](folder=tmp_path, settings=few, method="hybrid", device="cpu").fit(
        TRAIN, LABELS[:160], TEST, LABELS[160:]
    )
    best = np.array(head.labels, dtype=object)[head.predict_proba(TEST).argmax(axis=1)]
    assert (best == LABELS[160:]).mean() > 0.6
    assert sorted(tmp_path.iterdir()) == folders
    assert {path: path.stat().st_mtime_ns for path in folders[0].rglob("*.safetensors")} == stamp
    CLASSIFIERS["cytoglot"](folder=tmp_path, settings=few, device="cpu", seed=1).fit(TRAIN, LABELS[:160])
    assert len(list(tmp_path.iterdir())) == 2
