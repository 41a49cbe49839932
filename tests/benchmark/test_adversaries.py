"""Methods that know nothing of a cell, or game a score: none may come out above the simple baseline's interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from numpy.typing import ArrayLike

from cytoglot.benchmark.classifiers.base import CLASSIFIERS, Classifier
from cytoglot.benchmark.classifiers.logistic_regression import LogisticRegressionClassifier
from cytoglot.benchmark.recipe import BenchmarkRecipe
from cytoglot.benchmark.results_table import LOWER_IS_BETTER, write_results
from cytoglot.benchmark.run import run_benchmark
from cytoglot.config import load_recipe
from cytoglot.data.synthetic import make_cells


class ShuffledLabels(LogisticRegressionClassifier):
    """Learns labels that were dealt out anew."""

    def fit(self, train: AnnData, train_labels: ArrayLike, *_: Any, **__: Any) -> Self:
        return super().fit(train, np.random.default_rng(0).permutation(np.asarray(train_labels, dtype=object)))


class ShuffledCells(LogisticRegressionClassifier):
    """Learns from cells whose genes were shuffled among the cells of a type: each gene's mean is kept."""

    def fit(self, train: AnnData, train_labels: ArrayLike, *_: Any, **__: Any) -> Self:
        labels, rng = np.asarray(train_labels, dtype=object), np.random.default_rng(0)
        dense = train.X.toarray()
        for label in set(labels):
            rows = np.flatnonzero(labels == label)
            for gene in range(dense.shape[1]):
                dense[rows, gene] = dense[rng.permutation(rows), gene]
        shuffled = AnnData(type(train.X)(dense), obs=train.obs.copy(), var=train.var.copy())
        return super().fit(shuffled, labels)


class Sure(LogisticRegressionClassifier):
    """Says its answer with full confidence: the same labels, inflated."""

    def predict_proba(self, adata: AnnData) -> np.ndarray:
        found = super().predict_proba(adata)
        return np.asarray(np.eye(found.shape[1])[found.argmax(axis=1)])


class OneLabel(LogisticRegressionClassifier):
    """The rarest label for every cell."""

    def fit(self, train: AnnData, train_labels: ArrayLike, *_: Any, **__: Any) -> Self:
        names, counts = np.unique(np.asarray(train_labels, dtype=str), return_counts=True)
        self.labels, self._rare = tuple(names), int(counts.argmin())
        return self

    def predict_proba(self, adata: AnnData) -> np.ndarray:
        found = np.zeros((adata.n_obs, len(self.labels)))
        found[:, self._rare] = 1
        return found


ADVERSARIES: dict[str, type[Classifier]] = {
    "shuffled_labels": ShuffledLabels,
    "shuffled_cells": ShuffledCells,
    "sure": Sure,
    "one_label": OneLabel,
}
#: where an adversary's answers are the baseline's own by design, and another metric must notice it
_SAME_ANSWERS = {"sure": ("ece", "brier")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("adversaries")
    cells = make_cells(n_cells=300, n_genes=100, n_types=4, seed=8)
    cells.obs["donor"] = [f"d{i % 6}" for i in range(300)]
    cells.write_h5ad(folder / "cells.h5ad")
    CLASSIFIERS["majority"]
    methods: list[dict[str, Any]] = [
        {"name": "logistic", "classifier": "logistic_regression"},
        {"name": "majority", "classifier": "majority", "role": "control"},
        {"name": "random_vectors", "classifier": "nearest_neighbors", "embedder": "random_vectors", "role": "control"},
    ]
    methods += [{"name": name, "classifier": name, "role": "control"} for name in ADVERSARIES]
    protocols = {"annotation": {"folds": 3}, "leave_group_out": {}, "open_set": {"folds": 3},
                 "label_fractions": {"folds": 3, "fractions": [], "per_type": [20]}}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, made in ADVERSARIES.items():
            patch.setitem(CLASSIFIERS._entries, name, made)
        recipe = load_recipe(
            BenchmarkRecipe,
            None,
            {
                "data": [{"name": "toy", "source": str(folder / "cells.h5ad"), "groups": "donor"}],
                "methods": methods,
                "protocols": protocols,
                "reference": "logistic",
            },
        )
        assert run_benchmark(recipe, folder / "out").failed == 0
        table = write_results(Path(folder / "out"))[1]
    return table[table["split"] == "all"]


@pytest.mark.parametrize("task", ["annotation", "leave_group_out", "open_set", "label_fractions"])
@pytest.mark.parametrize("name", ["majority", "random_vectors", *ADVERSARIES])
def test_no_adversary_is_above_the_interval_of_the_baseline(name: str, task: str, whole: pd.DataFrame) -> None:
    part = whole[whole["task"] == task].set_index(["model", "metric"])
    judged = _SAME_ANSWERS.get(name, ("macro_f1", "accuracy", "balanced_accuracy", "auroc_novel"))
    looked_at = 0
    for metric in judged:
        if ("logistic", metric) not in part.index:
            continue
        looked_at += 1
        base, adversary = part.loc[("logistic", metric)], part.loc[(name, metric)]
        if metric in LOWER_IS_BETTER:
            assert adversary["value"] >= base["low"], metric
        elif name == "shuffled_cells":  # keeps what tells types apart, so that the two can only be told by intervals
            assert adversary["low"] <= base["high"], metric
        else:
            assert adversary["value"] <= base["high"], metric
    assert looked_at or name == "sure"


@pytest.mark.parametrize("name", ["majority", "random_vectors", "shuffled_labels", "one_label"])
def test_what_knows_nothing_is_far_below(name: str, whole: pd.DataFrame) -> None:
    part = whole[(whole["task"] == "annotation") & (whole["metric"] == "macro_f1")].set_index("model")
    assert part.loc[name, "high"] < part.loc["logistic", "low"]
