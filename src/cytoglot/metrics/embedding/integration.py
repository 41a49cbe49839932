"""How well an embedding keeps cell types together and mixes batches, the scores of scIB, from one graph of neighbors.

Differences to scib-metrics 0.5.10: neighbors are exact and do not count the cell itself (their 15, 50 and 90 are our
14, 49 and 89); kBET is the plain test of each cell's neighborhood within its type, without the diffusion that theirs
adds; principal-component regression needs the matrix before integration and is left out of the totals.
Axes: n cells, d dimensions, k neighbors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse.csgraph import connected_components
from scipy.stats import chi2
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from cytoglot.metrics.embedding.arrays import Floats, embedding_array, group_codes
from cytoglot.metrics.embedding.neighbors import Neighbors, nearest_neighbors
from cytoglot.metrics.embedding.silhouette_width import asw_batch, asw_label, bras, isolated_labels, silhouette_samples
from cytoglot.metrics.spec import metric

K_GRAPH, K_KBET, K_LISI = 14, 49, 89
_ALPHA = 0.05


def lisi(neighbors: Neighbors, groups: ArrayLike, *, perplexity: float | None = None) -> Floats:
    """Return the effective number of groups among each cell's neighbors, 1 to the number of groups, shape (n,).

    The inverse Simpson index of Korsunsky 2019, with neighbors weighted to a perplexity.

    Parameters
    ----------
    neighbors
        Of `nearest_neighbors`; 89 in scIB.
    groups
        Batch or label of each cell.
    perplexity
        By default a third of the neighbors, the cell itself counted.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> near = metrics.nearest_neighbors([[0.0], [1.0], [5.0], [6.0]], k=3)
    >>> metrics.lisi(near, ["x", "y", "x", "y"], perplexity=2.9).round(1).tolist()
    [1.7, 1.6, 1.6, 1.7]
    """
    from cytoglot.metrics.embedding.kernels import inverse_simpson

    codes_n, n_groups = group_codes(groups, len(neighbors))
    found_n = np.empty(len(codes_n))
    wanted = (neighbors.k + 1) // 3 if perplexity is None else perplexity
    inverse_simpson(codes_n[neighbors.indices_nk], neighbors.distances_nk, n_groups, wanted, found_n)
    return found_n


@metric(
    "ilisi",
    inputs="embedding",
    direction="higher",
    reference="Korsunsky et al. 2019, scaled as in scIB: (median LISI of batches − 1) / (batches − 1)",
)
def ilisi(embedding_nd: ArrayLike, batches: ArrayLike, *, neighbors: Neighbors | None = None) -> float:
    """Return how well batches mix, 0 (each alone) to 1; NaN with one batch.

    Parameters
    ----------
    embedding_nd
        Finite vectors, (n, d).
    batches
        Batch of each cell.
    neighbors
        Of the embedding, if they are known.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.ilisi([[0.0], [1.0], [5.0], [6.0]], ["x", "y", "x", "y"]) < 1
    True
    """
    known = _neighbors(embedding_nd, K_LISI, neighbors)
    n_groups = group_codes(batches, len(known))[1]
    return math.nan if n_groups < 2 else float((np.median(lisi(known, batches)) - 1) / (n_groups - 1))


@metric(
    "clisi",
    inputs="embedding",
    direction="higher",
    reference="Korsunsky et al. 2019, scaled as in scIB: (labels − median LISI of labels) / (labels − 1)",
)
def clisi(embedding_nd: ArrayLike, labels: ArrayLike, *, neighbors: Neighbors | None = None) -> float:
    """Return how pure neighborhoods are in labels, 0 to 1; NaN with one label.

    Parameters
    ----------
    embedding_nd, neighbors
        As in `ilisi`.
    labels
        Label of each cell.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.clisi([[0.0], [1.0], [5.0], [6.0]], ["B", "B", "T", "T"]) > 0.5
    True
    """
    known = _neighbors(embedding_nd, K_LISI, neighbors)
    n_groups = group_codes(labels, len(known))[1]
    return math.nan if n_groups < 2 else float((n_groups - np.median(lisi(known, labels))) / (n_groups - 1))


@metric(
    "graph_connectivity",
    inputs="embedding",
    direction="higher",
    reference="Luecken et al. 2022 (scIB): share of a label's cells in its largest strong component, mean over labels",
)
def graph_connectivity(embedding_nd: ArrayLike, labels: ArrayLike, *, neighbors: Neighbors | None = None) -> float:
    """Return how far cells of one label are connected in the graph of their 14 neighbors, above 0 to 1.

    Parameters
    ----------
    embedding_nd, neighbors
        As in `ilisi`.
    labels
        Label of each cell.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> near = metrics.nearest_neighbors([[0.0], [1.0], [5.0], [6.0]], k=1)
    >>> metrics.graph_connectivity([[0.0], [1.0], [5.0], [6.0]], ["B", "B", "T", "T"], neighbors=near)
    1.0
    """
    graph = _neighbors(embedding_nd, K_GRAPH, neighbors).graph()
    codes_n, n_labels = group_codes(labels, graph.shape[0])
    shares = []
    for label in range(n_labels):
        rows = np.flatnonzero(codes_n == label)
        _, component = connected_components(graph[rows][:, rows], directed=True, connection="strong")
        shares.append(np.bincount(component).max() / len(rows))
    return float(np.mean(shares)) if shares else math.nan


@metric(
    "kbet",
    inputs="embedding",
    direction="higher",
    reference="Büttner et al. 2019: share of neighborhoods whose batches are those of the label by a χ² test at 0.05, "
    "mean over labels; without the diffusion of scIB's kBET",
)
def kbet(embedding_nd: ArrayLike, labels: ArrayLike, batches: ArrayLike) -> float:
    """Return the acceptance rate of the test that a cell's neighbors of its label are a sample of the label's batches.

    Parameters
    ----------
    embedding_nd
        Finite vectors, (n, d).
    labels, batches
        Of each cell. Labels with one batch or fewer than 10 cells are left out; NaN if none is left.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.kbet([[float(i)] for i in range(20)], ["B"] * 20, ["x"] * 10 + ["y"] * 10)
    0.25
    """
    vectors_nd = embedding_array(embedding_nd)
    label_n, n_labels = group_codes(labels, len(vectors_nd))
    batch_n, _ = group_codes(batches, len(vectors_nd))
    rates = []
    for label in range(n_labels):
        rows = np.flatnonzero(label_n == label)
        if len(rows) < 10 or len(np.unique(batch_n[rows])) < 2:
            continue
        near = nearest_neighbors(vectors_nd[rows], min(K_KBET, max(3, len(rows) // 4)))
        _, of_label = np.unique(batch_n[rows], return_inverse=True)
        expected = near.k * np.bincount(of_label) / len(rows)
        found = np.stack([(of_label[near.indices_nk] == b).sum(axis=1) for b in range(len(expected))], axis=1)
        statistic_n = ((found - expected) ** 2 / expected).sum(axis=1)
        rates.append(float((chi2.sf(statistic_n, len(expected) - 1) >= _ALPHA).mean()))
    return float(np.mean(rates)) if rates else math.nan


def knn_accuracy(neighbors: Neighbors, labels: ArrayLike, *, k: int = 15, batches: ArrayLike | None = None) -> float:
    """Return how often most of a cell's neighbors have its label; of equal votes the nearest label is taken.

    Parameters
    ----------
    neighbors
        Of all cells; the more there are, the more cells have neighbors of other batches.
    labels
        Label of each cell.
    k
        Votes.
    batches
        If given, only cells of other batches vote; cells without one among their neighbors count as wrong.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> near = metrics.nearest_neighbors([[0.0], [1.0], [5.0], [6.0]], k=1)
    >>> metrics.knn_accuracy(near, ["B", "B", "T", "T"])
    1.0
    """
    codes_n, n_labels = group_codes(labels, len(neighbors))
    may_vote_nk = np.ones_like(neighbors.indices_nk, dtype=bool)
    if batches is not None:
        batch_n, n_batches = group_codes(batches, len(neighbors))
        if n_batches < 2:
            return math.nan
        may_vote_nk = batch_n[neighbors.indices_nk] != batch_n[:, None]
    may_vote_nk &= may_vote_nk.cumsum(axis=1) <= k
    votes_nl = np.zeros((len(codes_n), n_labels))
    # An earlier neighbor weighs a trifle more, which decides between equals alone.
    weights_nk = may_vote_nk * (1 + 1e-6 * (neighbors.k - np.arange(neighbors.k)) / neighbors.k)
    np.add.at(votes_nl, (np.arange(len(codes_n))[:, None], codes_n[neighbors.indices_nk]), weights_nk)
    return float(((votes_nl.argmax(axis=1) == codes_n) & may_vote_nk.any(axis=1)).mean())


def clustering_agreement(embedding_nd: ArrayLike, labels: ArrayLike, *, seed: int = 0) -> tuple[float, float]:
    """Return NMI and ARI of the labels with a k-means clustering into as many clusters.

    Not the clustering of scIB's AvgBIO, which searches the resolution that fits the labels best.

    Parameters
    ----------
    embedding_nd
        Finite vectors, (n, d).
    labels
        Label of each cell.
    seed
        Of the start.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> [round(each, 3) for each in metrics.clustering_agreement([[0.0], [1.0], [5.0], [6.0]], ["B", "B", "T", "T"])]
    [1.0, 1.0]
    """
    vectors_nd = embedding_array(embedding_nd)
    codes_n, n_labels = group_codes(labels, len(vectors_nd))
    if n_labels < 2:
        return math.nan, math.nan
    clusters_n = KMeans(n_labels, n_init=3, random_state=seed).fit_predict(vectors_nd)
    return float(normalized_mutual_info_score(codes_n, clusters_n)), float(adjusted_rand_score(codes_n, clusters_n))


def integration_scores(
    embedding_nd: ArrayLike, labels: ArrayLike, batches: ArrayLike | None = None, *, seed: int = 0
) -> dict[str, float]:
    """Return all scores of an embedding by name; NaN where one is not defined, as those of mixing with one batch.

    Besides the metrics of this module and of `silhouette_width`: `avg_bio_kmeans`, the mean of NMI, ARI and label
    silhouette; `scib_total`, 0.4 · batch (bras, iLISI, kBET, graph connectivity) + 0.6 · bio (isolated labels, NMI,
    ARI, label silhouette, cLISI), each a mean of those that are defined. It rewards whatever puts a type on one spot,
    even cells whose genes were shuffled within their type, so it is no headline.

    Parameters
    ----------
    embedding_nd
        Finite vectors, (n, d), of more than two cells.
    labels, batches
        Of each cell.
    seed
        Of the clustering.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> found = metrics.integration_scores([[0.0], [1.0], [5.0], [6.0]], ["B", "B", "T", "T"], ["x", "y", "x", "y"])
    >>> found["ari_kmeans"]
    1.0
    """
    vectors_nd = embedding_array(embedding_nd)
    near = nearest_neighbors(vectors_nd, min(K_LISI, len(vectors_nd) - 1))
    label_n, batch_n = np.asarray(labels, dtype=object), None if batches is None else np.asarray(batches, dtype=object)
    silhouette_n = silhouette_samples(vectors_nd, label_n)
    nmi, ari = clustering_agreement(vectors_nd, label_n, seed=seed)
    found = {
        "knn_accuracy": knn_accuracy(near, label_n),
        "knn_accuracy_other_batch": math.nan if batch_n is None else knn_accuracy(near, label_n, batches=batch_n),
        "asw_label": asw_label(vectors_nd, label_n, silhouette_n=silhouette_n),
        "nmi_kmeans": nmi,
        "ari_kmeans": ari,
        "clisi": clisi(vectors_nd, label_n, neighbors=near),
        "graph_connectivity": graph_connectivity(vectors_nd, label_n, neighbors=near.first(K_GRAPH)),
        "isolated_labels": math.nan,
        "asw_batch": math.nan,
        "bras": math.nan,
        "ilisi": math.nan,
        "kbet": math.nan,
    }
    if batch_n is not None:
        found |= {
            "isolated_labels": isolated_labels(vectors_nd, label_n, batch_n, silhouette_n=silhouette_n),
            "asw_batch": asw_batch(vectors_nd, label_n, batch_n),
            "bras": bras(vectors_nd, label_n, batch_n),
            "ilisi": ilisi(vectors_nd, batch_n, neighbors=near),
            "kbet": kbet(vectors_nd, label_n, batch_n),
        }
    found["avg_bio_kmeans"] = float(np.mean([nmi, ari, found["asw_label"]]))
    found["scib_total"] = scib_total(found) if batch_n is not None else math.nan
    return found


def scib_total(scores: Mapping[str, float]) -> float:
    """Return 0.4 · batch + 0.6 · bio of the scores of `integration_scores`; NaN if one of the two has no score.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> parts = dict.fromkeys(("bras", "ilisi", "kbet", "graph_connectivity"), 0.5)
    >>> parts |= dict.fromkeys(("isolated_labels", "nmi_kmeans", "ari_kmeans", "asw_label", "clisi"), 1.0)
    >>> metrics.scib_total(parts)
    0.8
    """
    batch = [scores[name] for name in ("bras", "ilisi", "kbet", "graph_connectivity")]
    bio = [scores[name] for name in ("isolated_labels", "nmi_kmeans", "ari_kmeans", "asw_label", "clisi")]
    known = [[value for value in part if not math.isnan(value)] for part in (batch, bio)]
    return float(0.4 * np.mean(known[0]) + 0.6 * np.mean(known[1])) if all(known) else math.nan


def _neighbors(embedding_nd: ArrayLike, k: int, known: Neighbors | None) -> Neighbors:
    if known is not None:
        return known
    vectors_nd = embedding_array(embedding_nd)
    return nearest_neighbors(vectors_nd, min(k, len(vectors_nd) - 1))
