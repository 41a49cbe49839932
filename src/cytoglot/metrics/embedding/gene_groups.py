"""Whether vectors of genes fall into groups of genes that share an attribute. Axes: g genes, d dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, fowlkes_mallows_score, normalized_mutual_info_score

from cytoglot.metrics.permutation import AgainstChance
from cytoglot.metrics.spec import metric
from cytoglot.metrics.uncertainty import Floats

N_SEEDS = 10


@dataclass(frozen=True, kw_only=True)
class AttributeLearning:
    """How well clusters of gene vectors agree with groups of genes: means over the seeds of the clustering."""

    ari: float
    """adjusted Rand index"""
    fmi: float
    """Fowlkes–Mallows index, which is not corrected for chance"""
    nmi: float
    """normalized mutual information (arithmetic mean)"""
    index: float
    """the mean of the three, the attribute learning index"""
    sd: float
    """of the index over the seeds"""
    n_groups: int
    chance: AgainstChance
    """the index beside its values with the groups in random order among the genes"""


def partition_agreement(groups: ArrayLike, clusters: ArrayLike) -> tuple[float, float, float]:
    """Return the adjusted Rand, Fowlkes–Mallows and normalized mutual information indices of two partitions.

    Parameters
    ----------
    groups, clusters
        The two classes of each gene, shape (g,).

    Examples
    --------
    >>> from cytoglot import metrics
    >>> [round(each, 3) for each in metrics.partition_agreement(list("001122"), list("001111"))]
    [0.444, 0.655, 0.734]
    """
    pair = (pd.factorize(np.asarray(groups, dtype=object))[0], pd.factorize(np.asarray(clusters, dtype=object))[0])
    return (
        float(adjusted_rand_score(*pair)),
        float(fowlkes_mallows_score(*pair)),
        float(normalized_mutual_info_score(*pair)),
    )


def attribute_learning(
    vectors_gd: ArrayLike, groups: ArrayLike, *, n_seeds: int = N_SEEDS, n_permutations: int = 100, seed: int = 0
) -> AttributeLearning:
    """Return how well k-means clusters of gene vectors agree with groups of genes, beside what chance gives.

    Parameters
    ----------
    vectors_gd
        Shape (g, d); scale them before if their lengths should not count.
    groups
        The group of each gene, shape (g,); k is their number. Genes with a missing one are left out.
    n_seeds
        Clusterings, from different starts; means over them.
    n_permutations
        Random orders of the groups, each against the clusters of every start.
    seed
        Of the first clustering and of the orders.

    Returns
    -------
    AttributeLearning
        NaN with fewer than two groups.

    Raises
    ------
    ValueError
        The numbers of vectors and groups differ, or there are fewer distinct vectors than groups.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> found = metrics.attribute_learning([[0.0], [0.1], [5.0], [5.1], [9.0], [9.1]], list("aabbcc"))
    >>> found.index, found.chance.mean < 0.6
    (1.0, True)
    """
    vectors, groups_g = np.asarray(vectors_gd, dtype=np.float64), np.asarray(groups, dtype=object)
    if vectors.ndim != 2 or groups_g.shape != (len(vectors),):
        raise ValueError(f"need one group for each gene vector, found shapes {vectors.shape} and {groups_g.shape}")
    known = ~pd.isna(groups_g)
    codes_g, names = pd.factorize(groups_g[known])
    clusters_sg = _clusters(vectors[known], len(names), n_seeds=n_seeds, seed=seed)
    scores_s3 = np.array([partition_agreement(codes_g, clusters) for clusters in clusters_sg]).reshape(-1, 3)
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(codes_g) for _ in range(n_permutations if len(clusters_sg) else 0)]
    null_r = [np.mean([partition_agreement(order, clusters) for clusters in clusters_sg]) for order in orders]
    ari, fmi, nmi = scores_s3.mean(axis=0) if len(scores_s3) else np.full(3, math.nan)
    index_s = scores_s3.mean(axis=1)
    index = float(index_s.mean()) if len(index_s) else math.nan
    return AttributeLearning(
        ari=float(ari),
        fmi=float(fmi),
        nmi=float(nmi),
        index=index,
        sd=float(index_s.std(ddof=1)) if len(index_s) > 1 else math.nan,
        n_groups=len(names),
        chance=AgainstChance(value=index, null_r=np.array(null_r, dtype=np.float64)),
    )


@metric(
    "attribute_learning_index",
    inputs="vectors",
    direction="higher",
    low=-1 / 6,
    reference="GeneRAIN's ALI: mean of ARI, FMI and NMI of clusters against groups; the clustering is not published, "
    "here k-means with k groups, mean over 10 starts. FMI is not corrected for chance: compare with the null",
)
def attribute_learning_index(
    vectors_gd: ArrayLike, groups: ArrayLike, *, n_seeds: int = N_SEEDS, seed: int = 0
) -> float:
    """Return the attribute learning index of gene vectors :cite:p:`su2025generain`; see `attribute_learning`.

    Parameters
    ----------
    vectors_gd, groups, n_seeds, seed
        As in `attribute_learning`.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.attribute_learning_index([[0.0], [0.1], [5.0], [5.1], [9.0], [9.1]], list("aabbcc"))
    1.0
    """
    return attribute_learning(vectors_gd, groups, n_seeds=n_seeds, n_permutations=0, seed=seed).index


def _clusters(vectors_gd: Floats, n_groups: int, *, n_seeds: int, seed: int) -> list[NDArray[np.int32]]:
    if n_groups < 2:
        return []
    n_distinct = len(np.unique(vectors_gd, axis=0))
    if n_distinct < n_groups:
        raise ValueError(f"need as many distinct gene vectors as groups, found {n_distinct} for {n_groups} groups")
    return [KMeans(n_groups, n_init=1, random_state=seed + at).fit_predict(vectors_gd) for at in range(n_seeds)]
