"""train, evaluate, report, card, push, demo, doctor: models, their evaluation, and pages about both."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cytoglot.cli import options as opt
from cytoglot.cli.output import check_folder, refuse_existing, show
from cytoglot.config import recipes
from cytoglot.errors import InputError

ModelArgument = Annotated[Path | None, typer.Argument(metavar="MODEL", help="As --model.", show_default=False)]
ModelFolder = Annotated[Path | None, typer.Option("--model", help="Model folder, as `cytoglot train` writes it.")]


def train_command(
    context: typer.Context,
    source: Annotated[
        str | None, typer.Argument(help="File of cells, data set or corpus.", show_default="of the recipe")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to write.", show_default="of the recipe")
    ] = None,
    label: Annotated[
        str | None, typer.Option("--label", help="Column of obs with the cell types; not for a corpus.")
    ] = None,
    split_by: Annotated[str, typer.Option("--split-by", help="auto, cell, or a column kept whole.")] = "auto",
    fractions: Annotated[
        str | None,
        typer.Option(
            "--fractions",
            metavar="TRAIN,VAL,TEST",
            help="Shares of the cells; they sum to 1.",
            show_default="0.7,0.1,0.2",
        ),
    ] = None,
    no_test: Annotated[bool, typer.Option("--no-test", help="Keep no test cells: as --fractions 0.9,0.1,0.")] = False,
    recipe: opt.Recipe = None,
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
    """Train a model on cells or a corpus.

    A recipe sets the kind (sft, pretrain or grpo), the model and its optimization; without one, a small model learns to
    label and write cells. The same command resumes an interrupted run. A finished model is loaded.
    """
    if no_test and fractions is not None:
        raise InputError("--no-test and --fractions say the same; pass --fractions TRAIN,VAL,0 alone")
    shares = _fractions("0.9,0.1,0" if no_test else fractions)
    if recipe is None and not settings:  # what a recipe may say is checked with it, after seconds of imports
        if source is None:
            raise InputError(
                "no cells to train on: pass SOURCE, a file of cells or a corpus, or a --recipe with a source"
            )
        if output is None and not dry_run:
            raise InputError("no folder for the model: pass -o FOLDER, or a --recipe with an output")
        if label is None and not Path(source).is_dir():
            raise InputError("pass --label, the column of obs with the cell types (only a corpus needs none)")
    from cytoglot.config import load_recipe
    from cytoglot.data.splits.splitting import FRACTIONS
    from cytoglot.lm.model.language_model import set_threads
    from cytoglot.training.cells import training_cells
    from cytoglot.training.job import TrainJob, is_corpus_source, settled
    from cytoglot.training.loop.distributed import is_first
    from cytoglot.training.recipe import TrainRecipe
    from cytoglot.training.run import run_job
    from cytoglot.training.supervised.forecast import forecast_training

    named = recipes().get(recipe) if recipe is not None and not Path(recipe).exists() else None
    chosen = load_recipe(TrainRecipe, named or recipe, settings or [])
    asked = source if source is not None else chosen.source
    if asked is not None and is_corpus_source(asked):
        _refuse_for_corpus(context, asked, "split_by", "fractions", "no_test")
    asked_for = TrainJob(
        source=source,
        label=label,
        out=output,
        recipe=chosen,
        split_by=split_by,
        fractions=shares or FRACTIONS,
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
            "annotation_method": calibration.method,
            "temperature": calibration.in_use.temperature,
            "threshold": calibration.in_use.threshold,
            "validation_cells": calibration.n_validation,
            "validation_accuracy": calibration.validation_accuracy,
            "majority_accuracy": calibration.majority_accuracy,
            "warning": calibration.warning,
        }
        show(result, as_json=json)


def card_command(
    folder: ModelArgument = None,
    model: ModelFolder = None,
    evaluation: Annotated[
        Path | None, typer.Option("--evaluation", help="Folder of `cytoglot evaluate` about this model.")
    ] = None,
    overwrite: opt.Overwrite = False,
    json: opt.Json = False,
) -> None:
    """Write the card (README.md) of a model folder.

    `cytoglot train` writes one without test metrics; --evaluation adds them.
    """
    from cytoglot.cell_model.spec import CellModelSpec
    from cytoglot.training.release.model_card import CARD, write_model_card

    chosen = _one_model(folder, model)
    CellModelSpec.load(chosen)
    refuse_existing(chosen / CARD, overwrite=overwrite)
    show({"card": write_model_card(chosen, evaluation)}, as_json=json)


def push_command(
    names: Annotated[
        list[str], typer.Argument(metavar="[MODEL] REPOSITORY", help="owner/name on the Hugging Face Hub.")
    ],
    model: ModelFolder = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see a new repository.")] = False,
    json: opt.Json = False,
) -> None:
    """Publish a model on the Hugging Face Hub.

    A new repository is private unless --public is given.
    """
    if len(names) > 2:
        raise InputError(f"expected MODEL and REPOSITORY, found {len(names)} arguments: {' '.join(names)}")
    chosen = _one_model(Path(names[0]) if len(names) == 2 else None, model)
    from cytoglot.training.release.publish import publish

    show({"page": publish(chosen, names[-1], private=not public)}, as_json=json)


def evaluate_command(
    context: typer.Context,
    source: opt.Source,
    model: opt.Model,
    output: opt.Folder,
    label: Annotated[
        str | None, typer.Option("--label", help="Column of the true cell types.", show_default="of the model")
    ] = None,
    settings: opt.Settings = None,
    layer: opt.Layer = None,
    gene_column: opt.GeneColumn = None,
    gene_mapping: opt.GeneMapping = None,
    duplicates: opt.DuplicateGenes = "sum",
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference", metavar="SOURCE", help="File of training, where SOURCE is another: baselines learn from it."
        ),
    ] = None,
    label_map: Annotated[
        Path | None,
        typer.Option(
            "--label-map", help="CSV or YAML: label of SOURCE, label of the model (none: leave the cells out)."
        ),
    ] = None,
    new_cells: Annotated[
        bool, typer.Option("--new-cells", help="Cells with names of training cells and other values are new cells.")
    ] = False,
    min_overlap: opt.MinOverlap = 0.3,
    overwrite: opt.Overwrite = False,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    seed: opt.Seed = 0,
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
) -> None:
    """Measure a model on held-out cells, with baselines.

    SOURCE is the file of training, another file, or a corpus, on whose tasks the model is measured.
    """
    check_folder(output, written_by="evaluate", mark="results.json", overwrite=overwrite or dry_run)
    from cytoglot.benchmark.corpus_tasks import CorpusTaskSettings, evaluate_corpus
    from cytoglot.benchmark.evaluate import EvaluateSettings, evaluate, forecast_evaluation
    from cytoglot.config import load_recipe
    from cytoglot.corpus.format.folder import is_corpus
    from cytoglot.data.datasets import resolve_source
    from cytoglot.lm.model.language_model import set_threads

    set_threads(threads)
    if is_corpus(source):
        _refuse_for_corpus(context, source, "dry_run", "new_cells", "min_overlap", "reference", "label_map")
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
            resolve_source(source),
            model,
            chosen,
            layer=layer,
            gene_options=genes,
            min_overlap=min_overlap,
            device=device,
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
        reference=reference,
        label_map=label_map,
        new_cells=new_cells,
        min_overlap=min_overlap,
        seed=seed,
        device=device,
    )
    show(
        {
            "results": [asdict(row) for row in result.results],
            "cells": result.cells,
            "unknown_labels": result.unknown_labels,
            "messages": result.messages,
            **({} if result.verdict is None else result.verdict.to_dict()),
            "output": output,
        },
        as_json=json,
    )


def report_command(
    folder: Annotated[Path, typer.Argument(help="Folder of `cytoglot evaluate` or `cytoglot benchmark run`.")],
    overwrite: opt.Overwrite = False,
    json: opt.Json = False,
) -> None:
    """Write an HTML page about an evaluation or a comparison."""
    if (folder / "recipe.json").is_file() and (folder / "runs").is_dir():
        from cytoglot.cli.benchmark import report_of_benchmark

        show(report_of_benchmark(folder), as_json=json)
        return
    from cytoglot.report.html import PAGE, write_report

    refuse_existing(folder / PAGE, overwrite=overwrite)
    show({"html": write_report(folder)}, as_json=json)


def demo_command(
    output: opt.Folder = Path("demo_output"),
    overwrite: opt.Overwrite = False,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    seed: opt.Seed = 0,
    json: opt.Json = False,
) -> None:
    """Train, evaluate and report on scanpy's bundled PBMC."""
    from cytoglot.cli.demo import run_demo

    show(run_demo(output, overwrite=overwrite, device=device, threads=threads, seed=seed, as_json=json), as_json=json)


