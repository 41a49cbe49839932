"""One page about a comparison of methods: what is better than the best simple method, by how much, and at what cost.

It is made of the files of the folder alone, holds its pictures, and works without a network, also on a phone.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from cytoglot.atomic import write_text
from cytoglot.errors import InputError
from cytoglot.pl.style import ACCENT, GRID, INK, MUTED, SECOND
from cytoglot.report.figures import canvas, svg_text

PAGE = "verdict.html"
_TASKS = {
    "annotation": ("Cell types, folds of cells", "Each cell is tested once; training may hold cells of its donor."),
    "leave_group_out": ("Cell types, a donor or batch left out", "The methods never saw the donor, batch or species."),
    "open_set": ("Types that training never saw", "AUROC of known against new cells; 0.5 is chance."),
    "label_fractions": ("Few labels", "The same test cells after training on fewer labels."),
    "damage": ("Damaged cells", "Methods fitted on good cells are given damaged ones."),
    "embedding": ("What an embedding holds", "Labels are not used to make it."),
    "bulk_matching": ("A cell and its bulk profile", "Share of profiles nearer than the cell's own; lower is better."),
}  # fmt: skip
_METRICS = {"macro_f1": "macro-F1", "auroc_novel": "AUROC", "ece": "ECE", "foscttm": "FOSCTTM", "brier": "Brier"}
_SHOWN = (
    "macro_f1", "macro_f1_shared", "accuracy", "accuracy_shared", "balanced_accuracy", "ece", "lcad", "hierarchical_f1",
    "auroc_novel", "novel_rejected", "accuracy_known", "foscttm", "knn_accuracy", "knn_accuracy_other_batch",
    "avg_bio_kmeans", "asw_label", "bras", "ilisi", "kbet", "graph_connectivity", "scgraph", "scib_total",
    "permuted_knn_accuracy", "permuted_avg_bio_kmeans", "permuted_scgraph",
)  # fmt: skip


def write_verdict_page(folder: str | Path) -> Path:
    """Write `verdict.html` into a folder of `cytoglot benchmark run`, and return its path.

    Raises
    ------
    InputError
        The folder has no table or no verdict.
    """
    folder = Path(folder)
    if not (folder / "results.parquet").is_file() or not (folder / "verdict.json").is_file():
        raise InputError(f"{folder} has no results.parquet and verdict.json; run `cytoglot benchmark report {folder}`")
    table = pd.read_parquet(folder / "results.parquet")
    calibration = folder / "calibration.json"
    facts = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
    loader = jinja2.PackageLoader("cytoglot.report", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number, "metric_name": lambda name: _METRICS.get(name, name.replace("_", " "))}
    environment.filters["shade"] = _shade
    page = environment.get_template("verdict.html").render(
        facts=facts,
        sections=_sections(table, facts),
        calibration=json.loads(calibration.read_text(encoding="utf-8")) if calibration.is_file() else None,
        failed=table[table["metric"] == "failed"].to_dict("records"),
        pareto=_pareto(table),
        n_runs=table[table["run_id"].notna()]["run_id"].nunique(),
        data_sets=list(dict.fromkeys(table["data_set"])),
        tasks=[(task, _TASKS.get(task, (task, ""))[0]) for task in dict.fromkeys(table["task"])],
    )
    write_text(folder / PAGE, page)
    return folder / PAGE


def _sections(table: pd.DataFrame, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a section for each task and data set."""
    strata = {(s["task"], s["data_set"], s["condition"]): s["stratum"] for s in facts["strata"]}
    pairs = {(p["task"], p["data_set"]): p for p in facts["pairwise"]}
    found = []
    for (task, data_set), part in table.groupby(["task", "data_set"], sort=False):
        whole = part[part["split"] == "all"]
        if not len(whole):
            continue
        headline = facts["headlines"][str(task)]
        conditions = list(dict.fromkeys(whole["condition"]))
        shown = [m for m in _SHOWN if m in set(whole["metric"])] or list(dict.fromkeys(whole["metric"]))
        methods = list(dict.fromkeys(whole["model"]))
        # Of several conditions a column for each, of one a column for each metric.
        columns = [(c, headline) for c in conditions] if len(conditions) > 1 else [(conditions[0], m) for m in shown]
        cells = {(r["model"], r["condition"], r["metric"]): r for r in whole.to_dict("records")}
        runs = part[part["run_id"].notna()]
        first = whole[whole["metric"] == headline]
        title, note = _TASKS.get(str(task), (str(task).replace("_", " "), ""))
        found.append(
            {
                "task": task,
                "data_set": data_set,
                "title": title,
                "note": note,
                "stratum": strata.get((task, data_set, conditions[0])) if len(conditions) == 1 else None,
                "n": int(first["n"].max()) if len(first) else 0,
                "unit": str(first["unit"].iloc[0]) if len(first) else "",
                "n_units": first["n_units"].max() if len(first) else None,
                "figure": _differences(first, lower_is_better=headline in facts["lower_is_better"])
                if len(conditions) == 1 and first["difference"].notna().any()
                else "",
                "headline": headline,
                "columns": columns,
                "several": len(conditions) > 1,
                "rows": [
                    {
                        "model": model,
                        "role": whole[whole["model"] == model]["role"].iloc[0],
                        "contamination": whole[whole["model"] == model]["contamination"].iloc[0],
                        "sees_all_cells": bool(whole[whole["model"] == model]["sees_all_cells"].iloc[0]),
                        "cells": [cells.get((model, *column)) for column in columns],
                        "runs": list(runs[runs["model"] == model]["run_id"].unique()),
                    }
                    for model in methods
                ],
                "pairs": pairs.get((task, data_set)),
            }
        )
    return found


