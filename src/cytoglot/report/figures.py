"""The figures of the report, each from one file of an evaluation folder, as SVG text to put into the page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cytoglot.extras import require
from cytoglot.pl import draw
from cytoglot.pl.style import ACCENT, GRID, INK, MUTED, SECOND, colors_of, frame

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@contextmanager
def canvas(width: float, height: float, n_axes: int = 1) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """Yield a figure outside of pyplot's global state, so that nothing of the caller's is touched."""
    matplotlib = require("matplotlib", extra="report", purpose="a report")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A `$` in the name of a cell type is no formula; with the salt the same figure is the same text.
    with matplotlib.rc_context({"text.parse_math": False, "svg.hashsalt": "cytoglot"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = np.atleast_1d(figure.subplots(1, n_axes)).tolist()
        for ax in axes:
            frame(ax)
        yield figure, axes


def svg_text(figure: Figure) -> str:
    """Return the SVG element of a figure, without the head of a file of its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def training_curve(rows: list[dict[str, Any]]) -> str:
    """Loss of training and validation examples against optimizer steps."""
    table = pd.DataFrame(rows, columns=["step", "train_loss", "validation_loss"])
    with canvas(6.4, 3.4) as (figure, (ax,)):
        for column, color, label in (
            ("train_loss", MUTED, "training examples"),
            ("validation_loss", ACCENT, "validation cells, label only"),
        ):
            known = table.dropna(subset=[column])
            marker = "o" if column == "validation_loss" else None
            ax.plot(known["step"], known[column].astype(float), color=color, label=label, lw=1.8, marker=marker, ms=4)
        ax.set(xlabel="step", ylabel="loss per example (nats, log scale)", yscale="log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # the default writes powers as mathematics
        ax.grid(color=GRID)
        ax.legend(frameon=False, fontsize=9, loc="upper right")
        return svg_text(figure)


def confusion_matrix(labels: list[str], counts: list[list[int]]) -> str:
    """Share of each true type that was given each label."""
    size = min(9.0, 2.6 + 0.42 * len(labels))
    with canvas(size, size) as (figure, (ax,)):
        draw.confusion(ax, labels, counts)
        return svg_text(figure)


def calibration(bins: list[dict[str, float]]) -> str:
    """Share of right answers against confidence; the diagonal is honest."""
    with canvas(4.2, 4.0) as (figure, (ax,)):
        draw.calibration(ax, pd.DataFrame(bins, columns=["confidence", "accuracy", "n"]).astype(float))
        return svg_text(figure)


def two_maps(table: pd.DataFrame) -> str:
    """UMAP of the model's embeddings beside UMAP of a PCA, colored by the true type."""
    colors = colors_of(sorted(table["truth"].unique()))
    with canvas(9.6, 4.6, n_axes=2) as (figure, axes):
        for ax, (x, y, title) in zip(
            axes,
            (("umap_x", "umap_y", "cytoglot embeddings"), ("pca_umap_x", "pca_umap_y", "PCA of log counts")),
            strict=True,
        ):
            draw.points(ax, table[x], table[y], table["truth"], colors=colors)
            ax.set_title(title, fontsize=11, color=INK)
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
        _legend_below(figure, axes[0])
        return svg_text(figure)


def reconstruction(points: dict[str, list[float]]) -> str:
    """Expression against log-rank, and observed against reconstructed expression, of held-out cells."""
    with canvas(9.6, 4.0, n_axes=2) as (figure, (left, right)):
        options: dict[str, Any] = {"gridsize": 40, "mincnt": 1, "bins": "log", "linewidths": 0.1}
        if points["observed"]:
            left.hexbin(points["log_rank"], points["expression"], cmap="BuGn", **options)
            right.hexbin(points["observed"], points["predicted"], cmap="BuGn", **options)
        order = np.argsort(points["log_rank"])
        left.scatter(
            np.array(points["log_rank"])[order], np.array(points["predicted"])[order], s=3, color=SECOND, alpha=0.25,
            linewidths=0, label="rank curve",
        )  # fmt: skip
        left.set(xlabel="log10(rank)", ylabel="log10(1 + counts per 10,000)")
        left.legend(frameon=False, fontsize=9, markerscale=3, loc="upper right")
        top = max([*points["observed"], *points["predicted"], 1e-9])
        right.plot([0, top], [0, top], color=MUTED, lw=1, ls="--")
        right.set(xlabel="observed", ylabel="reconstructed from the rank")
        return svg_text(figure)


def generated_cells(points: list[dict[str, Any]]) -> str:
    """Generated (crosses) and held-out cells (dots) in the space of real training cells."""
    table = pd.DataFrame(points, columns=["cell_type", "method", "x", "y"])
    with canvas(6.6, 4.8) as (figure, (ax,)):
        draw.generated_points(ax, table.assign(is_generated=table["method"] != "held_out_cells"))
        _legend_below(figure, ax)
        return svg_text(figure)


def markers(rows: list[dict[str, Any]]) -> str:
    """Share of real (dots) and of generated cells (crosses) that show each marker gene, type by type."""
    table = pd.DataFrame(rows, columns=["cell_type", "gene", "held_out", "generated", "other_types"])
    types = list(dict.fromkeys(table["cell_type"]))
    # A line for each gene and one for the name of its type; narrow, so that letters are of a size to read on a phone.
    n_lines = len(table) + len(types)
    with canvas(4.2, 0.9 + 0.19 * n_lines) as (figure, (ax,)):
        y, ticks = 0, {}
        for name in types:
            ax.text(0, y, name, va="center", fontsize=9, color=INK, fontweight="bold")
            for row in table[table["cell_type"] == name].itertuples():
                y += 1
                ticks[y] = row.gene
                ax.plot([row.held_out, row.generated], [y, y], color=GRID, lw=2, zorder=1)
                ax.plot(row.other_types, y, "|", color=MUTED, ms=7, label="real cells of other types")
                ax.plot(row.held_out, y, "o", color=INK, ms=5, label="real cells of the type")
                ax.plot(row.generated, y, "x", color=ACCENT, ms=6, mew=2, label="generated cells of the type")
            y += 1
        ax.set_yticks(list(ticks), list(ticks.values()), fontsize=8)
        ax.set(xlim=(-0.03, 1.03), ylim=(n_lines - 0.3, -0.8), xlabel="share of cells whose sentence has the gene")
        handles, labels = ax.get_legend_handles_labels()
        if handles:
            shown = dict(zip(labels, handles, strict=True))
            figure.legend(shown.values(), shown.keys(), loc="outside upper left", frameon=False, fontsize=8)
        return svg_text(figure)


def method_bars(rows: list[dict[str, Any]], metric: str) -> str:
    """One metric of every method with its 95 % interval, best on top."""
    shown = [row for row in rows if row["metric"] == metric and row["value"] is not None]
    shown.sort(key=lambda row: row["value"])
    with canvas(6.6, 0.6 + 0.42 * len(shown)) as (figure, (ax,)):
        for y, row in enumerate(shown):
            ours = row["method"].startswith("cytoglot")
            ax.barh(y, row["value"], color=ACCENT if ours else MUTED, height=0.62, alpha=0.9 if ours else 0.6)
            if row["low"] is not None:
                ax.plot([row["low"], row["high"]], [y, y], color=INK, lw=1.4)
            ax.text(1.03, y, f"{row['value']:.3f}", va="center", fontsize=9, color=INK)
        ax.set_yticks(range(len(shown)), [row["method"].replace("_", " ") for row in shown])
        ax.set(xlim=(0, 1.14), xlabel={"macro_f1": "macro-F1"}.get(metric, metric.replace("_", " ")))
        ax.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
        return svg_text(figure)


def _legend_below(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8, markerscale=1.2)
