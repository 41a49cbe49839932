"""runner list, runner build, runner run: cell models that need a Python of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cytoglot.cli import options as opt
from cytoglot.cli.output import check_output, show

Name = Annotated[str, typer.Argument(help="A name that `cytoglot runner list` shows.")]
Runners = Annotated[
    list[Path] | None,
    typer.Option("--runners", metavar="DIR", help="Folder with runners of your own; also CYTOGLOT_RUNNERS."),
]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", metavar="DIR", help="Folder with its files.", show_default="in CYTOGLOT_CACHE"),
]


def list_command(runners: Runners = None, json: opt.Json = False) -> None:
    """List the runners: what each embeds with, what it needs, and what is here."""
    from cytoglot.benchmark.runners.environment import built_environment
    from cytoglot.benchmark.runners.files import missing_files, weights_folder
    from cytoglot.benchmark.runners.find import load_runner, runner_folders
    from cytoglot.errors import InputError

    rows: list[dict[str, Any]] = []
    for name, folder in sorted(runner_folders(runners or ()).items()):
        try:
            runner = load_runner(folder)
        except InputError as error:  # one that is broken hides no other
            rows.append({"name": name, "state": f"broken: {' '.join([str(error), *getattr(error, '__notes__', [])])}"})
            continue
        settings = runner.settings
        missing = [file.name for file in missing_files(runner, weights_folder(runner))]
        built = "environment built" if built_environment(runner) else "environment not built"
        rows.append(
            {
                "name": name,
                "state": built + (f", missing: {', '.join(missing)}" if missing else ""),
                "description": settings.description,
                "version": settings.version,
                "python": settings.python,
                "reads": list(settings.reads),
                "sees_all_cells": settings.sees_all_cells,
                "code_licence": settings.code_licence,
                "weights_licence": settings.weights_licence,
                "source": settings.source,
                "tested": settings.tested,
            }
        )
    if json:
        show({"runners": rows}, as_json=True)
        return
    for row in rows:
        typer.echo(f"{row['name']}: {row['state']}\n    {row.get('description', '')}")


def build_command(name: Name, runners: Runners = None, json: opt.Json = False) -> None:
    """Build the environment of a runner, and download the files that have an address.

    It is kept in the folder CYTOGLOT_CACHE (default: ~/.cache/cytoglot).
    """
    from cytoglot.benchmark.runners.environment import build_environment
    from cytoglot.benchmark.runners.files import fetch_files, missing_files, weights_folder
    from cytoglot.benchmark.runners.find import find_runner

    runner = find_runner(name, runners or ())
    environment, folder = build_environment(runner), weights_folder(runner)
    fetch_files(runner, folder)
    missing = [file.name for file in missing_files(runner, folder)]
    show({"name": name, "python": environment.python, "weights": folder, "missing": missing}, as_json=json)


def run_command(
    name: Name,
    source: opt.Source,
    output: opt.Parquet,
    batch_column: Annotated[
        str | None, typer.Option("--batch-column", help="Column of obs with the batch, if the runner reads it.")
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option("--label-column", help='Column of obs with labels of training cells, "unknown" for others.'),
    ] = None,
    settings: opt.Settings = None,
    weights: Weights = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0, help="End it after so many seconds.", show_default="never")
    ] = None,
    runners: Runners = None,
    layer: opt.Layer = None,
    gene_column: opt.GeneColumn = None,
    seed: opt.Seed = 0,
    overwrite: opt.Overwrite = False,
    json: opt.Json = False,
) -> None:
    """Embed cells by a runner, in its own environment, and check what it gives.

    The environment is built at the first use. The same cells and options are not run again.
    """
    check_output(output, suffixes=(".parquet",), overwrite=overwrite, inputs=[source])
    from cytoglot.applications.vector_files import write_vectors
    from cytoglot.atomic import atomic_path
    from cytoglot.benchmark.runners import RunnerEmbedder, find_runner
    from cytoglot.data.datasets import resolve_source
    from cytoglot.data.readers.read import read

    runner = find_runner(name, runners or ())
    embedder = RunnerEmbedder(
        runner=runner,
        options=runner.with_options(settings or ()),
        weights=weights,
        batch_column=batch_column,
        label_column=label_column,
        seed=seed,
        timeout_seconds=timeout,
    )
    cells = read(resolve_source(source), layer=layer, gene_column=gene_column)
    result = embedder.run(cells)
    n_d, key = result.vectors_nd.shape[1], f"X_{name}"
    with atomic_path(output) as path:
        write_vectors(path, cells.obs_names.to_numpy(dtype=object), [result.vectors_nd], {"key": key}, n_d=n_d)
    show(
        {
            "cells": cells.n_obs,
            "dimensions": n_d,
            "key": key,
            **result.record.model_dump(),
            "sees_all_cells": embedder.sees_all_cells,
            "was_kept": result.was_kept,
            "output": output,
        },
        as_json=json,
    )
