"""Sums over the training cells → rank curves: least squares, ridge and isotonic regression in closed form."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cytoglot.errors import InputError
from cytoglot.sentence.curves import (
    POLYNOMIAL_TERMS,
    CurveKind,
    GeneLines,
    IsotonicCurve,
    PolynomialCurve,
)
from cytoglot.sentence.rank_sums import TERMS, RankSums, ResidualSums

#: The reference implementation fits where log10(1 + 0-based rank) < 3.
_PEER_MAX_RANK = 999
#: Shrinkage strengths tried, in pseudo-observations.
_STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
_DEFAULT_STRENGTH = (10.0, 10.0)
#: isotonic_length: groups of sentences of like length, and the fewest pairs that make a group.
_N_LENGTH_GROUPS, _MIN_PAIRS = 8, 2_000
#: Values that come by the gene or by the step are rounded to this many decimals, so that their JSON stays small.
_DECIMALS = 6


def fit_curve(kind: CurveKind, sums: RankSums) -> PolynomialCurve | IsotonicCurve:
    """Return the curve of all genes that the sums of the training cells give.

    Raises
    ------
    InputError
        Nothing was summed.
    """
    if sums.n_pairs == 0:
        raise InputError("a rank curve needs expressed genes, found none in the training cells; pass non-empty cells")
    return _fit_polynomial(kind, sums) if kind in POLYNOMIAL_TERMS else _fit_isotonic(kind, sums)


def fit_gene_lines(
    kind: CurveKind,
    base: PolynomialCurve | IsotonicCurve,
    sums: RankSums,
    residuals: tuple[ResidualSums, ResidualSums],
    vocabulary_fingerprint: str,
) -> GeneLines:
    """Return the line of every gene around a base fitted from `sums`.

    The two strengths of the shrinkage, of offsets and of slopes, are those which, with lines fitted on the first part
    of the residuals, leave the least squared error on the second; the lines are then fitted on both.
    """
    first, second = (part.sums_kg for part in residuals)
    spread = max(sums.variance_x, 1e-6)
    strength = _choose_strength(first, second, spread)
    offset_g, slope_g = _shrunk_lines(first + second, spread, strength)
    return GeneLines(
        kind=kind,
        base=base,
        offset_g=np.round(offset_g, _DECIMALS),
        slope_g=np.round(slope_g, _DECIMALS),
        centre=residuals[0].centre,
        strength=strength,
        floor=sums.smallest,
        max_rank=sums.max_rank,
        vocabulary_fingerprint=vocabulary_fingerprint,
    )


def _fit_polynomial(kind: CurveKind, sums: RankSums) -> PolynomialCurve:
    """Return the least-squares fit over all summed pairs (`peer_line`: those of its ranks)."""
    n_pairs = sums.n_pairs
    if kind == "peer_line":
        n_r, y_r = sums.n_br.sum(axis=0)[:_PEER_MAX_RANK], sums.y_br.sum(axis=0)[:_PEER_MAX_RANK]
        f = np.stack([np.ones(len(n_r)), np.log10(np.arange(1, len(n_r) + 1))])
        products, targets, n_pairs = (f * n_r) @ f.T, f @ y_r, int(n_r.sum())
    else:
        chosen = [TERMS.index(term) for term in POLYNOMIAL_TERMS[kind]]
        products, targets = sums.term_products[np.ix_(chosen, chosen)], sums.term_targets[chosen]
    return PolynomialCurve(
        kind=kind,
        coefficients=tuple(_solve(products, targets).tolist()),
        floor=sums.smallest,
        max_rank=sums.max_rank,
        length_range=(sums.shortest, sums.longest),
        n_pairs=n_pairs,
    )


def _solve(products: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve the normal equations; terms that say the same (cells of one length) share the weight."""
    scale = np.sqrt(np.maximum(np.diag(products), 1e-300))
    solution = np.linalg.lstsq(products / np.outer(scale, scale), targets / scale, rcond=1e-12)[0]
    return np.asarray(solution / scale)


def _choose_strength(
    first_kg: NDArray[np.float64], second_kg: NDArray[np.float64], spread: float
) -> tuple[float, float]:
    if not first_kg[0].any() or not second_kg[0].any():
        return _DEFAULT_STRENGTH
    errors = {
        (a, b): _excess_error(second_kg, *_shrunk_lines(first_kg, spread, (a, b)))
        for a in _STRENGTHS
        for b in _STRENGTHS
    }
    return min(errors, key=lambda pair: errors[pair])


def _shrunk_lines(
    residual_kg: NDArray[np.float64], spread: float, strength: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ridge offsets and slopes of all genes: the 2 x 2 normal equations, solved by hand."""
    n, x, x2, r, xr = residual_kg
    n_shrunk, x2_shrunk = n + strength[0], x2 + strength[1] * spread
    determinant = n_shrunk * x2_shrunk - x * x
    return (r * x2_shrunk - x * xr) / determinant, (n_shrunk * xr - x * r) / determinant


def _excess_error(
    residual_kg: NDArray[np.float64], offset_g: NDArray[np.float64], slope_g: NDArray[np.float64]
) -> float:
    """Return the squared error of the lines, less that of the base alone."""
    n, x, x2, r, xr = residual_kg
    quadratic = offset_g**2 * n + 2 * offset_g * slope_g * x + slope_g**2 * x2
    return float(np.sum(quadratic - 2 * (offset_g * r + slope_g * xr)))


def _fit_isotonic(kind: CurveKind, sums: RankSums) -> IsotonicCurve:
    from sklearn.isotonic import isotonic_regression  # slow to import, and only needed to fit

    lengths, last_ranks, values = [], [], []
    for bins in _length_groups(sums, _N_LENGTH_GROUPS if kind == "isotonic_length" else 1):
        n_r, y_r = sums.n_br[bins].sum(axis=0), sums.y_br[bins].sum(axis=0)
        seen = np.flatnonzero(n_r)
        value_s = np.round(
            isotonic_regression(y_r[seen] / n_r[seen], sample_weight=n_r[seen], increasing=False), _DECIMALS
        )
        ends = np.append(np.flatnonzero(np.diff(value_s)), len(seen) - 1)
        weight_b = sums.n_br[bins].sum(axis=1)
        lengths.append(float(np.average(sums.length_of_bins()[bins], weights=weight_b)))
        last_ranks.append(tuple((seen[ends] + 1).tolist()))
        values.append(tuple(value_s[ends].tolist()))
    return IsotonicCurve(
        kind=kind,
        lengths=tuple(lengths),
        last_ranks=tuple(last_ranks),
        values=tuple(values),
        n_pairs=sums.n_pairs,
    )


def _length_groups(sums: RankSums, n_groups: int) -> list[NDArray[np.int64]]:
    """Return the bins of each group: neighbors, of about equal numbers of pairs and at least `_MIN_PAIRS`."""
    n_b = sums.n_br.sum(axis=1)
    n_groups = max(1, min(n_groups, int(n_b.sum() // _MIN_PAIRS)))
    middle_b = (np.cumsum(n_b) - n_b / 2) / n_b.sum()
    group_b = np.minimum((middle_b * n_groups).astype(np.int64), n_groups - 1)
    return [bins for k in range(n_groups) if (bins := np.flatnonzero((group_b == k) & (n_b > 0))).size]
