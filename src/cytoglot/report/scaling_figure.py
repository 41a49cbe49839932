"""The figure of a sweep of models: loss and accuracy against size and amount of data, with the fitted power law."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cytoglot.atomic import write_text
from cytoglot.errors import InputError
from cytoglot.metrics.scaling import PowerLaw
from cytoglot.pl.style import GRID, MUTED, color
from cytoglot.report.figures import canvas, svg_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = {"full": "o", "lora": "^"}
_LINES = {"full": "-", "lora": "--"}


def write_scaling_figure(folder: str | Path) -> Path:
    """Draw `scaling.json` of a sweep's folder as `scaling.svg` beside it; return its path.

    Raises
    ------
    InputError
        The folder holds no finished sweep.
    """
    source = Path(folder) / "scaling.json"
    if not source.is_file():
        raise InputError(f"{folder} holds no scaling.json; run `cytoglot scale RECIPE -o {folder}` to its end first")
    target = source.with_suffix(".svg")
    text = scaling_figure(json.loads(source.read_text(encoding="utf-8")))
    write_text(target, text.replace("<svg ", '<svg style="background:white" ', 1) + "\n")
    return target


def scaling_figure(result: Mapping[str, Any]) -> str:
    """Return the figure as SVG text: loss against size, loss against data, accuracy against size."""
    table = pd.DataFrame(result["runs"])
    with canvas(12.6, 4.0, n_axes=3) as (figure, (by_size, by_data, answers)):
        shares = sorted(table["share"].unique())
        sizes = table.groupby("size")["parameters_without_vectors"].min().sort_values().index.tolist()
        _curves(by_size, table, "parameters_without_vectors", "loss_per_word", "share", shares, "{:.0%} of the cells")
        _curves(by_data, table, "cells", "loss_per_word", "size", sizes, "{}")
        for mode, law in result["power_law"].items():
            if "floor" in law:
                _law(by_size, by_data, table[table["mode"] == mode], law, shares, sizes, mode)
        _curves(answers, table, "parameters_without_vectors", "accuracy", "share", shares, "{:.0%} of the cells")
        answers.axhline(result["baselines"]["accuracy"]["most_frequent_type"], color=MUTED, lw=1, ls=":")
        for ax, title, x, y in (
            (by_size, _formula(result, "size"), "parameters without input vectors", "loss per word (nats)"),
            (by_data, _formula(result, "data"), "training cells", "loss per word (nats)"),
            (answers, "dotted: the most frequent type", "parameters without input vectors", "accuracy"),
        ):
            ax.set(xscale="log", xlabel=x, ylabel=y)
            places = sorted(set(table["cells" if ax is by_data else "parameters_without_vectors"]))
            ax.set_xticks(places, [f"{place:,}" for place in places], fontsize=8)
            ax.minorticks_off()  # the default writes powers as mathematics
            ax.set_title(title, fontsize=8.5, loc="left")
            ax.grid(color=GRID)
            ax.legend(frameon=False, fontsize=8)
        for ax in (by_size, by_data):
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            ax.yaxis.set_minor_formatter(lambda value, _: f"{value:g}")
            ax.tick_params(axis="y", which="both", labelsize=8)
        return svg_text(figure)


def _curves(ax: Axes, table: pd.DataFrame, x: str, y: str, by: str, values: Sequence[Any], label: str) -> None:
    """Draw each run with its interval, one color for each value of `by`, one marker for each mode."""
    modes = list(dict.fromkeys(table["mode"]))
    for i, value in enumerate(values):
        for mode in modes:
            rows = table[(table[by] == value) & (table["mode"] == mode)].sort_values(x)
            bounds = np.abs(rows[[f"{y}_low", f"{y}_high"]].astype(float).to_numpy() - rows[[y]].to_numpy()).T
            name = label.format(value) + (f", {mode}" if len(modes) > 1 else "")
            ax.errorbar(
                rows[x], rows[y], yerr=np.nan_to_num(bounds), color=color(i), marker=_MARKERS[mode], ms=5, lw=0.9,
                ls="" if y == "loss_per_word" else _LINES[mode], capsize=2, label=name,
            )  # fmt: skip


def _law(
    by_size: Axes,
    by_data: Axes,
    table: pd.DataFrame,
    law: Mapping[str, Any],
    shares: Sequence[float],
    sizes: Sequence[str],
    mode: str,
) -> None:
    predict = PowerLaw(**{name: law[name] for name in PowerLaw.__dataclass_fields__})
    ends = (table[name].agg(["min", "max"]).astype(float) for name in ("parameters_without_vectors", "cells"))
    n, d = (np.geomspace(low, high, 50) for low, high in ends)
    for i, share in enumerate(shares):
        cells = float(table.loc[table["share"] == share, "cells"].mean())
        by_size.plot(n, predict(n, np.full_like(n, cells)), color=color(i), lw=1.2, ls=_LINES[mode])
    for i, size in enumerate(sizes):
        parameters = float(table.loc[table["size"] == size, "parameters_without_vectors"].mean())
        by_data.plot(d, predict(np.full_like(d, parameters), d), color=color(i), lw=1.2, ls=_LINES[mode])


def _formula(result: Mapping[str, Any], axis: str) -> str:
    lines = []
    for mode, law in result["power_law"].items():
        exponent = law.get(f"{axis}_exponent")
        if exponent is None:
            lines.append(f"{mode}: no power law of {axis}")
            continue
        low, high = law["intervals"][f"{axis}_exponent"]
        lines.append(f"{mode}: exponent of {axis} {exponent:.2f} ({low:.2f} to {high:.2f})")
    return "\n".join(lines)
