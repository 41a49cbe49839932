"""From runs to one tidy table: every value with its interval, beside the best baseline and on one scale.

The scale: 0 is the stated simple baseline, 1 a replicate of the data (the same cells, the other half of their reads).
Axes: n judged cells.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from cytoglot.atomic import atomic_path, write_json
from cytoglot.benchmark.recipe import BenchmarkRecipe
from cytoglot.benchmark.run import PLAN_FILE, RECIPE_FILE, RESULTS_FILE, RUNS, protocol_of, read_cells, read_run
from cytoglot.data.knowledge.ontology import map_labels
from cytoglot.data.knowledge.ontology_graph import package_ontology
from cytoglot.errors import InputError
from cytoglot.manifest import fingerprint_texts
from cytoglot.metrics.classification import (
    accuracy_statistic,
    balanced_accuracy_statistic,
    ece_statistic,
    holm,
    macro_f1_statistic,
    mcnemar,
    mean_statistic,
)
from cytoglot.metrics.ontology import hierarchical_f1_statistic, lcad_statistic
from cytoglot.metrics.uncertainty import (
    MIN_GROUPS,
    AdditiveStatistic,
    Interval,
    bootstrap,
    bootstrap_function,
    difference_statistic,
    resampled_values,
)

COLUMNS = (
    "model", "role", "task", "condition", "data_set", "split", "seed", "metric", "value", "low", "high", "n", "unit",
    "n_units", "scaled", "against", "difference", "difference_low", "difference_high", "p_better", "p_same", "p_worse",
    "mcnemar_p", "mcnemar_holm", "sees_all_cells", "seconds", "cpu_seconds", "memory_mb", "contamination", "run_id",
    "error",
)  # fmt: skip
"""of the table. A row of one split has the id of its run and no interval; a row of split "all" has an interval, over
whole groups where there are enough, and what it is against: the best baseline on the same cells"""
_FORMAT = 3
"""counted up when the table gains or changes a number, so that it is made anew"""
_MIN_MAPPED = 0.8
"""least share of cells whose label has a term of the Cell Ontology, so that errors are rated on it"""
LOWER_IS_BETTER = frozenset({"ece", "brier", "foscttm", "lcad"})
_N_RESAMPLES = 1000


def write_results(folder: str | Path) -> tuple[Path, pd.DataFrame]:
    """Write `results.parquet` of the runs of a folder, unless the same runs are in it, and return path and table.

    Raises
    ------
    InputError
        The folder holds no runs of `cytoglot benchmark run`.
    """
    folder = Path(folder)
    recipe, records = read_plan(folder)
    made = [[r["id"], r["data"]["name"], r["method"]["name"], r["error"], r["seconds"]] for r in records]
    stamp = fingerprint_texts([json.dumps([_FORMAT, recipe.model_dump(mode="json"), made])])
    path, made_of = folder / RESULTS_FILE, folder / "results.json"
    if path.is_file() and made_of.is_file() and json.loads(made_of.read_text(encoding="utf-8"))["of"] == stamp:
        return path, pd.read_parquet(path)
    table = pd.DataFrame([row for rows in _by_task(folder, records, recipe) for row in rows], columns=list(COLUMNS))
    table = table.astype({"split": str, "condition": str})
    with atomic_path(path) as partial:
        table.to_parquet(partial, index=False)
    write_json(made_of, {"of": stamp, "runs": len(records), "rows": len(table)})
    return path, table


def read_plan(folder: Path) -> tuple[BenchmarkRecipe, list[dict[str, Any]]]:
    """Return the recipe of a folder of results and the records of its runs, under the names of the recipe.

    Raises
    ------
    InputError
        It is no such folder.
    """
    if not (folder / RECIPE_FILE).is_file() or not (folder / RUNS).is_dir():
        raise InputError(f"{folder} holds no runs; pass the folder that `cytoglot benchmark run -o` wrote")
    recipe = BenchmarkRecipe.model_validate_json((folder / RECIPE_FILE).read_text(encoding="utf-8"))
    plan, methods = folder / PLAN_FILE, {method.name: method for method in recipe.methods}
    records = []
    if plan.is_file():
        for entry in json.loads(plan.read_text(encoding="utf-8"))["runs"]:
            if (record := read_run(folder, entry["id"])) is not None:
                record["data"]["name"], record["method"]["name"] = entry["data"], entry["method"]
                record["method"]["contamination"] = methods[entry["method"]].contamination
                records.append(record)
        return recipe, records
    # Of a comparison that was interrupted: the runs that are as the recipe says, as the folder may hold others.
    data = {one.name: one.model_dump(mode="json") for one in recipe.data}
    for path in sorted((folder / RUNS).glob("*.json")):
        record = read_run(folder, path.stem)
        if record is None or record["protocol"] not in recipe.protocols or record["seed"] not in recipe.seeds:
            continue
        settings = protocol_of(record["protocol"], recipe.protocols[record["protocol"]]).model_dump(mode="json")
        method = methods.get(record["method"]["name"])
        same_method = method is not None and all(
            record["method"][key] == value
            for key, value in method.model_dump(mode="json", exclude={"classifier", "options"}).items()
        )
        if same_method and record["settings"] == settings and data.get(record["data"]["name"]) == record["data"]:
            records.append(record)
    return recipe, records


def skipped_of(folder: Path) -> list[str]:
    """Return the protocols that do not fit a data set, with the reason."""
    plan = folder / PLAN_FILE
    return list(json.loads(plan.read_text(encoding="utf-8"))["skipped"]) if plan.is_file() else []


def _by_task(folder: Path, records: list[dict[str, Any]], recipe: BenchmarkRecipe) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each protocol and data set, in the order of the recipe."""
    order = {method.name: place for place, method in enumerate(recipe.methods)}
    for task in recipe.protocols:
        for data in recipe.data:
            found = [r for r in records if r["protocol"] == task and r["data"]["name"] == data.name]
            by_model: dict[str, list[dict[str, Any]]] = {}
            for record in sorted(found, key=lambda r: order.get(r["method"]["name"], len(order))):
                by_model.setdefault(record["method"]["name"], []).append(record)
            if by_model:
                yield _rows(folder, task, data.name, by_model, recipe)


