"""Which mixtures of rewards can be fooled, on real cells.

    python benchmarks/probe_rewards.py pbmc3k_counts_labeled kang_ifnb_pbmc_merged
    python benchmarks/probe_rewards.py pbmc3k_counts_labeled --model MODEL --markers TABLE

Cells come from `CYTOGLOT_DATA`; a model of the same cells adds the embedding distance, a table of markers the program
score. Prompts are those of held-out cells (a tenth, drawn by cell), what rewards know is from training cells.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import numpy as np

from cytoglot.data.datasets import resolve_source
from cytoglot.data.knowledge.ontology import map_labels
from cytoglot.data.readers.read import read
from cytoglot.lm.model.load import load_language_model
from cytoglot.tasks.record import CellRecord
from cytoglot.tasks.task import tasks
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.rl.hacking_checks import ProbeReport, probe_reward
from cytoglot.training.rl.rewards import RewardContext, RewardPrompts, make_reward
from cytoglot.training.supervised.prepare import PreparedCells, prepare_cells

FORM = {"validity": {"weight": 0.25}, "distinctness": {"weight": 0.25}}
RECOMMENDED = FORM | {"overlap": {}, "kendall_tau_b": {"weight": 0.5}, "diversity": {"weight": 1.5}, "label_match": {}}
MIXTURES: dict[str, dict[str, dict[str, Any]]] = {
    "overlap": {"overlap": {}},
    "overlap with the profile": {"overlap": {"against": "profile"}},
    "kendall_tau_b": {"kendall_tau_b": {}},
    "validity, distinctness": {"validity": {}, "distinctness": {}},
    "validity, distinctness, overlap, kendall_tau_b": {**FORM, "overlap": {}, "kendall_tau_b": {}},
    "overlap, diversity": {"overlap": {}, "diversity": {}},
    "recommended": RECOMMENDED,
}


def words_of(cells: PreparedCells, row: int) -> tuple[str, ...]:
    names = cells.sentences.vocabulary.names
    return tuple(names[cells.sentences.ids(row)[: cells.top_genes]].tolist())


def what_rewards_know(cells: PreparedCells) -> RewardContext:
    reference: dict[str, list[tuple[str, ...]]] = {}
    for row in cells.rows("train", labelled=True):
        reference.setdefault(str(cells.labels[row]), []).append(words_of(cells, row))
    return RewardContext(
        genes=cells.sentences.vocabulary.symbols,
        labels=tuple(sorted(reference)),
        label_ids=map_labels(sorted(reference)).ids,
        reference={name: tuple(sentences) for name, sentences in reference.items()},
    )


def held_out(cells: PreparedCells, task: str, n: int) -> RewardPrompts:
    rows = np.random.default_rng(0).permutation(cells.rows("test", labelled=True))[:n]
    records = [
        CellRecord(
            cell_id=str(cells.sentences.cell_ids[row]),
            genes=words_of(cells, row),
            metadata={"cell_type": str(cells.labels[row])},
        )
        for row in rows
    ]
    writes = task == "cell_generation"
    types = tuple(record.metadata["cell_type"] for record in records)
    return RewardPrompts(
        prompts=tuple(tasks[task].prompt(record) for record in records),
        columns={
            "task": (task,) * len(rows),
            "answer": tuple(" ".join(record.genes) for record in records) if writes else types,
            "cell_type": types,
            "num_genes": tuple(len(record.genes) if writes else 0 for record in records),
            "key": tuple(record.cell_id for record in records),
        },
    )


def describe(name: str, report: ProbeReport, seconds: float) -> str:
    real = next(row for row in report.rows if row.behind.value == 0 and not row.is_probe)
    best = min((row for row in report.rows if row.is_probe), key=lambda row: row.behind.value)
    behind = f"{best.behind.value:+.3f} ({best.behind.low:+.3f} to {best.behind.high:+.3f})"
    verdict = "**refused**" if report.hackable else "passes"
    return f"| {name} | {verdict} | {real.reward.value:.3f} | {best.answer} | {behind} | {seconds:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--label", default="cell_type")
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--model")
    parser.add_argument("--markers")
    options = parser.parse_args()
    for source in options.sources:
        cells = prepare_cells(
            read(resolve_source(source)), label=options.label, recipe=TrainRecipe(), split=None, split_by="cell", seed=0
        )
        context, mixtures = what_rewards_know(cells), dict(MIXTURES)
        if options.model:
            context = replace(context, lm=load_language_model(options.model, device="cpu"))
            for target in ("centre", "typical"):
                mixtures[f"embedding_distance ({target})"] = {"embedding_distance": {"target": target}}
            mixtures["recommended, embedding_distance"] = RECOMMENDED | {"embedding_distance": {"weight": 0.5}}
        if options.markers:
            program = {"markers": options.markers}
            mixtures["recommended, program_score"] = RECOMMENDED | {"program_score": program}
            mixtures["recommended, program_score up to 0.1"] = RECOMMENDED | {
                "program_score": {**program, "clip_high": 0.1}
            }
        prompts = held_out(cells, "cell_generation", options.prompts)
        print(
            f"\n### {source}: {len(prompts)} held-out cells, {len(context.genes)} genes, {len(context.labels)} types\n"
        )
        print("| mixture | verdict | real cells | probe that comes nearest | real − probe | seconds |")
        print("|---|---|---|---|---|---|")
        for name, terms in mixtures.items():
            start = time.perf_counter()
            report = probe_reward(make_reward(terms, context), prompts, context)
            print(describe(name, report, time.perf_counter() - start), flush=True)
        for task in ("cell_generation", "cell_type_annotation"):
            report = probe_reward(make_reward(RECOMMENDED, context), held_out(cells, task, options.prompts), context)
            print(f"\n{report.message}\n\n{report.table()}")
        report = probe_reward(make_reward({"overlap": {}}, context), prompts, context)
        print(f"\n{report.message}")


if __name__ == "__main__":
    main()
