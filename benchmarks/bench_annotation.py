"""Annotation on four independent data sets: the scratch model beside baselines on the same folds.

    python -m benchmarks.bench_annotation [--sets pbmc3k kang ...] [--ties symbol] [--output DIR] [--json]

Every fold trains a new model with its own seed; whatever is chosen is chosen on validation cells. The predictions of a
fold are kept in the output folder, so a run that was stopped goes on; delete the folder to start anew.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from cytoglot.applications.annotation import label_probabilities
from cytoglot.atomic import atomic_path
from cytoglot.benchmark.classifiers import CLASSIFIERS
from cytoglot.benchmark.evaluate import BASELINES
from cytoglot.benchmark.probe import linear_probe
from cytoglot.config import load_recipe
from cytoglot.data.datasets import data_folder
from cytoglot.data.readers.read import read
from cytoglot.data.schema import labels as read_labels
from cytoglot.data.splits.split import Split
from cytoglot.data.splits.splitting import folds
from cytoglot.lm.model.language_model import set_threads
from cytoglot.metrics.classification import accuracy_statistic, macro_f1_statistic
from cytoglot.metrics.uncertainty import AdditiveStatistic, bootstrap, bootstrap_difference
from cytoglot.sentence.cell_sentence import RankSettings, TieRule
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.run import train

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set, what its folds keep whole, and what its intervals are bootstrapped over."""

    file: str
    by: str
    unit: str
    drop_groups: tuple[str, ...] = ()


TASKS = {
    "pbmc3k": Task(file="pbmc3k_counts_labeled.h5ad", by="cell", unit="cell"),
    "kang": Task(file="kang_ifnb_pbmc_merged.h5ad", by="donor", unit="donor", drop_groups=("doublet", "ambiguous")),
    "cellbench": Task(file="cellbench_mixology_5batches.h5ad", by="batch", unit="batch"),
    "panc8": Task(file="pancreas_panc8_5tech_500.h5ad", by="tech", unit="tech"),
}
DEFAULT = "cytoglot, chosen on validation"
OURS = ("cytoglot", "cytoglot head", "cytoglot hybrid", DEFAULT, "cytoglot linear probe")
CONTROL = "control: shuffled labels"