def _rows(
    folder: Path, task: str, data_set: str, by_model: dict[str, list[dict[str, Any]]], recipe: BenchmarkRecipe
) -> list[dict[str, Any]]:
    rows, tables = [], {}
    for model, records in by_model.items():
        whole = [r for r in records if r["error"] is None]
        first = records[0]["method"]
        facts = {
            "model": model,
            "role": first["role"],
            "task": task,
            "data_set": data_set,
            "contamination": first["contamination"],
            "sees_all_cells": any(record["sees_all_cells"] for record in records),
        }
        judged = []
        for record in records:
            cost = {key: record[key] for key in ("seconds", "cpu_seconds", "memory_mb")}
            this = facts | cost | {"split": record["split"], "seed": record["seed"], "run_id": record["id"]}
            if record["error"] is not None:
                rows.append(this | {"condition": "", "metric": "failed", "n": 0, "error": record["error"]})
                continue
            for metric, value in record["values"].items():
                rows.append(this | {"condition": "", "metric": metric, "value": value})
            cells = read_cells(folder, record["id"])
            if cells is None:
                continue
            judged.append(cells.assign(seed=record["seed"], split=record["split"]))
            for condition, part in cells.groupby("condition", sort=False):
                for metric, statistic in statistics(part).items():
                    value = _plain(statistic.value)
                    rows.append(this | {"condition": condition, "metric": metric, "value": value, "n": len(part)})
        cost = {key: round(sum(r[key] for r in whole), 3) for key in ("seconds", "cpu_seconds") if whole} | (
            {"memory_mb": max(r["memory_mb"] for r in whole)} if whole else {}
        )
        tables[model] = facts | cost, pd.concat(judged, ignore_index=True) if judged else None
        rows += _means_of_values(facts | cost, whole)
    # Donors, batches: what the recipe calls the groups that are resampled.
    group_unit = next(data.groups for data in recipe.data if data.name == data_set) or "group"
    pooled = list(_pooled(tables, recipe, group_unit))
    tested = [row for row in pooled if "mcnemar_p" in row]
    for row, p in zip(tested, holm([row["mcnemar_p"] for row in tested]), strict=True):
        row["mcnemar_holm"] = float(p)
    rows += pooled
    return rows


