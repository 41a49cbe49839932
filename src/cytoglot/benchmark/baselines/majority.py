"""Always the most frequent label: the floor of accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import ArrayLike

from cytoglot.benchmark.baselines.base import BASELINES, Choice, Probabilities, checked_labels, label_set

if TYPE_CHECKING:
    from anndata import AnnData


@BASELINES.register("majority")
class Majority:
    """The label frequencies of the training cells for every cell; of equally frequent labels the first is predicted."""

    def __init__(self, *, seed: int = 0) -> None:
        self.labels: tuple[str, ...] = ()
        self.chosen: Mapping[str, Choice] = {}
        self.frequency_l: Probabilities = np.empty(0)

    def fit(
        self,
        train: AnnData,
        train_labels: ArrayLike,
        validation: AnnData | None = None,
        validation_labels: ArrayLike = (),
    ) -> Self:
        """Count labels; there is nothing to choose."""
        labels_n = checked_labels(train, train_labels)
        self.labels = label_set(labels_n)
        self.frequency_l = np.array([(labels_n == label).mean() for label in self.labels])
        return self

    def predict_proba(self, adata: AnnData) -> Probabilities:
        """Return the same frequencies for every cell, shape (n, l)."""
        return np.tile(self.frequency_l, (adata.n_obs, 1))
