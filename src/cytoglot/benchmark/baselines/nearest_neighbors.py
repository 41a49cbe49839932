"""Votes of the nearest training cells in principal components."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from cytoglot.benchmark.baselines.base import (
    BASELINES,
    Choice,
    GeneInput,
    LabelledMatrix,
    Probabilities,
    choose,
    label_set,
    validation_part,
)
from cytoglot.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData


@BASELINES.register("nearest_neighbors")
class NearestNeighbors:
    """k nearest neighbors, Euclidean, one vote each, on principal components of ln(1 + counts per 10,000).

    Parameters
    ----------
    n_components
        At most; the components are those of the training cells alone, genes centred and not scaled.
    n_neighbors
        Values of k to try, the first one being taken where there is nothing to choose on.
    """

    def __init__(
        self, *, seed: int = 0, n_components: int = 50, n_neighbors: tuple[int, ...] = (15, 5, 10, 30, 50)
    ) -> None:
        self.seed = seed
        self.n_components = n_components
        self.n_neighbors = n_neighbors
        self.labels: tuple[str, ...] = ()
        self.chosen: Mapping[str, Choice] = {}

    def fit(
        self,
        train: AnnData,
        train_labels: ArrayLike,
        validation: AnnData | None = None,
        validation_labels: ArrayLike = (),
    ) -> Self:
        """Fit the components on the training cells and choose k on the validation cells, which never vote.

        Raises
        ------
        InputError
            There are fewer than three training cells or genes.
        """
        self._genes = GeneInput.of(train)
        cells = self._genes.labelled(train, train_labels)
        if min(cells.matrix_ng.shape) < 3:
            raise InputError(f"nearest neighbors need at least 3 cells and 3 genes, found {cells.matrix_ng.shape}")
        self.labels = label_set(cells.labels_n)
        validation = train[:0] if validation is None else validation
        fitted_on, chosen_on = validation_part(cells, self._genes.labelled(validation, validation_labels), self.seed)
        k = self._choose(fitted_on, chosen_on) if len(chosen_on) else self.n_neighbors[0]
        self._components = self._fit_components(cells)
        self._neighbors = _voters(self._components, cells, k)
        self.chosen = {"k": self._neighbors.n_neighbors, "n_components": int(self._components.n_components_)}
        return self

    def predict_proba(self, adata: AnnData) -> Probabilities:
        """Return the shares of the votes, shape (n, l)."""
        if adata.n_obs == 0:
            return np.zeros((0, len(self.labels)))
        vectors = self._components.transform(self._genes.matrix(adata))
        return np.asarray(self._neighbors.predict_proba(vectors), dtype=np.float64)

    def _choose(self, fitted_on: LabelledMatrix, chosen_on: LabelledMatrix) -> int:
        components = self._fit_components(fitted_on)
        query = components.transform(chosen_on.matrix_ng)

        def votes(k: int) -> Probabilities:
            return np.asarray(_voters(components, fitted_on, k).predict_proba(query), dtype=np.float64)

        return choose(self.n_neighbors, votes, chosen_on.labels_n, self.labels)

    def _fit_components(self, cells: LabelledMatrix) -> PCA:
        n_components = min(self.n_components, *(size - 1 for size in cells.matrix_ng.shape))
        # arpack centres a sparse matrix without making it dense.
        return PCA(n_components, svd_solver="arpack", random_state=self.seed).fit(cells.matrix_ng)


def _voters(components: PCA, cells: LabelledMatrix, k: int) -> KNeighborsClassifier:
    vectors = components.transform(cells.matrix_ng)
    return KNeighborsClassifier(min(k, len(cells))).fit(vectors, cells.labels_n.astype(str))
