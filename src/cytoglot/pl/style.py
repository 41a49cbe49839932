"""Colors and frames of all figures, and what the plotting functions do with `ax`, `show`, `save` and `return_fig`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cytoglot.atomic import atomic_path
from cytoglot.errors import InputError
from cytoglot.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID, ACCENT, SECOND, MUTED = "#1d2733", "#e3e8ee", "#0f766e", "#c2410c", "#8a97a6"
#: Thirty colors that can be told apart on white: the nearest two are 0.10 apart in OKLab, as in scanpy's palette of 10;
#: in scanpy's palettes of 20 and of 28 they are 0.05 and 0.03 apart. After the first eight, each is the one farthest
#: from those before it, to normal and to red-green blind eyes.
PALETTE = (
    "#0f766e", "#e8590c", "#4338ca", "#e6ab02", "#be185d", "#66c2f0", "#7a4f1d", "#56b356", "#ce61f3", "#550c55",
    "#ff79aa", "#86559e", "#6186ff", "#004900", "#00e7c2", "#003d79", "#e7aaff", "#86e731", "#6d0018", "#3d7900",
    "#aa8655", "#7900aa", "#006db6", "#f3aa92", "#db3daa", "#b6ce86", "#b66d86", "#3d0086", "#920079", "#0c3d3d",
)  # fmt: skip
NO_LABEL = "#c3cbd4"
"""of cells without a label, and of cells left unassigned"""


def color(i: int) -> str:
    """Return the color of the i-th of several things; from the 31st on the colors come again."""
    return PALETTE[i % len(PALETTE)]


def colors_of(names: Iterable[str]) -> dict[str, str]:
    """Return the color of each label, in the order of the labels; "unassigned" and "no label" are gray."""
    known = [name for name in names if name not in ("unassigned", "no label")]
    return {name: color(i) for i, name in enumerate(known)} | {"unassigned": NO_LABEL, "no label": NO_LABEL}


def plain(text: object) -> str:
    """Return text that matplotlib writes as it is: a `$` in the name of a cell type is no formula."""
    import matplotlib

    return str(text).replace("$", r"\$") if matplotlib.rcParams["text.parse_math"] else str(text)


def frame(ax: Axes) -> None:
    """Give the axes of a figure the look of all figures."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(MUTED)
    ax.tick_params(colors=INK, labelsize=9)
    ax.set_axisbelow(True)


def axes_for(ax: Axes | None, *, width: float, height: float) -> Axes:
    """Return the caller's axes as they are, or those of a new figure of this size in inches.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed; the message says what to install.
    """
    require("matplotlib", extra="report", purpose="a plot")
    if ax is not None:
        return ax
    from matplotlib import pyplot

    _, ax = pyplot.subplots(figsize=(width, height), layout="constrained")
    frame(ax)
    return ax


def finish(ax: Axes, *, show: bool | None, save: str | Path | None, return_fig: bool) -> Axes | Figure | None:
    """Save and show a figure where that is wanted; return the axes, or the figure, or None if it was shown.

    Raises
    ------
    InputError
        `save` has a suffix of no format that matplotlib writes.
    """
    figure = ax.get_figure(root=True)
    if figure is None:
        raise InputError("ax was removed from its figure; pass axes of a figure")
    if save is not None:
        known = figure.canvas.get_supported_filetypes()
        if Path(save).suffix.removeprefix(".").lower() not in known:
            raise InputError(f"save must end in one of .{', .'.join(sorted(known))}, found {str(save)!r}")
        with atomic_path(save) as path:
            figure.savefig(path, dpi=150, bbox_inches="tight", facecolor="white")
    if return_fig:
        return figure
    if show:
        from matplotlib import pyplot

        pyplot.show()
        return None
    return ax


def shuffled(n: int) -> np.ndarray:
    """Return an order in which no kind of points lies on top of all others, the same each time."""
    return np.random.default_rng(0).permutation(n)
