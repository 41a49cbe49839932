"""Classification metrics: oracles worked out by hand, equality with scikit-learn, bounds, meaning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from cytoglot.metrics import classification as c

LABEL_LISTS = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcde")), min_size=1, max_size=40)


def texts(*labels: object) -> list[str]:
    return [str(label) for label in labels]


def test_macro_f1_averages_over_the_labels_of_the_truth() -> None:
    # truth (0,0,1), predicted (0,2,1): F1(0) = 2/3, F1(1) = 1 → 5/6; scikit-learn's default counts label 2: 5/9
    assert c.macro_f1(texts(0, 0, 1), texts(0, 2, 1)) == pytest.approx(5 / 6)


def test_accuracy_and_balanced_accuracy_by_hand() -> None:
    truth, predicted = texts("a", "a", "a", "b"), texts("a", "a", "b", "x")
    assert c.accuracy(truth, predicted) == 0.5
    assert c.balanced_accuracy(truth, predicted) == pytest.approx((2 / 3 + 0) / 2)


@given(LABEL_LISTS)
@settings(max_examples=60, deadline=None)
def test_averages_equal_scikit_learn_on_the_labels_of_the_truth(pairs: list[tuple[str, str]]) -> None:
    truth, predicted = [t for t, _ in pairs], [p for _, p in pairs]
    labels = sorted(set(truth))
    expected = sk.f1_score(truth, predicted, labels=labels, average="macro", zero_division=0)
    assert c.macro_f1(truth, predicted) == pytest.approx(expected)
    expected = sk.recall_score(truth, predicted, labels=labels, average="macro", zero_division=0)
    assert c.balanced_accuracy(truth, predicted) == pytest.approx(expected)
    assert c.accuracy(truth, predicted) == pytest.approx(sk.accuracy_score(truth, predicted))


@given(LABEL_LISTS)
@settings(max_examples=40, deadline=None)
def test_metrics_are_perfect_on_identity_and_blind_to_the_order_of_cells(pairs: list[tuple[str, str]]) -> None:
    truth, predicted = [t for t, _ in pairs], [p for _, p in pairs]
    for function in (c.accuracy, c.macro_f1, c.balanced_accuracy):
        assert function(truth, truth) == pytest.approx(1)
        assert 0 <= function(truth, predicted) <= 1
        assert function(truth[::-1], predicted[::-1]) == pytest.approx(function(truth, predicted))


def test_no_cells_give_nan() -> None:
    assert np.isnan(c.accuracy([], []))
    assert np.isnan(c.macro_f1([], []))
    assert np.isnan(c.ece([], []))
    assert np.isnan(c.adaptive_ece([], []))
    assert np.isnan(c.brier([], np.empty((0, 2)), ["a", "b"]))
    assert c.per_class([], []) == []


def test_per_class_by_hand() -> None:
    truth, predicted = texts("a", "a", "b", "c"), texts("a", "b", "b", "x")
    a, b, never = c.per_class(truth, predicted)
    assert a == c.ClassScores(label="a", precision=1.0, recall=0.5, f1=pytest.approx(2 / 3), support=2)
    assert b == c.ClassScores(label="b", precision=0.5, recall=1.0, f1=pytest.approx(2 / 3), support=1)
    assert never == c.ClassScores(label="c", precision=None, recall=0.0, f1=0.0, support=1)


def test_confusion_by_hand_puts_foreign_predictions_last() -> None:
    result = c.confusion(texts("b", "a", "b"), texts("b", "A", "a"))
    assert result.labels == ("a", "b", "A")
    assert result.counts.tolist() == [[0, 0, 1], [1, 1, 0], [0, 0, 0]]
    assert c.confusion(texts("a"), texts("b"), labels=["b", "a"]).counts.tolist() == [[0, 0], [1, 0]]
    with pytest.raises(ValueError, match=r"not in the given labels: \['b'\]"):
        c.confusion(texts("a"), texts("b"), labels=["a"])


def test_ece_of_guo_by_hand() -> None:
    # bins (0.5,0.6], (0.7,0.8], (0.8,0.9]: 2/5·|0.5−0.6| + 1/5·|0−0.8| + 2/5·|1−0.9| = 0.04 + 0.16 + 0.04
    confidence, correct = [0.9, 0.9, 0.8, 0.6, 0.6], [1, 1, 0, 1, 0]
    assert c.ece(confidence, correct, n_bins=10) == pytest.approx(0.24)
    bins = c.calibration_bins(confidence, correct, n_bins=10)
    assert [b.n for b in bins] == [2, 1, 2]
    assert [b.accuracy for b in bins] == [0.5, 0.0, 1.0]
    assert sum(b.n * abs(b.accuracy - b.confidence) for b in bins) / 5 == pytest.approx(0.24)


def test_bins_are_closed_on_the_right_and_the_first_on_the_left() -> None:
    bins = c.calibration_bins([0.0, 0.1, 0.1000001, 1.0], [0, 0, 1, 1], n_bins=10)
    assert [(round(b.low, 6), round(b.high, 6), b.n) for b in bins] == [(0.0, 0.1, 2), (0.1, 0.2, 1), (0.9, 1.0, 1)]


def test_adaptive_bins_hold_equally_many_cells_and_keep_ties_together() -> None:
    confidence = np.linspace(0.5, 1, 60)
    bins = c.calibration_bins(confidence, np.ones(60), n_bins=15, scheme="equal_mass")
    assert [b.n for b in bins] == [4] * 15
    assert c.adaptive_ece(confidence, np.ones(60)) == pytest.approx(0.25)
    tied = c.calibration_bins(np.full(60, 0.7), np.ones(60), scheme="equal_mass")
    assert [b.n for b in tied] == [60]
    assert c.adaptive_ece(np.ones(5), np.ones(5)) == 0


def test_a_calibrated_predictor_has_a_small_error_and_a_boastful_one_a_large_one() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 1, 20_000)
    correct = rng.uniform(size=20_000) < confidence
    assert c.ece(confidence, correct) < 0.02
    assert c.ece(np.full(20_000, 0.99), correct) > 0.35


def test_brier_and_nll_by_hand() -> None:
    probabilities = [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]]
    labels = ["a", "b", "c"]
    # a: 0.09 + 0.04 + 0.01 = 0.14; c: 0.01 + 0.36 + 0.49 = 0.86
    assert c.brier(["a", "c"], probabilities, labels) == pytest.approx(0.5)
    assert c.nll(["a", "c"], probabilities, labels) == pytest.approx(-(np.log(0.7) + np.log(0.3)) / 2)
    # a label outside the set: Σp² + 1 = 0.46 + 1
    assert c.brier(["x"], [probabilities[1]], labels) == pytest.approx(1.46)
    assert c.nll(["x"], [probabilities[1]], labels) == pytest.approx(-np.log(1e-12))
    assert c.brier(["a"], [[1, 0, 0]], labels) == 0
    assert c.brier(["b"], [[1, 0, 0]], labels) == 2


def test_nll_equals_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(4), size=50)
    truth = rng.choice(list("abcd"), 50)
    assert c.nll(truth, probabilities, list("abcd")) == pytest.approx(
        sk.log_loss(truth, probabilities, labels=list("abcd"))
    )


def test_mcnemar_with_continuity_and_exact_by_hand() -> None:
    first = np.r_[np.ones(10), np.zeros(2), np.ones(30)]
    second = np.r_[np.zeros(10), np.ones(2), np.ones(30)]
    chi = c.mcnemar(first, second, exact=False)
    assert (chi.only_first, chi.only_second) == (10, 2)
    assert chi.statistic == pytest.approx(49 / 12)
    assert chi.p_value == pytest.approx(0.043308, abs=1e-6)
    exact = c.mcnemar(first, second)
    assert exact.exact
    assert exact.statistic is None
    assert exact.p_value == pytest.approx(0.038574, abs=1e-6)


def test_mcnemar_is_symmetric_and_never_significant_without_a_difference() -> None:
    first, second = np.r_[np.ones(5), np.zeros(5)], np.r_[np.zeros(5), np.ones(5)]
    assert c.mcnemar(first, second, exact=False).statistic == 0
    assert c.mcnemar(first, second, exact=False).p_value == 1
    assert c.mcnemar(first, second).p_value == 1
    assert c.mcnemar(first, first).p_value == 1
    assert c.mcnemar(first, first, exact=False).p_value == 1
    assert c.mcnemar(first, np.ones(10)).p_value == c.mcnemar(np.ones(10), first).p_value
    assert not c.mcnemar(np.ones(25), np.zeros(25)).exact


def test_bad_input_is_refused_with_what_was_found() -> None:
    with pytest.raises(ValueError, match=r"one prediction per cell, found shapes \(2,\) and \(1,\)"):
        c.accuracy(["a", "b"], ["a"])
    with pytest.raises(ValueError, match=r"labels must be texts, found 1 others in the truth, such as nan"):
        c.accuracy(["a", float("nan")], ["a", "b"])
    with pytest.raises(ValueError, match=r"found 1 others in the prediction, such as None"):
        c.macro_f1(["a"], [None])
    with pytest.raises(ValueError, match=r"one confidence per cell, found shapes \(1,\) and \(2,\)"):
        c.ece([0.5], [1, 0])
    with pytest.raises(ValueError, match=r"confidences must lie between 0 and 1"):
        c.ece([float("nan")], [1])
    with pytest.raises(ValueError, match=r"shape \(1 cells, 2 labels\), found \(1, 3\)"):
        c.brier(["a"], [[0.2, 0.3, 0.5]], ["a", "b"])
    with pytest.raises(ValueError, match=r"each row must sum to 1"):
        c.nll(["a"], [[0.2, 0.3]], ["a", "b"])
    with pytest.raises(ValueError, match=r"the same cells, found shapes \(1,\) and \(2,\)"):
        c.mcnemar([True], [True, False])


def test_shuffled_labels_score_at_chance() -> None:
    rng = np.random.default_rng(2)
    truth = rng.choice(list("abcd"), 8000)
    assert c.balanced_accuracy(truth, rng.permutation(truth)) == pytest.approx(0.25, abs=0.02)
