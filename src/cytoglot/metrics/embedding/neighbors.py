"""Exact nearest neighbors of the cells of an embedding, and the graphs that are made of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from cytoglot.metrics.embedding.arrays import Floats, embedding_array

_TILE_VALUES = 1 << 23
"""inner products that are held at a time: 32 MB"""
_HALF_ULP = 2.0**-24
"""largest relative error of rounding to single precision"""


@dataclass(frozen=True, kw_only=True)
class Neighbors:
    """The nearest other cells of each cell, nearest first; the cell itself is not among them."""

    indices_nk: NDArray[np.int64]
    distances_nk: Floats

    def __post_init__(self) -> None:
        if self.indices_nk.ndim != 2 or self.indices_nk.shape != self.distances_nk.shape:
            shapes = f"{self.indices_nk.shape} and {self.distances_nk.shape}"
            raise ValueError(f"indices and distances of neighbors have one shape, (cells, k); found {shapes}")

    def __len__(self) -> int:
        return len(self.indices_nk)

    @property
    def k(self) -> int:
        """How many neighbors each cell has."""
        return self.indices_nk.shape[1]

    def first(self, k: int) -> Neighbors:
        """Return the `k` nearest of each cell, or all if there are fewer."""
        return Neighbors(indices_nk=self.indices_nk[:, :k], distances_nk=self.distances_nk[:, :k])

    def graph(self, weights_nk: NDArray[np.float64] | None = None) -> csr_matrix:
        """Return the directed graph with an edge from each cell to its neighbors, of weight 1 or as given."""
        n, k = self.indices_nk.shape
        weights = np.ones(n * k) if weights_nk is None else weights_nk.ravel()
        return csr_matrix((weights, self.indices_nk.ravel(), np.arange(n + 1) * k), shape=(n, n))


def nearest_neighbors(embedding_nd: ArrayLike, k: int) -> Neighbors:
    """Return the `k` nearest other cells of each cell by Euclidean distance; equal distances are ordered by index.

    The result is exact: inner products in single precision, with a bound of their error, tell which cells can be among
    the nearest, and the distances of these are computed in double precision. For 50,000 cells in 50 dimensions that is
    some 10 seconds of one core; memory grows with n·k.

    Parameters
    ----------
    embedding_nd
        Finite vectors, (n, d).
    k
        Neighbors of each cell, the cell itself not counted. scib-metrics counts it: their 90 are our 89.

    Raises
    ------
    ValueError
        `k` is not between 1 and the number of other cells.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.nearest_neighbors([[0.0], [1.0], [3.0]], k=1).indices_nk.ravel().tolist()
    [1, 0, 1]
    """
    # Loaded here, so that a package that only names metrics does not wait for a compiler.
    from cytoglot.metrics.embedding.kernels import choose_neighbors

    exact_nd = embedding_array(embedding_nd)
    n, n_dimensions = exact_nd.shape
    if not 1 <= k < n:
        raise ValueError(f"k is from 1 to the number of other cells, found k = {k} with {n} cells")
    centered_nd = exact_nd - exact_nd.mean(axis=0)
    rough_nd = (centered_nd / max(np.abs(centered_nd).max(initial=0.0), np.finfo(float).tiny)).astype(np.float32)
    squared_n = np.square(rough_nd, dtype=np.float64).sum(axis=1)
    # An inner product of rounded vectors is wrong by d half units in the last place of the lengths' product, rounding
    # the vectors adds 4 of them to the squared distance; what is smaller than single precision holds needs the rest.
    error_n = (n_dimensions + 8) * _HALF_ULP * squared_n + 1e-30
    indices_nk, distances_nk = np.empty((n, k), dtype=np.int64), np.empty((n, k))
    n_rows = max(1, _TILE_VALUES // n)
    for first in range(0, n, n_rows):
        rows = slice(first, first + n_rows)
        products_rn = rough_nd[rows] @ rough_nd.T
        choose_neighbors(products_rn, first, exact_nd, squared_n, error_n, indices_nk[rows], distances_nk[rows])
    return Neighbors(indices_nk=indices_nk, distances_nk=distances_nk)
