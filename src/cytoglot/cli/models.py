"""train, evaluate, report, card, push, demo: a model, its judgement, the pages that show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cytoglot.cli.cells import DuplicateGenes, GeneColumn, GeneMapping, Source, gene_options
from cytoglot.cli.output import (
    Device,
    DryRun,
    Json,
    Layer,
    Overwrite,
    Seed,
    Threads,
    quiet_for_json,
    show,
)
from cytoglot.errors import InputError

if TYPE_CHECKING:
    from cytoglot.benchmark.evaluate import EvaluateSettings
    from cytoglot.cell_model.load import CellModel
    from cytoglot.data.genes.options import GeneOptions
    from cytoglot.training.job import TrainJob

Recipe = Annotated[Path | None, typer.Option("--recipe", help="YAML file of settings.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="One setting, a.b=value; may be repeated.")]
Folder = Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")]


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("train")(train_command)
    app.command("evaluate")(evaluate_command)
    app.command("report")(report_command)
    app.command("card")(card_command)
    app.command("push")(push_command)
    app.command("demo")(demo_command)
    app.command("doctor")(doctor_command)


def train_command(
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
    settings: Set = None,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    gene_mapping: GeneMapping = None,
    duplicates: DuplicateGenes = "sum",
    overwrite: Overwrite = False,
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train as a recipe says: pretrain, sft or grpo, on a file or a corpus; the same command resumes."""
    from cytoglot.config import load_recipe
    from cytoglot.training.job import TrainJob, is_corpus_source, settled
    from cytoglot.training.loop.distributed import is_first
    from cytoglot.training.recipe import TrainRecipe
    from cytoglot.training.run import run_job

    quiet_for_json(as_json=json)
    chosen = load_recipe(TrainRecipe, recipe, settings or [])
    asked = source if source is not None else chosen.source
    if asked is not None and is_corpus_source(asked):
        unfit = _options_of_files(label, layer, gene_column, gene_mapping, duplicates, dry_run=False)
        _refuse_for_corpus(asked, unfit | {"--split-by": split_by if split_by != "auto" else None})
    asked_for = TrainJob(
        source=source,
        label=label,
        out=output,
        recipe=chosen,
        split_by=split_by,
        layer=layer,
        gene_options=gene_options(gene_column, gene_mapping, duplicates),
        seed=seed,
        device=device,
        threads=threads,
        overwrite=overwrite,
    )
    job = settled(asked_for, needs_folder=not dry_run)
    if dry_run:
        show(_forecast_training(job), as_json=json)
        return
    model = run_job(job)
    if is_first():
        _show_model(model, job.folder, as_json=json)


def card_command(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    evaluation: Annotated[
        Path | None, typer.Option("--evaluation", help="Folder that evaluate wrote about this model.")
    ] = None,
    json: Json = False,
    seed: Seed = 0,
) -> None:
    """Write the card (README.md) of a model folder, with test metrics where an evaluation is given."""
    from cytoglot.training.release.model_card import write_model_card

    quiet_for_json(as_json=json)
    show({"card": write_model_card(model, evaluation)}, as_json=json)


def push_command(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    repository: Annotated[str, typer.Argument(help="owner/name on the Hugging Face Hub.")],
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it, if it is new.")] = False,
    json: Json = False,
    seed: Seed = 0,
) -> None:
    """Publish a finished model folder on the Hugging Face Hub, for its owner alone unless --public."""
    from cytoglot.training.release.publish import publish

    quiet_for_json(as_json=json)
    show({"page": publish(model, repository, private=not public)}, as_json=json)


