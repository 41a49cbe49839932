"""The linear probe: right where types lie apart, at chance where they do not, blind to the test cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from cytoglot.benchmark.probe import linear_probe

N = 300
ROWS = {"train": np.arange(150), "validation": np.arange(150, 200), "test": np.arange(200, N)}


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.random.default_rng(0).choice(np.array(["A", "B", "C"], dtype=object), N)


@pytest.fixture(scope="module")
def apart(labels: np.ndarray) -> np.ndarray:
    """Types at the corners of a triangle, with a dimension of a scale of its own."""
    corner = {"A": (0, 0), "B": (4, 0), "C": (0, 4)}
    noise = np.random.default_rng(1).normal(size=(N, 3)) * [0.5, 0.5, 1000]
    return noise + np.array([(*corner[label], 0) for label in labels])


def _accuracy(embedding: np.ndarray, labels: np.ndarray, **rows: Any) -> float:
    names, probability = linear_probe(embedding, labels, **(ROWS | rows), seed=0)
    assert names == ("A", "B", "C")
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    return float((np.array(names)[probability.argmax(axis=1)] == labels[ROWS["test"]]).mean())


def test_types_that_lie_apart_are_told(apart: np.ndarray, labels: np.ndarray) -> None:
    assert _accuracy(apart, labels) > 0.98


def test_noise_is_at_chance(labels: np.ndarray) -> None:
    assert abs(_accuracy(np.random.default_rng(2).normal(size=(N, 3)), labels) - 1 / 3) < 0.15


def test_test_cells_are_judged_one_by_one_and_their_labels_not_read(apart: np.ndarray, labels: np.ndarray) -> None:
    _, before = linear_probe(apart, labels, **ROWS, seed=0)
    moved, hidden = apart.copy(), labels.copy()
    moved[ROWS["test"][1:]] *= 100
    hidden[ROWS["test"]] = None
    _, after = linear_probe(moved, hidden, **ROWS, seed=0)
    np.testing.assert_allclose(after[0], before[0])


def test_without_validation_cells_the_strength_is_a_tenth(apart: np.ndarray, labels: np.ndarray) -> None:
    _, found = linear_probe(apart, labels, **(ROWS | {"validation": np.array([], dtype=np.int64)}), seed=0)
    scaler = StandardScaler().fit(apart[ROWS["train"]])
    reference = LogisticRegression(C=0.1, max_iter=1000).fit(
        scaler.transform(apart[ROWS["train"]]), labels[ROWS["train"]].astype(str)
    )
    np.testing.assert_allclose(found, reference.predict_proba(scaler.transform(apart[ROWS["test"]])), atol=1e-6)
