"""The two plots of the papers: log rank against expression with the curves, and observed against reconstructed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cytoglot import extras
from cytoglot.atomic import atomic_path
from cytoglot.pl.draw import curve_line, density
from cytoglot.pl.style import GRID, INK, frame
from cytoglot.sentence.curve_score import CurveScore
from cytoglot.sentence.rank_curve import CurveKind, RankCurve

_TITLES = {
    "peer_line": "Line, ranks < 1,000 (reference)",
    "line": "Line",
    "isotonic": "Monotone",
    "gene_lines": "Line per gene",
    "line_length": "Line + length",
    "cubic_length": "Cubic + length",
    "isotonic_length": "Monotone + length",
    "gene_lines_length": "Line per gene + length",
}
_SENTENCES = {"full": "all genes", "hvg": "highly variable genes"}
_EXPRESSION = "log₁₀(1 + counts per 10,000)"
#: Curves of the first plot; length-aware ones at three lengths of sentence.
_DRAWN: dict[CurveKind, tuple[str, str]] = {
    "peer_line": ("#6b7280", ":"),
    "line": ("#d95f02", "-"),
    "isotonic": ("#111827", "-"),
}
_LENGTH_COLOURS = ("#7fc6a4", "#2a9d6f", "#0b5d3b")
RANK, N_EXPRESSED, OBSERVED = "rank", "n_expressed", "observed"
"""columns of a sample of words, beside one for each kind of curve: what it predicts"""


def draw_log_rank(
    points: Mapping[str, pd.DataFrame], curves: Mapping[str, Mapping[CurveKind, RankCurve]], path: str | Path
) -> None:
    """Write a PNG of held-out words, rank on a log axis against expression, with the curves of all genes."""
    figure, axes = _figure(1, len(points), width=5.6, height=4.6)
    for ax, (name, sample) in zip(axes[0], points.items(), strict=True):
        density(ax, sample[RANK], sample[OBSERVED], x_log=True)
        _draw_curves(ax, sample, curves[name])
        title = f"Sentences of {_SENTENCES.get(name, name)}, held-out cells"
        ax.set_title(title, loc="left", fontsize=11, color=INK)
        ax.set_xlabel("Rank of the gene in its cell")
        ax.set_ylabel(f"Expression, {_EXPRESSION}")
        ax.legend(loc="upper right", fontsize=8, frameon=True, framealpha=0.92, edgecolor="none")
    _save(figure, path)


def draw_reconstructed(points: Mapping[str, pd.DataFrame], rows: Sequence[CurveScore], path: str | Path) -> None:
    """Write a PNG of held-out words, observed against reconstructed expression, one panel per curve and sentences."""
    kinds = [kind for kind in next(iter(points.values())) if kind in _TITLES]
    n_columns = min(4, len(kinds))
    n_rows = -(-len(kinds) // n_columns)
    figure, axes = _figure(n_rows * len(points), n_columns, width=3.1, height=3.25)
    for k, (name, sample) in enumerate(points.items()):
        panels = axes[k * n_rows : (k + 1) * n_rows].ravel()
        low, high = 0.0, np.ceil(float(sample[OBSERVED].max() if len(sample) else 1.0) * 5) / 5
        for ax, kind in zip(panels, kinds, strict=False):
            density(ax, sample[OBSERVED], sample[kind], extent=(low, high, low, high))
            ax.plot([low, high], [low, high], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
            ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
            ax.set_title(f"{_TITLES[kind]}\n{_SENTENCES.get(name, name)}", loc="left", fontsize=9)
            wanted = (kind, name, "expressed", True)
            row = next((r for r in rows if (r["curve"], r["genes"], r["scope"], r["held_out"]) == wanted), None)
            parts = (
                () if row is None else (("R²", row["r2"]), ("Pearson", row["pearson"]), ("Spearman", row["spearman"]))
            )
            caption = "\n".join(f"{title} {value:.3f}" for title, value in parts if value is not None)
            ax.text(0.04, 0.95, caption, transform=ax.transAxes, va="top", fontsize=8, color=INK)
        for ax in panels[len(kinds) :]:
            ax.set_axis_off()
    figure.supxlabel(f"Observed expression of held-out cells, {_EXPRESSION}", fontsize=10, color=INK)
    figure.supylabel("Expression reconstructed from the rank", fontsize=10, color=INK)
    _save(figure, path)


def _draw_curves(ax: Any, sample: pd.DataFrame, curves: Mapping[CurveKind, RankCurve]) -> None:
    last_rank = int(sample[RANK].max()) if len(sample) else 1
    middle = float(sample[N_EXPRESSED].median()) if len(sample) else 1.0
    for kind, (color, style) in _DRAWN.items():
        if kind in curves:
            options = {"color": color, "linestyle": style, "label": _TITLES[kind]}
            curve_line(ax, curves[kind], last_rank=last_rank, n_expressed=middle, **options)
    by_length: tuple[CurveKind, ...] = ("isotonic_length", "cubic_length")
    known = [kind for kind in by_length if kind in curves]
    if not known or not len(sample):
        return
    for share, color in zip((10, 50, 90), _LENGTH_COLOURS, strict=True):
        length = int(np.percentile(sample[N_EXPRESSED], share))
        label = f"{_TITLES[known[0]]}: {length:,} genes"
        reached = min(last_rank, length)
        curve_line(ax, curves[known[0]], last_rank=reached, n_expressed=length, color=color, label=label)


def _figure(n_rows: int, n_columns: int, *, width: float, height: float) -> tuple[Any, Any]:
    """Return a figure of its own, outside pyplot's global state, and its (n_rows, n_columns) axes."""
    figures = extras.require("matplotlib.figure", extra="report", purpose="the plots of reconstruction")
    figure = figures.Figure(figsize=(width * n_columns, height * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for ax in axes.ravel():
        frame(ax)
        ax.grid(color=GRID, linewidth=0.6)
    return figure, axes


def _save(figure: Any, path: str | Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, facecolor="white")
