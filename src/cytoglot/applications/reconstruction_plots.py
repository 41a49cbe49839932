"""The two plots of the papers: log rank against expression with the fitted curves, and observed against reconstructed.

Points are drawn as hexagons of density: a scatter of millions of points is slow and shows its outline only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cytoglot import extras
from cytoglot.atomic import atomic_path
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
_INK, _GRID = "#1f2937", "#e5e7eb"
RANK, N_EXPRESSED, OBSERVED = "rank", "n_expressed", "observed"
"""columns of a sample of words, beside one for each kind of curve: what it predicts"""


def draw_log_rank(
    points: Mapping[str, pd.DataFrame], curves: Mapping[str, Mapping[CurveKind, RankCurve]], path: str | Path
) -> None:
    """Write a PNG of held-out words, rank on a log axis against expression, with the curves of all genes."""
    figure, axes = _figure(1, len(points), width=5.6, height=4.6)
    for ax, (name, sample) in zip(axes[0], points.items(), strict=True):
        _density(ax, sample[RANK], sample[OBSERVED], x_log=True)
        _draw_curves(ax, sample, curves[name])
        ax.xaxis.set_major_formatter(lambda rank, _: f"{rank:,.0f}")
        title = f"Sentences of {_SENTENCES.get(name, name)}, held-out cells"
        ax.set_title(title, loc="left", fontsize=11, color=_INK)
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
            _density(ax, sample[OBSERVED], sample[kind], extent=(low, high, low, high))
            ax.plot([low, high], [low, high], color=_INK, linewidth=0.8, linestyle=(0, (4, 3)))
            ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
            ax.set_title(f"{_TITLES[kind]}\n{_SENTENCES.get(name, name)}", loc="left", fontsize=9)
            wanted = (kind, name, "expressed", True)
            row = next((r for r in rows if (r["curve"], r["genes"], r["scope"], r["held_out"]) == wanted), None)
            parts = (
                () if row is None else (("R²", row["r2"]), ("Pearson", row["pearson"]), ("Spearman", row["spearman"]))
            )
            caption = "\n".join(f"{title} {value:.3f}" for title, value in parts if value is not None)
            ax.text(0.04, 0.95, caption, transform=ax.transAxes, va="top", fontsize=8, color=_INK)
        for ax in panels[len(kinds) :]:
            ax.set_axis_off()
    figure.supxlabel(f"Observed expression of held-out cells, {_EXPRESSION}", fontsize=10, color=_INK)
    figure.supylabel("Expression reconstructed from the rank", fontsize=10, color=_INK)
    _save(figure, path)


def _draw_curves(ax: Any, sample: pd.DataFrame, curves: Mapping[CurveKind, RankCurve]) -> None:
    ranks = np.unique(np.geomspace(1, max(int(sample[RANK].max()) if len(sample) else 1, 2), 400).astype(np.int64))
    middle = np.full(len(ranks), sample[N_EXPRESSED].median() if len(sample) else 1)
    genes = np.zeros(len(ranks), dtype=np.int64)
    for kind, (color, style) in _DRAWN.items():
        if kind in curves:
            label = _TITLES[kind]
            ax.plot(ranks, curves[kind].predict(ranks, genes, middle), color=color, linestyle=style, label=label)
    by_length: tuple[CurveKind, ...] = ("isotonic_length", "cubic_length")
    known = [kind for kind in by_length if kind in curves]
    if not known or not len(sample):
        return
    kind = known[0]
    for share, color in zip((10, 50, 90), _LENGTH_COLOURS, strict=True):
        length = int(np.percentile(sample[N_EXPRESSED], share))
        reached = ranks[ranks <= length]
        value = curves[kind].predict(reached, genes[: len(reached)], np.full(len(reached), length))
        ax.plot(reached, value, color=color, label=f"{_TITLES[kind]}: {length:,} genes")


def _density(
    ax: Any,
    x: pd.Series[Any],
    y: pd.Series[Any],
    *,
    x_log: bool = False,
    extent: tuple[float, float, float, float] | None = None,
) -> None:
    if x_log:
        ax.set_xscale("log")
    if not x.size:
        return
    if extent is not None:
        inside = (y >= extent[2]) & (y <= extent[3])  # the reference line may leave the frame
        x, y = x[inside], y[inside]
    ax.hexbin(
        x,
        y,
        gridsize=55,
        bins="log",
        mincnt=1,
        cmap="Blues",
        linewidths=0.1,
        xscale="log" if x_log else "linear",
        extent=extent,
    )


def _figure(n_rows: int, n_columns: int, *, width: float, height: float) -> tuple[Any, Any]:
    """Return a figure of its own, outside pyplot's global state, and its (n_rows, n_columns) axes."""
    figures = extras.require("matplotlib.figure", extra="report", purpose="the plots of reconstruction")
    figure = figures.Figure(figsize=(width * n_columns, height * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for ax in axes.ravel():
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color("#9ca3af")
        ax.tick_params(colors=_INK, labelsize=8)
        ax.grid(color=_GRID, linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def _save(figure: Any, path: str | Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, facecolor="white")
