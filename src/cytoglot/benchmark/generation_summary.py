"""From generated and real cells to result rows, the markers that they show, and one sentence.

Axes: t types, g genes, k columns of a statistic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytoglot.benchmark.results import OURS, ResultRow
from cytoglot.metrics.cell_sets import presence
from cytoglot.metrics.coexpression import (
    correlation_agreement,
    first_within_type_component,
    most_variable_genes,
    spread_along,
    within_type_products,
)
from cytoglot.metrics.uncertainty import AdditiveStatistic, bootstrap, bootstrap_function

Words = list[NDArray[np.int64]]
HELD_OUT = "held_out_cells"
"""the cells that all others are compared with; they have no row for what would compare them with themselves"""
REAL = "real_training_cells"
"""the method that is real against real: what a perfect generator would score"""
PLACKETT_LUCE = "plackett_luce_draw"
"""the method that knows of a cell its type and nothing else, and that as well as can be"""
NATS_DIFFERENCE = "nats_per_word_difference"
_N_MARKERS = 4


@dataclass(frozen=True, kw_only=True)
class GeneratedAndReal:
    """Sentences of every method as gene ids, by type; those of the sets are equally many."""

    names: list[str]
    sets: dict[str, dict[str, Words]]
    """method → type → sentences, held-out cells among them"""
    training: dict[str, Words]
    """all training cells of the type"""
    others: dict[str, Words]
    """training cells of the type that are in no set and no copy of a held-out cell"""
    test_rows: dict[str, NDArray[np.int64]]
    """places of the held-out cells among the test cells"""
    weights: dict[str, NDArray[np.floating]]
    """type → Plackett–Luce weights of the genes, (g,)"""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the model knows more of a cell than its type."""

    answer: bool | None
    """None where it cannot be decided"""
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, under the names that results have."""
        return {"knows_more_than_type": self.answer, "verdict": self.sentence}


def mean_rows(per_type: list[dict[str, Any]], seed: int) -> list[ResultRow]:
    """Return for each method and metric the mean over types."""
    rows = []
    methods = list(dict.fromkeys(entry["method"] for entry in per_type))
    for method in methods:
        entries = [entry for entry in per_type if entry["method"] == method]
        names = [key for key in entries[0] if key not in {"cell_type", "method", "n"}]
        rows += [_mean_row(method, metric, [entry[metric] for entry in entries], seed) for metric in names]
    return rows


def _mean_row(method: str, metric: str, values: Sequence[float], seed: int) -> ResultRow:
    value_t = np.array(values, dtype=float)

    def mean(chosen: NDArray[np.int64]) -> float:
        return math.nan if np.isnan(value_t[chosen]).all() else float(np.nanmean(value_t[chosen]))

    interval = bootstrap_function(mean, len(value_t), unit="cell_type", seed=seed)
    return ResultRow.of("generation", method, metric, interval)


def pooled_rows(cells: GeneratedAndReal, n_genes: int, seed: int) -> list[ResultRow]:
    """Return the rows of co-expression and of the first component, which few cells of one type cannot show."""
    genes = most_variable_genes(cells.others, n_genes)
    real_tgg = within_type_products(cells.others, cells.names, genes, n_genes)
    direction_g = first_within_type_component(cells.others, n_genes)
    held_out_t = spread_along(cells.sets[HELD_OUT], cells.names, direction_g)
    options: dict[str, Any] = {"unit": "cell_type", "seed": seed}
    rows = []
    for method, sets in cells.sets.items():
        ours_tgg = within_type_products(sets, cells.names, genes, n_genes)

        def agreement(chosen: NDArray[np.int64], ours_tgg: NDArray[np.float64] = ours_tgg) -> float:
            times_t = np.bincount(chosen, minlength=len(ours_tgg)).astype(np.float64)
            return correlation_agreement(*(np.tensordot(times_t, each, axes=1) for each in (ours_tgg, real_tgg)))

        interval = bootstrap_function(agreement, len(cells.names), n_resamples=200, **options)
        rows.append(ResultRow.of("generation", method, "coexpression_agreement", interval))
        if method != HELD_OUT:
            spread_tk = np.column_stack([spread_along(sets, cells.names, direction_g), held_out_t])
            spread_tk[np.isnan(spread_tk).any(axis=1)] = 0  # a type of which either has but one cell
            statistic = AdditiveStatistic(rows_nk=spread_tk, combine=_ratio)
            rows.append(ResultRow.of("generation", method, "component_variance_ratio", bootstrap(statistic, **options)))
    return rows


def _ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(sums[..., 0], sums[..., 1], out=np.full(sums.shape[:-1], np.nan), where=sums[..., 1] > 0)


def difference_rows(per_type: list[dict[str, Any]], seed: int) -> list[ResultRow]:
    """Return by how many nats a word the model is below the Plackett–Luce profile, paired by type."""
    of_method = {
        method: np.array([entry["nats_per_word"] for entry in per_type if entry["method"] == method])
        for method in (PLACKETT_LUCE, OURS)
    }
    gain_t = of_method[PLACKETT_LUCE] - of_method[OURS]
    return [] if np.isnan(gain_t).all() else [_mean_row(f"{PLACKETT_LUCE} - {OURS}", NATS_DIFFERENCE, gain_t, seed)]


def markers(cells: GeneratedAndReal, symbols: Sequence[str]) -> list[dict[str, Any]]:
    """Return the genes that most tell each type's training cells from those of the others, and who shows them."""
    n_genes = len(symbols)

    def shares(sentences: Words) -> NDArray[np.float64]:
        return np.asarray(presence(sentences, n_genes).mean(axis=0)).ravel()

    of_type = {name: shares(cells.training[name]) for name in cells.names}
    found = []
    for name in cells.names:
        rest = [of_type[other] for other in cells.names if other != name] or [np.zeros(n_genes)]
        elsewhere_g = np.mean(rest, axis=0)
        held_out_g, generated_g = (shares(cells.sets[method][name]) for method in (HELD_OUT, OURS))
        found += [
            {
                "cell_type": name,
                "gene": symbols[gene],
                "held_out": float(held_out_g[gene]),
                "generated": float(generated_g[gene]),
                "other_types": float(elsewhere_g[gene]),
            }
            for gene in np.argsort(elsewhere_g - of_type[name], kind="stable")[:_N_MARKERS].tolist()
        ]
    return found


