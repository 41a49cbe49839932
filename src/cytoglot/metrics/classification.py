"""How right predicted labels are, and how honest their confidence is.

Labels are texts. Macro averages run over the labels of the truth, never over labels that only the prediction knows:
a foreign answer costs the recall of the true label, once. Axes: n cells, l labels, k columns of an additive statistic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, chi2

from cytoglot.metrics.spec import metric
from cytoglot.metrics.uncertainty import AdditiveStatistic, Floats

Labels = NDArray[np.object_]


def accuracy_statistic(truth: ArrayLike, predicted: ArrayLike) -> AdditiveStatistic:
    """Return the accuracy in additive form.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.accuracy_statistic(["B", "B", "T", "T"], ["B", "T", "T", "T"]).value
    0.75
    """
    truth_n, predicted_n = _label_pair(truth, predicted)
    return mean_statistic((truth_n == predicted_n).astype(np.float64))


def macro_f1_statistic(truth: ArrayLike, predicted: ArrayLike) -> AdditiveStatistic:
    """Return the macro-F1 in additive form; a resample without a label averages over the labels that it has.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> round(metrics.macro_f1_statistic(["B", "B", "T", "T"], ["B", "T", "T", "T"]).value, 3)
    0.733
    """

    def mean_f1(sums: Floats) -> Floats:
        hits, truths, predictions = np.split(sums, 3, axis=-1)
        return _mean_over_present(2 * hits, truths + predictions, truths)

    return AdditiveStatistic(rows_nk=_count_rows(truth, predicted), combine=mean_f1)


def balanced_accuracy_statistic(truth: ArrayLike, predicted: ArrayLike) -> AdditiveStatistic:
    """Return the balanced accuracy in additive form; a resample averages over the labels that it has.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.balanced_accuracy_statistic(["B", "T", "T", "T"], ["T", "T", "T", "T"]).value
    0.5
    """

    def mean_recall(sums: Floats) -> Floats:
        hits, truths, _ = np.split(sums, 3, axis=-1)
        return _mean_over_present(hits, truths, truths)

    return AdditiveStatistic(rows_nk=_count_rows(truth, predicted), combine=mean_recall)


@metric(
    "accuracy",
    inputs="labels",
    direction="higher",
    reference="share of cells whose label is right",
    statistic=accuracy_statistic,
)
def accuracy(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Return the share of right labels; NaN without cells.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.accuracy(["B", "B", "T", "T"], ["B", "T", "T", "T"])
    0.75
    """
    return accuracy_statistic(truth, predicted).value


