"""Whether genes go together in generated cells as in real ones, within cell types.

Genes drawn independently of each other given the type have no correlation within it, whatever their frequencies. Cells
are given as in `cell_sets`. Axes: n cells, g genes, t types.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, svds

from cytoglot.metrics.cell_sets import CellsByType, Floats, presence
from cytoglot.metrics.spec import metric


def most_variable_genes(real: CellsByType, n_genes: int, *, n_top: int = 300) -> NDArray[np.int64]:
    """Return the genes whose presence varies most within types, most variable first.

    Parameters
    ----------
    real
        Type → sentences.
    n_genes
        Genes of the vocabulary.
    n_top
        Number of genes at most; those without variance are left out.
    """
    squares_g = np.zeros(n_genes)
    for sentences in real.values():
        share_g = np.asarray(presence(sentences, n_genes).mean(axis=0)).ravel() if len(sentences) else np.zeros(n_genes)
        squares_g += len(sentences) * share_g * (1 - share_g)
    order = np.argsort(-squares_g, kind="stable")[:n_top]
    return order[squares_g[order] > 1e-12]


def within_type_products(cells: CellsByType, names: Sequence[str], genes: NDArray[np.int64], n_genes: int) -> Floats:
    """Return for each named type the products of its cells' presence less the type's mean, summed: (t, g, g).

    Their sum over types is the covariance within types, but for a factor.

    Parameters
    ----------
    cells
        Type → sentences; a type without cells has zeros.
    names
        The types, in the order of the first axis.
    genes
        Ids of the genes of the other two axes.
    n_genes
        Genes of the vocabulary.
    """
    products_tgg = np.zeros((len(names), len(genes), len(genes)))
    for products_gg, name in zip(products_tgg, names, strict=True):
        if sentences := cells.get(name, ()):
            present_ng = presence(sentences, n_genes)[:, genes].toarray()
            present_ng -= present_ng.mean(axis=0)
            products_gg[:] = present_ng.T @ present_ng
    return products_tgg


def correlation_agreement(first_gg: Floats, second_gg: Floats) -> float:
    """Return Pearson's r between the correlations of two covariance matrices, over pairs of different genes.

    Genes without variance in one of them are left out; NaN with fewer than three pairs or without variance of them.
    """
    known = (np.diag(first_gg) > 1e-12) & (np.diag(second_gg) > 1e-12)
    if known.sum() < 3:
        return math.nan
    above = np.triu_indices(int(known.sum()), k=1)
    values = []
    for matrix_gg in (first_gg, second_gg):
        part = matrix_gg[np.ix_(known, known)]
        deviation = np.sqrt(np.diag(part))
        pairs = (part / np.outer(deviation, deviation))[above]
        values.append(pairs - pairs.mean())
    scale = math.sqrt(float((values[0] ** 2).sum() * (values[1] ** 2).sum()))
    return float(values[0] @ values[1]) / scale if scale > 0 else math.nan


@metric(
    "coexpression_agreement",
    inputs="sentences",
    direction="higher",
    low=-1.0,
    reference="Pearson's r of the gene–gene correlations within types, presence of the 300 genes that vary most; its "
    "ceiling is a second set of real cells of equal size, since few cells have noisy correlations",
)
def coexpression_agreement(generated: CellsByType, real: CellsByType, n_genes: int, *, n_top: int = 300) -> float:
    """Return how alike the gene–gene correlations within types are in generated and in real cells.

    A gene's presence is 1 in a cell whose sentence has it. The mean of the type is taken off, so differences between
    types count for nothing; genes drawn independently given the type reach 0.

    Parameters
    ----------
    generated, real
        Type → sentences; types of only one of them are left out.
    n_genes
        Genes of the vocabulary.
    n_top
        Genes that are compared: those that vary most within types among the real cells.

    Returns
    -------
    float
        NaN with fewer than three genes that vary in both.

    Examples
    --------
    >>> import numpy as np
    >>> from cytoglot import metrics
    >>> rng = np.random.default_rng(0)
    >>> real = {"B": [rng.permutation(20)[:8] for _ in range(40)]}
    >>> round(metrics.coexpression_agreement(real, real, n_genes=20), 6)
    1.0
    """
    shared = {name: real[name] for name in generated if name in real}
    genes = most_variable_genes(shared, n_genes, n_top=n_top)
    sums = [within_type_products(each, list(shared), genes, n_genes).sum(axis=0) for each in (generated, shared)]
    return correlation_agreement(*sums)


def first_within_type_component(real: CellsByType, n_genes: int) -> Floats:
    """Return the direction, (g,), in which cells differ most within their types, of length 1; zeros without variance.

    The first principal component of the presence of genes less the mean of the type.
    """
    filled = [sentences for sentences in real.values() if len(sentences) > 1]
    if not filled or n_genes < 2:
        return np.zeros(n_genes)
    parts = [presence(sentences, n_genes) for sentences in filled]
    means = [np.asarray(part.mean(axis=0)).ravel() for part in parts]
    ends = np.cumsum([0, *(part.shape[0] for part in parts)])

    def forward(direction_g: Floats) -> Floats:
        flat = direction_g.ravel()
        return np.concatenate([part @ flat - mean @ flat for part, mean in zip(parts, means, strict=True)])

    def backward(score_n: Floats) -> Floats:
        pieces = [score_n.ravel()[start:end] for start, end in itertools.pairwise(ends)]
        return np.asarray(sum(p.T @ s - m * s.sum() for p, m, s in zip(parts, means, pieces, strict=True)))

    # The matrix less its means would be dense, so it is never made.
    centered = LinearOperator((int(ends[-1]), n_genes), matvec=forward, rmatvec=backward, dtype=np.float64)
    if not np.abs(forward(np.linspace(1, 2, n_genes))).max() > 1e-12:
        return np.zeros(n_genes)
    start = np.linspace(1, 2, min(centered.shape))
    return np.asarray(svds(centered, k=1, v0=start)[2][0], dtype=np.float64)


def spread_along(cells: CellsByType, names: Sequence[str], direction_g: Floats) -> Floats:
    """Return the variance of each named type's cells along a direction of presences, (t,); NaN below two cells."""
    scores = (presence(cells.get(name, ()), len(direction_g)) @ direction_g for name in names)
    return np.array([np.var(score, ddof=1) if len(score) > 1 else np.nan for score in scores])