def main() -> None:
    """Run or resume the benchmark and print its tables."""
    arguments = _arguments()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("cytoglot", "transformers"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    set_threads(arguments.threads)
    recipe = load_recipe(TrainRecipe, arguments.recipe, [*arguments.set, f"sentence.ties={arguments.ties}"])
    results = {}
    for name in arguments.sets:
        adata = read_task(name)
        if adata is None:
            continue
        predictions = run(name, adata, recipe, arguments.output / arguments.ties, control=arguments.control)
        results[name] = summarize(predictions, TASKS[name])
    if arguments.json:
        sys.stdout.write(json.dumps(results, indent=2) + "\n")
    else:
        sys.stdout.write(as_markdown(results) + "\n")


def read_task(name: str) -> AnnData | None:
    """Return the cells of a set without those of no real group, or None (and say so) where the file is absent."""
    task = TASKS[name]
    path = (data_folder() or Path()) / task.file
    if not path.is_file():
        logger.warning("%s is skipped: %s is not there (set CYTOGLOT_DATA)", name, path)
        return None
    adata = read(path)
    return adata[~adata.obs[task.unit].isin(task.drop_groups)].copy() if task.drop_groups else adata


def labels_and_rows(adata: AnnData, split: Split) -> tuple[NDArray[np.object_], dict[str, NDArray[np.int64]]]:
    """Return the label of every cell (None: unknown) and the labelled cells of each part."""
    series = read_labels(adata.obs, "cell_type")
    known = series.notna().to_numpy()
    rows = {p: np.flatnonzero(known & split.mask(adata.obs_names, p)) for p in ("train", "validation", "test")}
    return np.where(known, series, None).astype(object), rows


def run(name: str, adata: AnnData, recipe: TrainRecipe, output: Path, *, control: bool) -> pd.DataFrame:
    """Return the test predictions of all folds, running those that are not in the output folder yet."""
    task = TASKS[name]
    tables = []
    for number, split in enumerate(folds(adata.obs, by=task.by, label="cell_type", n_folds=5, seed=0)):
        file = output / f"{name}_{number}.parquet"
        if not file.is_file():
            started, cpu = time.perf_counter(), time.process_time()
            table = one_fold(adata, split, task, recipe, output / f"{name}_{number}", seed=number, control=control)
            table["fold"] = number
            with atomic_path(file) as partial:
                table.to_parquet(partial, index=False)
            logger.info(
                "%s fold %d: %.0f s (%.0f CPU s)",
                name,
                number,
                time.perf_counter() - started,
                time.process_time() - cpu,
            )
        tables.append(pd.read_parquet(file))
    return pd.concat(tables, ignore_index=True)


def one_fold(
    adata: AnnData,
    split: Split,
    task: Task,
    recipe: TrainRecipe,
    folder: Path,
    *,
    seed: int,
    control: bool,
) -> pd.DataFrame:
    """Train on one fold and return one row per labelled test cell, one column per method."""
    labels, rows = labels_and_rows(adata, split)
    table = pd.DataFrame({"truth": labels[rows["test"]]})
    if task.unit != "cell":
        table["unit"] = adata.obs[task.unit].astype(str).to_numpy()[rows["test"]]
    model = train(
        adata, label="cell_type", out=folder, recipe=recipe, split=split, seed=seed, device="cpu", overwrite=True
    )
    sentences, _ = model.sentences(adata)
    cells = sentences[rows["test"]]
    scored = label_probabilities(model, cells, method="score")
    table["cytoglot"] = table[DEFAULT] = scored.best
    if model.head is not None:
        names, scored_nk = np.array(model.labels, dtype=object), np.log(np.maximum(scored.probability_nk, 1e-300))
        table["cytoglot head"] = names[model.head.log_probabilities(cells).argmax(axis=1)]
        table["cytoglot hybrid"] = names[model.hybrid_log_probabilities(scored_nk, cells).argmax(axis=1)]
        if model.annotation_method() == "hybrid":
            table[DEFAULT] = table["cytoglot hybrid"]
    table["views"] = model.spec.views
    probe_labels, probe = linear_probe(model.embeddings(sentences), labels, **rows, seed=seed)
    table["cytoglot linear probe"] = np.array(probe_labels, dtype=object)[probe.argmax(axis=1)]
    for name in BASELINES:
        parts = {part: adata[index] for part, index in rows.items()}
        fitted = CLASSIFIERS[name](seed=seed).fit(
            parts["train"], labels[rows["train"]], parts["validation"], labels[rows["validation"]]
        )
        best = fitted.predict_proba(parts["test"]).argmax(axis=1)
        table[name] = np.array(fitted.labels, dtype=object)[best]
    if control:
        shuffled = recipe.model_copy(update={"control": "shuffled_labels"})
        model = train(
            adata, label="cell_type", out=folder, recipe=shuffled, split=split, seed=seed, device="cpu", overwrite=True
        )
        table[CONTROL] = label_probabilities(model, model.sentences(adata[rows["test"]])[0]).best
    shutil.rmtree(folder, ignore_errors=True)
    return table


def summarize(predictions: pd.DataFrame, task: Task) -> dict[str, object]:
    """Return values and paired differences with intervals, over groups and over cells."""
    truth = predictions["truth"].to_numpy(dtype=object)
    units = {"cell": None} | ({task.unit: predictions["unit"].to_numpy()} if "unit" in predictions else {})
    methods = [name for name in (*OURS, *BASELINES, CONTROL) if name in predictions]
    known = {name: predictions[predictions[name].notna()] for name in methods}
    values, differences = [], []
    statistics = {"accuracy": accuracy_statistic, "macro_f1": macro_f1_statistic}
    for metric, make in statistics.items():
        found: dict[str, AdditiveStatistic] = {}
        for name in methods:
            cells = known[name]
            found[name] = make(cells["truth"].to_numpy(dtype=object), cells[name].to_numpy(dtype=object))
            interval = bootstrap(
                found[name], groups=None if len(cells) < len(predictions) else units.get(task.unit), unit=task.unit
            )
            values.append(
                {"method": name, "metric": metric, "value": interval.value, "low": interval.low, "high": interval.high}
            )
        best = max(BASELINES, key=lambda name: found[name].value)
        for name in OURS:
            for unit, groups in units.items():
                interval = bootstrap_difference(found[name], found[best], groups=groups, unit=unit)
                row = {"ours": name, "baseline": best, "metric": metric, "unit": unit}
                differences.append(row | {"value": interval.value, "low": interval.low, "high": interval.high})
    return {"n": len(truth), "unit": task.unit, "values": values, "differences": differences}


def as_markdown(results: dict[str, dict[str, object]]) -> str:
    """Lay out the results as two tables."""
    lines = ["| set (test cells) | method | accuracy | macro-F1 |", "|---|---|---|---|"]
    for name, result in results.items():
        rows = pd.DataFrame(result["values"])
        for method, found in rows.groupby("method", sort=False):
            cells = [f"{r.value:.3f} ({r.low:.3f}–{r.high:.3f})" for r in found.itertuples()]
            lines.append(f"| {name} ({result['n']}) | {method} | {' | '.join(cells)} |")
    lines += [
        "",
        "| set | ours − best baseline | metric | points | 95 % interval | over |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        for row in result["differences"]:  # type: ignore[attr-defined]
            interval = f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
            what = f"{row['ours']} − {row['baseline']} | {row['metric']} | {100 * row['value']:+.1f}"
            lines.append(f"| {name} | {what} | {interval} | {row['unit']}s |")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--ties", default=RankSettings.ties, choices=get_args(TieRule))
    parser.add_argument("--recipe", type=Path, default=None)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=VALUE")
    parser.add_argument("--no-control", dest="control", action="store_false", help="do not train on shuffled labels")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/output/annotation"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