def _means_of_values(facts: dict[str, Any], records: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the mean over runs of values that have no per-cell form; their interval is the range of the runs."""
    for metric in dict.fromkeys(name for record in records for name in record["values"]):
        values = [v for r in records if (v := r["values"].get(metric)) is not None]
        several = len(values) > 1
        yield facts | {
            "condition": "",
            "split": "all",
            "seed": -1,
            "metric": metric,
            "value": float(np.mean(values)) if values else None,
            "low": min(values) if several else None,
            "high": max(values) if several else None,
            "n": len(values),
            "unit": "run",
        }


def statistics(cells: pd.DataFrame) -> dict[str, AdditiveStatistic]:
    """Return metric → its additive form for a table of judged cells."""
    if "foscttm" in cells:
        return {"foscttm": mean_statistic(cells["foscttm"].to_numpy(dtype=np.float64))}
    truth, predicted = (cells[name].to_numpy(dtype=object) for name in ("truth", "predicted"))
    seen = cells["in_training"].to_numpy(dtype=bool)
    found = {
        "accuracy": accuracy_statistic(truth, predicted),
        "macro_f1": macro_f1_statistic(truth, predicted),
        "balanced_accuracy": balanced_accuracy_statistic(truth, predicted),
        "ece": ece_statistic(cells["confidence"].to_numpy(dtype=np.float64), truth == predicted),
        "brier": mean_statistic(cells["brier"].to_numpy(dtype=np.float64)),
    }
    terms = _terms(tuple(sorted({*map(str, truth), *map(str, predicted)})))
    known_n = np.array([terms[str(label)] is not None for label in truth])
    if known_n.mean() >= _MIN_MAPPED:
        # How wrong the wrong are, by the ontology; cells whose label has no term are not rated.
        true, guessed = ([terms[str(label)] for label in labels] for labels in (truth, predicted))
        found["lcad"] = lcad_statistic(true, guessed, package_ontology())
        found["hierarchical_f1"] = hierarchical_f1_statistic(true, guessed, package_ontology())
    if "known" in cells:  # an open set: what counts is whether the new type is noticed
        known = cells["known"].to_numpy(dtype=np.float64)
        # Of each left-out type by itself: the scores of another fit have another scale.
        split = cells["split"].to_numpy(dtype=object) if "split" in cells else np.full(len(cells), "", dtype=object)
        limit_of = {name: np.quantile(known[seen & (split == name)], 0.05) for name in set(split[seen])}
        rejected_n = known < np.array([limit_of.get(name, np.nan) for name in split], dtype=np.float64)
        return {"accuracy_known": _share(truth == predicted, seen), "novel_rejected": _share(rejected_n, ~seen)}
    if not seen.all() and seen.any():
        # Labels that training lacks cannot be right; without them it is the method that is judged, not the split.
        for name, form in (("accuracy", accuracy_statistic), ("macro_f1", macro_f1_statistic)):
            some = form(truth[seen], predicted[seen])
            rows_nk = np.zeros((len(seen), some.rows_nk.shape[1]))
            rows_nk[seen] = some.rows_nk
            found[f"{name}_shared"] = AdditiveStatistic(rows_nk=rows_nk, combine=some.combine)
    return found


@lru_cache(maxsize=256)
def _terms(labels: tuple[str, ...]) -> Mapping[str, str | None]:
    """Return the Cell Ontology term of each label, None where there is none."""
    return map_labels(labels).ids


def _share(hit_n: NDArray[np.bool_], among_n: NDArray[np.bool_]) -> AdditiveStatistic:
    """Return the share of hits among some of the cells."""

    def combine(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            return np.asarray(sums[..., 0] / sums[..., 1])

    return AdditiveStatistic(rows_nk=np.stack([hit_n & among_n, among_n], axis=1).astype(np.float64), combine=combine)


def _pooled(
    tables: dict[str, tuple[dict[str, Any], pd.DataFrame | None]], recipe: BenchmarkRecipe, group_unit: str
) -> Iterator[dict[str, Any]]:
    """Yield rows over all splits: intervals, the scale, and differences to the best baseline on the same cells."""
    known = {model: (facts, cells) for model, (facts, cells) in tables.items() if cells is not None}
    conditions = dict.fromkeys(c for _, cells in known.values() for c in cells["condition"])
    for condition in conditions:
        parts = {}
        for model, (_, cells) in known.items():
            part = cells[cells["condition"] == condition].sort_values(["seed", "split", "cell"], kind="stable")
            parts[model] = part.reset_index(drop=True)
        # A method that failed on a fold is compared with nobody on it, and its own row says how many cells it has.
        n_cells = max(len(part) for part in parts.values())
        whole = {model: part for model, part in parts.items() if len(part) == n_cells}
        forms = {model: statistics(part) for model, part in parts.items()}
        for metric in dict.fromkeys(name for form in forms.values() for name in form):
            sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
            values = {m: forms[m][metric].value for m in parts if metric in forms[m]}
            baselines = [
                m for m in whole if known[m][0]["role"] == "baseline" and not math.isnan(values.get(m, np.nan))
            ]
            best = max(baselines, key=lambda m: sign * values[m], default=None)
            ceiling = next((values[m] for m in whole if known[m][0]["role"] == "replicate" and m in values), None)
            for model, part in parts.items():
                if metric not in forms[model]:
                    continue
                groups, unit = resampled_unit(part, unit=group_unit)
                interval = bootstrap(forms[model][metric], groups=groups, unit=unit, n_resamples=_N_RESAMPLES)
                row = known[model][0] | {
                    "condition": condition,
                    "split": "all",
                    "seed": -1,
                    "metric": metric,
                    "value": _plain(interval.value),
                    "low": _plain(interval.low),
                    "high": _plain(interval.high),
                    "n": len(part),
                    "unit": unit,
                    "n_units": interval.n_units,
                    "scaled": _scaled(interval.value, values.get(recipe.reference), ceiling, sign),
                }
                # The best baseline stands against the next one.
                rivals = [m for m in baselines if m != model]
                rival = best if best != model else max(rivals, key=lambda m: sign * values[m], default=None)
                if rival is not None and model in whole:
                    row |= _against(
                        forms[model][metric], forms[rival][metric], groups, rival, sign=sign, margin=recipe.margin
                    )
                    if metric == "accuracy":
                        ours, theirs = (whole[m]["truth"] == whole[m]["predicted"] for m in (model, rival))
                        row["mcnemar_p"] = mcnemar(ours.to_numpy(), theirs.to_numpy()).p_value
                yield row
        for model, part in parts.items():
            if "known" in part and not part["in_training"].all():
                groups, unit = resampled_unit(part, unit=group_unit)
                interval = _auroc(part, groups, unit)
                yield known[model][0] | {
                    "condition": condition,
                    "split": "all",
                    "seed": -1,
                    "metric": "auroc_novel",
                    "value": _plain(interval.value),
                    "low": _plain(interval.low),
                    "high": _plain(interval.high),
                    "n": len(part),
                    "unit": unit,
                    "n_units": interval.n_units,
                }


def resampled_unit(part: pd.DataFrame, *, unit: str = "group") -> tuple[NDArray[Any], str]:
    """Return what is resampled: groups where there are enough, else cells, each with all its repetitions."""
    groups = part["group"].to_numpy(dtype=object)
    if len(set(groups)) >= MIN_GROUPS:
        return groups, unit
    return part["cell"].to_numpy(dtype=object), "cell"


def _against(
    ours: AdditiveStatistic, other: AdditiveStatistic, groups: Any, rival: str, *, sign: float, margin: float
) -> dict[str, Any]:
    """Return the paired difference, and how probably it is better, practically the same, or worse."""
    both = difference_statistic(ours, other)
    draws = resampled_values(both, groups=groups, n_resamples=_N_RESAMPLES)
    draws = draws[~np.isnan(draws)]
    low, high = np.quantile(draws, [0.025, 0.975]) if len(draws) else (np.nan, np.nan)
    gain = sign * draws
    shares = (gain > margin, np.abs(gain) <= margin, gain < -margin)
    better, same, worse = (float(share.mean()) if len(draws) else None for share in shares)
    return {
        "against": rival,
        "difference": _plain(both.value),
        "difference_low": _plain(low),
        "difference_high": _plain(high),
        "p_better": better,
        "p_same": same,
        "p_worse": worse,
    }


def _auroc(part: pd.DataFrame, groups: Any, unit: str) -> Interval:
    """Return the mean over left-out types of the AUROC of known against new cells."""
    novel = ~part["in_training"].to_numpy(dtype=bool)
    score, split = -part["known"].to_numpy(dtype=np.float64), part["split"].to_numpy(dtype=object)

    def value(rows: NDArray[np.int64]) -> float:
        found = []
        for name in np.unique(split.astype(str)):
            some = rows[split[rows] == name]
            if 0 < novel[some].sum() < len(some):
                found.append(roc_auc_score(novel[some], score[some]))
        return float(np.mean(found)) if found else float("nan")

    return bootstrap_function(value, len(part), groups=groups, unit=unit, n_resamples=100)


def _scaled(value: float, baseline: float | None, ceiling: float | None, sign: float) -> float | None:
    """Return (value − baseline) / (ceiling − baseline); None where the ceiling is not half a point better."""
    if baseline is None or ceiling is None or math.isnan(value) or sign * (ceiling - baseline) < 0.005:
        return None
    return float((value - baseline) / (ceiling - baseline))


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