def _differences(rows: pd.DataFrame, *, lower_is_better: bool) -> str:
    """Draw each method's difference to the best baseline with its interval, and the ceiling."""
    metric = rows["metric"].iloc[0]
    sign, values = (-1 if lower_is_better else 1), rows.set_index("model")["value"]
    baselines = [m for m in rows[rows["role"] == "baseline"]["model"] if not math.isnan(values[m])]
    best = max(baselines, key=lambda m: sign * values[m], default=None)
    kept = rows[(rows["role"] != "replicate") & rows["difference"].notna() & (rows["model"] != best)]
    # Controls far below would leave no room for the differences that matter: they are in the table.
    kept = kept[kept["difference"].abs() < 0.3].iloc[::-1]
    if not len(kept):
        return ""
    with canvas(7.6, 1.2 + 0.34 * len(kept)) as (figure, (ax,)):
        for place, row in enumerate(kept.to_dict("records")):
            color = ACCENT if row["role"] == "model" else SECOND if row["role"] == "control" else INK
            value, low, high = (100 * row[name] for name in ("difference", "difference_low", "difference_high"))
            ax.plot([low, high], [place, place], color=color, lw=2.2, solid_capstyle="round")
            ax.plot(value, place, "o", color=color, ms=6)
        ax.axvline(0, color=MUTED, lw=1)
        ceiling = rows[rows["role"] == "replicate"]["value"]
        if len(ceiling) and best is not None:
            at = 100 * float(ceiling.iloc[0] - values[best])
            ax.axvline(at, color=ACCENT, lw=1, ls="--")
            ax.annotate("replicate", (at, len(kept) - 0.4), ha="center", va="bottom", fontsize=8, color=ACCENT)
        ax.set_yticks(range(len(kept)), kept["model"])
        ax.set_ylim(-0.6, len(kept) - 0.2)
        ax.set_xlabel(f"{_METRICS.get(metric, metric)}: points above {best}, the best simple method")
        ax.grid(color=GRID, axis="x")
        return svg_text(figure)


def _pareto(table: pd.DataFrame) -> str:
    """Draw quality (mean headline over data sets) against processor seconds, of the folds of cells."""
    whole = table[(table["split"] == "all") & (table["task"] == "annotation") & (table["metric"] == "macro_f1")]
    whole = whole[whole["role"].isin(("baseline", "model"))]
    n_sets = whole["data_set"].nunique()
    found = whole.groupby("model", sort=False).agg(
        value=("value", "mean"), seconds=("cpu_seconds", "sum"), n=("value", "count"), role=("role", "first")
    )
    found = found[found["n"] == n_sets]  # a method that failed somewhere has no mean over all
    if len(found) < 2:
        return ""
    with canvas(7.2, 4.2) as (figure, (ax,)):
        for place, (name, row) in enumerate(found.sort_values("value").iterrows()):
            color = ACCENT if row["role"] == "model" else INK
            ax.plot(max(row["seconds"], 1e-2), row["value"], "o", color=color, ms=6)
            ax.annotate(str(name), (max(row["seconds"], 1e-2), row["value"]), fontsize=8,
                        xytext=(6, 4 if place % 2 else -11), textcoords="offset points", color=color)  # fmt: skip
        front = found.sort_values("seconds")
        front = front[front["value"] == front["value"].cummax()]
        ax.step(front["seconds"].clip(lower=1e-2), front["value"], where="post", color=GRID, lw=2, zorder=0)
        ax.set(xscale="log", xlabel="processor seconds, all folds", ylabel=f"mean macro-F1 of {n_sets} data sets")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.margins(x=0.25)
        ax.grid(color=GRID)
        return svg_text(figure)


def _number(value: Any, digits: int = 3) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _shade(value: Any) -> str:
    """Return a background from white (0) to the accent (1), with ink that can be read on it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"background: rgba(15, 118, 110, {0.75 * max(0.0, min(1.0, float(value))):.2f})"
