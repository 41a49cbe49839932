"""corpus build, show, stats, audit: cells of many files as one training corpus, and what is in it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from cytoglot.cli import options as opt
from cytoglot.cli.output import check_output, show
from cytoglot.engines import Engine
from cytoglot.errors import InputError

Split = Literal["train", "validation", "test"]
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML recipe: sources, genes, cells, splits.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `corpus build` wrote.")]


def build_command(
    recipe: RecipeFile,
    output: opt.Folder,
    engine: Annotated[Engine, typer.Option("--engine", help="Where workers run.")] = "local",
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes, or tasks of a Ray cluster.")] = 1,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out sources that cannot be read.")] = False,
    overwrite: opt.Overwrite = False,
    settings: opt.Settings = None,
    seed: opt.Seed = 0,
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
) -> None:
    """Build a training corpus from many sources.

    The same command resumes an interrupted build and leaves a finished one as it is.
    """
    from cytoglot.corpus.build.build import build_corpus, forecast_build

    overrides = tuple(settings or ())
    if dry_run:
        forecast = forecast_build(recipe, seed=seed, skip_bad=skip_bad, overrides=overrides)
        show(forecast | {"output": output, "dry_run": True}, as_json=json)
        return
    summary = build_corpus(
        recipe,
        output,
        engine=engine,
        workers=workers,
        seed=seed,
        skip_bad=skip_bad,
        overwrite=overwrite,
        overrides=overrides,
    )
    show(asdict(summary) | {"output": output}, as_json=json)


def show_command(
    folder: Folder,
    n: opt.Number = 5,
    task: Annotated[str | None, typer.Option("--task", help="Only of this task.", show_default="any task")] = None,
    split: Annotated[Split, typer.Option("--split", help="Split of the corpus.")] = "train",
    max_genes: Annotated[
        int, typer.Option("--max-genes", min=0, help="Longer sentences are cut in the middle; 0 shows them whole.")
    ] = 12,
    seed: opt.Seed = 0,
    json: opt.Json = False,
) -> None:
    """Show random training examples."""
    from cytoglot.corpus.format.folder import open_corpus
    from cytoglot.corpus.inspect.preview import shown
    from cytoglot.corpus.read.examples import sample_examples

    corpus = open_corpus(folder)
    genes = frozenset(corpus.vocabulary.symbols)
    found = sample_examples(corpus, split, n, task=task, seed=seed)
    examples = [shown(example, genes, max_genes=max_genes) for example in found]
    if not examples:
        raise InputError(f"the {split} split of {folder} has no example of {task or 'any task'}")
    if json:
        show({"examples": [asdict(example) for example in examples]}, as_json=True)
        return
    for example in examples:
        head = f"--- {example.task} · {example.template} · {example.key} ---"
        sys.stdout.write(f"{head}\n{example.prompt}\n→{example.completion}\n\n")


def stats_command(
    folder: Folder,
    output: Annotated[Path, typer.Option("-o", "--output", help="HTML file to write.")],
    overwrite: opt.Overwrite = False,
    json: opt.Json = False,
) -> None:
    """Write an HTML page with the numbers of a corpus."""
    check_output(output, suffixes=(".html", ".htm"), overwrite=overwrite)
    from cytoglot.corpus.format.folder import open_corpus
    from cytoglot.corpus.inspect.statistics import corpus_statistics
    from cytoglot.extras import require
    from cytoglot.report.corpus_page import write_corpus_page

    require("matplotlib", extra="report", purpose="the page about a corpus")  # before hours of counting, not after
    numbers = corpus_statistics(open_corpus(folder))
    page = write_corpus_page(numbers, output)
    if json:
        show(numbers.to_dict() | {"html": page}, as_json=True)
        return
    parts = [{name: getattr(part, name) for name in ("part", "cells", "cell_groups", "ranked_ids", "shards")}
             for part in numbers.parts]  # fmt: skip
    show({"parts": parts, "sources": len(numbers.sources), "html": page}, as_json=False)
    for warning in numbers.warnings:
        sys.stdout.write(f"warning: {warning}\n")


def audit_command(
    folder: Folder,
    context_length: Annotated[
        int, typer.Option("--context-length", min=128, help="Tokens of the model's context.")
    ] = 2048,
    tokens_per_gene: Annotated[
        float,
        typer.Option("--tokens-per-gene", min=0.1, help="1 if each gene is a token, about 3.8 in byte pairs."),
    ] = 1.0,
    max_cells: Annotated[
        int, typer.Option("--max-cells", min=1, help="Cells of each split that are searched for near-duplicates.")
    ] = 5000,
    seed: opt.Seed = 0,
    json: opt.Json = False,
) -> None:
    """Check a corpus for leaks, bad labels and damage.

    Each finding names its fix.
    """
    from cytoglot.corpus.format.folder import open_corpus
    from cytoglot.corpus.inspect.audit import audit_corpus

    report = audit_corpus(
        open_corpus(folder),
        context_length=context_length,
        tokens_per_gene=tokens_per_gene,
        max_cells=max_cells,
        seed=seed,
    )
    if json:
        show(report.to_dict(), as_json=True)
    else:
        sys.stdout.write(report.to_text() + "\n")
