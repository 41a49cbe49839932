"""The registry of metrics: what every entry must state, and that tasks name existing ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cytoglot.data.knowledge.ontology_graph import OntologyGraph
from cytoglot.errors import UnknownNameError
from cytoglot.metrics import MetricSpec, bootstrap, metrics, term_vectors, type_distances
from cytoglot.tasks import tasks

RNG = np.random.default_rng(0)
TRUTH, PREDICTED = RNG.choice(list("abc"), 50), RNG.choice(list("abc"), 50)
PROBABILITIES = RNG.dirichlet(np.ones(3), 50)
VECTORS = RNG.normal(size=(50, 3))
TREE = OntologyGraph({"CD4 T": ["T"], "T": ["cell"], "B": ["cell"]})
TERMS = (["CD4 T", "B", "T"], ["T", "B", "B"])
PLACES, TYPES = RNG.normal(size=(80, 3)), np.repeat(list("abcd"), 20)
SENTENCES = [list(RNG.permutation(20)[:8]) for _ in range(6)]
CELLS, OTHER_CELLS = ({"a": [RNG.permutation(20)[:8] for _ in range(9)]} for _ in range(2))
ARGUMENTS = {
    "accuracy": (TRUTH, PREDICTED),
    "macro_f1": (TRUTH, PREDICTED),
    "balanced_accuracy": (TRUTH, PREDICTED),
    "ece": (PROBABILITIES.max(1), TRUTH == PREDICTED),
    "adaptive_ece": (PROBABILITIES.max(1), TRUTH == PREDICTED),
    "brier": (TRUTH, PROBABILITIES, list("abc")),
    "nll": (TRUTH, PROBABILITIES, list("abc")),
    "gene_overlap": (SENTENCES[0], SENTENCES[1]),
    "gene_precision": (SENTENCES[0], SENTENCES[1]),
    "gene_jaccard": (SENTENCES[0], SENTENCES[1]),
    "kendall_tau_b": (SENTENCES[0], SENTENCES[1], list(range(20))),
    "validity": (SENTENCES[0], set(range(10))),
    "duplicate_share": ([1, 2, 1],),
    "pairwise_overlap": (SENTENCES,),
    "pairwise_diversity": (SENTENCES,),
    "mean_overlap": (SENTENCES[:3], SENTENCES[3:]),
    "exact_match": ("CD4 T cell.", "cd4 T"),
    "token_f1": ("CD4 T cell.", "cd4 T"),
    "c2st_auc": (CELLS, OTHER_CELLS, 20),
    "energy_distance": (RNG.normal(size=(9, 2)), RNG.normal(size=(9, 2))),
    "coverage": (RNG.normal(size=(9, 2)), RNG.normal(size=(9, 2))),
    "memorized_share": (RNG.normal(size=(9, 2)), RNG.normal(size=(9, 2))),
    "coexpression_agreement": (CELLS, OTHER_CELLS, 20),
    "component_variance_ratio": (CELLS, OTHER_CELLS, CELLS, 20),
    "nats_per_word": ([6.0, 4.0], [2, 4]),
    **dict.fromkeys(("silhouette", "asw_label", "clisi", "graph_connectivity", "ilisi"), (VECTORS, TRUTH)),
    **dict.fromkeys(("asw_batch", "bras", "isolated_labels", "kbet"), (VECTORS, TRUTH, PREDICTED)),
    **dict.fromkeys(("lcad", "hierarchical_f1"), (TERMS[0], TERMS[1], TREE)),
    "scgraph": (PLACES, TYPES, type_distances(PLACES, TYPES)),
    "scgraph_onto_rwr": (
        PLACES,
        TYPES,
        term_vectors({"a": ["x"], "b": ["x"], "c": ["y"], "d": ["c"], "x": ["z"], "y": ["z"]}),
    ),
    "rogi": (VECTORS, TRUTH),
    "attribute_learning_index": (VECTORS, TRUTH),
    "foscttm": (VECTORS, RNG.normal(size=(50, 3))),
    "knn_type_agreement": (RNG.normal(size=(50, 2)), TRUTH, RNG.normal(size=(50, 2)), PREDICTED),
}


@pytest.mark.parametrize("name", list(metrics))
def test_a_metric_stays_in_its_range_and_its_additive_form_agrees(name: str) -> None:
    spec = metrics[name]
    value = spec.function(*ARGUMENTS[name])
    assert spec.name == name
    assert spec.contains(value)
    assert not math.isnan(value)
    assert spec.contains(spec.best)
    assert spec.best == spec.target if spec.target is not None else spec.best in (spec.low, spec.high)
    assert spec.reference
    if spec.statistic is not None:
        interval = bootstrap(spec.statistic(*ARGUMENTS[name]), n_resamples=50)
        assert interval.value == pytest.approx(value)
        assert interval.low <= interval.high


def test_tasks_name_metrics_that_exist() -> None:
    assert all(name in metrics for task in tasks.values() for name in task.metrics)


def test_an_unknown_metric_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown metric 'macrof1'; did you mean 'macro_f1'"):
        metrics["macrof1"]


def test_a_range_must_not_be_empty() -> None:
    with pytest.raises(ValueError, match=r"metric 'm': the range needs low < high, found 1 and 0"):
        MetricSpec(name="m", function=len, inputs="labels", low=1, high=0, direction="higher", reference="r")


def test_the_range_takes_nan_and_refuses_what_lies_outside() -> None:
    spec = metrics["brier"]
    assert spec.contains(math.nan)
    assert spec.contains(2.0)
    assert not spec.contains(2.1)
    assert spec.best == 0
