"""How rough a property is over an embedding: whether near cells have near values (ROGI).

Clusters grow by complete linkage; the spread of their mean values falls fast if neighbors differ and slowly if they
agree :cite:p:`aldeghi2022rogi`. Distances of many dimensions are all alike, so a value says little without
`rogi_against_chance`, and embeddings of different dimension are compared after PCA to a common one. Axes: n cells,
d dimensions, c columns of values, k merges.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist, squareform

from cytoglot.metrics.permutation import AgainstChance
from cytoglot.metrics.spec import metric
from cytoglot.metrics.uncertainty import Floats

Distance = Literal["euclidean", "cosine", "precomputed"]

_MIN_STEP = 0.01
"""of the height between two points of the curve, as in the authors' code"""


@metric(
    "rogi",
    inputs="vectors",
    direction="lower",
    reference="Aldeghi et al. 2022: σ(0) less the area under the spread of cluster means; labels as the mean of one "
    "against the rest. Compare with its null: in many dimensions it hardly falls below",
)
def rogi(vectors_nd: ArrayLike, values: ArrayLike, *, distance: Distance = "euclidean") -> float:
    """Return the roughness index of values over vectors, 0 for smooth to 1 for rough :cite:p:`aldeghi2022rogi`.

    All distances are held, n²/2 numbers: take a sample of at most some 5,000 cells.

    Parameters
    ----------
    vectors_nd
        Shape (n, d); with "precomputed", distances between 0 and 1, square or condensed.
    values
        Numbers, shape (n,), which are scaled to 0…1; or texts as labels, of which each is a column of 0 and 1 and the
        mean over them is returned. Codes of clusters are no numbers: pass them as texts.
    distance
        Euclidean distances are divided by the diagonal of the box around the vectors, cosine ones by 2.

    Returns
    -------
    float
        NaN with fewer than two cells, with a single value or label, or if all vectors are equal.

    Raises
    ------
    ValueError
        The numbers of vectors and values differ, or a vector, value or distance is not as said above.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> places = [[0.0], [1.0], [2.0], [3.0]]
    >>> round(metrics.rogi(places, ["B", "B", "T", "T"]), 4), round(metrics.rogi(places, ["B", "T", "B", "T"]), 4)
    (0.3333, 0.8333)
    """
    columns_nc = _columns(values)
    merges = _merges(vectors_nd, distance, n_cells=len(columns_nc))
    return _roughness(merges, columns_nc)


def rogi_against_chance(
    vectors_nd: ArrayLike,
    values: ArrayLike,
    *,
    distance: Distance = "euclidean",
    n_permutations: int = 100,
    seed: int = 0,
) -> AgainstChance:
    """Return `rogi` beside its values with the values in random order; cells are clustered once.

    Parameters
    ----------
    vectors_nd, values, distance
        As in `rogi`.
    n_permutations
        Number of random orders.
    seed
        Of the orders.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> found = metrics.rogi_against_chance([[float(place)] for place in range(20)], range(20))
    >>> found.value < found.mean, found.p_value < 0.05
    (True, True)
    """
    columns_nc = _columns(values)
    merges = _merges(vectors_nd, distance, n_cells=len(columns_nc))
    rng = np.random.default_rng(seed)
    null_r = [_roughness(merges, rng.permutation(columns_nc)) for _ in range(n_permutations)]
    value = _roughness(merges, columns_nc)
    return AgainstChance(value=value, null_r=np.array(null_r, dtype=np.float64), direction="lower")


