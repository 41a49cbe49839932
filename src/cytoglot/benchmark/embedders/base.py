"""The registry of embedders, and what one may say of itself beyond the `CellEmbedder` socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cytoglot.errors import CytoglotError
from cytoglot.protocols import CellEmbedder, FittedCellEmbedder
from cytoglot.registry import Registry

if TYPE_CHECKING:
    from anndata import AnnData

BATCH = "batch"
"""column of obs in which an embedder that corrects batches finds them"""

EMBEDDERS: Registry[Callable[..., CellEmbedder]] = Registry(
    "embedder",
    tuple(
        f"cytoglot.benchmark.embedders.{module}"
        for module in (
            "expression",
            "principal_components",
            "rank_components",
            "batch_corrected",
            "random_vectors",
            "gene_vectors",
            "language_model",
            "precomputed",
            "runner",
        )
    ),
)


def needs_fit(embedder: CellEmbedder) -> bool:
    """Return whether an embedder learns from training cells, so that each fold needs its own."""
    return isinstance(embedder, FittedCellEmbedder)


def fit_embedder(embedder: CellEmbedder, train: AnnData) -> CellEmbedder:
    """Fit on training cells what can be fitted, and return it."""
    return embedder.fit(train) if isinstance(embedder, FittedCellEmbedder) else embedder


def sees_all_cells(embedder: CellEmbedder) -> bool:
    """Return whether the vector of a cell depends on the cells beside it: such a method cannot embed new cells."""
    return bool(getattr(embedder, "sees_all_cells", False))


def checked_vectors(embedding_nd: NDArray[np.floating], n_cells: int, *, name: str) -> NDArray[np.float32]:
    """Return the vectors as float32.

    Raises
    ------
    CytoglotError
        They are no matrix with a row for each cell, have no column, or hold NaN or infinite values.
    """
    vectors_nd = np.asarray(embedding_nd, dtype=np.float32)
    if vectors_nd.ndim != 2 or len(vectors_nd) != n_cells or (n_cells and not vectors_nd.shape[1]):
        raise CytoglotError(f"{name} gave an array of shape {vectors_nd.shape} for {n_cells} cells; expected (n, d)")
    faulty = int((~np.isfinite(vectors_nd)).any(axis=1).sum())
    if faulty:
        raise CytoglotError(f"{name} gave NaN or infinite values for {faulty} of {n_cells} cells")
    return vectors_nd
