"""Bootstrap intervals: against the known law, against a plain loop, over groups, paired."""

from __future__ import annotations

import numpy as np
import pytest

from cytoglot.metrics import uncertainty as u
from cytoglot.metrics.classification import (
    accuracy_statistic,
    brier_statistic,
    ece_statistic,
    macro_f1,
    macro_f1_statistic,
)


def labels(n: int, seed: int, right: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.choice(list("aaabbc"), n)
    return truth, np.where(rng.uniform(size=n) < right, truth, rng.choice(list("abc"), n))


def test_the_interval_of_a_share_has_the_width_of_the_binomial_law() -> None:
    truth = np.array(["a"] * 400)
    predicted = np.array(["a"] * 300 + ["b"] * 100)
    interval = u.bootstrap(accuracy_statistic(truth, predicted), seed=1)
    assert interval.value == 0.75
    half_width = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert interval.low == pytest.approx(0.75 - half_width, abs=0.006)
    assert interval.high == pytest.approx(0.75 + half_width, abs=0.006)
    assert (interval.n, interval.n_units, interval.unit, interval.n_resamples) == (400, 400, "cell", 2000)


def test_the_additive_form_equals_a_plain_loop_over_the_same_draws() -> None:
    truth, predicted = labels(60, 3)
    fast = u.bootstrap(macro_f1_statistic(truth, predicted), n_resamples=200, seed=5)
    slow = u.bootstrap_function(lambda i: macro_f1(truth[i], predicted[i]), 60, n_resamples=200, seed=5)
    assert (fast.value, fast.low, fast.high) == pytest.approx((slow.value, slow.low, slow.high))


def test_the_additive_form_equals_a_plain_loop_over_groups() -> None:
    truth, predicted = labels(60, 4)
    groups = np.random.default_rng(0).choice(["d1", "d2", "d3", "d4", "d5", "d6"], 60)
    options = {"groups": groups, "unit": "donor", "n_resamples": 100, "seed": 6}
    fast = u.bootstrap(macro_f1_statistic(truth, predicted), **options)
    slow = u.bootstrap_function(lambda i: macro_f1(truth[i], predicted[i]), 60, **options)
    assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high))
    assert (fast.unit, fast.n_units, fast.n) == ("donor", 6, 60)


def test_the_blocks_of_resamples_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    statistic = accuracy_statistic(*labels(50, 0))
    whole = u.bootstrap(statistic, n_resamples=64, seed=9)
    monkeypatch.setattr(u, "_BLOCK_VALUES", 500)
    assert u.bootstrap(statistic, n_resamples=64, seed=9) == whole


def test_donors_that_differ_widen_the_interval() -> None:
    truth = np.array(["a"] * 500)
    predicted = np.repeat(["a", "a", "b", "a", "b"], 100)
    cells = u.bootstrap(accuracy_statistic(truth, predicted))
    donors = u.bootstrap(accuracy_statistic(truth, predicted), groups=np.repeat(list("vwxyz"), 100), unit="donor")
    assert donors.high - donors.low > 3 * (cells.high - cells.low)


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    hits = 0
    for seed in range(200):
        correct = np.random.default_rng(seed).uniform(size=150) < 0.7
        statistic = accuracy_statistic(["a"] * 150, np.where(correct, "a", "b").tolist())
        interval = u.bootstrap(statistic, n_resamples=400, seed=seed)
        hits += interval.low <= 0.7 <= interval.high
    assert 180 <= hits <= 199


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    rng = np.random.default_rng(2)
    truth, ours = labels(500, 7)
    other = np.where(rng.uniform(size=500) < 0.97, ours, "a")
    paired = u.bootstrap_difference(accuracy_statistic(truth, ours), accuracy_statistic(truth, other))
    single = u.bootstrap(accuracy_statistic(truth, ours))
    assert paired.high - paired.low < (single.high - single.low) / 2
    assert paired.value == pytest.approx((truth == ours).mean() - (truth == other).mean())
    same = u.bootstrap_difference(macro_f1_statistic(truth, ours), macro_f1_statistic(truth, ours))
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_a_difference_takes_two_different_statistics() -> None:
    truth, predicted = labels(100, 8)
    difference = u.bootstrap_difference(accuracy_statistic(truth, predicted), macro_f1_statistic(truth, predicted))
    assert difference.value == pytest.approx((truth == predicted).mean() - macro_f1(truth, predicted))


def test_probability_scores_have_intervals_too() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), 200)
    truth = rng.choice(list("abc"), 200)
    score = u.bootstrap(brier_statistic(truth, probabilities, list("abc")))
    assert score.low < score.value < score.high
    error = u.bootstrap(
        ece_statistic(probabilities.max(axis=1), np.array(list("abc"))[probabilities.argmax(1)] == truth)
    )
    assert error.low > 0


def test_a_resample_without_a_label_averages_over_the_rest() -> None:
    interval = u.bootstrap(macro_f1_statistic(["a", "b"], ["a", "b"]))
    assert (interval.value, interval.low, interval.high, interval.n_undefined) == (1, 1, 1, 0)


def test_too_few_units_have_no_interval() -> None:
    one = u.bootstrap(accuracy_statistic(["a", "b"], ["a", "a"]), groups=["d", "d"], unit="donor")
    assert one.value == 0.5
    assert np.isnan(one.low)
    assert one.n_units == 1
    none = u.bootstrap(accuracy_statistic([], []))
    assert np.isnan(none.value)
    assert none.n_resamples == 0


def test_undefined_resamples_are_counted() -> None:
    interval = u.bootstrap_function(lambda i: float("nan") if (i == 0).all() else 1.0, 2, n_resamples=400)
    assert 60 < interval.n_undefined < 140
    assert interval.low == 1


def test_the_unit_is_the_first_column_with_enough_groups() -> None:
    columns = {"donor": ["a", "b", "c", "a", "b", "c"], "batch": list("123456"), "plate": [*list("12345"), None]}
    assert u.resampling_unit(columns)[0] == "batch"
    assert u.resampling_unit({"donor": columns["donor"]}) == ("cell", None)
    assert u.resampling_unit({"plate": columns["plate"]}) == ("cell", None)
    name, values = u.resampling_unit(columns, min_groups=3)
    assert name == "donor"
    assert values is not None
    assert values.tolist() == columns["donor"]


def test_bad_input_is_refused_with_what_was_found() -> None:
    statistic = accuracy_statistic(["a", "b"], ["a", "a"])
    with pytest.raises(ValueError, match=r"one value per cell: 2 cells, 3 groups"):
        u.bootstrap(statistic, groups=["x", "y", "z"])
    with pytest.raises(ValueError, match=r"must not be missing, found 1 of 2 missing"):
        u.bootstrap(statistic, groups=["x", None])
    with pytest.raises(ValueError, match=r"level must be between 0 and 1, found 95"):
        u.bootstrap(statistic, level=95)
    with pytest.raises(ValueError, match=r"needs the same cells, found 2 and 1"):
        u.bootstrap_difference(statistic, accuracy_statistic(["a"], ["a"]))


def test_a_note_says_in_words_what_an_interval_holds_for() -> None:
    unit, groups = u.resampling_unit({"donor": ["a", "b", "a", "b"]})
    assert groups is None
    assert "over single cells" in u.interval_note(unit)
    assert "too narrow for new donors" in u.interval_note(unit)
    assert (
        u.interval_note("donor_id") == "Intervals are over whole groups of donor_id, each drawn with all of its cells."
    )
