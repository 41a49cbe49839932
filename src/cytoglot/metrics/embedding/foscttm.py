"""Matching of paired embeddings: the fraction of samples closer than the true match. Axes: n pairs, d dimensions."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cytoglot.metrics.embedding.arrays import Floats, embedding_array
from cytoglot.metrics.spec import metric

_TILE = 4096
_TOLERANCE = 2e-5
"""far above the error of a single-precision inner product of unit vectors of some thousand dimensions"""


def foscttm_per_pair(x_nd: ArrayLike, y_nd: ArrayLike) -> tuple[Floats, Floats]:
    """Return, for each pair, the share of the other y nearer to its x than its y is, and the share of the other x.

    Nearness is cosine similarity, compared strictly: copies of the true match are not nearer. Inner products are in
    single precision, and in double where they are close to that of the match, so the counts are exact. Memory holds one
    tile of the similarities and the unit vectors in single precision; time grows with n² · d.

    Parameters
    ----------
    x_nd, y_nd
        Finite vectors; row i of one belongs to row i of the other. A vector of length 0 is similar to nothing.

    Returns
    -------
    tuple
        Two arrays of shape (n,) from 0 (nothing is nearer) to 1; NaN with fewer than two pairs.

    Raises
    ------
    ValueError
        The two differ in shape, or hold NaN.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> of_x, of_y = metrics.foscttm_per_pair([[1, 0], [0, 1], [1, 1]], [[0, 1], [1, 0], [1, 1]])
    >>> of_x.tolist()
    [1.0, 1.0, 0.0]
    """
    from cytoglot.metrics.embedding.kernels import count_nearer, exact_product

    x, y = _unit(x_nd), _unit(y_nd)
    if x.shape != y.shape:
        raise ValueError(f"paired embeddings have one shape, found {x.shape} and {y.shape}")
    n = len(x)
    if n < 2:
        return np.full(n, np.nan), np.full(n, np.nan)
    match_n = np.array([exact_product(a, b) for a, b in zip(x, y, strict=True)])
    nearer_x_n, nearer_y_n = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    for row in range(0, n, _TILE):
        for column in range(0, n, _TILE):
            products_rc = x[row : row + _TILE] @ y[column : column + _TILE].T
            count_nearer(products_rc, row, column, x, y, match_n, _TOLERANCE, nearer_x_n, nearer_y_n)
    return nearer_x_n / (n - 1), nearer_y_n / (n - 1)


@metric(
    "foscttm",
    inputs="paired_embeddings",
    direction="lower",
    reference="C2S-Scale's fraction of samples closer than the true match, whose direction is not stated: here the "
    "mean of both directions over n − 1, strictly closer, by cosine; chance is 0.5",
)
def foscttm(x_nd: ArrayLike, y_nd: ArrayLike, *, centered: bool = False) -> float:
    """Return the mean fraction of samples closer than the true match over both directions.

    Parameters
    ----------
    x_nd, y_nd
        As in `foscttm_per_pair`.
    centered
        Whether each of the two is centred first: an offset that all vectors share blurs cosine similarity.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.foscttm([[1, 0], [0, 1], [1, 1]], [[0, 1], [1, 0], [1, 1]])
    0.6666666666666666
    """
    x, y = np.asarray(x_nd), np.asarray(y_nd)
    if centered and len(x) and len(y):
        x, y = x - x.mean(axis=0, dtype=np.float64), y - y.mean(axis=0, dtype=np.float64)
    of_x, of_y = foscttm_per_pair(x, y)
    return float((of_x.mean() + of_y.mean()) / 2) if len(of_x) else float("nan")


def _unit(vectors_nd: ArrayLike) -> NDArray[np.float32]:
    """Return the vectors divided by their lengths, in single precision; a block of rows at a time is in double."""
    given = np.asarray(vectors_nd)
    if given.ndim != 2:
        embedding_array(given)  # says what is wrong
    unit_nd = np.empty(given.shape, dtype=np.float32)
    for row in range(0, len(given), _TILE):
        block = embedding_array(given[row : row + _TILE])
        length_n = np.linalg.norm(block, axis=1, keepdims=True)
        unit_nd[row : row + _TILE] = block / np.where(length_n > 0, length_n, 1)
    return unit_nd