@metric(
    "macro_f1",
    inputs="labels",
    direction="higher",
    reference="mean F1 over the labels of the truth; scikit-learn averages over predicted labels too unless told",
    statistic=macro_f1_statistic,
)
def macro_f1(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Return the mean F1 over the labels of the truth, a label never predicted counting 0; NaN without cells.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> round(metrics.macro_f1(["B", "B", "T", "T"], ["B", "T", "T", "T"]), 3)
    0.733
    """
    return macro_f1_statistic(truth, predicted).value


@metric(
    "balanced_accuracy",
    inputs="labels",
    direction="higher",
    reference="mean recall over the labels of the truth",
    statistic=balanced_accuracy_statistic,
)
def balanced_accuracy(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Return the mean recall over the labels of the truth; NaN without cells.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.balanced_accuracy(["B", "T", "T", "T"], ["T", "T", "T", "T"])
    0.5
    """
    return balanced_accuracy_statistic(truth, predicted).value


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """How one label fared."""

    label: str
    precision: float | None
    """None if the label was never predicted"""
    recall: float
    f1: float
    support: int
    """cells of the truth"""


def per_class(truth: ArrayLike, predicted: ArrayLike) -> list[ClassScores]:
    """Return the scores of each label of the truth, in alphabetical order.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> first = metrics.per_class(["B", "B", "T", "T"], ["B", "T", "T", "T"])[0]
    >>> first.label, first.precision, first.recall
    ('B', 1.0, 0.5)
    """
    truth_n, predicted_n = _label_pair(truth, predicted)
    labels = np.unique(truth_n)
    hits_l, truths_l, predictions_l = np.split(_count_rows(truth_n, predicted_n).sum(axis=0), 3)
    return [
        ClassScores(
            label=str(label),
            precision=float(hits / n_predicted) if n_predicted else None,
            recall=float(hits / support),
            f1=float(2 * hits / (support + n_predicted)),
            support=int(support),
        )
        for label, hits, support, n_predicted in zip(labels, hits_l, truths_l, predictions_l, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """How often each true label (row) was given each predicted label (column)."""

    labels: tuple[str, ...]
    counts: NDArray[np.int64]
    """shape (l, l)"""


def confusion(truth: ArrayLike, predicted: ArrayLike, *, labels: Sequence[str] | None = None) -> Confusion:
    """Return the confusion counts.

    Parameters
    ----------
    labels
        Order of rows and columns; by default the labels of the truth and then those only predicted, each sorted.

    Raises
    ------
    ValueError
        A label is missing from `labels`.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.confusion(["B", "B", "T", "T"], ["B", "T", "T", "T"]).counts
    array([[1, 1],
           [0, 2]])
    """
    truth_n, predicted_n = _label_pair(truth, predicted)
    if labels is None:
        known = np.unique(truth_n)
        labels = [*known, *np.setdiff1d(np.unique(predicted_n), known)]
    index = pd.Index(labels)
    rows, columns = index.get_indexer(pd.Index(truth_n)), index.get_indexer(pd.Index(predicted_n))
    foreign = {*truth_n[rows < 0], *predicted_n[columns < 0]}
    if foreign:
        raise ValueError(f"labels of the data that are not in the given labels: {sorted(foreign)}")
    counts = np.bincount(rows * len(index) + columns, minlength=len(index) ** 2).reshape(len(index), len(index))
    return Confusion(labels=tuple(str(label) for label in labels), counts=counts.astype(np.int64))


@dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """Mean confidence against share of right answers among the cells of a bin `(low, high]`."""

    low: float
    high: float
    confidence: float
    accuracy: float
    n: int


BinScheme = Literal["equal_width", "equal_mass"]


def calibration_bins(
    confidence: ArrayLike, correct: ArrayLike, *, n_bins: int = 15, scheme: BinScheme = "equal_width"
) -> list[CalibrationBin]:
    """Return the bins that hold cells, from low to high confidence.

    Bins are closed on the right, the first one on the left too. Equal mass cuts at quantiles of the confidence, equal
    confidences staying together, so there may be fewer bins.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> bins = metrics.calibration_bins([0.25, 0.75, 0.75], [0, 1, 0], n_bins=2)
    >>> [(found.confidence, found.accuracy) for found in bins]
    [(0.25, 0.0), (0.75, 0.5)]
    """
    confidence_n, correct_n = _confidence_pair(confidence, correct)
    edges = _bin_edges(confidence_n, n_bins, scheme)
    bin_n = _bin_index(confidence_n, edges)
    counts = np.bincount(bin_n, minlength=len(edges) - 1)
    confidences = np.bincount(bin_n, confidence_n, minlength=len(edges) - 1)
    hits = np.bincount(bin_n, correct_n, minlength=len(edges) - 1)
    return [
        CalibrationBin(
            low=float(edges[b]),
            high=float(edges[b + 1]),
            confidence=float(confidences[b] / counts[b]),
            accuracy=float(hits[b] / counts[b]),
            n=int(counts[b]),
        )
        for b in np.flatnonzero(counts)
    ]


def ece_statistic(
    confidence: ArrayLike, correct: ArrayLike, *, n_bins: int = 15, scheme: BinScheme = "equal_width"
) -> AdditiveStatistic:
    """Return the expected calibration error in additive form; a resample keeps the bin edges of the whole.

    Noise makes this error larger, never smaller: a resample's error tends to exceed that of the data, so the interval
    may lie above the value when there are few cells.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.ece_statistic([0.75, 0.75], [0, 0]).value
    0.75
    """
    confidence_n, correct_n = _confidence_pair(confidence, correct)
    edges = _bin_edges(confidence_n, n_bins, scheme)
    inside_nb = _bin_index(confidence_n, edges)[:, None] == np.arange(len(edges) - 1)
    gap_nb = inside_nb * (correct_n - confidence_n)[:, None]

    def combine(sums: Floats) -> Floats:
        return np.asarray(np.abs(sums[..., :-1]).sum(axis=-1) / sums[..., -1])

    return AdditiveStatistic(rows_nk=np.hstack([gap_nb, np.ones((len(gap_nb), 1))]), combine=combine)


@metric(
    "ece",
    inputs="probabilities",
    direction="lower",
    reference="Guo et al. 2017: 15 right-closed bins of equal width; depends on bins and n, so see Brier too",
    statistic=ece_statistic,
)
def ece(confidence: ArrayLike, correct: ArrayLike, *, n_bins: int = 15) -> float:
    """Return the expected calibration error, Σ (n_b/n)·|accuracy_b − confidence_b| :cite:p:`guo2017calibration`.

    Parameters
    ----------
    confidence
        Probability of the predicted label, shape (n,).
    correct
        Whether that label is right, shape (n,).

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.ece([0.75, 0.75, 0.75, 0.75], [1, 1, 1, 0])
    0.0
    >>> metrics.ece([0.75, 0.75], [0, 0])
    0.75
    """
    return ece_statistic(confidence, correct, n_bins=n_bins).value


@metric(
    "adaptive_ece",
    inputs="probabilities",
    direction="lower",
    reference="Nguyen & O'Connor 2015: as ece with bins of equal mass, equal confidences kept together",
)
def adaptive_ece(confidence: ArrayLike, correct: ArrayLike, *, n_bins: int = 15) -> float:
    """Return the expected calibration error over bins that hold equally many cells.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.adaptive_ece([0.75, 0.75], [0, 0])
    0.75
    """
    return ece_statistic(confidence, correct, n_bins=n_bins, scheme="equal_mass").value


def brier_statistic(truth: ArrayLike, probabilities: ArrayLike, labels: Sequence[str]) -> AdditiveStatistic:
    """Return the multiclass Brier score in additive form.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.brier_statistic(["B", "T"], [[1.0, 0.0], [0.5, 0.5]], ["B", "T"]).value
    0.25
    """
    probabilities_nl, column_n = _probability_pair(truth, probabilities, labels)
    known = column_n >= 0
    error_n = (probabilities_nl**2).sum(axis=1) + 1.0
    error_n[known] -= 2 * probabilities_nl[known, column_n[known]]
    return mean_statistic(error_n)


@metric(
    "brier",
    inputs="probabilities",
    direction="lower",
    high=2.0,
    reference="Brier 1950, the multiclass sum Σ_l (p_l − y_l)², from 0 to 2",
    statistic=brier_statistic,
)
def brier(truth: ArrayLike, probabilities: ArrayLike, labels: Sequence[str]) -> float:
    """Return the mean over cells of Σ_l (p_l − [truth is l])² :cite:p:`brier1950`.

    Parameters
    ----------
    truth
        True labels, shape (n,). One that is not in `labels` counts as a further label of probability 0.
    probabilities
        Shape (n, l); rows sum to 1.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.brier(["B", "T"], [[1.0, 0.0], [0.5, 0.5]], ["B", "T"])
    0.25
    """
    return brier_statistic(truth, probabilities, labels).value


def nll_statistic(
    truth: ArrayLike, probabilities: ArrayLike, labels: Sequence[str], *, floor: float = 1e-12
) -> AdditiveStatistic:
    """Return the negative log-likelihood in additive form.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> round(metrics.nll_statistic(["B", "T"], [[1.0, 0.0], [0.5, 0.5]], ["B", "T"]).value, 3)
    0.347
    """
    probabilities_nl, column_n = _probability_pair(truth, probabilities, labels)
    right_n = np.where(column_n >= 0, probabilities_nl[np.arange(len(column_n)), column_n], 0.0)
    return mean_statistic(-np.log(np.maximum(right_n, floor)))


@metric(
    "nll",
    inputs="probabilities",
    direction="lower",
    high=float("inf"),
    reference="mean of −ln p(truth) in nats; p is raised to 1e-12, so one impossible cell costs 27.6 and not infinity",
    statistic=nll_statistic,
)
def nll(truth: ArrayLike, probabilities: ArrayLike, labels: Sequence[str], *, floor: float = 1e-12) -> float:
    """Return the mean negative log-likelihood of the truth in nats; arguments as in `brier`.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> round(metrics.nll(["B", "T"], [[1.0, 0.0], [0.5, 0.5]], ["B", "T"]), 3)
    0.347
    """
    return nll_statistic(truth, probabilities, labels, floor=floor).value


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Whether two classifiers err on the same cells equally often."""

    only_first: int
    """cells that only the first got right"""
    only_second: int
    statistic: float | None
    """(|b − c| − 1)₊² / (b + c); None for the exact test"""
    p_value: float
    exact: bool


def mcnemar(first_correct: ArrayLike, second_correct: ArrayLike, *, exact: bool | None = None) -> McNemar:
    """Compare two classifiers on the same cells :cite:p:`mcnemar1947`.

    It takes cells as independent, which cells of one donor are not: beside it, look at a difference bootstrapped over
    donors. The continuity correction is cut off at zero (some packages do not: with b = c they give a statistic above
    0), and without discordant cells p is 1.

    Parameters
    ----------
    first_correct, second_correct
        Whether each was right, shape (n,).
    exact
        Binomial test instead of χ² with continuity correction; by default below 25 discordant cells.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.mcnemar([True, True, True, False], [True, False, False, False]).p_value
    0.5
    """
    first, second = np.asarray(first_correct, dtype=bool), np.asarray(second_correct, dtype=bool)
    if first.shape != second.shape:
        raise ValueError(f"McNemar's test needs the same cells, found shapes {first.shape} and {second.shape}")
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    exact = b + c < 25 if exact is None else exact
    statistic = None if exact else (max(abs(b - c) - 1, 0) ** 2 / (b + c) if b + c else 0.0)
    p_value = min(1.0, 2 * binom.cdf(min(b, c), b + c, 0.5)) if statistic is None else chi2.sf(statistic, 1)
    return McNemar(only_first=b, only_second=c, statistic=statistic, p_value=float(p_value), exact=exact)


def holm(p_values: ArrayLike) -> Floats:
    """Return p-values corrected for their number by Holm's step-down rule, in the order given :cite:p:`holm1979`.

    Parameters
    ----------
    p_values
        From 0 to 1; NaN, of a comparison that was not made, stays and does not count.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=np.float64)
    found = np.full(values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    raised = values[order] * (len(order) - np.arange(len(order)))
    found[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return found


def _label_pair(truth: ArrayLike, predicted: ArrayLike) -> tuple[Labels, Labels]:
    truth_n, predicted_n = np.asarray(truth, dtype=object), np.asarray(predicted, dtype=object)
    if truth_n.ndim != 1 or truth_n.shape != predicted_n.shape:
        raise ValueError(f"need one prediction per cell, found shapes {truth_n.shape} and {predicted_n.shape}")
    for name, values in (("truth", truth_n), ("prediction", predicted_n)):
        faults = [v for v in values if not isinstance(v, str)]
        if faults:
            raise ValueError(f"labels must be texts, found {len(faults)} others in the {name}, such as {faults[0]!r}")
    return truth_n, predicted_n


def _count_rows(truth: ArrayLike, predicted: ArrayLike) -> Floats:
    """Return per cell, for each label of the truth: hit, is truth, is predicted; shape (n, 3 l)."""
    truth_n, predicted_n = _label_pair(truth, predicted)
    labels = np.unique(truth_n)
    truth_nl = truth_n[:, None] == labels
    predicted_nl = predicted_n[:, None] == labels
    return np.hstack([truth_nl & predicted_nl, truth_nl, predicted_nl]).astype(np.float64)


def _mean_over_present(numerator: Floats, denominator: Floats, truths: Floats) -> Floats:
    present = truths > 0
    ratios = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=present)
    n_present = present.sum(axis=-1)
    return np.divide(ratios.sum(axis=-1), n_present, out=np.full(n_present.shape, np.nan), where=n_present > 0)


def mean_statistic(values_n: Floats) -> AdditiveStatistic:
    """Return the mean of one value for each cell in additive form."""
    rows = np.column_stack([values_n, np.ones_like(values_n)])
    return AdditiveStatistic(rows_nk=rows, combine=lambda sums: np.asarray(sums[..., 0] / sums[..., 1]))


def _confidence_pair(confidence: ArrayLike, correct: ArrayLike) -> tuple[Floats, Floats]:
    confidence_n, correct_n = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if confidence_n.ndim != 1 or confidence_n.shape != correct_n.shape:
        raise ValueError(f"need one confidence per cell, found shapes {confidence_n.shape} and {correct_n.shape}")
    if not ((confidence_n >= 0) & (confidence_n <= 1)).all():
        raise ValueError("confidences must lie between 0 and 1")
    return confidence_n, correct_n


def _bin_edges(confidence_n: Floats, n_bins: int, scheme: BinScheme) -> Floats:
    edges = np.linspace(0, 1, n_bins + 1)
    if scheme == "equal_mass" and len(confidence_n):
        inner = np.unique(np.quantile(confidence_n, edges[1:-1]))
        return np.concatenate([[0.0], inner[(inner > 0) & (inner < 1)], [1.0]])
    return edges


def _bin_index(confidence_n: Floats, edges: Floats) -> NDArray[np.int64]:
    return np.searchsorted(edges[1:-1], confidence_n, side="left")


def _probability_pair(
    truth: ArrayLike, probabilities: ArrayLike, labels: Sequence[str]
) -> tuple[Floats, NDArray[np.int64]]:
    truth_n, probabilities_nl = np.asarray(truth, dtype=object), np.asarray(probabilities, dtype=np.float64)
    if probabilities_nl.shape != (len(truth_n), len(labels)):
        raise ValueError(
            f"probabilities must have the shape ({len(truth_n)} cells, {len(labels)} labels), "
            f"found {probabilities_nl.shape}"
        )
    sums = probabilities_nl.sum(axis=1)
    if (probabilities_nl < 0).any() or not np.allclose(sums, 1, atol=1e-3):
        raise ValueError("probabilities must not be negative and each row must sum to 1")
    return probabilities_nl, np.asarray(pd.Index(list(labels)).get_indexer(pd.Index(truth_n)), dtype=np.int64)
