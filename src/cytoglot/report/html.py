"""One self-contained HTML page about an evaluation: figures inside, no network, readable on a phone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from cytoglot.atomic import write_text
from cytoglot.errors import InputError
from cytoglot.metrics.uncertainty import interval_note
from cytoglot.report import figures

PAGE = "report.html"
_ROW_KEYS = frozenset({"task", "method", "metric", "value", "low", "high", "n", "unit"})
_SINGLE_CELLS = ("mean_overlap", "knn_type_agreement", "validity", "duplicate_share", "pairwise_diversity",
                 "diversity_ratio_to_real")  # fmt: skip
"""measures of generated cells that draws from a mean profile do well in, and the diversity beside them"""
_CORPUS = ("table", "not_shown", "messages", "meta")
_METRIC_NAMES = {
    "macro_f1": "macro-F1",
    "ece": "ECE",
    "brier": "Brier",
    "mean_overlap": "overlap with held-out cells",
    "knn_type_agreement": "kNN type agreement",
    "validity": "valid genes",
    "duplicate_share": "repeated genes",
    "pairwise_diversity": "diversity",
    "diversity_ratio_to_real": "diversity ÷ real",
    "c2st_auc": "told from real (AUC)",
    "energy_distance": "energy distance",
    "coverage": "real cells covered",
    "memorized_share": "nearer to training cells",
    "coexpression_agreement": "co-expression r",
    "component_variance_ratio": "main variation ÷ real",
    "nats_per_word": "nats per word",
    "r2_expressed": "R² (expressed genes)",
    "token_f1": "token F1",
}


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a folder that `cytoglot evaluate` wrote, and return its path.

    Parts of which the folder has no file are left out of the page.

    Raises
    ------
    InputError
        The folder is missing, or is not one that `evaluate` wrote.
    """
    folder = Path(folder)
    if not (folder / "results.json").is_file():
        what = "does not exist" if not folder.is_dir() else "holds no results.json"
        raise InputError(f"{folder} {what}; pass the folder that `cytoglot evaluate -o` wrote")
    loader = jinja2.PackageLoader("cytoglot.report", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number, "interval_note": interval_note}
    environment.filters["metric_name"] = lambda name: _METRIC_NAMES.get(name, name.replace("_", " "))
    page = environment.get_template("report.html").render(**_content(folder))
    write_text(folder / PAGE, page)
    return folder / PAGE


def _content(folder: Path) -> dict[str, Any]:
    results = _read(folder, "results.json")
    rows = results.get("results") if isinstance(results, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= _ROW_KEYS for row in rows):
        raise InputError(
            f"{folder / 'results.json'} is not one of `cytoglot evaluate`, expected rows of "
            f"{', '.join(sorted(_ROW_KEYS))}; pass the folder that `cytoglot evaluate -o` wrote"
        )
    annotation = [row for row in rows if row["task"] == "annotation"]
    differences = []
    for row in annotation:
        metric = row["metric"].removesuffix("_difference")
        if metric != row["metric"]:
            ours, _, other = row["method"].partition(" - ")
            names = {"ours": ours, "other": other.replace("_", " "), "metric": _METRIC_NAMES.get(metric, metric)}
            differences.append({**row, **names})
    per_class = _read(folder, "per_class.json") or []
    default = annotation[0]["method"] if annotation else None  # what the model answers with where nothing else is asked
    verdicts = []  # in words, for accuracy, whether the model beats each other method
    for row in differences:
        if row["ours"] == default and row["metric"] == "accuracy" and row["low"] is not None:
            worse_or_not = "worse than" if row["high"] < 0 else "not distinguishable from"
            verdict = "better than" if row["low"] > 0 else worse_or_not
            bounds = f"95 % interval {100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
            verdicts.append(f"{verdict} {row['other']} ({100 * row['value']:+.1f} points, {bounds})")
    generated = [row for row in rows if row["task"] == "generation" and not row["metric"].endswith("_difference")]
    return {
        "card": _read(folder, "data_card.json") or {},
        "annotation": _by_method([row for row in annotation if not row["metric"].endswith("_difference")]),
        "differences": differences,
        "verdicts": verdicts,
        # Of single cells, and of what only cells together show.
        "generation": [
            _by_method([row for row in generated if (row["metric"] in _SINGLE_CELLS) == single])
            for single in (True, False)
        ],
        "generation_verdict": results.get("verdict"),
        "reconstruction_rows": [row for row in rows if row["task"] == "reconstruction"],
        "per_class": [row for row in per_class if row["method"] == per_class[0]["method"]],
        # Of an evaluation on a corpus; nothing for others.
        "corpus": {name: results[name] for name in _CORPUS if "table" in results},
        "timings": _read(folder, "timings.json") or {},
        "manifest": json.dumps(_read(folder, "manifest.json") or {}, indent=2, ensure_ascii=False),
        "bars": {m: figures.method_bars(annotation, m) for m in ("accuracy", "macro_f1")} if annotation else {},
        "figures": _figures(folder),
    }


def _figures(folder: Path) -> dict[str, str]:
    """Draw what there is a file for."""
    drawn = {}
    training = _read(folder, "training.json")
    if training and training.get("history"):
        drawn["training"] = figures.training_curve(training["history"])
    if confusion := _read(folder, "confusion.json"):
        drawn["confusion"] = figures.confusion_matrix(confusion["labels"], confusion["counts"])
    if bins := _read(folder, "calibration.json"):
        drawn["calibration"] = figures.calibration(bins)
    if (folder / "embedding_2d.parquet").is_file():
        drawn["maps"] = figures.two_maps(pd.read_parquet(folder / "embedding_2d.parquet"))
    if (content := _read(folder, "reconstruction.json")) and content["points"]["observed"]:
        drawn["reconstruction"] = figures.reconstruction(content["points"])
    content = _read(folder, "generation.json") or {}
    if content.get("generated_vs_real_2d"):
        drawn["generation"] = figures.generated_cells(content["generated_vs_real_2d"])
    if content.get("markers"):  # an evaluation of an earlier version has none
        drawn["markers"] = figures.markers(content["markers"])
    return drawn


def _by_method(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return {"metrics": names, "methods": [{"method", "cells": [row or None]}], "unit", "n"}."""
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    found = {(row["method"], row["metric"]): row for row in rows}
    return {
        "metrics": [_METRIC_NAMES.get(metric, metric.replace("_", " ")) for metric in metrics],
        "methods": [
            {
                "method": name.replace("_", " "),
                "ours": name.startswith("cytoglot"),
                "cells": [found.get((name, m)) for m in metrics],
            }
            for name in methods
        ],
        "unit": rows[0]["unit"] if rows else "",
        "n": rows[0]["n"] if rows else 0,
    }


def _read(folder: Path, name: str) -> Any:
    path = folder / name
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); run `cytoglot evaluate` again") from error


def _number(value: Any, digits: int = 3) -> str:
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)
