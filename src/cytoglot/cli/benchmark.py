"""benchmark run, report, reproduce: whether a model is worth it, on many data sets or on one's own cells."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cytoglot.cli import options as opt
from cytoglot.cli.output import show
from cytoglot.errors import InputError

#: methods of a run on one's own cells, where no recipe names others
_OWN_METHODS: dict[str, dict[str, Any]] = {
    "majority": {"classifier": "majority", "role": "control"},
    "random vectors": {"classifier": "logistic_regression", "embedder": "random_vectors", "role": "control"},
    "logistic regression": {"classifier": "logistic_regression"},
    "kNN on PCA": {"classifier": "nearest_neighbors", "embedder": "pca"},
    "linear SVM on PCA": {"classifier": "linear_svm", "embedder": "pca"},
    "CellTypist": {"classifier": "celltypist"},
    "rank PCA + logistic": {"classifier": "logistic_regression", "embedder": "rank_pca"},
    "replicate": {"classifier": "logistic_regression", "role": "replicate"},
}


def run_command(
    recipe: Annotated[
        str | None, typer.Argument(help="YAML file of a comparison.", show_default="of --data alone")
    ] = None,
    output: opt.Folder = Path("benchmark"),
    data: Annotated[list[str] | None, typer.Option("--data", help="A file of your own cells; may be repeated.")] = None,
    label: Annotated[str, typer.Option("--label", help="Column of obs with the true labels.")] = "cell_type",
    groups: Annotated[str | None, typer.Option("--groups", help="Column of obs with donors or batches.")] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--models", help="A model folder or name, judged by its embedding; may be repeated."),
    ] = None,
    embedding: Annotated[
        list[str] | None, typer.Option("--embedding", metavar="KEY", help="A matrix of obsm, judged like a model.")
    ] = None,
    predictions: Annotated[
        list[str] | None,
        typer.Option("--predictions", metavar="COLUMN", help="A column of predicted labels, judged like a model."),
    ] = None,
    settings: opt.Settings = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 1,
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
) -> None:
    """Compare models with simple methods, and write a table, a verdict and a page.

    Of a recipe, or of --data FILE: folds, and donors left out where --groups names them. The same command goes on where
    an interrupted one stopped.
    """
    from cytoglot.benchmark.embedders import EMBEDDERS
    from cytoglot.benchmark.recipe import BenchmarkRecipe
    from cytoglot.benchmark.results_table import write_results
    from cytoglot.benchmark.run import forecast, run_benchmark
    from cytoglot.benchmark.verdict import write_verdict
    from cytoglot.config import load_recipe, recipes
    from cytoglot.report.verdict_page import write_verdict_page

    if (recipe is None) == (not data):
        raise InputError("pass either a RECIPE or --data FILE with your own cells")
    given: dict[str, Any] = {}
    if recipe is None:
        methods = [{"name": name, **method} for name, method in _OWN_METHODS.items()]
        protocols: dict[str, Any] = {"annotation": {}} | ({} if groups is None else {"leave_group_out": {}})
        sources = [{"name": Path(one).stem, "source": one, "label": label, "groups": groups} for one in data or []]
        given = {
            "name": "own cells",
            "data": sources,
            "methods": methods,
            "protocols": protocols,
            "reference": "logistic regression",
        }
    named = None if recipe is None or Path(recipe).exists() else recipes().get(recipe)
    chosen = load_recipe(BenchmarkRecipe, None if recipe is None else named or recipe, given or ())
    if settings:
        chosen = load_recipe(BenchmarkRecipe, chosen, settings)
    more = [
        {"name": one, "classifier": "logistic_regression", "role": "model", "embedder": "language_model",
         "embedder_options": {"model": one}, "contamination": "unknown"}
        for one in models or []
    ] + [
        {"name": f"obsm {key}", "classifier": "logistic_regression", "role": "model", "embedder": "obsm",
         "embedder_options": {"key": key}, "contamination": "unknown"}
        for key in embedding or []
    ] + [
        {"name": f"column {column}", "classifier": "given", "options": {"column": column}, "role": "model",
         "contamination": "unknown"}
        for column in predictions or []
    ]  # fmt: skip
    if more:
        whole = chosen.model_dump(mode="json")
        chosen = load_recipe(BenchmarkRecipe, None, whole | {"methods": [*whole["methods"], *more]})
    if dry_run:
        show(forecast(chosen, output) | {"dry_run": True}, as_json=json)
        return
    for one in models or []:  # a folder that is no model is a mistake of the command, not a result
        EMBEDDERS["language_model"](model=one)
    summary = run_benchmark(chosen, output, workers=workers)
    path, table = write_results(output)
    sentences = write_verdict(output, table)
    page = write_verdict_page(output)
    result: dict[str, Any] = {
        "runs": summary.runs,
        "failed": summary.failed,
        "cached": summary.cached,
        "results": path,
        "page": page,
        "not_asked": list(summary.skipped),
        "verdict": sentences,
    }
    if json:
        result["errors"] = list(summary.errors)
    else:  # a sentence on each line
        result |= {key: [{key: line} for line in result[key]] or None for key in ("not_asked", "verdict")}
    show(result, as_json=json)


def benchmark_report_command(
    folder: Annotated[Path, typer.Argument(help="Folder that `cytoglot benchmark run` wrote.")],
    json: opt.Json = False,
) -> None:
    """Write the table and the page of a comparison again, from its runs."""
    show(report_of_benchmark(folder), as_json=json)


def report_of_benchmark(folder: Path) -> dict[str, Any]:
    """Write the table, the verdict and the page of a folder of runs, and return their paths."""
    from cytoglot.benchmark.results_table import write_results
    from cytoglot.benchmark.verdict import write_verdict
    from cytoglot.report.verdict_page import write_verdict_page

    path, table = write_results(folder)
    sentences = write_verdict(folder, table)
    return {"html": write_verdict_page(folder), "results": path, "verdict": sentences}


def reproduce_command(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="As in the column run_id of the table.")],
    folder: Annotated[Path, typer.Option("--folder", help="Folder that `cytoglot benchmark run` wrote.")] = Path(
        "benchmark"
    ),
    json: opt.Json = False,
) -> None:
    """Run one run of a comparison again, and say whether it gives the same."""
    from cytoglot.benchmark.run import reproduce

    show(asdict(reproduce(folder, run_id)), as_json=json)


def calibrate_command(
    recipe: Annotated[str, typer.Argument(help="YAML file of a comparison.")],
    output: opt.Folder = Path("calibration"),
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Repetitions.")] = 3,
    settings: opt.Settings = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 1,
    json: opt.Json = False,
) -> None:
    """Measure which metric can judge on which data set, before any model is judged.

    Where a second measurement of the same cells is no better than the simple baseline, neither can a model be told to
    be. `benchmark run -o` into the same folder shows it on the page.
    """
    from cytoglot.benchmark.calibration import CALIBRATION_FILE, calibrate
    from cytoglot.benchmark.recipe import BenchmarkRecipe
    from cytoglot.config import load_recipe, recipes

    named = None if Path(recipe).exists() else recipes().get(recipe)
    chosen = load_recipe(BenchmarkRecipe, named or recipe, settings or ())
    summary, rows = calibrate(chosen, output, seeds=tuple(range(seeds)), workers=workers)
    show(
        {
            "runs": summary.runs,
            "failed": summary.failed,
            "cached": summary.cached,
            "results": output / CALIBRATION_FILE,
            "metrics": rows,
        },
        as_json=json,
    )