def doctor_command(json: opt.Json = False) -> None:
    """Show versions, devices, threads and missing packages."""
    from cytoglot.cli.doctor import examine

    show(examine(), as_json=json)


def _fractions(text: str | None) -> tuple[float, float, float] | None:
    """Read "0.7,0.1,0.2"."""
    if text is None:
        return None
    from cytoglot.data.splits.splitting import check_fractions

    try:
        train, validation, test = map(float, text.split(","))
    except ValueError:
        raise InputError(f"--fractions expects three numbers such as 0.7,0.1,0.2, found {text!r}") from None
    check_fractions((train, validation, test))
    return train, validation, test


def _one_model(argument: Path | None, option: Path | None) -> Path:
    if (argument is None) == (option is None):
        raise InputError(f"expected one model folder as --model or MODEL, found {'none' if option is None else 'both'}")
    return Path(argument or option or "")


def _refuse_for_corpus(context: typer.Context, source: str, *options: str) -> None:
    """Refuse options that say how a file of cells is read, where they were given."""
    names = ("label", "layer", "gene_column", "gene_mapping", "duplicates", *options)
    defaults = {parameter.name: parameter.default for parameter in context.command.params}
    given = [f"--{name.replace('_', '-')}" for name in names if context.params[name] != defaults[name]]
    if given:
        raise InputError(
            f"{source} is a corpus, in which cells, genes and labels are settled; leave out {', '.join(given)}"
        )
