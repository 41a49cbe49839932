"""Result rows: values worked out by hand, None where nothing is defined, differences on the same cells."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from cytoglot.benchmark.results import Prediction, ResultRow, annotation_rows, difference_rows
from cytoglot.metrics.uncertainty import bootstrap_function

TRUTH = np.array(["a", "a", "b", "b"], dtype=object)
OPTIONS = {"groups": None, "unit": "cell", "seed": 0}


def _prediction(method: str, first: list[float], labels: tuple[str, str] = ("a", "b")) -> Prediction:
    """A method that gives each cell this probability of the first label."""
    p = np.array(first)
    return Prediction(method=method, labels=labels, probability_nk=np.stack([p, 1 - p], axis=1))


OURS = _prediction("ours", [0.9, 0.6, 0.2, 0.7])  # says a, a, b, a


def test_the_metrics_of_four_cells_by_hand() -> None:
    rows = {row.metric: row for row in annotation_rows(TRUTH, [OURS], **OPTIONS)}
    assert rows["accuracy"].value == 3 / 4
    assert rows["macro_f1"].value == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert rows["balanced_accuracy"].value == 3 / 4
    assert rows["brier"].value == pytest.approx(2 * (0.1**2 + 0.4**2 + 0.2**2 + 0.7**2) / 4)
    assert {(row.task, row.method, row.n, row.unit) for row in rows.values()} == {("annotation", "ours", 4, "cell")}
    assert all(0 <= row.low <= row.value <= row.high for row in rows.values() if row.metric != "brier")


def test_a_type_that_a_method_does_not_know_is_missed_by_it() -> None:
    truth = np.array(["a", "a", "new", "new"], dtype=object)
    rows = {row.metric: row.value for row in annotation_rows(truth, [OURS], **OPTIONS)}
    assert rows["accuracy"] == 2 / 4
    assert rows["macro_f1"] == pytest.approx((2 * 2 / (2 * 2 + 1) + 0) / 2)  # one of the new ones is called a


def test_groups_are_resampled_where_there_are_groups() -> None:
    groups = np.array(["x", "x", "y", "y"], dtype=object)
    (row, *_) = annotation_rows(TRUTH, [OURS], groups=groups, unit="donor", seed=0)
    assert (row.unit, row.n) == ("donor", 4)
    assert (row.low, row.high) == (0.5, 1.0)  # of donor x all are right, of donor y half


def test_a_difference_is_paired() -> None:
    """Two methods with the same mistakes differ by 0 for sure, however wide the interval of each is."""
    twin = _prediction("twin", [0.8, 0.8, 0.1, 0.9])
    for row in difference_rows(TRUTH, OURS, [twin], **OPTIONS):
        assert row.method == "ours - twin"
        assert (row.value, row.low, row.high) == (0.0, 0.0, 0.0)


def test_a_difference_is_ours_minus_theirs() -> None:
    always = _prediction("always a", [1.0, 1.0, 1.0, 1.0])
    accuracy, macro_f1 = difference_rows(TRUTH, OURS, [always], **OPTIONS)
    assert (accuracy.metric, macro_f1.metric) == ("accuracy_difference", "macro_f1_difference")
    assert accuracy.value == 3 / 4 - 2 / 4
    assert macro_f1.value == pytest.approx((4 / 5 + 2 / 3) / 2 - (2 / 3 + 0) / 2)
    assert accuracy.low is not None
    assert accuracy.low >= 0, "on no cell is the other one right and ours wrong"


def test_what_is_undefined_is_none_and_json() -> None:
    row = ResultRow.of("generation", "m", "overlap", bootstrap_function(lambda _: float("nan"), 3))
    assert (row.value, row.low, row.high, row.n) == (None, None, None, 3)
    content = asdict(row)
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_no_test_cell_makes_no_number() -> None:
    nobody = Prediction(method="m", labels=("a", "b"), probability_nk=np.empty((0, 2)))
    assert nobody.best.shape == nobody.confidence.shape == (0,)


def test_confidence_is_that_of_the_likeliest_label() -> None:
    assert OURS.best.tolist() == ["a", "a", "b", "a"]
    assert OURS.confidence.tolist() == [0.9, 0.6, 0.8, 0.7]
