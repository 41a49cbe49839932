"""Controls: what a score is worth where nothing was learned, and where nothing was even looked at."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from cytoglot.benchmark.embedders.base import EMBEDDERS
from cytoglot.benchmark.embedders.expression import LogExpression

if TYPE_CHECKING:
    from anndata import AnnData


@EMBEDDERS.register("random_projection")
class RandomProjection:
    """ln(1 + counts per 10,000) times a Gaussian matrix: distances of expression, and nothing learned.

    Parameters
    ----------
    n_components
        Columns of the matrix; its entries have variance 1 / n_components.
    seed
        Of the matrix. A gene has the same row wherever it stands, as it is drawn from its name.
    """

    def __init__(self, *, n_components: int = 50, seed: int = 0) -> None:
        self.n_components, self.seed = n_components, seed
        self._expression = LogExpression()

    def fit(self, train: AnnData) -> Self:
        """Keep the training genes."""
        self._expression.fit(train)
        rows = [_vector_of(str(gene), self.n_components, self.seed) for gene in self._expression.genes]
        self._projection_gd = np.array(rows) / np.sqrt(self.n_components)
        return self

    def embed(self, adata: AnnData) -> NDArray[np.float32]:
        """Return float32 of shape (n_cells, n_components)."""
        return np.asarray(self._expression.matrix(adata) @ self._projection_gd, dtype=np.float32)


@EMBEDDERS.register("random_vectors")
class RandomVectors:
    """A Gaussian vector drawn from the name of each cell: knows nothing of it.

    Parameters
    ----------
    n_components
        Their length.
    seed
        Of the vectors.
    """

    def __init__(self, *, n_components: int = 50, seed: int = 0) -> None:
        self.n_components, self.seed = n_components, seed

    def embed(self, adata: AnnData) -> NDArray[np.float32]:
        """Return float32 of shape (n_cells, n_components)."""
        rows = [_vector_of(str(name), self.n_components, self.seed) for name in adata.obs_names]
        return np.array(rows, dtype=np.float32).reshape(adata.n_obs, self.n_components)


def _vector_of(name: str, n: int, seed: int) -> NDArray[np.float64]:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little")).standard_normal(n)
