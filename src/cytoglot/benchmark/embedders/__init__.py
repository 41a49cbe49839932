"""Cells as vectors, by methods that are no language model and by those that are; start with `base`, then `expression`.

One file each: a class with `embed`, `fit` where it learns from training cells, and `sees_all_cells = True` where it
cannot embed new cells. `EMBEDDERS` names them.
"""

from cytoglot.benchmark.embedders.base import EMBEDDERS, fit_embedder, needs_fit, sees_all_cells

__all__ = ["EMBEDDERS", "fit_embedder", "needs_fit", "sees_all_cells"]
