"""How far apart groups of cells are in an embedding: silhouettes, and the scores of integration made of them.

Per-cell silhouettes cost all pairs of cells. They take each pair once, in double precision, in tiles, so memory does
not grow with the pairs; those by cosine need no pairs at all.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from cytoglot.metrics.embedding.arrays import Codes, Floats, embedding_array, group_codes
from cytoglot.metrics.spec import metric

Distance = Literal["euclidean", "cosine"]
Between = Literal["nearest", "mean_other", "furthest"]

_TILE = 1024


def silhouette_samples(
    embedding_nd: ArrayLike, labels: ArrayLike, *, distance: Distance = "euclidean", between: Between = "nearest"
) -> Floats:
    """Return the silhouette of each cell, from −1 (nearer to other labels) to 1 (far from all of them), (n,).

    It is (b − a) / max(a, b), with a the mean distance to the other cells of the label and b that to the cells of the
    other label that is nearest on average. A cell that is alone with its label has 0, as has one with a = b = 0.

    Parameters
    ----------
    embedding_nd
        Finite vectors, (n, d).
    labels
        The label of each cell.
    distance
        Of two cells. The cosine distance of a vector of length 0 to every other one is 1.
    between
        What b is: the smallest mean distance to another label, the largest one, or the mean distance to all cells of
        other labels. The latter two are for labels that are batches.

    Returns
    -------
    ndarray
        NaN for all cells if they have fewer than two labels.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.silhouette_samples([[0.0], [1.0], [5.0], [6.0]], ["B", "B", "T", "T"]).round(2).tolist()
    [0.82, 0.78, 0.78, 0.82]
    """
    vectors_nd = embedding_array(embedding_nd)
    codes_n, n_labels = group_codes(labels, len(vectors_nd))
    if n_labels < 2:
        return np.full(len(vectors_nd), math.nan)
    sums_nl = _cosine_sums(vectors_nd, codes_n, n_labels) if distance == "cosine" else None
    if sums_nl is None:
        sums_nl = _euclidean_sums(vectors_nd, codes_n, n_labels)
    sizes_l, cells = np.bincount(codes_n), np.arange(len(codes_n))
    size_n = sizes_l[codes_n]
    inside_n = sums_nl[cells, codes_n] / np.maximum(size_n - 1, 1)
    if between == "mean_other":
        outside_n = (sums_nl.sum(axis=1) - sums_nl[cells, codes_n]) / (len(codes_n) - size_n)
    else:
        means_nl = sums_nl / sizes_l
        means_nl[cells, codes_n] = math.inf if between == "nearest" else -math.inf
        outside_n = means_nl.min(axis=1) if between == "nearest" else means_nl.max(axis=1)
    larger_n = np.maximum(inside_n, outside_n)
    known_n = (larger_n > 0) & (size_n > 1)
    return np.where(known_n, (outside_n - inside_n) / np.where(known_n, larger_n, 1), 0.0)


@metric(
    "silhouette",
    inputs="embedding",
    direction="higher",
    low=-1.0,
    reference="Rousseeuw 1987: mean over cells of (b − a) / max(a, b), Euclidean",
)
def silhouette(embedding_nd: ArrayLike, labels: ArrayLike, *, distance: Distance = "euclidean") -> float:
    """Return the mean silhouette of all cells; NaN with fewer than two labels.

    Parameters
    ----------
    embedding_nd, labels, distance
        As in `silhouette_samples`.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.silhouette([[0.0], [1.0], [10.0], [11.0]], ["B", "B", "T", "T"])
    0.8997...
    """
    return _mean(silhouette_samples(embedding_nd, labels, distance=distance))


@metric(
    "asw_label",
    inputs="embedding",
    direction="higher",
    reference="Luecken et al. 2022 (scIB): mean silhouette s of cell types as (s + 1) / 2; as silhouette_label of "
    "scib-metrics 0.5.10",
)
def asw_label(embedding_nd: ArrayLike, labels: ArrayLike, *, silhouette_n: ArrayLike | None = None) -> float:
    """Return the average silhouette width of the labels from 0 to 1, 0.5 where they are not told apart.

    Parameters
    ----------
    embedding_nd, labels
        As in `silhouette_samples`.
    silhouette_n
        The silhouettes of the cells, if they are known already.

    Returns
    -------
    float
        NaN with fewer than two labels.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> round(metrics.asw_label([[0.0], [1.0], [5.0], [6.0]], ["B", "B", "T", "T"]), 3)
    0.899
    """
    known = silhouette_samples(embedding_nd, labels) if silhouette_n is None else np.asarray(silhouette_n)
    return _mean((known + 1) / 2)


@metric(
    "asw_batch",
    inputs="embedding",
    direction="higher",
    reference="Luecken et al. 2022 (scIB): 1 − |silhouette of the batch| among cells of one type, mean over cells and "
    "then over types; as silhouette_batch of scib-metrics 0.5.10",
)
def asw_batch(
    embedding_nd: ArrayLike,
    labels: ArrayLike,
    batches: ArrayLike,
    *,
    distance: Distance = "euclidean",
    between: Between = "nearest",
) -> float:
    """Return how little the batch of a cell shows among cells of its label: 1 if it does not, 0 if fully.

    A label of one batch, or with one cell of each batch, is left out. Where batches are nested (two of one laboratory),
    each finds its near one and the score is too good: `bras` is the remedy.

    Parameters
    ----------
    embedding_nd, labels, distance, between
        As in `silhouette_samples`; the silhouettes are those of the batches within each label.
    batches
        The batch of each cell.

    Returns
    -------
    float
        NaN if no label is left.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.asw_batch([[0.0], [0.2], [0.1], [0.3]], ["B"] * 4, ["x", "y", "x", "y"]) > 0.5
    True
    """
    vectors_nd = embedding_array(embedding_nd)
    label_n, n_labels = group_codes(labels, len(vectors_nd))
    batch_n, _ = group_codes(batches, len(vectors_nd))
    widths = []
    for label in range(n_labels):
        of_label = label_n == label
        if 1 < len(np.unique(batch_n[of_label])) < of_label.sum():
            silhouette_n = silhouette_samples(
                vectors_nd[of_label], batch_n[of_label], distance=distance, between=between
            )
            widths.append(float(np.mean(1 - np.abs(silhouette_n))))
    return _mean(np.array(widths))


@metric(
    "bras",
    inputs="embedding",
    direction="higher",
    reference="Rautenstrauch and Ohler 2025: asw_batch by cosine, against all cells of other batches; as bras of "
    "scib-metrics 0.5.10",
)
def bras(
    embedding_nd: ArrayLike,
    labels: ArrayLike,
    batches: ArrayLike,
    *,
    distance: Distance = "cosine",
    between: Between = "mean_other",
) -> float:
    """Return `asw_batch` with distances to the cells of all other batches instead of the nearest batch.

    Parameters
    ----------
    embedding_nd, labels, batches, distance, between
        As in `asw_batch`.

    Returns
    -------
    float
        NaN if no label has cells of two batches.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> round(metrics.bras([[1.0, 0], [0, 1.0], [1.0, 0], [0, 1.0]], ["B"] * 4, ["x", "y", "x", "y"]), 3)
    0.0
    """
    return asw_batch(embedding_nd, labels, batches, distance=distance, between=between)


@metric(
    "isolated_labels",
    inputs="embedding",
    direction="higher",
    reference="Luecken et al. 2022 (scIB), by silhouette: mean (s + 1) / 2 of the labels that are in the fewest "
    "batches; as isolated_labels of scib-metrics 0.5.10",
)
def isolated_labels(
    embedding_nd: ArrayLike, labels: ArrayLike, batches: ArrayLike, *, silhouette_n: ArrayLike | None = None
) -> float:
    """Return how well labels that occur in the fewest batches are told from all others, from 0 to 1.

    If every label is in every batch, all of them are taken, each with the same weight.

    Parameters
    ----------
    embedding_nd, labels, silhouette_n
        As in `asw_label`.
    batches
        The batch of each cell.

    Returns
    -------
    float
        NaN with fewer than two labels.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> round(metrics.isolated_labels([[0.0], [1.0], [5.0], [6.0]], ["B", "B", "T", "T"], ["x", "y", "x", "x"]), 3)
    0.899
    """
    known = silhouette_samples(embedding_nd, labels) if silhouette_n is None else np.asarray(silhouette_n)
    label_n, n_labels = group_codes(labels, len(known))
    batch_n, n_batches = group_codes(batches, len(known))
    is_in_lb = np.zeros((n_labels, n_batches), dtype=bool)
    is_in_lb[label_n, batch_n] = True
    batches_l = is_in_lb.sum(axis=1)
    of_label_l = np.bincount(label_n, weights=(known + 1) / 2) / np.bincount(label_n)
    return _mean(of_label_l[batches_l == batches_l.min(initial=n_batches)])


def _euclidean_sums(vectors_nd: Floats, codes_n: Codes, n_groups: int) -> Floats:
    """Return the sum of the distances of each cell to the cells of each group, (n, l)."""
    from cytoglot.metrics.embedding.kernels import add_group_distances

    order = np.argsort(codes_n, kind="stable")
    sorted_nd, sorted_codes_n = (vectors_nd - vectors_nd.mean(axis=0))[order], codes_n[order]
    squared_n = np.square(sorted_nd).sum(axis=1)
    sums_nl = np.zeros((len(order), n_groups))
    starts = range(0, len(order), _TILE)
    for rows in starts:
        for columns in range(rows, len(order), _TILE):
            products_rc = sorted_nd[rows : rows + _TILE] @ sorted_nd[columns : columns + _TILE].T
            if rows == columns:
                np.fill_diagonal(products_rc, squared_n[rows : rows + _TILE])
            add_group_distances(products_rc, rows, columns, squared_n, sorted_codes_n, rows == columns, sums_nl)
    found_nl = np.empty_like(sums_nl)
    found_nl[order] = sums_nl
    return found_nl


def _cosine_sums(vectors_nd: Floats, codes_n: Codes, n_groups: int) -> Floats:
    """Return the sum of the cosine distances of each cell to the other cells of each group, (n, l).

    A sum of 1 − x·y over y is the number of y less x times their sum, so no pair is needed.
    """
    length_n = np.linalg.norm(vectors_nd, axis=1)
    unit_nd = vectors_nd / np.where(length_n > 0, length_n, 1)[:, None]
    total_ld = np.zeros((n_groups, unit_nd.shape[1]))
    np.add.at(total_ld, codes_n, unit_nd)
    sums_nl = np.bincount(codes_n, minlength=n_groups) - unit_nd @ total_ld.T
    sums_nl[np.arange(len(codes_n)), codes_n] -= 1 - np.square(unit_nd).sum(axis=1)
    return np.maximum(sums_nl, 0.0)


def _mean(values: Floats) -> float:
    """Return the mean; NaN without values."""
    return float(values.mean()) if len(values) else math.nan