def _columns(values: ArrayLike) -> Floats:
    """Return the values between 0 and 1, (n, 1), or a column of 0 and 1 for each label; none if there is one value."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"need one value for each cell, found shape {array.shape}")
    if array.dtype.kind in "biuf":
        numbers = array.astype(np.float64)
        if not np.isfinite(numbers).all():
            raise ValueError("values must be finite numbers; leave out cells without one")
        spread = np.ptp(numbers) if len(numbers) else 0.0
        return ((numbers - numbers.min()) / spread)[:, None] if spread > 0 else np.empty((len(numbers), 0))
    codes, names = pd.factorize(array)
    if (codes < 0).any():
        raise ValueError(f"labels must be texts, found {int((codes < 0).sum())} missing; leave out cells without one")
    return np.eye(len(names))[codes] if len(names) > 1 else np.empty((len(codes), 0))


def _merges(vectors_nd: ArrayLike, distance: Distance, *, n_cells: int) -> Floats | None:
    """Return scipy's linkage matrix with heights between 0 and 1; None where there is nothing to merge."""
    vectors = np.asarray(vectors_nd, dtype=np.float64)
    if not np.isfinite(vectors).all():
        raise ValueError("vectors must be finite numbers")
    if distance == "precomputed":
        distances = squareform(vectors, checks=True) if vectors.ndim == 2 else vectors
        n_found, largest = int((1 + math.sqrt(1 + 8 * len(distances))) / 2), 1.0
    else:
        n_found = len(vectors)
        if distance == "cosine" and not vectors.any(axis=1).all():
            raise ValueError("a vector of zeros has no cosine distance; leave its cell out")
        distances = pdist(vectors, metric=distance)
        largest = 2.0 if distance == "cosine" else float(np.linalg.norm(np.ptp(vectors, axis=0))) if n_found else 0.0
    if n_found != n_cells:
        raise ValueError(f"need one value for each of {n_found} cells, found {n_cells}")
    if n_found < 2 or not distances.any():
        return None
    distances = distances / largest
    if distances.min() < 0 or distances.max() > 1 + 1e-9:
        raise ValueError(f"distances must be between 0 and 1, found {distances.min():g} to {distances.max():g}")
    return np.asarray(linkage(distances, method="complete"), dtype=np.float64)


def _roughness(merges: Floats | None, columns_nc: Floats) -> float:
    if merges is None or not columns_nc.shape[1]:
        return math.nan
    n_cells = len(columns_nc)
    heights_k = merges[:, 2]
    spread_kc = 2 * np.sqrt(_squares_between(merges[:, :2].astype(np.int64), columns_nc) / n_cells)
    kept: list[float] = []
    for height in heights_k:
        if not kept or height - _MIN_STEP >= kept[-1]:
            kept.append(float(height))
    places = np.array([0.0, *kept, 1.0])
    n_merged = np.concatenate([[0], np.searchsorted(heights_k, kept, side="right"), [n_cells - 1]])
    curve_kc = spread_kc[n_merged]
    area_c = (np.diff(places)[:, None] * (curve_kc[1:] + curve_kc[:-1]) / 2).sum(axis=0)
    return float((curve_kc[0] - area_c).mean())


def _squares_between(children_k2: NDArray[np.int64], columns_nc: Floats) -> Floats:
    """Return n times the variance of cluster means after each number of merges, (n, c), from 0 to n − 1 merges.

    A merge takes off n₁ n₂ / (n₁ + n₂) times the squared difference of the means. Summed from the last merge backwards
    the rest is exactly 0 at the end and nowhere below, where a difference of two large sums would not be.
    """
    n_cells, n_columns = columns_nc.shape
    sums = np.empty((2 * n_cells - 1, n_columns))
    sums[:n_cells] = columns_nc
    sizes = np.ones(2 * n_cells - 1)
    lost_kc = np.empty((n_cells - 1, n_columns))
    for merge, (first, second) in enumerate(children_k2):
        n_first, n_second = sizes[first], sizes[second]
        gap_c = sums[first] / n_first - sums[second] / n_second
        lost_kc[merge] = gap_c * gap_c * (n_first * n_second / (n_first + n_second))
        sums[n_cells + merge] = sums[first] + sums[second]
        sizes[n_cells + merge] = n_first + n_second
    return np.concatenate([np.cumsum(lost_kc[::-1], axis=0)[::-1], np.zeros((1, n_columns))])
