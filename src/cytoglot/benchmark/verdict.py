"""One plain sentence for each model: better than the best simple method, worse, or not distinguishable from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from cytoglot.atomic import write_json
from cytoglot.benchmark.results_table import LOWER_IS_BETTER, read_plan, resampled_unit, skipped_of, statistics
from cytoglot.benchmark.run import read_cells
from cytoglot.metrics.classification import per_class as class_scores
from cytoglot.metrics.uncertainty import resampled_values

VERDICT_FILE = "verdict.json"
_HEADLINES = {
    "open_set": "auroc_novel",
    "damage": "accuracy",
    "bulk_matching": "foscttm",
    "embedding": "knn_accuracy",
}
"""protocol → the metric that sums it up; macro-F1 for the others"""
_BEST_OF = {"model": "the best simple method", "baseline": "the best other simple method"}
_SOLVED, _RESISTANT = 0.95, 0.7


def write_verdict(folder: str | Path, table: pd.DataFrame) -> list[str]:
    """Write `verdict.json` beside the table, and return its sentences.

    Parameters
    ----------
    folder
        Of the results.
    table
        As `results_table.write_results` returns it.
    """
    path, made_of = Path(folder) / VERDICT_FILE, Path(folder) / "results.json"
    stamp = json.loads(made_of.read_text(encoding="utf-8"))["of"]
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept.get("of") == stamp:
            return [one["sentence"] for one in kept["verdicts"]]
    found = verdicts(table)
    recipe, _ = read_plan(Path(folder))
    content = {
        "of": stamp,
        "name": recipe.name,
        "skipped": skipped_of(Path(folder)),
        "reference": recipe.reference,
        "margin": recipe.margin,
        "verdicts": found,
        "strata": strata(table),
        "headlines": {str(task): headline(str(task)) for task in dict.fromkeys(table["task"])},
        "lower_is_better": sorted(LOWER_IS_BETTER),
        "pairwise": pairwise(folder, table, margin=recipe.margin),
        "per_class": per_class(folder, table),
    }
    write_json(path, content)
    return [one["sentence"] for one in found]


def headline(task: str) -> str:
    """Return the metric by which a protocol is summed up."""
    return _HEADLINES.get(task, "macro_f1")


def verdicts(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return, for each model (or, without one, each baseline), a sentence and the comparisons that it rests on.

    A comparison is better or worse where the 95 % interval of the paired difference leaves out 0. A model whose
    training data are unknown may have seen the test cells: it is said, and it never counts as better.
    """
    whole = table[(table["split"] == "all") & table["against"].notna()]
    facts = table.drop_duplicates("model").set_index("model")  # also of a model that failed everywhere
    roles = facts["role"]
    judged = [name for name, role in roles.items() if role == "model"]
    judged = judged or [name for name, role in roles.items() if role == "baseline"]
    found = []
    for model in map(str, judged):
        comparisons = []
        for row in whole[whole["model"] == model].to_dict("records"):
            if row["metric"] != headline(str(row["task"])) or pd.isna(row["difference_low"]):
                continue
            sign = -1 if row["metric"] in LOWER_IS_BETTER else 1
            low, high = sorted((sign * row["difference_low"], sign * row["difference_high"]))
            comparisons.append(
                {
                    "task": row["task"],
                    "condition": row["condition"],
                    "data_set": row["data_set"],
                    "metric": row["metric"],
                    "against": row["against"],
                    "difference": row["difference"],
                    "low": row["difference_low"],
                    "high": row["difference_high"],
                    "n": int(row["n"]),
                    "n_units": int(row["n_units"]),
                    "unit": row["unit"],
                    "result": "better" if low > 0 else "worse" if high < 0 else "not distinguishable",
                }
            )
        role = str(roles[model])
        contamination = str(facts.loc[model, "contamination"])
        found.append({"model": model, "sentence": _sentence(model, comparisons, contamination, best=_BEST_OF[role]),
                      "comparisons": comparisons, "contamination": contamination})  # fmt: skip
    return found


