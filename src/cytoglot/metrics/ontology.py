"""How wrong a wrong cell type is, by the is-a relations of an ontology.

Truth and prediction are term ids, one for each cell; None where a label has no term. A cell of which either has no term
is not rated: it is counted and left out of the means. Axes: n cells, k columns of an additive statistic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cytoglot.metrics.spec import metric
from cytoglot.metrics.uncertainty import AdditiveStatistic, Floats

Terms = Sequence[str | None] | NDArray[np.object_]


class Ontology(Protocol):
    """What the metrics ask of an ontology; `data.knowledge.ontology_graph.OntologyGraph` is one."""

    def __contains__(self, term: object) -> bool: ...

    def ancestors(self, term: str) -> Mapping[str, int]:
        """Return each ancestor of a term, itself included, with the least number of steps up to it."""
        ...

    def lowest_common_ancestors(self, first: str, second: str) -> frozenset[str]:
        """Return the common ancestors that have no common ancestor below them."""
        ...

    def path_length(self, first: str, second: str) -> int | None:
        """Return the least number of steps up from one term and down to the other; None without a common ancestor."""
        ...


@dataclass(frozen=True, kw_only=True)
class OntologyErrors:
    """How far wrong cells are from the truth, and what could not be rated."""

    lcad: float
    """steps from the lowest common ancestor down to the true term, mean over wrong cells; NaN if none is wrong"""
    lcad_all: float
    """the same, mean over all rated cells, right ones counting 0"""
    path: float
    """steps up from the prediction and down to the truth, mean over wrong cells"""
    path_all: float
    n_rated: int
    n_wrong: int
    """rated cells whose term is not the true one"""
    n_unmapped: int
    """cells without a known term of the truth or of the prediction"""
    n_unrelated: int
    """cells whose two terms have no common ancestor"""


def lca_steps(ontology: Ontology, truth: str | None, predicted: str | None) -> float:
    """Return the number of steps from a lowest common ancestor down to the true term, at least.

    It has a direction: a prediction that is below the truth costs 0, one that is above it costs the steps between.

    Parameters
    ----------
    ontology
        The is-a relations.
    truth, predicted
        Term ids.

    Returns
    -------
    float
        The minimum over the lowest common ancestors, of which a term with several parents may have more than one. NaN
        if a term is None or not in the ontology, or if there is no common ancestor.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> from cytoglot.data.knowledge.ontology_graph import OntologyGraph
    >>> ontology = OntologyGraph({"CD4 T": ["T"], "T": ["lymphocyte"], "B": ["lymphocyte"]})
    >>> metrics.lca_steps(ontology, "CD4 T", "B"), metrics.lca_steps(ontology, "B", "CD4 T")
    (2.0, 1.0)
    """
    if truth is None or predicted is None or truth not in ontology or predicted not in ontology:
        return math.nan
    lowest, up = ontology.lowest_common_ancestors(truth, predicted), ontology.ancestors(truth)
    return float(min((up[term] for term in lowest), default=math.nan))


def lcad_statistic(truth: Terms, predicted: Terms, ontology: Ontology) -> AdditiveStatistic:
    """Return the LCAD in additive form; a resample averages over its own wrong cells.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> from cytoglot.data.knowledge.ontology_graph import OntologyGraph
    >>> ontology = OntologyGraph({"CD4 T": ["T"], "T": ["lymphocyte"], "B": ["lymphocyte"]})
    >>> metrics.lcad_statistic(["CD4 T", "B"], ["B", "B"], ontology).value
    2.0
    """
    pairs = _compare(truth, predicted, ontology)
    wrong_n = pairs.wrong_n & ~np.isnan(pairs.steps_n)
    rows = np.column_stack([np.where(wrong_n, pairs.steps_n, 0.0), wrong_n])
    return AdditiveStatistic(rows_nk=rows, combine=lambda sums: _ratio(sums[..., 0], sums[..., 1]))


@metric(
    "lcad",
    inputs="terms",
    direction="lower",
    high=math.inf,
    reference="OnClass, scFM-Bench: steps from the lowest common ancestor down to the true term, mean over wrong "
    "cells; the minimum where there are several such ancestors (theirs takes any). Fewer errors do not lower it",
    statistic=lcad_statistic,
)
def lcad(truth: Terms, predicted: Terms, ontology: Ontology) -> float:
    """Return the mean lowest-common-ancestor distance of wrong cells :cite:p:`wang2021onclass`.

    Parameters
    ----------
    truth, predicted
        Term ids, shape (n,); None where there is none.
    ontology
        The is-a relations.

    Returns
    -------
    float
        NaN without a wrong cell that can be rated. `ontology_errors` has the counts, the mean over all cells and the
        length of the path between the two terms.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> from cytoglot.data.knowledge.ontology_graph import OntologyGraph
    >>> ontology = OntologyGraph({"CD4 T": ["T"], "T": ["lymphocyte"], "B": ["lymphocyte"]})
    >>> metrics.lcad(["CD4 T", "B", "B"], ["B", "CD4 T", "B"], ontology)
    1.5
    """
    return lcad_statistic(truth, predicted, ontology).value


def ontology_errors(truth: Terms, predicted: Terms, ontology: Ontology) -> OntologyErrors:
    """Return how far wrong cells are from the truth, with the number of cells that could not be rated.

    Parameters
    ----------
    truth, predicted
        Term ids, shape (n,); None where there is none.
    ontology
        The is-a relations.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> from cytoglot.data.knowledge.ontology_graph import OntologyGraph
    >>> ontology = OntologyGraph({"CD4 T": ["T"], "T": ["lymphocyte"], "B": ["lymphocyte"]})
    >>> found = metrics.ontology_errors(["CD4 T", "B", "B"], ["B", "B", None], ontology)
    >>> found.lcad, found.lcad_all, found.path, found.n_unmapped
    (2.0, 1.0, 3.0, 1)
    """
    pairs = _compare(truth, predicted, ontology)
    steps_n, path_n, mapped_n = pairs.steps_n, pairs.path_n, pairs.mapped_n
    rated_n = ~np.isnan(steps_n)
    is_error = rated_n & pairs.wrong_n
    n_rated, n_wrong = int(rated_n.sum()), int(is_error.sum())
    total, total_path = float(steps_n[is_error].sum()), float(path_n[is_error].sum())
    return OntologyErrors(
        lcad=total / n_wrong if n_wrong else math.nan,
        lcad_all=total / n_rated if n_rated else math.nan,
        path=total_path / n_wrong if n_wrong else math.nan,
        path_all=total_path / n_rated if n_rated else math.nan,
        n_rated=n_rated,
        n_wrong=n_wrong,
        n_unmapped=int((~mapped_n).sum()),
        n_unrelated=int((mapped_n & ~rated_n).sum()),
    )


@dataclass(frozen=True, kw_only=True)
class HierarchicalScores:
    """How far the ancestors of the predictions are those of the truths."""

    precision: float
    """shared ancestors ÷ ancestors of the predictions, both summed over cells; NaN without rated cells"""
    recall: float
    """shared ancestors ÷ ancestors of the truths"""
    f1: float
    n_rated: int
    n_unmapped: int
    """cells without a known term of the truth or of the prediction"""


def hierarchical_f1_statistic(truth: Terms, predicted: Terms, ontology: Ontology) -> AdditiveStatistic:
    """Return the hierarchical F1 in additive form.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> from cytoglot.data.knowledge.ontology_graph import OntologyGraph
    >>> ontology = OntologyGraph({"CD4 T": ["T"], "T": ["cell"], "B": ["cell"]})
    >>> round(metrics.hierarchical_f1_statistic(["CD4 T"], ["T"], ontology).value, 3)
    0.667
    """
    rows_nk, _ = _shared_ancestors(truth, predicted, ontology)
    return AdditiveStatistic(
        rows_nk=rows_nk, combine=lambda sums: _ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2])
    )


@metric(
    "hierarchical_f1",
    inputs="terms",
    direction="higher",
    reference="Kiritchenko et al. 2005: F1 of the sets of ancestors, the term itself included and terms without "
    "parents left out, summed over cells",
    statistic=hierarchical_f1_statistic,
)
def hierarchical_f1(truth: Terms, predicted: Terms, ontology: Ontology) -> float:
    """Return the F1 of the sets of ancestors of true and predicted terms :cite:p:`kiritchenko2005hierarchical`.

    Each term stands for itself and all above it but the root, which every term shares. A right prediction has 1, one of
    a sibling has credit for what is above both, one that is too general loses recall alone.

    Parameters
    ----------
    truth, predicted
        Term ids, shape (n,); None where there is none.
    ontology
        The is-a relations.

    Returns
    -------
    float
        NaN without a cell that can be rated.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> from cytoglot.data.knowledge.ontology_graph import OntologyGraph
    >>> ontology = OntologyGraph({"CD4 T": ["T"], "CD8 T": ["T"], "T": ["cell"], "B": ["cell"]})
    >>> metrics.hierarchical_f1(["CD4 T", "B"], ["CD8 T", "T"], ontology)
    0.3333333333333333
    """
    return hierarchical_f1_statistic(truth, predicted, ontology).value


def hierarchical_scores(truth: Terms, predicted: Terms, ontology: Ontology) -> HierarchicalScores:
    """Return precision, recall and F1 over sets of ancestors, with the number of cells that could not be rated.

    Parameters
    ----------
    truth, predicted
        Term ids, shape (n,); None where there is none.
    ontology
        The is-a relations.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> from cytoglot.data.knowledge.ontology_graph import OntologyGraph
    >>> ontology = OntologyGraph({"CD4 T": ["T"], "T": ["cell"], "B": ["cell"]})
    >>> found = metrics.hierarchical_scores(["CD4 T", "B"], ["T", None], ontology)
    >>> found.precision, found.recall, found.n_unmapped
    (1.0, 0.5, 1)
    """
    rows_nk, mapped_n = _shared_ancestors(truth, predicted, ontology)
    shared, of_truth, of_predicted = rows_nk.sum(axis=0)
    return HierarchicalScores(
        precision=float(shared / of_predicted) if of_predicted else math.nan,
        recall=float(shared / of_truth) if of_truth else math.nan,
        f1=float(2 * shared / (of_truth + of_predicted)) if of_truth + of_predicted else math.nan,
        n_rated=int(mapped_n.sum()),
        n_unmapped=int((~mapped_n).sum()),
    )


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """What is known of each cell's two terms; NaN where it cannot be rated."""

    steps_n: Floats
    path_n: Floats
    mapped_n: NDArray[np.bool_]
    wrong_n: NDArray[np.bool_]


