"""Which mixtures of rewards can be fooled, on real cells.

    python benchmarks/probe_rewards.py pbmc3k_counts_labeled kang_ifnb_pbmc_merged
    python benchmarks/probe_rewards.py pbmc3k_counts_labeled --model MODEL --markers TABLE

Cells come from `CYTOGLOT_DATA`; a model of the same cells adds the embedding distance, a table of markers the program
score. Prompts are those of held-out cells (a tenth, drawn by cell), what rewards know is from training cells.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cytoglot.corpus.from_cells import CellCorpus, CellOptions, corpus_of_cells
from cytoglot.corpus.read.examples import CorpusExamples
from cytoglot.data.datasets import resolve_source
from cytoglot.data.knowledge.ontology import map_labels
from cytoglot.data.readers.read import read
from cytoglot.lm.model.load import load_model
from cytoglot.tasks.task import tasks
from cytoglot.training.recipe import SentenceRecipe
from cytoglot.training.rl.hacking_checks import HackingReport, check_reward_hacking
from cytoglot.training.rl.rewards import RewardInputs, RewardPrompts, make_reward

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


def what_rewards_know(cells: CellCorpus, top_genes: int) -> RewardInputs:
    reference: dict[str, list[tuple[str, ...]]] = {}
    for sentence, label in zip(cells.sentences.truncate(top_genes), cells.labels, strict=True):
        if label is not None:
            reference.setdefault(str(label), []).append(tuple(sentence))
    return RewardInputs(
        genes=cells.sentences.vocabulary.symbols,
        labels=tuple(sorted(reference)),
        label_ids=map_labels(sorted(reference)).ids,
        reference={name: tuple(sentences) for name, sentences in reference.items()},
    )


def held_out(cells: CellCorpus, task: str, n: int, top_genes: int) -> RewardPrompts:
    drawn = CorpusExamples(cells.corpus, "validation", top_genes=top_genes).sample(n, "cell_type_annotation")
    records = [found.record for found in drawn]
    writes = task == "cell_generation"
    types = tuple(record.metadata["cell_type"] for record in records)
    return RewardPrompts(
        prompts=tuple(tasks[task].prompt(record) for record in records),
        columns={
            "task": (task,) * len(records),
            "answer": tuple(" ".join(record.genes) for record in records) if writes else types,
            "cell_type": types,
            "num_genes": tuple(len(record.genes) if writes else 0 for record in records),
            "key": tuple(record.cell_id for record in records),
        },
    )


def describe(name: str, report: HackingReport, seconds: float) -> str:
    real = next(row for row in report.rows if row.behind.value == 0 and not row.is_adversarial)
    best = min((row for row in report.rows if row.is_adversarial), key=lambda row: row.behind.value)
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
        sentence = SentenceRecipe()
        genes = CellOptions(hvg=sentence.hvg, ties=sentence.ties)
        folder = Path(tempfile.mkdtemp()) / "corpus"
        cells = corpus_of_cells(
            read(resolve_source(source)), folder, label=options.label, options=genes, split_by="cell"
        )
        asked = partial(held_out, cells, n=options.prompts, top_genes=sentence.top_genes)
        context, mixtures = what_rewards_know(cells, sentence.top_genes), dict(MIXTURES)
        if options.model:
            context = replace(context, lm=load_model(options.model, device="cpu"))
            for target in ("centre", "typical"):
                mixtures[f"embedding_distance ({target})"] = {"embedding_distance": {"target": target}}
            mixtures["recommended, embedding_distance"] = RECOMMENDED | {"embedding_distance": {"weight": 0.5}}
        if options.markers:
            program = {"markers": options.markers}
            mixtures["recommended, program_score"] = RECOMMENDED | {"program_score": program}
            mixtures["recommended, program_score up to 0.1"] = RECOMMENDED | {
                "program_score": {**program, "clip_high": 0.1}
            }
        prompts = asked("cell_generation")
        print(
            f"\n### {source}: {len(prompts)} held-out cells, {len(context.genes)} genes, {len(context.labels)} types\n"
        )
        print("| mixture | verdict | real cells | probe that comes nearest | real − probe | seconds |")
        print("|---|---|---|---|---|---|")
        for name, terms in mixtures.items():
            start = time.perf_counter()
            report = check_reward_hacking(make_reward(terms, context), prompts, context)
            print(describe(name, report, time.perf_counter() - start), flush=True)
        for task in ("cell_generation", "cell_type_annotation"):
            report = check_reward_hacking(make_reward(RECOMMENDED, context), asked(task), context)
            print(f"\n{report.message}\n\n{report.table()}")
        report = check_reward_hacking(make_reward({"overlap": {}}, context), prompts, context)
        print(f"\n{report.message}")


if __name__ == "__main__":
    main()
