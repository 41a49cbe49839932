"""Whether an embedding keeps the distances between cell types that another source gives: the batches' own, an ontology.

Types are points (trimmed means of their cells), each column of their distances is divided by its largest, and columns
are correlated :cite:p:`wang2025scgraph`. The published score keeps the distance of a type to itself, 0 against 0, in
each column, which alone brings two unrelated matrices of ten types to a correlation of 0.7 to 0.9: it is dropped here
unless asked for. Read a score beside PCA, a random embedding and `structure_against_chance`.
Axes: n cells, g genes, d dimensions, t types, r permutations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix, issparse
from scipy.spatial.distance import cdist
from scipy.stats import rankdata, trim_mean
from sklearn.decomposition import PCA

from cytoglot.metrics.permutation import AgainstChance
from cytoglot.metrics.spec import metric
from cytoglot.metrics.uncertainty import Floats

Diagonal = Literal["drop", "keep"]
Score = Literal["spearman", "pearson", "weighted_pearson"]

MIN_TYPES = 4
"""with three types a column has two distances without its own, and two points always lie on a line"""
_MAX_LOG = 30.0
"""a natural log1p above this is no normalized count"""


@dataclass(frozen=True, kw_only=True)
class TypeDistances:
    """Distances between cell types."""

    types: tuple[str, ...]
    distances_tt: Floats
    """each column divided by its largest; NaN where two types were never seen together"""


@dataclass(frozen=True, kw_only=True)
class StructureScores:
    """How alike two sources of distances are: means over types of the correlation of their columns."""

    spearman: float
    pearson: float
    weighted_pearson: float
    """each distance weighted by its inverse in the reference, so that near types count most"""
    n_types: int
    """types that both sources have"""


def type_distances(
    embedding_nd: ArrayLike, types: ArrayLike, *, trim: float = 0.2, min_cells: int = 10
) -> TypeDistances:
    """Return the distances between the trimmed means of types in an embedding.

    Parameters
    ----------
    embedding_nd
        Shape (n, d).
    types
        The type of each cell, shape (n,); cells with a missing one are left out.
    trim
        Share of cells that is cut off at each end of each dimension before the mean.
    min_cells
        Types with fewer cells are left out.

    Raises
    ------
    ValueError
        The numbers of cells and types differ, or the embedding is not finite.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.type_distances([[0.0], [1.0], [4.0]], ["B", "NK", "T"], min_cells=1).distances_tt
    array([[0.        , 0.33333333, 1.        ],
           [0.25      , 0.        , 0.75      ],
           [1.        , 1.        , 0.        ]])
    """
    embedding = _finite(embedding_nd)
    types_n = _types_of(types, len(embedding))
    counts = pd.Series(types_n).value_counts()
    return _distances_between(embedding, types_n, sorted(counts.index[counts >= min_cells]), trim)


def consensus_distances(
    log_expression_ng: NDArray[np.floating] | csr_matrix,
    types: ArrayLike,
    batches: ArrayLike,
    *,
    n_variable: int = 1000,
    n_components: int = 10,
    trim: float = 0.2,
    min_cells: int = 10,
    min_batch_cells: int = 100,
) -> TypeDistances:
    """Return the distances between types within batches, mean over batches: what no batch effect can have made.

    In each batch: its most variable genes, principal components, trimmed means of types, columns of distances divided
    by their largest. The mean is divided by the largest of its column again.

    Parameters
    ----------
    log_expression_ng
        Natural log1p of normalized counts, shape (n, g), dense or sparse.
    types
        The type of each cell, shape (n,); cells with a missing one are left out of the means.
    batches
        The batch of each cell, shape (n,).
    n_variable
        Genes of each batch (`variable_genes`).
    n_components
        Principal components of each batch.
    trim
        As in `type_distances`.
    min_cells
        Types with fewer cells in all batches together are left out.
    min_batch_cells
        Batches with fewer cells are left out.

    Returns
    -------
    TypeDistances
        NaN for two types that no batch has both of.

    Raises
    ------
    ValueError
        The numbers of cells differ, no batch is large enough, or values are no log1p of counts.

    Examples
    --------
    >>> import numpy as np
    >>> from cytoglot import metrics
    >>> rng = np.random.default_rng(0)
    >>> expression = np.log1p(rng.poisson(1.0, (100, 30)))
    >>> metrics.consensus_distances(expression, ["B", "T"] * 50, ["one"] * 100).types
    ('B', 'T')
    """
    n_cells = log_expression_ng.shape[0]
    types_n, batches_n = _types_of(types, n_cells), _types_of(batches, n_cells)
    counts = pd.Series(types_n).value_counts()
    names = sorted(counts.index[counts >= min_cells])
    sizes = pd.Series(batches_n).value_counts()
    used = sorted(sizes.index[sizes >= min_batch_cells])
    if not used:
        raise ValueError(
            f"need a batch of at least {min_batch_cells} cells, found {int(sizes.max()) if len(sizes) else 0} at most; "
            "lower min_batch_cells"
        )
    total_tt, seen_tt = np.zeros((2, len(names), len(names)))
    for batch in used:
        rows = np.flatnonzero(batches_n == batch)
        expression = log_expression_ng[rows][:, variable_genes(log_expression_ng[rows], n_top=n_variable)]
        expression = csr_matrix(expression, dtype=np.float64).toarray()
        n_kept = min(n_components, *expression.shape)
        components_nd = PCA(n_kept, svd_solver="full").fit_transform(expression)
        distances_tt = _distances_between(components_nd, types_n[rows], names, trim).distances_tt
        seen_tt += ~np.isnan(distances_tt)
        total_tt += np.nan_to_num(distances_tt)
    mean_tt = np.divide(total_tt, seen_tt, out=np.full_like(total_tt, math.nan), where=seen_tt > 0)
    return TypeDistances(types=tuple(names), distances_tt=columns_to_one(mean_tt))


def variable_genes(
    log_expression_ng: NDArray[np.floating] | csr_matrix, *, n_top: int = 1000, n_bins: int = 20
) -> NDArray[np.int64]:
    """Return the columns of the most variable genes, in their order: scanpy's flavor "seurat", without scanpy.

    The log of variance over mean of expm1 values, standardized among genes of similar mean. Genes of equal value at the
    limit are taken in the order of columns.

    Parameters
    ----------
    log_expression_ng
        Natural log1p of normalized counts, shape (n, g), dense or sparse.
    n_top
        Number of genes; with no more than this all that vary come back.
    n_bins
        Bins of the mean.

    Raises
    ------
    ValueError
        A value is negative, not finite or above 30, so no log1p of normalized counts.

    Examples
    --------
    >>> import numpy as np
    >>> from cytoglot import metrics
    >>> expression = np.log1p(np.array([[0.0, 2.0, 1.0], [9.0, 2.0, 1.0], [0.0, 2.0, 2.0]]))
    >>> metrics.variable_genes(expression, n_top=1, n_bins=1).tolist()
    [0]
    """
    values = np.asarray(log_expression_ng.data if issparse(log_expression_ng) else log_expression_ng)
    if values.size and not (values.min() >= 0 and values.max() <= _MAX_LOG):
        raise ValueError(
            f"need log1p of normalized counts, between 0 and {_MAX_LOG:g}, found {values.min():g} to {values.max():g}; "
            "normalize the cells to one total and take log1p"
        )
    counts = csr_matrix(log_expression_ng, dtype=np.float64, copy=True)
    np.expm1(counts.data, out=counts.data)
    n_cells = counts.shape[0]
    mean_g = np.asarray(counts.mean(axis=0)).ravel()
    squares_g = np.asarray(counts.multiply(counts).mean(axis=0)).ravel()
    variance_g = (squares_g - mean_g**2) * n_cells / max(n_cells - 1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        dispersion_g = np.log(np.where(variance_g > 1e-12 * squares_g, variance_g, np.nan) / mean_g)
    genes = pd.DataFrame({"dispersion": dispersion_g, "bin": pd.cut(np.log1p(mean_g), bins=n_bins, labels=False)})
    in_bin = genes.groupby("bin")["dispersion"]
    center, scale = in_bin.transform("mean"), in_bin.transform("std")
    alone = scale.isna()  # a gene alone in its bin has the value 1, as there
    normalized = np.where(alone, np.where(genes["dispersion"].isna(), np.nan, 1.0), (dispersion_g - center) / scale)
    order = np.argsort(-np.nan_to_num(normalized, nan=-np.inf), kind="stable")[:n_top]
    return np.sort(order[~np.isnan(normalized[order])])


def structure_scores(ours: TypeDistances, reference: TypeDistances, *, diagonal: Diagonal = "drop") -> StructureScores:
    """Return how alike the distances of two sources are, over the types that both have.

    Parameters
    ----------
    ours
        Distances in an embedding (`type_distances`).
    reference
        Distances within batches (`consensus_distances`) or in an ontology (`term_distances`).
    diagonal
        "keep" leaves a type's distance to itself in its column, as published; the value is then high whatever the
        embedding, the more so the fewer types there are. The weighted score never has it, because its weight is 0.

    Returns
    -------
    StructureScores
        A column counts if three distances are known in both. NaN with fewer than four types, or where no column of
        any type varies.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> places, types = [[0.0], [1.0], [3.0], [7.0]], ["B", "DC", "NK", "T"]
    >>> distances = metrics.type_distances(places, types, min_cells=1)
    >>> metrics.structure_scores(distances, distances).spearman
    1.0
    """
    shared = sorted(set(ours.types) & set(reference.types))
    columns: list[tuple[float, float, float]] = []
    if len(shared) >= MIN_TYPES:
        first_tt, second_tt = (
            each.distances_tt[np.ix_(at, at)]
            for each in (ours, reference)
            for at in [[each.types.index(name) for name in shared]]
        )
        for column in range(len(shared)):
            known = ~np.isnan(first_tt[:, column]) & ~np.isnan(second_tt[:, column])
            if diagonal == "drop":
                known[column] = False
            x, y = first_tt[known, column], second_tt[known, column]
            if len(x) >= MIN_TYPES - 1:
                weights = np.divide(1.0, y, out=np.zeros_like(y), where=y > 0)
                columns.append((_pearson(rankdata(x), rankdata(y)), _pearson(x, y), _pearson(x, y, weights)))
    values = np.array(columns or [(math.nan,) * 3])
    known_k = ~np.isnan(values)
    means = [float(values[known_k[:, k], k].mean()) if known_k[:, k].any() else math.nan for k in range(3)]
    return StructureScores(spearman=means[0], pearson=means[1], weighted_pearson=means[2], n_types=len(shared))


@metric(
    "scgraph",
    inputs="vectors",
    direction="higher",
    low=-1.0,
    reference="Islander's scGraph (Spearman by default), without the distance of a type to itself, which keeps the "
    "published value near 1 for any embedding of few types",
)
def scgraph(
    embedding_nd: ArrayLike,
    types: ArrayLike,
    reference: TypeDistances,
    *,
    diagonal: Diagonal = "drop",
    score: Score = "spearman",
) -> float:
    """Return how well an embedding keeps the distances between types :cite:p:`wang2025scgraph`.

    Parameters
    ----------
    embedding_nd
        Shape (n, d).
    types
        The type of each cell, shape (n,).
    reference
        From `consensus_distances`, once for all embeddings of the same cells.
    diagonal, score
        As in `structure_scores`.

    Returns
    -------
    float
        Between −1 and 1; NaN with fewer than four types.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> places, types = [[0.0], [1.0], [3.0], [7.0]], ["B", "DC", "NK", "T"]
    >>> reference = metrics.type_distances(places, types, min_cells=1)
    >>> metrics.scgraph(places * 10, types * 10, reference)
    1.0
    """
    return float(getattr(structure_scores(type_distances(embedding_nd, types), reference, diagonal=diagonal), score))


def structure_against_chance(
    embedding_nd: ArrayLike,
    types: ArrayLike,
    reference: TypeDistances,
    *,
    diagonal: Diagonal = "drop",
    score: Score = "spearman",
    n_permutations: int = 100,
    seed: int = 0,
) -> AgainstChance:
    """Return `scgraph` beside its values with the types in random order among the cells.

    Types keep their sizes, so the null has what sizes alone give: the mean of a small type lies farther out.

    Parameters
    ----------
    embedding_nd, types, reference, diagonal, score
        As in `scgraph`; the reference may also be one of `term_distances`.
    n_permutations
        Number of random orders.
    seed
        Of the orders.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> places, types = [[0.0], [1.0], [3.0], [7.0]], ["B", "DC", "NK", "T"]
    >>> reference = metrics.type_distances(places, types, min_cells=1)
    >>> found = metrics.structure_against_chance(places * 10, types * 10, reference, n_permutations=20)
    >>> found.value, found.mean < 0.5
    (1.0, True)
    """
    rng, types_n = np.random.default_rng(seed), np.asarray(types, dtype=object)
    value = scgraph(embedding_nd, types_n, reference, diagonal=diagonal, score=score)
    null_r = [
        scgraph(embedding_nd, rng.permutation(types_n), reference, diagonal=diagonal, score=score)
        for _ in range(n_permutations)
    ]
    return AgainstChance(value=value, null_r=np.array(null_r, dtype=np.float64))


def _distances_between(
    embedding_nd: Floats, types_n: NDArray[np.object_], names: list[str], trim: float
) -> TypeDistances:
    """Return the distances between trimmed means of the named types; NaN for a type without cells."""
    means_td = np.full((len(names), embedding_nd.shape[1]), math.nan)
    for mean_d, name in zip(means_td, names, strict=True):
        of_type = types_n == name
        if of_type.any():
            mean_d[:] = trim_mean(embedding_nd[of_type], trim, axis=0)
    return TypeDistances(types=tuple(names), distances_tt=columns_to_one(cdist(means_td, means_td)))


def columns_to_one(distances_tt: Floats) -> Floats:
    """Return the distances with each column divided by its largest; a column of zeros stays."""
    largest_t = np.nan_to_num(distances_tt).max(axis=0, initial=0.0)
    return np.asarray(distances_tt / np.where(largest_t > 0, largest_t, 1.0))


def _pearson(x: Floats, y: Floats, weights: Floats | None = None) -> float:
    weights = np.ones_like(x) if weights is None else weights
    if not weights.any():
        return math.nan
    weights = weights / weights.sum()
    x, y = x - weights @ x, y - weights @ y
    scale = math.sqrt(float((weights @ x**2) * (weights @ y**2)))
    return float(weights @ (x * y)) / scale if scale > 1e-12 else math.nan


def _finite(embedding_nd: ArrayLike) -> Floats:
    embedding = np.asarray(embedding_nd, dtype=np.float64)
    if embedding.ndim != 2 or not np.isfinite(embedding).all():
        raise ValueError(f"need finite vectors of shape (cells, dimensions), found shape {embedding.shape}")
    return embedding


def _types_of(types: ArrayLike, n_cells: int) -> NDArray[np.object_]:
    types_n = np.asarray(types, dtype=object)
    if types_n.shape != (n_cells,):
        raise ValueError(f"need one type and one batch for each of {n_cells} cells, found shape {types_n.shape}")
    return types_n
