"""train, evaluate, report, card, push, demo: a model, its judgement, the pages that show it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cytoglot.cli import options as opt
from cytoglot.cli.output import show
from cytoglot.errors import InputError

Recipe = Annotated[Path | None, typer.Option("--recipe", help="YAML file of settings.")]
Folder = Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")]


def train_command(
    context: typer.Context,
    source: Annotated[
        str | None, typer.Argument(help="File of cells, data set or corpus; by default the recipe's source.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to write; by default the recipe's output.")
    ] = None,
    label: Annotated[
        str | None, typer.Option("--label", help="Column of obs with the cell types; not for a corpus.")
    ] = None,
    split_by: Annotated[str, typer.Option("--split-by", help="auto, cell, or a column kept whole.")] = "auto",
    recipe: Recipe = None,
    settings: opt.Settings = None,
    layer: opt.Layer = None,
    gene_column: opt.GeneColumn = None,
    gene_mapping: opt.GeneMapping = None,
    duplicates: opt.DuplicateGenes = "sum",
    overwrite: opt.Overwrite = False,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    seed: opt.Seed = 0,
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
) -> None:
    """Train as a recipe says: pretrain, sft or grpo, on a file or a corpus; the same command resumes."""
    from cytoglot.config import load_recipe
    from cytoglot.lm.model.language_model import set_threads
    from cytoglot.training.cells import training_cells
    from cytoglot.training.job import TrainJob, is_corpus_source, settled
    from cytoglot.training.loop.distributed import is_first
    from cytoglot.training.recipe import TrainRecipe
    from cytoglot.training.run import run_job
    from cytoglot.training.supervised.forecast import forecast_training

    chosen = load_recipe(TrainRecipe, recipe, settings or [])
    asked = source if source is not None else chosen.source
    if asked is not None and is_corpus_source(asked):
        _refuse_for_corpus(context, asked, "split_by")
    asked_for = TrainJob(
        source=source,
        label=label,
        out=output,
        recipe=chosen,
        split_by=split_by,
        layer=layer,
        gene_options=opt.gene_options(gene_column, gene_mapping, duplicates),
        seed=seed,
        device=device,
        threads=threads,
        overwrite=overwrite,
    )
    job = settled(asked_for, needs_folder=not dry_run)
    if dry_run:
        set_threads(job.threads)
        with training_cells(job, job.open()) as cells:
            show(forecast_training(cells, job.recipe) | {"dry_run": True}, as_json=json)
        return
    model = run_job(job)
    if is_first():
        calibration = model.spec.calibration
        result = {
            "model": job.folder,
            "labels": len(model.spec.labels),
            "tasks": len(model.spec.tasks),
            "genes": len(model.spec.vocabulary),
            "parameters": sum(p.numel() for p in model.lm.model.parameters()),
            "temperature": calibration.temperature,
            "threshold": calibration.threshold,
            "validation_cells": calibration.n_validation,
        }
        show(result, as_json=json)


def card_command(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    evaluation: Annotated[
        Path | None, typer.Option("--evaluation", help="Folder that evaluate wrote about this model.")
    ] = None,
    json: opt.Json = False,
    seed: opt.Seed = 0,
) -> None:
    """Write the card (README.md) of a model folder, with test metrics where an evaluation is given."""
    from cytoglot.training.release.model_card import write_model_card

    show({"card": write_model_card(model, evaluation)}, as_json=json)


def push_command(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    repository: Annotated[str, typer.Argument(help="owner/name on the Hugging Face Hub.")],
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it, if it is new.")] = False,
    json: opt.Json = False,
    seed: opt.Seed = 0,
) -> None:
    """Publish a finished model folder on the Hugging Face Hub, for its owner alone unless --public."""
    from cytoglot.training.release.publish import publish

    show({"page": publish(model, repository, private=not public)}, as_json=json)


def evaluate_command(
    context: typer.Context,
    source: opt.Source,
    model: Annotated[Path, typer.Option("--model", help="Model folder.")],
    output: Folder,
    label: Annotated[str | None, typer.Option("--label", help="Column of the true cell types.")] = None,
    settings: opt.Settings = None,
    layer: opt.Layer = None,
    gene_column: opt.GeneColumn = None,
    gene_mapping: opt.GeneMapping = None,
    duplicates: opt.DuplicateGenes = "sum",
    new_cells: Annotated[
        bool, typer.Option("--new-cells", help="Cells named as training cells, with other values, are others.")
    ] = False,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    seed: opt.Seed = 0,
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
) -> None:
    """Judge a model on its held-out cells, or on every task of a corpus, beside baselines and controls."""
    from cytoglot.benchmark.corpus_tasks import CorpusTaskSettings, evaluate_corpus
    from cytoglot.benchmark.evaluate import EvaluateSettings, evaluate, forecast_evaluation
    from cytoglot.config import load_recipe
    from cytoglot.corpus.format.folder import is_corpus
    from cytoglot.data.datasets import resolve_source
    from cytoglot.lm.model.language_model import set_threads

    set_threads(threads)
    if is_corpus(source):
        _refuse_for_corpus(context, source, "dry_run", "new_cells")
        asked = load_recipe(CorpusTaskSettings, None, settings or [])
        found = evaluate_corpus(source, model, out=output, settings=asked, seed=seed, device=device)
        shown = (
            {"results": [asdict(row) for row in found.rows]}
            if json
            else {"tasks": [asdict(line) for line in found.table]}
        )
        not_shown = [{"task": name, "reason": reason} for name, reason in found.not_shown.items()]
        show(shown | {"not_shown": not_shown, "messages": found.messages, "output": output}, as_json=json)
        return
    chosen = load_recipe(EvaluateSettings, None, settings or [])
    genes = opt.gene_options(gene_column, gene_mapping, duplicates)
    if dry_run:
        forecast = forecast_evaluation(
            resolve_source(source), model, chosen, layer=layer, gene_options=genes, device=device
        )
        show(forecast | {"output": output}, as_json=json)
        return
    result = evaluate(
        source,
        model,
        label=label,
        out=output,
        settings=chosen,
        layer=layer,
        gene_options=genes,
        new_cells=new_cells,
        seed=seed,
        device=device,
    )
    show(
        {
            "results": [asdict(row) for row in result.results],
            "cells": result.cells,
            "unknown_labels": result.unknown_labels,
            "messages": result.messages,
            "output": output,
        },
        as_json=json,
    )


def report_command(
    folder: Annotated[Path, typer.Argument(help="Folder that evaluate wrote.")],
    json: opt.Json = False,
    seed: opt.Seed = 0,
) -> None:
    """Write one self-contained HTML page about an evaluation (nothing is random: the seed changes nothing)."""
    from cytoglot.report.html import write_report

    show({"html": write_report(folder)}, as_json=json)


def demo_command(
    output: Folder = Path("demo_output"),
    overwrite: opt.Overwrite = False,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    seed: opt.Seed = 0,
    json: opt.Json = False,
) -> None:
    """Do the whole way on the data set that ships inside scanpy: train, judge, report."""
    from cytoglot.cli.demo import run_demo

    show(run_demo(output, overwrite=overwrite, device=device, threads=threads, seed=seed, as_json=json), as_json=json)


def doctor_command(json: opt.Json = False, seed: opt.Seed = 0) -> None:
    """Print versions, extras, devices and threads, and what is missing for what."""
    from cytoglot.cli.doctor import examine

    show(examine(), as_json=json)


def _refuse_for_corpus(context: typer.Context, source: str, *options: str) -> None:
    """Refuse options that say how a file of cells is read, where they were given."""
    names = ("label", "layer", "gene_column", "gene_mapping", "duplicates", *options)
    defaults = {parameter.name: parameter.default for parameter in context.command.params}
    given = [f"--{name.replace('_', '-')}" for name in names if context.params[name] != defaults[name]]
    if given:
        raise InputError(
            f"{source} is a corpus, in which cells, genes and labels are settled; leave out {', '.join(given)}"
        )
