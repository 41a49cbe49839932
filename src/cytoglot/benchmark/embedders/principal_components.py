"""Principal components of variable genes: what most analyses of single cells stand on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from cytoglot.benchmark.embedders.base import EMBEDDERS
from cytoglot.benchmark.embedders.expression import HvgExpression
from cytoglot.data.hvg import Flavor

if TYPE_CHECKING:
    from anndata import AnnData


@EMBEDDERS.register("pca")
class PrincipalComponents:
    """Principal components of `HvgExpression` of the training cells; genes are centred and not scaled.

    Parameters
    ----------
    n_components
        At most; fewer where there are fewer training cells or genes.
    n_top, flavor
        The genes: see `HvgExpression`.
    seed
        Of the start of the iteration, which changes signs at most.
    """

    def __init__(
        self, *, n_components: int = 50, n_top: int = 2000, flavor: Flavor = "pearson_residuals", seed: int = 0
    ) -> None:
        self.n_components, self.seed = n_components, seed
        self._genes = HvgExpression(n_top=n_top, flavor=flavor)

    def fit(self, train: AnnData) -> Self:
        """Choose genes and components among training cells alone."""
        matrix_ng = self._genes.fit(train).matrix(train)
        # arpack centres a sparse matrix without making it dense.
        n_components = max(1, min(self.n_components, matrix_ng.shape[0] - 1, matrix_ng.shape[1] - 1))
        self._pca = PCA(n_components, svd_solver="arpack", random_state=self.seed).fit(matrix_ng)
        return self

    def embed(self, adata: AnnData) -> NDArray[np.float32]:
        """Return float32 of shape (n_cells, n_components)."""
        return np.asarray(self._pca.transform(self._genes.matrix(adata)), dtype=np.float32)
