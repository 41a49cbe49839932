"""The figures of the page about a corpus, as SVG text to put into the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cytoglot.pl.style import ACCENT, GRID, INK, MUTED
from cytoglot.report.figures import canvas, svg_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from cytoglot.corpus.format.folder import Part
    from cytoglot.corpus.inspect.statistics import Binned, GeneNumbers, TokenNumbers
    from cytoglot.corpus.inspect.task_balance import TaskLine

_PARTS: tuple[tuple[Part, str], ...] = (("train", ACCENT), ("validation", "#b45309"), ("test", "#4338ca"))
_SEVERAL_PARTS = "#be185d"
_WAYS = ("#0369a1", MUTED, "#7c3aed")
_LONGEST = 34


def stacked_bars(rows: Sequence[tuple[str, Mapping[Part, int]]], *, width: float = 8.4) -> str:
    """Cells of each row, the first on top, with its parts beside each other and their sum behind them."""
    room = max(len(rows), 1)
    with canvas(width, 0.9 + 0.25 * room) as (figure, (ax,)):
        sums = [sum(parts.values()) for _, parts in rows]
        left = np.zeros(len(rows))
        for part, color in _PARTS:
            widths = np.array([parts.get(part, 0) for _, parts in rows], float)
            ax.barh(range(len(rows)), widths, left=left, color=color, height=0.7, label=part)
            left += widths
        most = max([*sums, 1])
        for y, n in enumerate(sums):
            ax.text(n + 0.012 * most, y, f"{n:,}", va="center", fontsize=8, color=INK)
        ax.set_yticks(range(len(rows)), [_short(name) for name, _ in rows])
        ax.set(ylim=(room - 0.4, -0.6), xlim=(0, 1.16 * most), xlabel="cells")
        _whole(ax.xaxis)
        _legend(figure, ax)
        return svg_text(figure)


def genes_per_cell(numbers: Binned) -> str:
    """Share of the cells of each part by their number of ranked genes."""
    with canvas(8.4, 3.4) as (figure, (ax,)):
        for part, color in _PARTS:
            counts = np.array(numbers.counts[part], float)
            if counts.sum():
                ax.stairs(100 * counts / counts.sum(), numbers.edges, color=color, lw=1.8, label=part)
        _log_axis(ax, numbers.edges)
        ax.set(xlabel="ranked genes of a cell (log scale)", ylabel="% of the part's cells")
        ax.grid(color=GRID)
        _legend(figure, ax)
        return svg_text(figure)


def group_sizes(sizes: Mapping[Part, Mapping[int, int]]) -> str:
    """Cell groups by the number of their cells."""
    last = max((n for counts in sizes.values() for n in counts), default=1)
    with canvas(4.8, 2.9) as (figure, (ax,)):
        bottom = np.zeros(last + 1)
        for part, color in _PARTS:
            counts = np.array([sizes.get(part, {}).get(n, 0) for n in range(last + 1)], float)
            ax.bar(range(last + 1), counts, bottom=bottom, color=color, width=0.8, label=part)
            bottom += counts
        ax.set(xlim=(0.3, last + 0.7), xlabel="cells in a group", ylabel="cell groups")
        _whole(ax.xaxis, 10)
        ax.yaxis.grid(color=GRID)
        _whole(ax.yaxis)
        _legend(figure, ax)
        return svg_text(figure)


def cells_per_donor(numbers: Binned) -> str:
    """Donors by the number of their cells; one whose cells are in several parts has a color of its own."""
    with canvas(4.8, 2.9) as (figure, (ax,)):
        edges, colors = np.array(numbers.edges), {str(part): color for part, color in _PARTS}
        bottom = np.zeros(len(edges) - 1)
        for where, counts in numbers.counts.items():
            if sum(counts):
                color = colors.get(where, _SEVERAL_PARTS)
                widths = 0.94 * np.diff(edges)
                ax.bar(edges[:-1], counts, widths, bottom=bottom, align="edge", color=color, label=where)
                bottom += counts
        _log_axis(ax, numbers.edges)
        ax.set(xlabel="cells of a donor (log scale)", ylabel="donors")
        _whole(ax.yaxis)
        ax.yaxis.grid(color=GRID)
        _legend(figure, ax)
        return svg_text(figure)


def cut_off(rows: Sequence[TokenNumbers]) -> str:
    """Share of the cells whose sentence does not fit a context, for each way to count tokens."""
    contexts = sorted({row.context for row in rows})
    ways = sorted({row.tokens_per_gene for row in rows})
    with canvas(4.8, 2.9) as (figure, (ax,)):
        width = 0.8 / max(len(ways), 1)
        for i, (way, color) in enumerate(zip(ways, _WAYS, strict=False)):
            shares = {row.context: 100 * row.share_of_cells_cut for row in rows if row.tokens_per_gene == way}
            places = np.arange(len(contexts)) + (i - (len(ways) - 1) / 2) * width
            heights = [shares[context] for context in contexts]
            label = f"{way:g} token{'s' if way != 1 else ''} a gene"
            ax.bar(places, heights, width=0.92 * width, color=color, label=label)
            for x, height in zip(places, heights, strict=True):
                text = f"{height:.0f}" if height >= 10 or height == 0 else f"{height:.1f}"
                ax.text(x, height + 1.5, text, ha="center", fontsize=8, color=INK)
        ax.set_xticks(range(len(contexts)), [f"{context:,}" for context in contexts])
        ax.set(ylim=(0, 108), xlabel="context (tokens)", ylabel="% of the cells cut off")
        ax.set_yticks([0, 25, 50, 75, 100])
        ax.yaxis.grid(color=GRID)
        _legend(figure, ax)
        return svg_text(figure)


def task_balance(lines: Sequence[TaskLine]) -> str:
    """Records that each task can ask, a point for each part; tasks that can ask none are at the bottom."""
    ordered = sorted(lines, key=lambda line: (-sum(line.records.values()), line.task))
    with canvas(8.4, 0.9 + 0.27 * max(len(ordered), 1)) as (figure, (ax,)):
        most = max((n for line in ordered for n in line.records.values()), default=0)
        for y, line in enumerate(ordered):
            known = [n for n in line.records.values() if n]
            if known:
                ax.plot([min(known), max(known)], [y, y], color=GRID, lw=3, zorder=1)
            else:
                ax.text(1, y, "nothing to ask", va="center", fontsize=8, color=MUTED)
        # A larger marker below a smaller one, so that parts with the same number are all seen.
        for (part, color), size in zip(_PARTS, (84, 46, 20), strict=True):
            places = [y for y, line in enumerate(ordered) if line.records.get(part)]
            ax.scatter(
                [ordered[y].records[part] for y in places],
                places,
                color=color,
                s=size,
                label=part,
                zorder=2,
                linewidths=0,
            )
        ax.set_yticks(range(len(ordered)), [line.task.replace("_", " ") for line in ordered])
        ax.set(ylim=(len(ordered) - 0.4, -0.6), xlabel="records that can be asked (log scale)", xscale="log")
        ax.set_xlim(0.8, 2 * max(most, 5))
        _plain_ticks(ax)
        ax.xaxis.grid(color=GRID)
        _legend(figure, ax)
        return svg_text(figure)


def frequent_genes(numbers: GeneNumbers, *, n: int = 30) -> str:
    """Share of all cells that have each of the most frequent genes in their sentence."""
    shown = numbers.frequent[:n]
    with canvas(8.4, 2.7) as (figure, (ax,)):
        ax.bar(range(len(shown)), [100 * row["detection_rate"] for row in shown], color=ACCENT, width=0.75)
        ax.set_xticks(range(len(shown)), [_short(row["gene"]) for row in shown], rotation=90)
        ax.set(xlim=(-0.7, max(len(shown), 1) - 0.3), ylim=(0, 104), ylabel="% of the cells")
        ax.yaxis.grid(color=GRID)
        return svg_text(figure)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _whole(axis: Axis, n_ticks: int = 6) -> None:
    """Write large counts as 20k or 3M, and never a part of a cell."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=n_ticks, steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1))
    axis.set_major_formatter(lambda value, _: _thousands(value))


def _thousands(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _log_axis(ax: Axes, edges: Sequence[float]) -> None:
    ax.set_xscale("log")
    if len(edges):
        ax.set_xlim(edges[0], edges[-1])
    _plain_ticks(ax)


def _plain_ticks(ax: Axes) -> None:
    """The default writes powers as mathematics, and names minor ticks where there is room for none."""
    ax.xaxis.set_major_formatter(lambda value, _: _thousands(value))
    ax.xaxis.set_minor_formatter(lambda _value, _: "")


def _legend(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False, fontsize=9)
