"""The drawings themselves: plain tables onto matplotlib axes, for `cytoglot.pl`, the report and the other pages.

Nothing here reads a file or knows a model, so that a report can import it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from cytoglot.pl.style import ACCENT, GRID, INK, MUTED, colors_of, plain, shuffled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cytoglot.sentence.rank_curve import RankCurve


def confusion(ax: Axes, labels: Sequence[str], counts: ArrayLike) -> None:
    """Draw counts of truth (rows) by prediction (columns); the color is the share of the row, empty rows stay white.

    A last label "unassigned" that is no cell's truth has a column and no row.
    """
    n = len(labels)
    counts_kk = np.asarray(counts, dtype=float).reshape(n, n)
    if n and labels[-1] == "unassigned" and not counts_kk[-1].any():
        counts_kk = counts_kk[:-1]
    share_kk = counts_kk / np.maximum(counts_kk.sum(axis=1, keepdims=True), 1)
    if counts_kk.size:
        ax.imshow(share_kk, cmap="BuGn", vmin=0, vmax=1)
    names = [plain(label) for label in labels]
    ax.set_xticks(range(n), names, rotation=90)
    ax.set_yticks(range(len(counts_kk)), names[: len(counts_kk)])
    ax.set(xlabel="predicted", ylabel="truth")
    size = 8 if n <= 16 else 6
    for i, j in zip(*np.nonzero(counts_kk), strict=True):
        shade = "white" if share_kk[i, j] > 0.6 else INK
        ax.text(j, i, f"{int(counts_kk[i, j])}", ha="center", va="center", fontsize=size, color=shade)


def calibration(ax: Axes, bins: pd.DataFrame) -> None:
    """Draw the share of right answers against confidence, with 95 % Wilson intervals; the area is the number of cells.

    `bins` has the columns confidence, accuracy and n.
    """
    ax.plot([0, 1], [0, 1], color=MUTED, lw=1, ls="--")
    ax.set(xlim=(0, 1.02), ylim=(-0.02, 1.02), xlabel="confidence", ylabel="share of right answers")
    ax.grid(color=GRID)
    if not len(bins):
        return
    confidence, share, n = (bins[name].to_numpy(float) for name in ("confidence", "accuracy", "n"))
    z = 1.96
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    ax.vlines(confidence, middle - half, middle + half, color=ACCENT, lw=1.2, alpha=0.5)
    ax.scatter(confidence, share, s=20 + 180 * n / n.max(), color=ACCENT, alpha=0.85, edgecolor="white")
    error = float((n * np.abs(share - confidence)).sum() / n.sum())
    ax.text(0.03, 0.97, f"ECE {error:.3f}\n{int(n.sum()):,} cells", transform=ax.transAxes, va="top", color=INK)


def points(
    ax: Axes,
    x: ArrayLike,
    y: ArrayLike,
    names: ArrayLike,
    *,
    colors: Mapping[str, str] | None = None,
    sizes: ArrayLike | None = None,
    alpha: ArrayLike = 0.9,
    marker: str = "o",
    labeled: bool = True,
) -> None:
    """Draw cells colored by name, in mixed order, so that the last name does not cover the others.

    `labeled` adds one entry to the legend for each name.
    """
    from matplotlib.colors import to_rgba_array

    names_n = np.asarray(names, dtype=object).astype(str)
    known = colors if colors is not None else colors_of(sorted(set(names_n)))
    order = shuffled(len(names_n))
    n = max(len(names_n), 1)
    size_n = np.broadcast_to(np.clip(6000 / n, 3, 22) if sizes is None else np.asarray(sizes, float), len(names_n))
    rgba_n4 = to_rgba_array([known[name] for name in names_n]).reshape(-1, 4)
    rgba_n4[:, 3] = alpha
    lines: dict[str, Any] = {"linewidths": 1.2} if marker == "x" else {"linewidths": 0}
    x_n, y_n = np.asarray(x, float), np.asarray(y, float)
    ax.scatter(x_n[order], y_n[order], s=size_n[order], c=rgba_n4[order], marker=marker, **lines)
    for name in [name for name in known if name in set(names_n)] if labeled else ():
        ax.scatter([], [], s=22, color=known[name], label=plain(name), linewidths=0)


def generated_points(ax: Axes, table: pd.DataFrame) -> None:
    """Draw real cells as dots and generated ones as crosses; `table` has cell_type, x, y and is_generated."""
    colors = colors_of(sorted(table["cell_type"].astype(str).unique()))
    for is_generated, marker, size, alpha in ((False, "o", 14, 0.45), (True, "x", 24, 1.0)):
        cells = table[table["is_generated"].astype(bool) == is_generated]
        points(
            ax, cells["x"], cells["y"], cells["cell_type"], colors=colors, sizes=size, alpha=alpha, marker=marker,
            labeled=False,
        )  # fmt: skip
    for name in sorted(table["cell_type"].astype(str).unique()):
        ax.scatter([], [], s=22, color=colors[name], label=plain(name), linewidths=0)
    ax.scatter([], [], s=22, color=MUTED, label="real cells", linewidths=0)
    ax.scatter([], [], s=24, color=INK, marker="x", label="generated cells", linewidths=1.2)
    ax.set(xlabel="component 1", ylabel="component 2")
    ax.grid(color=GRID)


def density(
    ax: Axes,
    x: ArrayLike,
    y: ArrayLike,
    *,
    x_log: bool = False,
    extent: tuple[float, float, float, float] | None = None,
) -> None:
    """Draw points as hexagons of density: a scatter of millions of points is slow and shows its outline only."""
    x_n, y_n = np.asarray(x, float), np.asarray(y, float)
    if x_log:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(lambda rank, _: f"{rank:,.0f}")  # the default writes powers as mathematics
    if not x_n.size:
        return
    if extent is not None:
        inside = (y_n >= extent[2]) & (y_n <= extent[3])  # a reference line may leave the frame
        x_n, y_n = x_n[inside], y_n[inside]
    scale: dict[str, Any] = {"xscale": "log" if x_log else "linear", "extent": extent}
    ax.hexbin(x_n, y_n, gridsize=55, bins="log", mincnt=1, cmap="Blues", linewidths=0.1, **scale)


def curve_line(ax: Axes, curve: RankCurve, *, last_rank: int, n_expressed: float, **style: Any) -> None:
    """Draw what a rank curve predicts at the ranks up to `last_rank`, in a cell of `n_expressed` genes."""
    ranks = np.unique(np.geomspace(1, max(last_rank, 2), 400).astype(np.int64))
    length: NDArray[np.float64] = np.full(len(ranks), n_expressed, dtype=float)
    ax.plot(ranks, curve.predict(ranks, np.zeros(len(ranks), dtype=np.int64), length), **style)