def _sentence(model: str, comparisons: list[dict[str, Any]], contamination: str, *, best: str) -> str:
    if not comparisons:
        return f"{model}: no comparison with a simple method could be made; see what failed."
    main = [c for c in comparisons if c["task"] in ("annotation", "leave_group_out")] or comparisons
    parts: list[str] = []
    for result, first, later in (
        ("better", f"better than {best} on", ""),
        ("not distinguishable", f"not distinguishable from {best} on", "not distinguishable from it on"),
        ("worse", f"worse than {best} on", "worse on"),
    ):
        some = [c for c in main if c["result"] == result]
        if some:
            shown = ", ".join(
                f"{c['data_set']} ({_task(c)}, {100 * c['difference']:+.1f} points against {c['against']}, "
                + (f"{c['n_units']} cells)" if c["unit"] == "cell" else f"{c['n_units']} groups by {c['unit']})")
                for c in some
            )
            parts.append(f"{later if parts else first} {shown}")
    text = f"{model}: " + "; ".join(parts) + "."
    if contamination == "unknown" and any(c["result"] == "better" for c in main):
        text += " Its training data are not known, and may hold these cells: this is no win."
    return text


def _task(comparison: dict[str, Any]) -> str:
    names = {"annotation": "folds of cells", "leave_group_out": "group left out"}
    return names.get(comparison["task"], f"{comparison['task']} {comparison['condition']}".replace("_", " ").strip())


def strata(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return, for each task and data set, whether baselines have solved it (0.95), or it resists (below 0.7)."""
    whole = table[(table["split"] == "all") & (table["role"] == "baseline")]
    found = []
    for (task, data_set, condition), part in whole.groupby(["task", "data_set", "condition"], sort=False):
        metric = headline(str(task))
        values = part[part["metric"] == metric]["value"].dropna()
        if len(values) and metric not in LOWER_IS_BETTER:
            best = float(values.max())
            stratum = "solved by baselines" if best >= _SOLVED else "resistant" if best < _RESISTANT else "open"
            found.append({"task": task, "data_set": data_set, "condition": condition, "best": best, "stratum": stratum})
    return found


def pairwise(folder: str | Path, table: pd.DataFrame, *, margin: float, n_resamples: int = 500) -> list[dict[str, Any]]:
    """Return, for each task and data set, how probably each method is better than each other by more than `margin`.

    Instead of ranks: of two methods that differ by less than the margin neither is better. All methods are resampled by
    the same donors, batches or cells. Methods that failed on a split are left out.

    Parameters
    ----------
    folder
        Of the results.
    table
        As `results_table.write_results` returns it.
    margin
        Region of practical equivalence, in units of the headline metric.
    n_resamples
        Bootstrap resamples.
    """
    found = []
    single = table[(table["split"] != "all") & table["task"].isin(("annotation", "leave_group_out"))]
    for (task, data_set), part in single.groupby(["task", "data_set"], sort=False):
        draws: dict[str, Any] = {}
        n_cells = 0
        for model, runs in part.groupby("model", sort=False):
            if runs["role"].iloc[0] == "replicate" or (runs["metric"] == "failed").any():
                continue
            ids = runs.drop_duplicates("run_id").sort_values(["seed", "split"])["run_id"]
            cells = pd.concat([c for name in ids if (c := read_cells(Path(folder), name)) is not None])
            cells = cells.sort_values("cell", kind="stable").reset_index(drop=True)
            groups, _ = resampled_unit(cells)
            statistic = statistics(cells)[headline(str(task))]
            draws[str(model)] = resampled_values(statistic, groups=groups, n_resamples=n_resamples)
            n_cells = len(cells)
        names = list(draws)
        better = [[float((draws[a] - draws[b] > margin).mean()) if a != b else None for b in names] for a in names]
        found.append({"task": task, "data_set": data_set, "methods": names, "p_better": better, "n": n_cells})
    return found


def per_class(folder: str | Path, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the F1 of each label by each method, for each data set of the folds of cells."""
    found = []
    single = table[(table["split"] != "all") & (table["task"] == "annotation") & (table["metric"] != "failed")]
    for data_set, part in single.groupby("data_set", sort=False):
        scores: dict[str, dict[str, float]] = {}
        counts: dict[str, int] = {}
        for model, runs in part.groupby("model", sort=False):
            tables = [read_cells(Path(folder), name) for name in runs["run_id"].unique()]
            cells = pd.concat([one for one in tables if one is not None])
            truth, predicted = cells["truth"].to_numpy(dtype=object), cells["predicted"].to_numpy(dtype=object)
            rows = class_scores(truth, predicted)
            scores[str(model)] = {row.label: row.f1 for row in rows}
            counts = {row.label: row.support for row in rows}
        labels = sorted(counts, key=lambda label: -counts[label])
        found.append({"data_set": data_set, "labels": labels, "counts": [counts[label] for label in labels],
                      "f1": {model: [of[label] for label in labels] for model, of in scores.items()}})  # fmt: skip
    return found
