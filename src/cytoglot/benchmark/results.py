"""Result rows: a value never stands without its interval, its number of cells and the unit that was resampled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytoglot.applications.annotation import LabelProbabilities
from cytoglot.metrics.classification import (
    accuracy_statistic,
    balanced_accuracy_statistic,
    brier_statistic,
    ece_statistic,
    macro_f1_statistic,
)
from cytoglot.metrics.uncertainty import AdditiveStatistic, Interval, bootstrap, bootstrap_difference

OURS = "cytoglot"
"""the method that is the model judged"""


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One number of a result table. A value that is undefined is None, never 0."""

    task: str
    method: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    unit: str

    @classmethod
    def of(cls, task: str, method: str, metric: str, interval: Interval) -> ResultRow:
        """Take value and bounds from a bootstrap interval; NaN becomes None, which JSON knows."""
        value, low, high = (None if math.isnan(x) else float(x) for x in (interval.value, interval.low, interval.high))
        return cls(
            task=task, method=method, metric=metric, value=value, low=low, high=high, n=interval.n, unit=interval.unit
        )


@dataclass(frozen=True, kw_only=True)
class Prediction(LabelProbabilities):
    """What one method says of the test cells."""

    method: str

    @classmethod
    def of(cls, method: str, found: LabelProbabilities) -> Prediction:
        """Say whose probabilities these are."""
        return cls(method=method, labels=found.labels, probability_nk=found.probability_nk)


def statistics(truth: NDArray[np.object_], prediction: Prediction) -> Mapping[str, AdditiveStatistic]:
    """Return metric name → its additive form, for accuracy, macro-F1, balanced accuracy, ECE and Brier."""
    predicted = prediction.best
    return {
        "accuracy": accuracy_statistic(truth, predicted),
        "macro_f1": macro_f1_statistic(truth, predicted),
        "balanced_accuracy": balanced_accuracy_statistic(truth, predicted),
        "ece": ece_statistic(prediction.confidence, truth == predicted),
        "brier": brier_statistic(truth, prediction.probability_nk, prediction.labels),
    }


def annotation_rows(
    truth: NDArray[np.object_],
    predictions: Iterable[Prediction],
    *,
    groups: NDArray[np.object_] | None,
    unit: str,
    seed: int,
) -> list[ResultRow]:
    """Return every metric of every method with its interval."""
    return [
        ResultRow.of("annotation", prediction.method, name, bootstrap(statistic, groups=groups, unit=unit, seed=seed))
        for prediction in predictions
        for name, statistic in statistics(truth, prediction).items()
    ]


def difference_rows(
    truth: NDArray[np.object_],
    ours: Prediction,
    others: Iterable[Prediction],
    *,
    groups: NDArray[np.object_] | None,
    unit: str,
    seed: int,
) -> list[ResultRow]:
    """Return our accuracy and macro-F1 minus those of each other method, paired on the same cells."""
    rows = []
    mine = statistics(truth, ours)
    for other in others:
        theirs = statistics(truth, other)
        for name in ("accuracy", "macro_f1"):
            interval = bootstrap_difference(mine[name], theirs[name], groups=groups, unit=unit, seed=seed)
            rows.append(ResultRow.of("annotation", f"{ours.method} - {other.method}", f"{name}_difference", interval))
    return rows
