"""Which metric may judge on which data set: measured on real data alone, before any model is.

For a metric, a data set, a fold and a seed: b is the value of the simple baseline, r that of a replicate (the same
cells, the other half of their reads) and p a perfect value. The share of the range that a replicate recovers is
DRF = (r − b) / (p − b), and BDS says how often the replicate is better than the baseline. Where even a second
measurement of the same cells is no better than the baseline, the metric cannot tell a better model from a worse one.
After scPertEval, whose negative control is the mean of all perturbations and whose unit is one perturbation; here they
are the baseline of the recipe, a fold and a seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cytoglot.atomic import write_json
from cytoglot.benchmark.recipe import BenchmarkRecipe, MethodSettings
from cytoglot.benchmark.results_table import LOWER_IS_BETTER, write_results
from cytoglot.benchmark.run import BenchmarkSummary, run_benchmark
from cytoglot.errors import InputError

CALIBRATION_FILE = "calibration.json"
MIN_BDS, MIN_DRF = 0.85, 0.45
"""least values of a headline"""
_METRICS = ("macro_f1", "accuracy", "balanced_accuracy", "brier")


def calibrate(
    recipe: BenchmarkRecipe, folder: str | Path, *, seeds: tuple[int, ...] = (0, 1, 2), workers: int = 1
) -> tuple[BenchmarkSummary, list[dict[str, Any]]]:
    """Run the baseline and the replicate of a recipe on its data, and write `calibration.json`.

    Parameters
    ----------
    recipe
        Its data sets, its `reference` baseline and its label protocols that know a ceiling are used.
    folder
        A folder for the runs; they are kept, as those of `run_benchmark`.
    seeds
        Of folds, methods and halves of the reads.
    workers
        Processes.

    Returns
    -------
    tuple
        How the runs ended, and a row for each protocol, data set and metric: task, data_set, metric, drf (median over
        folds and seeds), bds, n (folds × seeds) and is_headline.

    Raises
    ------
    InputError
        The recipe's reference is none of its methods, or none of its protocols knows a ceiling.
    """
    baseline = next((method for method in recipe.methods if method.name == recipe.reference), None)
    if baseline is None:
        known = ", ".join(repr(method.name) for method in recipe.methods)
        raise InputError(f"the reference {recipe.reference!r} is none of the methods of the recipe: {known}")
    protocols = {name: s for name, s in recipe.protocols.items() if name in ("annotation", "leave_group_out")}
    if not protocols:
        raise InputError("a calibration needs the protocol annotation or leave_group_out; the recipe has neither")
    replicate = MethodSettings(name="replicate", classifier="logistic_regression", role="replicate")
    chosen = recipe.model_copy(update={"methods": (baseline, replicate), "protocols": protocols, "seeds": seeds})
    summary = run_benchmark(chosen, folder, workers=workers)
    _, table = write_results(folder)
    rows = calibration_rows(table, recipe.reference)
    write_json(Path(folder) / CALIBRATION_FILE, {"min_bds": MIN_BDS, "min_drf": MIN_DRF, "rows": rows})
    return summary, rows


def calibration_rows(table: pd.DataFrame, reference: str) -> list[dict[str, Any]]:
    """Return DRF and BDS of each protocol, data set and metric from the rows of single folds.

    Parameters
    ----------
    table
        As `results_table.write_results` returns it, with the methods `reference` and "replicate".
    reference
        The simple baseline.
    """
    single = table[(table["split"] != "all") & table["metric"].isin(_METRICS)]
    found = []
    for (task, data_set, metric), part in single.groupby(["task", "data_set", "metric"], sort=False):
        values = part.pivot_table(index=["seed", "split"], columns="model", values="value", aggfunc="first")
        if reference not in values or "replicate" not in values:
            continue
        pairs = values[[reference, "replicate"]].dropna()
        sign, perfect = (-1.0, 0.0) if metric in LOWER_IS_BETTER else (1.0, 1.0)
        gain = sign * (pairs["replicate"] - pairs[reference])
        room = sign * (perfect - pairs[reference])
        # Where the baseline is perfect there is no range, and nothing that a replicate could recover.
        drf = float(np.median(np.where(room > 1e-9, gain / room.where(room > 1e-9, 1.0), 0.0))) if len(pairs) else 0.0
        bds = float((gain > 0).mean()) if len(pairs) else 0.0
        found.append(
            {
                "task": task,
                "data_set": data_set,
                "metric": metric,
                "drf": round(drf, 4),
                "bds": round(bds, 4),
                "n": len(pairs),
                "is_headline": bds >= MIN_BDS and drf >= MIN_DRF,
            }
        )
    return found
