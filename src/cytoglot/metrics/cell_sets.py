"""Whether a set of generated cells could be a set of real ones: what cells drawn gene by gene from a profile fail.

Cells are given by type: type → sentences of distinct gene ids, highest first. A mean profile of a type gives cells that
are all near its middle, so measures of single cells take them for better than real ones. Read each measure beside real
cells in the place of the generated ones. What genes do together is in `coexpression`. Axes: n cells, g genes,
d dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve
from scipy.sparse import csr_matrix, hstack
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from cytoglot.metrics.spec import metric

Floats = NDArray[np.float64]
Words = Sequence[NDArray[np.integer]]
CellsByType = Mapping[str, Words]

N_FOLDS = 5
_RIDGE = 1.0
"""strength of the ridge classifier, in units of the mean squared length of a centered cell"""


def rank_weights(sentences: Words, n_genes: int) -> csr_matrix:
    """Return a row for each sentence, (n, g), with 1 / log2(rank + 1) for a gene of it, the first having rank 1."""
    lengths = np.array([len(words) for words in sentences], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.concatenate([np.empty(0, dtype=np.int64), *sentences])
    ranks = np.arange(1, len(ids) + 1) - np.repeat(offsets[:-1], lengths)
    return csr_matrix((1 / np.log2(ranks + 1), ids, offsets), shape=(len(lengths), n_genes))


def presence(sentences: Words, n_genes: int) -> csr_matrix:
    """Return a row for each sentence, (n, g), with 1 for a gene of it."""
    weights_ng = rank_weights(sentences, n_genes)
    return csr_matrix((np.ones(weights_ng.nnz), weights_ng.indices, weights_ng.indptr), shape=weights_ng.shape)


def share_below(first: ArrayLike, second: ArrayLike) -> float:
    """Return the share of pairs in which the first value is the lower one, equal ones by half; NaN without pairs.

    It is the Mann–Whitney statistic over the number of pairs, so the area under a ROC curve.
    """
    ours, theirs = (np.asarray(each, dtype=np.float64) for each in (first, second))
    if not ours.size or not theirs.size:
        return math.nan
    theirs = np.sort(theirs)
    above = len(theirs) - np.searchsorted(theirs, ours, side="right")
    not_below = len(theirs) - np.searchsorted(theirs, ours, side="left")
    return float((above + not_below).sum() / (2 * ours.size * theirs.size))


def c2st_auc_by_type(
    generated: CellsByType, real: CellsByType, n_genes: int, *, n_folds: int = N_FOLDS, seed: int = 0
) -> dict[str, float]:
    """Return for each type how well a classifier tells its generated from its real cells, as in `c2st_auc`.

    Parameters
    ----------
    generated, real
        Type → sentences.
    n_genes
        Genes of the vocabulary; ids are below it.
    n_folds
        Parts of the cells; each is judged by a classifier that was fitted on the others.
    seed
        Of the choice of cells and of the folds.

    Returns
    -------
    dict
        NaN for a type with fewer than `n_folds` cells in either set; its cells are not used.

    Examples
    --------
    >>> import numpy as np
    >>> from cytoglot import metrics
    >>> rng = np.random.default_rng(0)
    >>> real = {"B": [rng.permutation(20)[:8] for _ in range(40)]}
    >>> other = {"B": [20 + words for words in real["B"]]}
    >>> metrics.c2st_auc_by_type(other, real, n_genes=40)
    {'B': 1.0}
    """
    rng = np.random.default_rng(seed)
    cells: list[NDArray[np.integer]] = []
    types, folds = [], []
    names = [name for name in generated if name in real]
    for name in names:
        n = min(len(generated[name]), len(real[name]))
        if n < n_folds:
            continue
        # Cells of one rank in length are cut to one length, so that the number of words tells nothing.
        sets = [[each[i] for i in rng.permutation(len(each))[:n]] for each in (generated[name], real[name])]
        pairs = list(zip(*(sorted(each, key=len) for each in sets), strict=True))
        cells += [words[: min(map(len, pair))] for pair in pairs for words in pair]
        types += [name] * 2 * n
        folds.append(np.repeat(rng.permutation(n) % n_folds, 2))
    if not cells:
        return dict.fromkeys(names, math.nan)
    fold_n, type_n = np.concatenate(folds), np.array(types, dtype=object)
    is_real_n = np.arange(len(cells)) % 2 == 1
    features = hstack([presence(cells, n_genes), rank_weights(cells, n_genes)], format="csr")
    score_n = _out_of_fold_scores((features @ features.T).toarray(), np.where(is_real_n, 1.0, -1.0), fold_n)
    found = dict.fromkeys(names, math.nan)
    for name in dict.fromkeys(types):
        # Scores of two classifiers have no common scale: only cells of one fold are compared.
        places = [np.flatnonzero((type_n == name) & (fold_n == fold)) for fold in range(n_folds)]
        wins = [share_below(score_n[p[~is_real_n[p]]], score_n[p[is_real_n[p]]]) for p in places]
        found[name] = float(np.average(wins, weights=[len(p) ** 2 for p in places]))
    return found


@metric(
    "c2st_auc",
    inputs="sentences",
    direction="lower",
    target=0.5,
    reference="classifier two-sample test (Lopez-Paz and Oquab 2017), as AUC of a ridge classifier on presence and "
    "1/log2(rank + 1); pairs of one type and fold alone are compared, so types add nothing to it",
)
def c2st_auc(
    generated: CellsByType, real: CellsByType, n_genes: int, *, n_folds: int = N_FOLDS, seed: int = 0
) -> float:
    """Return how well a classifier tells generated from real cells: 0.5 if it cannot, 1 if it always does.

    A ridge classifier for all types together is fitted on four of five folds and ranks the cells of the fifth. The
    value is the mean over types of the share of pairs (generated, real) that are in the right order. The sets are made
    equal in the number of cells of each type and in their lengths, by drawing and by cutting. It differs from the
    published test, which is an accuracy with a p-value.

    Parameters
    ----------
    generated, real, n_genes, n_folds, seed
        As in `c2st_auc_by_type`.

    Returns
    -------
    float
        NaN if no type has `n_folds` cells in both sets. Below 0.5 by chance.

    Examples
    --------
    >>> import numpy as np
    >>> from cytoglot import metrics
    >>> rng = np.random.default_rng(0)
    >>> real = {"B": [rng.permutation(20)[:8] for _ in range(40)]}
    >>> more = {"B": [rng.permutation(20)[:8] for _ in range(40)]}
    >>> bool(0.3 < metrics.c2st_auc(more, real, n_genes=20) < 0.7)
    True
    """
    return _mean_of_known(c2st_auc_by_type(generated, real, n_genes, n_folds=n_folds, seed=seed).values())


@metric(
    "energy_distance",
    inputs="vectors",
    direction="lower",
    low=-math.inf,
    high=math.inf,
    target=0.0,
    reference="Székely and Rizzo 2013, Euclidean, U-statistic: 2·E|X − Y| − E|X − X'| − E|Y − Y'|",
)
def energy_distance(generated_nd: ArrayLike, real_nd: ArrayLike, *, unbiased: bool = True) -> float:
    """Return the energy distance of two sets of vectors, 0 where both are of one distribution.

    Parameters
    ----------
    generated_nd, real_nd
        Vectors of one space; squared distances are not used, which would see the shift of the mean alone.
    unbiased
        Leave the distance of each vector to itself out of the means (U-statistic). The value of one population is then
        0 in the mean and may be below it. With them (V-statistic) it is never below 0, and larger for small sets.

    Returns
    -------
    float
        NaN if a set is empty or, unbiased, has fewer than two vectors.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.energy_distance([[0.0], [1.0]], [[5.0], [6.0]])
    8.0
    """
    ours, theirs = (np.asarray(each, dtype=np.float64) for each in (generated_nd, real_nd))
    if min(len(ours), len(theirs)) < (2 if unbiased else 1):
        return math.nan
    within = [cdist(x, x).sum() / (len(x) * (len(x) - unbiased)) for x in (ours, theirs)]
    return float(2 * cdist(ours, theirs).mean() - sum(within))


@metric(
    "coverage",
    inputs="vectors",
    direction="higher",
    reference="Naeem et al. 2020: share of real cells with a generated one within the distance of their k-th nearest "
    "real neighbor; for equally many cells of one population 1 − 1/2^k, about",
)
def coverage(generated_nd: ArrayLike, real_nd: ArrayLike, *, k: int = 5) -> float:
    """Return the share of real cells that have a generated cell in their neighborhood.

    Parameters
    ----------
    generated_nd, real_nd
        Vectors of one space.
    k
        The neighborhood of a real cell reaches to its k-th nearest other real cell; cut to what there is.

    Returns
    -------
    float
        NaN without generated cells or with fewer than two real ones.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.coverage([[0.1]], [[0.0], [1.0], [9.0]], k=1)
    0.6666666666666666
    """
    ours, theirs = (np.asarray(each, dtype=np.float64) for each in (generated_nd, real_nd))
    if not len(ours) or len(theirs) < 2:
        return math.nan
    radius_n = np.sort(cdist(theirs, theirs), axis=1)[:, min(k, len(theirs) - 1)]  # the nearest one is the cell itself
    return float((cdist(theirs, ours).min(axis=1) <= radius_n).mean())


def nearest_distances(query_nd: Any, reference_nd: Any, *, are_references: bool = False) -> Floats:
    """Return the Euclidean distance of each query to the nearest reference, (n,).

    Parameters
    ----------
    query_nd, reference_nd
        Arrays or sparse matrices.
    are_references
        The queries are among the references: each is left out of its own search, copies of it are not.

    Returns
    -------
    ndarray
        NaN where there is no (other) reference.
    """
    rank = 2 if are_references else 1
    if reference_nd.shape[0] < rank or not query_nd.shape[0]:
        return np.full(query_nd.shape[0], np.nan)
    found, _ = NearestNeighbors(n_neighbors=rank, algorithm="brute").fit(reference_nd).kneighbors(query_nd)
    return np.asarray(found[:, -1], dtype=np.float64)


@metric(
    "memorized_share",
    inputs="vectors",
    direction="lower",
    target=0.5,
    reference="the statistic of Meehan, Chaudhuri and Dasgupta 2020, against training cells left out one by one "
    "instead of held-out cells",
)
def memorized_share(generated_nd: Any, training_nd: Any) -> float:
    """Return how often a generated cell is nearer to a training cell than a training cell is to another one.

    It is the share of pairs (generated, training) in which the generated cell has the smaller distance to its nearest
    training cell, where a training cell does not find itself; equal distances count half. Cells of the same population
    that were not trained on have about 0.5, copies of training cells have 1. Cells that are like no real one have less
    than 0.5, which is no merit.

    Parameters
    ----------
    generated_nd, training_nd
        Arrays or sparse matrices, of cells of one type.

    Returns
    -------
    float
        NaN without generated cells or with fewer than two training cells.

    Examples
    --------
    >>> import numpy as np
    >>> from cytoglot import metrics
    >>> training = np.array([[0.0], [1.0], [3.0]])
    >>> metrics.memorized_share(training, training)  # copies
    1.0
    """
    own_n = nearest_distances(training_nd, training_nd, are_references=True)
    return share_below(nearest_distances(generated_nd, training_nd), own_n[~np.isnan(own_n)])


@metric(
    "nats_per_word",
    inputs="probabilities",
    direction="lower",
    high=math.inf,
    reference="mean over cells of −log p(sentence | type) ÷ words, each word among the genes that are not yet used",
)
def nats_per_word(nats_n: ArrayLike, words_n: ArrayLike) -> float:
    """Return the mean over cells of the nats that a word costs; cells without words are left out, NaN without others.

    Parameters
    ----------
    nats_n
        −log p of each sentence, over all of its words.
    words_n
        Words of each sentence.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.nats_per_word([10.0, 40.0], [5, 10])
    3.0
    """
    nats, words = np.asarray(nats_n, dtype=np.float64), np.asarray(words_n)
    return _mean_of_known(nats[words > 0] / words[words > 0])


def _out_of_fold_scores(products_nn: Floats, target_n: Floats, fold_n: NDArray[np.int64]) -> Floats:
    """Return ridge scores of each cell by the classifier of the other folds, from the inner products of all cells."""
    score_n = np.zeros(len(target_n))
    for fold in np.unique(fold_n):
        fitted, judged = np.flatnonzero(fold_n != fold), np.flatnonzero(fold_n == fold)
        inner, outer = products_nn[np.ix_(fitted, fitted)], products_nn[np.ix_(judged, fitted)]
        mean_n = inner.mean(axis=0)
        centered = inner - mean_n - mean_n[:, None] + mean_n.mean()
        strength = max(_RIDGE * float(np.trace(centered)) / len(fitted), 1e-12)
        weight_n = solve(centered + strength * np.eye(len(fitted)), target_n[fitted], assume_a="pos")
        score_n[judged] = (outer - mean_n) @ (weight_n - weight_n.mean())
    return score_n


def _mean_of_known(values: Any) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