def evaluate_command(
    source: Source,
    model: Annotated[Path, typer.Option("--model", help="Model folder.")],
    output: Folder,
    label: Annotated[str | None, typer.Option("--label", help="Column of the true cell types.")] = None,
    settings: Set = None,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    gene_mapping: GeneMapping = None,
    duplicates: DuplicateGenes = "sum",
    new_cells: Annotated[
        bool, typer.Option("--new-cells", help="Cells named as training cells, with other values, are others.")
    ] = False,
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Judge a model on its held-out cells, or on every task of a corpus, beside baselines and controls."""
    from cytoglot.benchmark.evaluate import EvaluateSettings, evaluate
    from cytoglot.benchmark.results import as_dicts
    from cytoglot.config import load_recipe
    from cytoglot.corpus.format.folder import is_corpus
    from cytoglot.lm.model.language_model import set_threads

    quiet_for_json(as_json=json)
    set_threads(threads)
    if is_corpus(source):
        _refuse_for_corpus(
            source,
            _options_of_files(label, layer, gene_column, gene_mapping, duplicates, dry_run=dry_run)
            | {"--new-cells": new_cells or None},
        )
        _evaluate_corpus(source, model, output, settings or [], seed=seed, device=device, as_json=json)
        return
    chosen = load_recipe(EvaluateSettings, None, settings or [])
    genes = gene_options(gene_column, gene_mapping, duplicates)
    if dry_run:
        forecast = _forecast_evaluation(source, model, chosen, layer=layer, genes=genes, device=device)
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
            "results": as_dicts(result.results),
            "cells": result.cells,
            "unknown_labels": result.unknown_labels,
            "messages": result.messages,
            "output": output,
        },
        as_json=json,
    )


def report_command(
    folder: Annotated[Path, typer.Argument(help="Folder that evaluate wrote.")],
    json: Json = False,
    seed: Seed = 0,
) -> None:
    """Write one self-contained HTML page about an evaluation (nothing is random: the seed changes nothing)."""
    from cytoglot.report.html import write_report

    quiet_for_json(as_json=json)
    show({"html": write_report(folder)}, as_json=json)


def demo_command(
    output: Folder = Path("demo_output"),
    overwrite: Overwrite = False,
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Do the whole way on the data set that ships inside scanpy: train, judge, report."""
    from cytoglot.cli.demo import run_demo

    quiet_for_json(as_json=json)
    show(run_demo(output, overwrite=overwrite, device=device, threads=threads, seed=seed, as_json=json), as_json=json)


def doctor_command(json: Json = False, seed: Seed = 0) -> None:
    """Print versions, extras, devices and threads, and what is missing for what."""
    from cytoglot.cli.doctor import examine

    show(examine(), as_json=json)


def _show_model(model: CellModel, output: Path, *, as_json: bool) -> None:
    calibration = model.spec.calibration
    show(
        {
            "model": output,
            "labels": len(model.spec.labels),
            "tasks": len(model.spec.tasks),
            "genes": len(model.spec.vocabulary),
            "parameters": sum(p.numel() for p in model.lm.model.parameters()),
            "temperature": calibration.temperature,
            "threshold": calibration.threshold,
            "validation_cells": calibration.n_validation,
        },
        as_json=as_json,
    )


def _options_of_files(
    label: str | None,
    layer: str | None,
    gene_column: str | None,
    gene_mapping: Path | None,
    duplicates: str,
    *,
    dry_run: bool,
) -> dict[str, object]:
    """Return options that say how a file of cells is read; None where they were not given."""
    return {
        "--label": label,
        "--layer": layer,
        "--gene-column": gene_column,
        "--gene-mapping": gene_mapping,
        "--duplicates": duplicates if duplicates != "sum" else None,
        "--dry-run": dry_run or None,
    }


def _refuse_for_corpus(source: str, options: Mapping[str, object]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise InputError(
            f"{source} is a corpus, in which cells, genes and labels are settled; leave out {', '.join(given)}"
        )


def _evaluate_corpus(
    source: str, model: Path, output: Path, settings: list[str], *, seed: int, device: str, as_json: bool
) -> None:
    from cytoglot.benchmark.corpus_tasks import CorpusTaskSettings, evaluate_corpus
    from cytoglot.benchmark.results import as_dicts
    from cytoglot.config import load_recipe

    chosen = load_recipe(CorpusTaskSettings, None, settings)
    result = evaluate_corpus(source, model, out=output, settings=chosen, seed=seed, device=device)
    shown = {"results": as_dicts(result.rows)} if as_json else {"tasks": [asdict(line) for line in result.table]}
    not_shown = [{"task": name, "reason": reason} for name, reason in result.not_shown.items()]
    show(shown | {"not_shown": not_shown, "messages": result.messages, "output": output}, as_json=as_json)


def _forecast_training(job: TrainJob) -> dict[str, Any]:
    """Count tokens of examples as training makes them; try a few steps where that is cheap."""
    from cytoglot.lm.model.language_model import set_threads
    from cytoglot.training.cells import training_cells
    from cytoglot.training.supervised.forecast import forecast_training

    set_threads(job.threads)
    with training_cells(job, job.open()) as cells:
        return forecast_training(cells, job.recipe) | {"dry_run": True}


def _forecast_evaluation(
    source: str, model: Path, settings: EvaluateSettings, *, layer: str | None, genes: GeneOptions, device: str
) -> dict[str, Any]:
    """The model's own time on a few cells, and for the control the time that its training took."""
    import json

    from cytoglot.cell_model.load import load_cell_model
    from cytoglot.cell_model.spec import TRAINING_FILE
    from cytoglot.cli.apply import forecast_cells
    from cytoglot.cli.cells import whole_file

    loaded = load_cell_model(model, device=device)
    forecast = forecast_cells(loaded, whole_file(source, layer=layer, genes=genes), passes=loaded.spec.views + 1)
    training = model / TRAINING_FILE
    history = json.loads(training.read_text(encoding="utf-8"))["history"] if training.is_file() else []
    control = float(history[-1]["seconds"]) if history and settings.control else 0.0
    rest = 20.0 + (15.0 if settings.maps else 0.0) + (10.0 if settings.generation else 0.0)
    return forecast | {
        "seconds": round(forecast["seconds"] + control + rest, 1),
        "control_seconds": round(control, 1),
        "disk_mb": 5.0,
    }
