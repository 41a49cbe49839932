"""How right the labels are, and how honest their confidence is: of labeled cells, or of an evaluation."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cytoglot.errors import InputError, UnknownNameError
from cytoglot.metrics import classification
from cytoglot.pl import draw
from cytoglot.pl.style import axes_for, finish

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cytoglot.benchmark.evaluate import Evaluation

logger = logging.getLogger(__name__)


def confusion(
    data: AnnData | Evaluation | str | Path,
    truth: str | None = None,
    predicted: str = "cytoglot_cell_type",
    *,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw how many cells of each true type were given each label; the color is the share of the true type.

    Labels stand in alphabetical order, first those of the truth, then those that were only predicted; "unassigned" is
    last. Cells without a true label are left out. Without any cell the axes stay empty.

    Parameters
    ----------
    data
        Labeled cells, or an evaluation: the result of `cytoglot.evaluate` or its folder.
    truth, predicted
        Columns of obs; not used for an evaluation.
    ax
        Axes to draw on; None makes a figure.
    show
        True shows the figure and returns None.
    save
        File to write; its suffix chooses the format.
    return_fig
        Return the figure, not the axes.

    Raises
    ------
    InputError
        `truth` is missing, there is no such column, or the folder holds no evaluation.

    Examples
    --------
    >>> import cytoglot as cg
    >>> adata = cg.load_dataset("pbmc68k_reduced")
    >>> ax = cg.pl.confusion(adata, "cell_type", "louvain", save="confusion.png")
    """
    content = stored(data, "confusion.json")
    if content is not None:
        labels, counts = list(content["labels"]), np.asarray(content["counts"])
    else:
        cells = _labeled(data, truth, predicted)
        found = classification.confusion(cells["truth"].to_numpy(object), cells["predicted"].to_numpy(object))
        labels, counts = list(found.labels), found.counts
    # `reshape`, as the counts of no label at all have one dimension
    order = sorted(range(len(labels)), key=lambda i: labels[i] == "unassigned")
    counts = counts.reshape(len(labels), len(labels))[np.ix_(order, order)]
    size = min(9.0, 2.6 + 0.42 * len(labels))
    ax = axes_for(ax, width=size, height=size)
    draw.confusion(ax, [labels[i] for i in order], counts)
    return finish(ax, show=show, save=save, return_fig=return_fig)


def calibration(
    data: AnnData | Evaluation | str | Path,
    truth: str | None = None,
    predicted: str = "cytoglot_cell_type_best",
    confidence: str = "cytoglot_cell_type_confidence",
    *,
    n_bins: int = 15,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw a reliability diagram: the share of right labels among cells of like confidence.

    Points on the dashed line are honest, points below it are overconfident. The area of a point is its number of cells,
    the bar its 95 % Wilson interval; ECE is the mean distance from the line, weighted by cells. Cells without a true
    label or with a confidence of NaN are left out. Without any cell only the line is drawn.

    Parameters
    ----------
    data
        Labeled cells, or an evaluation: the result of `cytoglot.evaluate` or its folder.
    truth, predicted, confidence
        Columns of obs; not used for an evaluation. `predicted` is the best label, also of cells left unassigned.
    n_bins
        Bins of equal width between 0 and 1; not used for an evaluation, whose bins are stored.
    ax
        Axes to draw on; None makes a figure.
    show
        True shows the figure and returns None.
    save
        File to write; its suffix chooses the format.
    return_fig
        Return the figure, not the axes.

    Raises
    ------
    InputError
        `truth` is missing, there is no such column, or the folder holds no evaluation.

    Examples
    --------
    >>> import cytoglot as cg
    >>> adata = cg.annotate(cg.read("cells.h5ad")[:50], "model", copy=True)
    >>> ax = cg.pl.calibration(adata, "cell_type")
    """
    content = stored(data, "calibration.json")
    if content is not None:
        bins = pd.DataFrame(content, columns=["confidence", "accuracy", "n"])
    else:
        cells = _labeled(data, truth, predicted, confidence)
        confidence_n, right = (
            cells["confidence"].to_numpy(float),
            (cells["truth"] == cells["predicted"]).to_numpy(float),
        )
        known = ~np.isnan(confidence_n)
        found = classification.calibration_bins(confidence_n[known], right[known], n_bins=n_bins)
        bins = pd.DataFrame([vars(one) for one in found], columns=["confidence", "accuracy", "n"])
    ax = axes_for(ax, width=4.4, height=4.2)
    draw.calibration(ax, bins)
    return finish(ax, show=show, save=save, return_fig=return_fig)


def stored(data: AnnData | Evaluation | str | Path, name: str) -> Any:
    """Return what a file of an evaluation holds; None for cells.

    Raises
    ------
    InputError
        The folder has no such file.
    """
    folder = data if isinstance(data, (str, Path)) else getattr(data, "folder", None)
    if folder is None:
        return None
    path = Path(folder) / name
    if not path.is_file():
        raise InputError(f"{folder} holds no {name}; pass the folder that `cytoglot evaluate -o` wrote, or an AnnData")
    return json.loads(path.read_text(encoding="utf-8"))


def _labeled(data: Any, truth: str | None, predicted: str, confidence: str | None = None) -> pd.DataFrame:
    """Return truth, predicted and confidence of the cells with a true label; a missing prediction is "unassigned"."""
    from cytoglot.data.schema import labels

    if truth is None:
        raise InputError("pass truth, the column of obs with the true labels")
    if confidence is not None and confidence not in data.obs:
        raise UnknownNameError("column of obs", confidence, map(str, data.obs.columns))
    table = pd.DataFrame({"truth": labels(data.obs, truth)})
    table["predicted"] = labels(data.obs, predicted).fillna("unassigned")
    table["confidence"] = np.nan if confidence is None else data.obs[confidence]
    known = table["truth"].notna()
    if not known.all():
        logger.info("%d of %d cells have no label in %s and are left out", (~known).sum(), len(known), truth)
    return table[known]