def _compare(truth: Terms, predicted: Terms, ontology: Ontology) -> _Pairs:
    def rate(true: str | None, guess: str | None) -> tuple[float, float, float]:
        steps = lca_steps(ontology, true, guess)
        if true not in ontology or guess not in ontology:
            return math.nan, math.nan, 0.0
        path = None if math.isnan(steps) else ontology.path_length(str(true), str(guess))
        return steps, math.nan if path is None else float(path), 1.0

    values_nk, wrong_n = _rate(truth, predicted, rate, n_values=3)
    return _Pairs(steps_n=values_nk[:, 0], path_n=values_nk[:, 1], mapped_n=values_nk[:, 2] == 1, wrong_n=wrong_n)


def _shared_ancestors(truth: Terms, predicted: Terms, ontology: Ontology) -> tuple[Floats, NDArray[np.bool_]]:
    """Return per cell the number of shared ancestors, of the truth's and of the prediction's; and which cells count."""

    @cache
    def below_root(term: str) -> frozenset[str]:
        return frozenset(above for above in ontology.ancestors(term) if len(ontology.ancestors(above)) > 1)

    def rate(true: str | None, guess: str | None) -> tuple[float, ...]:
        if true is None or guess is None or true not in ontology or guess not in ontology:
            return 0.0, 0.0, 0.0, 0.0
        first, second = below_root(true), below_root(guess)
        return float(len(first & second)), float(len(first)), float(len(second)), 1.0

    values_nk, _ = _rate(truth, predicted, rate, n_values=4)
    return values_nk[:, :3], values_nk[:, 3] == 1


def _rate(
    truth: Terms, predicted: Terms, rate: Callable[[str | None, str | None], Sequence[float]], *, n_values: int
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return what `rate` says of each cell's two terms, (n, n_values), and which cells are wrong; each pair once."""
    if len(truth) != len(predicted):
        raise ValueError(f"need one predicted term per cell, found {len(truth)} true and {len(predicted)} predicted")
    pairs = [
        (None if pd.isna(true) else true, None if pd.isna(guess) else guess)
        for true, guess in zip(truth, predicted, strict=True)
    ]
    of_pair = {pair: rate(*pair) for pair in dict.fromkeys(pairs)}
    values_nk = np.array([of_pair[pair] for pair in pairs], dtype=np.float64).reshape(len(pairs), n_values)
    return values_nk, np.array([true != guess for true, guess in pairs], dtype=bool)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    missing = np.full(np.shape(denominator), math.nan)
    return np.asarray(np.divide(numerator, denominator, out=missing, where=np.asarray(denominator) > 0))