def verdict(rows: list[ResultRow]) -> Verdict:
    """Decide by nats a word (interval above 0) and by the two-sample test (below that of Plackett–Luce draws)."""
    found = {(row.method, row.metric): row for row in rows}
    gain = found.get((f"{PLACKETT_LUCE} - {OURS}", NATS_DIFFERENCE))
    ours, theirs = (found[method, "c2st_auc"].value for method in (OURS, PLACKETT_LUCE))
    question = "whether the model knows more of a cell than its type"
    if gain is None or gain.value is None or gain.low is None or gain.high is None:
        why = "the nats a word of held-out cells are not known" if gain is None else "one cell type gives no interval"
        return Verdict(answer=None, sentence=f"It cannot be said {question}: {why}.")
    if ours is None or theirs is None:
        return Verdict(answer=None, sentence=f"It cannot be said {question}: too few cells for a two-sample test.")
    nats = (
        f"a word of a held-out cell costs the model {abs(gain.value):.3f} nats {'less' if gain.value > 0 else 'more'} "
        f"than the Plackett–Luce profile of the type (95 % interval of the gain {gain.low:.3f} to {gain.high:.3f})"
    )
    test = f"a classifier tells its cells from real ones with AUC {ours:.2f}, draws from that profile with {theirs:.2f}"
    answer = gain.low > 0 and ours < theirs
    start = (
        "The model knows more of a cell than its type"
        if answer
        else ("It is not shown that the model knows more of a cell than its type")
    )
    return Verdict(answer=answer, sentence=f"{start}: {nats}; {test} (0.5 is chance).")
