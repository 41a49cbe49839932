"""Generated cells on five data sets: the default model beside real cells and draws from the profile of the type.

    python -m benchmarks.bench_generation [--sets pbmc3k kang ...] [--seeds 0 1 2] [--set a.b=VALUE] [--json]

Seed s trains a model on fold s of the folds of `benchmarks.bench_annotation` (pbmc68k_reduced: by cell); nothing is
chosen on test cells. What a run found is kept in the output folder, so a benchmark that was stopped goes on. Values are
means over seeds and cell types, with 95 % intervals of a bootstrap over types, whose seeds stay together.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from benchmarks.bench_annotation import TASKS, Task, labels_and_rows, read_task
from cytoglot.atomic import write_json
from cytoglot.benchmark.generation import evaluate_generation
from cytoglot.config import load_recipe
from cytoglot.data.datasets import load_dataset
from cytoglot.data.readers.read import read
from cytoglot.data.splits.splitting import folds
from cytoglot.lm.model.language_model import set_threads
from cytoglot.metrics.uncertainty import bootstrap_function
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.run import train

logger = logging.getLogger(__name__)

SETS = {"pbmc68k_reduced": Task(file="", by="cell", unit="cell"), **TASKS}
METRICS = (
    "knn_type_agreement",
    "c2st_auc",
    "energy_distance",
    "coexpression_agreement",
    "component_variance_ratio",
    "diversity_ratio_to_real",
    "coverage",
    "memorized_share",
    "nats_per_word",
    "nats_per_word_difference",
)
POOLED = ("coexpression_agreement", "component_variance_ratio")
"""metrics of all types together, which have no value for one type"""


def main() -> None:
    """Run or resume the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--recipe", type=Path, default=None)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=VALUE")
    parser.add_argument("--max-cells", type=int, default=100, help="cells of each type and method at most")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/output/generation"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("cytoglot", "transformers"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    set_threads(1)
    recipe = load_recipe(TrainRecipe, arguments.recipe, arguments.set)
    tables = []
    for name in arguments.sets:
        adata = read(load_dataset(name)) if name == "pbmc68k_reduced" else read_task(name)
        if adata is None:
            continue
        found = [
            run(name, adata, recipe, arguments.output, seed=seed, max_cells=arguments.max_cells)
            for seed in arguments.seeds
        ]
        tables.append(summary(name, found))
    table = pd.concat(tables, ignore_index=True)
    sys.stdout.write(table.to_json(orient="records") + "\n" if arguments.json else as_markdown(table) + "\n")


def run(name: str, adata: AnnData, recipe: TrainRecipe, output: Path, *, seed: int, max_cells: int) -> dict[str, Any]:
    """Return what one model's generated cells are worth, from the output folder if it is there."""
    file = output / f"{name}_{seed}.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    started, task = time.process_time(), SETS[name]
    split = folds(adata.obs, by=task.by, label="cell_type", n_folds=5, seed=0)[seed]
    labels, rows = labels_and_rows(adata, split)
    folder = output / f"{name}_{seed}"
    model = train(
        adata, label="cell_type", out=folder, recipe=recipe, split=split, seed=seed, device="cpu", overwrite=True
    )
    trained = time.process_time() - started
    ranking = replace(model.spec.ranking, ties="random", seed=seed)
    untied = replace(model, spec=replace(model.spec, ranking=ranking, tie_rates=None))
    sentences = model.truncate(untied.sentences(adata)[0])
    result = evaluate_generation(
        model,
        sentences[rows["train"]],
        labels[rows["train"]],
        sentences[rows["test"]],
        labels[rows["test"]],
        max_cells=max_cells,
        seed=seed,
    )
    found = {
        "rows": [
            {"method": row.method, "metric": row.metric, "value": row.value}
            for row in result.rows
            if row.metric in POOLED
        ],
        "per_type": result.per_type,
        "verdict": None if result.verdict is None else result.verdict.answer,
        "train_cpu_seconds": trained,
    }
    write_json(file, found)
    shutil.rmtree(folder, ignore_errors=True)
    logger.info("%s seed %d: %.0f CPU s, of which %.0f to train", name, seed, time.process_time() - started, trained)
    return found


def summary(name: str, found: list[dict[str, Any]]) -> pd.DataFrame:
    """Return mean and interval of each method and metric over the seeds of a set."""
    types = pd.concat([pd.DataFrame(one["per_type"]).assign(seed=i) for i, one in enumerate(found)])
    pooled = pd.concat([pd.DataFrame(one["rows"]).assign(seed=i) for i, one in enumerate(found)])
    ours, profile = (
        types[types["method"] == method].set_index(["cell_type", "seed"])["nats_per_word"]
        for method in ("cytoglot", "plackett_luce_draw")
    )
    gain = (profile - ours).rename("nats_per_word_difference").reset_index().assign(method="plackett_luce - cytoglot")
    types = pd.concat([types, gain])
    rows = []
    for method, of_method in types.groupby("method", sort=False):
        for metric in (metric for metric in METRICS if metric not in POOLED):
            by_type = of_method.pivot(index="cell_type", columns="seed", values=metric).to_numpy(dtype=float)
            if np.isnan(by_type).all():
                continue
            value_t = np.nanmean(by_type[~np.isnan(by_type).all(axis=1)], axis=1)
            interval = bootstrap_function(lambda i, v=value_t: float(v[i].mean()), len(value_t), unit="cell_type")
            rows.append((method, metric, interval.value, interval.low, interval.high))
    for (method, metric), values in pooled.groupby(["method", "metric"], sort=False)["value"]:
        rows.append((method, metric, values.mean(), values.min(), values.max()))
    table = pd.DataFrame(rows, columns=["method", "metric", "value", "low", "high"])
    return table.assign(set=name, seeds=len(found))


def as_markdown(table: pd.DataFrame) -> str:
    """Lay out one row for each set and method; co-expression and variance have the range over seeds."""
    lines = [f"| set | method | {' | '.join(METRICS)} |", "|---" * (len(METRICS) + 2) + "|"]
    for (name, method), found in table.groupby(["set", "method"], sort=False):
        values = found.set_index("metric")
        cells = [
            f"{values.value[m]:.3f} ({values.low[m]:.3f} to {values.high[m]:.3f})" if m in values.index else ""
            for m in METRICS
        ]
        lines.append(f"| {name} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
