"""Labels that another tool predicted, in a column of the cells: judged like any method, with nothing to fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from cytoglot.benchmark.classifiers.base import CLASSIFIERS, Probabilities
from cytoglot.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

    from cytoglot.protocols import CellEmbedder


@CLASSIFIERS.register("given")
class GivenLabels:
    """The labels of a column of obs, with probability 1; how they came about is not known.

    Parameters
    ----------
    column
        Its name. A cell without a label there gets the label "unassigned".
    seed, embedder
        Not used; every classifier has them.
    """

    sees_all_cells = True

    def __init__(self, *, column: str, seed: int = 0, embedder: CellEmbedder | None = None) -> None:
        self.column = column
        self.labels: tuple[str, ...] = ()
        self.chosen: Mapping[str, Any] = {}

    def fit(
        self,
        train: AnnData,
        train_labels: ArrayLike,
        validation: AnnData | None = None,
        validation_labels: ArrayLike = (),
    ) -> Self:
        """Note the labels that occur; an InputError without the column."""
        if self.column not in train.obs:
            raise InputError(f"there is no column {self.column!r} of predicted labels in these cells")
        self.labels = tuple(sorted({*map(str, np.asarray(train_labels)), *self._given(train), "unassigned"}))
        return self

    def predict_proba(self, adata: AnnData) -> Probabilities:
        """Return 1 for the given label, shape (n, l)."""
        given = self._given(adata)
        self.labels = tuple(sorted({*self.labels, *given}))
        return np.array([[float(label == one) for label in self.labels] for one in given]).reshape(
            adata.n_obs, len(self.labels)
        )

    def _given(self, adata: AnnData) -> list[str]:
        values = adata.obs[self.column].astype(object)
        return [str(value) for value in values.where(values.notna(), "unassigned")]
