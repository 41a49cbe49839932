"""scale: a sweep of models and the power law through it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cytoglot.cli import options as opt
from cytoglot.cli.output import show

_SHOWN = ("size", "mode", "share", "seed", "parameters_without_vectors", "cells", "tokens")


def scale_command(
    recipe: Annotated[Path, typer.Argument(help="YAML file of the sweep, such as recipes/scaling.yaml.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to write.", show_default="of the recipe")
    ] = None,
    settings: opt.Settings = None,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    seed: opt.Seed = 0,
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
) -> None:
    """Fit a scaling law over sizes of model and data.

    Trains a model for each size and amount of data, and fits how the held-out loss falls. The same command resumes an
    interrupted sweep; finished models are loaded.
    """
    from cytoglot.config import load_recipe
    from cytoglot.report.scaling_figure import write_scaling_figure
    from cytoglot.training.scaling.sweep import ScaleRecipe, grid, run_sweep

    chosen = load_recipe(ScaleRecipe, recipe, settings or [])
    if dry_run:
        runs = [{"run": run.name} for run in grid(chosen)]
        show({"runs": runs, "steps": len(runs) * chosen.train.optim.steps, "dry_run": True}, as_json=json)
        return
    result = run_sweep(chosen, out=output, device=device, threads=threads, seed=seed)
    folder = output or Path(str(chosen.output))
    figure = write_scaling_figure(folder)
    runs, laws = result["runs"], result["power_law"]
    shown = {"runs": runs if json else [_shown(row) for row in runs], "power_law": laws if json else _laws(laws)}
    show(shown | {"held_out": result["held_out"], "figure": figure, "output": folder}, as_json=json)


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    values = {name: row[name] for name in _SHOWN}
    for metric, digits in (("loss_per_word", 4), ("accuracy", 3), ("macro_f1", 3)):
        value, low, high = row[metric], row[f"{metric}_low"], row[f"{metric}_high"]
        interval = "" if low is None else f" ({low:.{digits}f} to {high:.{digits}f})"
        values[metric] = "-" if value is None else f"{value:.{digits}f}{interval}"
    return values


def _laws(laws: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for mode, law in laws.items():
        if "floor" not in law:
            rows.append({"mode": mode, "parameter": "none", "value": law["not_fitted"]})
        for name, (low, high) in law.get("intervals", {}).items():
            least, most = law["leave_one_out"].get(name, (None, None))
            rows.append(
                {
                    "mode": mode,
                    "parameter": name,
                    "value": law[name],
                    "low": low,
                    "high": high,
                    "without_one_run_low": least,
                    "without_one_run_high": most,
                }
            )
    return rows
