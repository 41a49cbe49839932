"""A metric may judge where a replicate is told from the baseline, and only there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cytoglot.benchmark.calibration import CALIBRATION_FILE, calibrate, calibration_rows
from cytoglot.benchmark.recipe import BenchmarkRecipe
from cytoglot.benchmark.results_table import write_results
from cytoglot.benchmark.verdict import write_verdict
from cytoglot.config import load_recipe
from cytoglot.data.synthetic import make_cells
from cytoglot.errors import InputError
from cytoglot.report.verdict_page import write_verdict_page


def table_of(baseline: list[float], replicate: list[float], metric: str) -> pd.DataFrame:
    rows = [
        {"task": "annotation", "data_set": "toy", "metric": metric, "model": model, "seed": 0, "split": str(fold),
         "value": value}
        for model, values in (("base", baseline), ("replicate", replicate))
        for fold, value in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("metric", "baseline", "replicate", "drf", "bds", "is_headline"),
    [
        ("accuracy", [0.8, 0.8, 0.6], [0.9, 0.9, 0.9], 0.5, 1.0, True),
        ("accuracy", [0.8, 0.8, 0.8], [0.9, 0.7, 0.9], 0.5, 2 / 3, False),  # too often worse
        ("accuracy", [0.8, 0.8], [0.84, 0.84], 0.2, 1.0, False),  # hardly better
        ("accuracy", [1.0, 1.0], [1.0, 1.0], 0.0, 0.0, False),  # solved: nothing to recover
        ("brier", [0.2, 0.2], [0.1, 0.1], 0.5, 1.0, True),  # lower is better
    ],
)
def test_shares_are_those_by_hand(
    metric: str, baseline: list[float], replicate: list[float], drf: float, bds: float, is_headline: bool
) -> None:
    (row,) = calibration_rows(table_of(baseline, replicate, metric), "base")
    assert row["drf"] == pytest.approx(drf)
    assert row["bds"] == pytest.approx(bds, abs=1e-4)
    assert (row["is_headline"], row["n"]) == (is_headline, len(baseline))


def test_a_calibration_of_cells_is_on_the_page(tmp_path: Path) -> None:
    cells = make_cells(n_cells=150, n_genes=80, n_types=3, seed=7)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    values: dict[str, Any] = {
        "data": [{"name": "toy", "source": str(tmp_path / "cells.h5ad")}],
        "methods": [
            {"name": "majority", "classifier": "majority"},
            {"name": "knn", "classifier": "nearest_neighbors"},
        ],
        "protocols": {"annotation": {"folds": 3}, "damage": {}},
        "reference": "majority",
    }
    recipe = load_recipe(BenchmarkRecipe, None, values)
    summary, rows = calibrate(recipe, tmp_path / "out", seeds=(0, 1))
    assert (summary.runs, summary.failed) == (12, 0)
    assert {row["metric"] for row in rows} == {"macro_f1", "accuracy", "balanced_accuracy", "brier"}
    of = {row["metric"]: row for row in rows}
    assert of["accuracy"]["is_headline"]  # a replicate beats the majority
    assert of["accuracy"]["n"] == 6
    assert np.isfinite([row["drf"] for row in rows]).all()
    assert json.loads((tmp_path / "out" / CALIBRATION_FILE).read_text())["rows"] == rows
    _, table = write_results(tmp_path / "out")
    write_verdict(tmp_path / "out", table)
    assert "Which metric can judge here" in write_verdict_page(tmp_path / "out").read_text(encoding="utf-8")
    with pytest.raises(InputError, match="is none of the methods"):
        calibrate(recipe.model_copy(update={"reference": "nobody"}), tmp_path / "other")
    with pytest.raises(InputError, match="the recipe has neither"):
        calibrate(recipe.model_copy(update={"protocols": {"damage": {}}}), tmp_path / "other")
