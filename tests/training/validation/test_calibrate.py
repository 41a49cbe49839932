"""Temperature and threshold."""

from __future__ import annotations

import numpy as np
import pytest

from cytoglot.training.validation.calibrate import calibrate

_FIRST, _SECOND = slice(None, 2500), slice(2500, None)


def _cells(n: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose right temperature is known: truth is drawn from softmax(scores / temperature)."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(scale=4, size=(n, 3))
    p = np.exp(scores / temperature)
    p /= p.sum(axis=1, keepdims=True)
    truth = np.array([rng.choice(3, p=row) for row in p])
    return scores, truth


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_that_made_the_labels_is_found(temperature: float) -> None:
    scores, truth = _cells(20_000, temperature)
    assert calibrate(scores, truth).temperature == pytest.approx(temperature, rel=0.05)


def test_threshold_keeps_95_percent_of_the_right_answers() -> None:
    scores, truth = _cells(5000, 2.0)
    found = calibrate(scores, truth)
    p = np.exp(scores / found.temperature)
    p /= p.sum(axis=1, keepdims=True)
    right = p.argmax(axis=1) == truth
    # The second half set the threshold, the first one the temperature alone.
    shares = [(p.max(axis=1)[half][right[half]] >= found.threshold).mean() for half in (_SECOND, _FIRST)]
    assert shares[0] == pytest.approx(0.95, abs=0.001)
    assert shares[1] == pytest.approx(0.95, abs=0.02)


def test_the_halves_of_many_cells_fit_different_things() -> None:
    scores, truth = _cells(5000, 2.0)
    before = calibrate(scores, truth)
    sharper = scores.copy()
    sharper[_SECOND] *= 2
    after = calibrate(sharper, truth)
    assert (after.temperature, after.validation_loss) == (before.temperature, before.validation_loss)
    assert after.threshold > before.threshold
    few = calibrate(scores[:200], truth[:200])  # too few to divide: every cell fits everything
    assert few.temperature != calibrate(scores[:100], truth[:100]).temperature


def test_labels_unknown_to_the_model_take_no_part() -> None:
    scores, truth = _cells(500, 1.0)
    more = calibrate(np.vstack([scores, scores]), np.concatenate([truth, np.full(500, -1)]))
    assert more == calibrate(scores, truth)
    assert more.n_validation == 500


def test_too_few_cells_leave_the_scores_alone() -> None:
    found = calibrate(np.zeros((1, 3)), np.array([0]))
    assert (found.temperature, found.threshold) == (1.0, 0.0)