@metric(
    "component_variance_ratio",
    inputs="sentences",
    direction="higher",
    high=math.inf,
    target=1.0,
    reference="variance of generated ÷ held-out cells along the first principal component, within types, of real "
    "training cells (presence)",
)
def component_variance_ratio(
    generated: CellsByType, held_out: CellsByType, training: CellsByType, n_genes: int
) -> float:
    """Return how much of the main variation of real cells within their types generated cells have: 1 if all of it.

    Parameters
    ----------
    generated, held_out
        Type → sentences; the variances of types that both have are added up.
    training
        Type → sentences, from which the component is taken.
    n_genes
        Genes of the vocabulary.

    Returns
    -------
    float
        NaN without a type of two cells in both, or without variance of held-out cells.

    Examples
    --------
    >>> import numpy as np
    >>> from cytoglot import metrics
    >>> rng = np.random.default_rng(0)
    >>> real = {"B": [rng.permutation(20)[:8] for _ in range(40)]}
    >>> round(metrics.component_variance_ratio(real, real, real, n_genes=20), 6)
    1.0
    """
    direction_g = first_within_type_component(training, n_genes)
    spread = np.array([spread_along(each, list(held_out), direction_g) for each in (generated, held_out)])
    ours, real = spread[:, ~np.isnan(spread).any(axis=0)].sum(axis=1)
    return float(ours / real) if real > 0 else math.nan
