"""Fit rank curves on training cells: least squares, ridge and isotonic regression in closed form, from sums.

`expression` below is a CSR matrix of log10(1 + counts per 10,000) with one row per sentence and one column per gene of
their vocabulary; for sentences of selected genes, take the columns after normalizing by all genes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.sentence.cell_sentence import CellSentences
from cytoglot.sentence.rank_curve import (
    CURVE_KINDS,
    GENE_LINE_BASES,
    POLYNOMIAL_TERMS,
    CurveKind,
    GeneLines,
    IsotonicCurve,
    PolynomialCurve,
    RankCurve,
    predict_words,
)
from cytoglot.sentence.rank_sums import (
    TERMS,
    RankSums,
    ResidualSums,
    expressed_of_words,
    expression_of_words,
    hash_uniform,
)

#: The reference implementation fits where log10(1 + 0-based rank) < 3.
_PEER_MAX_RANK = 999
#: The strength of shrinkage is chosen on the other training cells.
_FITTED_SHARE = 0.8
#: Shrinkage strengths tried, in pseudo-observations.
_STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
_DEFAULT_STRENGTH = (10.0, 10.0)
#: isotonic_length: groups of sentences of like length, and the fewest pairs that make a group.
_N_LENGTH_GROUPS, _MIN_PAIRS = 8, 2_000
#: Values that come by the gene or by the step are rounded to this many decimals, so that their JSON stays small.
_DECIMALS = 6


def fit_rank_curve(kind: CurveKind, sentences: CellSentences, expression: csr_matrix, *, seed: int = 0) -> RankCurve:
    """Return the curve of one kind, fitted on these (training) cells; see `fit_rank_curves`."""
    return fit_rank_curves([kind], sentences, expression, seed=seed)[kind]


def fit_rank_curves(
    kinds: Sequence[CurveKind], sentences: CellSentences, expression: csr_matrix, *, seed: int = 0
) -> dict[CurveKind, RankCurve]:
    """Return curves of several kinds, fitted on these (training) cells.

    Ties in a sentence are taken in its order. Zeros take no part. The strength of the shrinkage of `gene_lines*` is
    chosen on a fifth of the cells, drawn by `seed` and cell id, and the lines are then fitted on all of them.

    Raises
    ------
    UnknownNameError
        A kind is not one of `CURVE_KINDS`.
    VocabularyMismatchError
        The matrix does not go with the sentences.
    InputError
        A sentence holds a gene that is 0 in the matrix, or there is no expressed gene at all.
    """
    fitter = CurveFitter(kinds, sentences.vocabulary, seed=seed)
    fitter.add(sentences, expression)
    if fitter.needs_second_reading:
        fitter.start_second_reading()
        fitter.add(sentences, expression)
    return fitter.curves()


class CurveFitter:
    """Fits curves to training cells that come in chunks, in any order.

    `add` all of them; where `needs_second_reading`, call `start_second_reading` and `add` all of them again; then take
    the `curves`.
    """

    def __init__(self, kinds: Sequence[CurveKind], vocabulary: GeneVocabulary, *, seed: int = 0) -> None:
        for kind in kinds:
            if kind not in CURVE_KINDS:
                raise UnknownNameError("rank curve", kind, CURVE_KINDS)
        self._kinds, self._vocabulary, self._seed = tuple(kinds), vocabulary, seed
        self._sums = RankSums()
        self._bases: dict[CurveKind, PolynomialCurve | IsotonicCurve] = {}
        self._residuals: dict[CurveKind, tuple[ResidualSums, ResidualSums]] = {}

    @property
    def needs_second_reading(self) -> bool:
        """Return whether a kind has lines per gene, which are fitted to what its base leaves over."""
        return any(kind in GENE_LINE_BASES for kind in self._kinds)

    @property
    def n_words(self) -> int:
        """Return the number of words of all cells."""
        return self._sums.n_pairs

    def add(self, sentences: CellSentences, expression: csr_matrix) -> None:
        """Add a chunk of cells; `fit_rank_curves` says what is raised."""
        observed, ranks = expression_of_words(sentences, expression), sentences.ranks()
        if not self._bases:
            self._sums.add(ranks, expressed_of_words(sentences), observed)
            return
        second = hash_uniform(sentences.cell_ids, self._seed)[sentences.cells()] >= _FITTED_SHARE
        for kind, base in self._bases.items():
            residual = observed - predict_words(base, sentences)
            for sums, chosen in zip(self._residuals[kind], (~second, second), strict=True):
                sums.add(ranks[chosen], sentences.gene_ids[chosen], residual[chosen])

    def start_second_reading(self) -> None:
        """Fit the bases of the lines per gene."""
        n_genes, centre = len(self._vocabulary), self._sums.mean_x
        for kind in self._kinds:
            if kind in GENE_LINE_BASES:
                self._bases[kind] = fit_curve(GENE_LINE_BASES[kind], self._sums)
                self._residuals[kind] = ResidualSums(n_genes, centre=centre), ResidualSums(n_genes, centre=centre)

    def curves(self) -> dict[CurveKind, RankCurve]:
        """Return the fitted curves.

        The two strengths of the shrinkage, of offsets and of slopes, are those which, with lines fitted on the first
        part of the residuals, leave the least squared error on the second; the lines are then fitted on both.
        """
        curves: dict[CurveKind, RankCurve] = {}
        spread = max(self._sums.variance_x, 1e-6)
        for kind in self._kinds:
            if kind not in GENE_LINE_BASES:
                curves[kind] = fit_curve(kind, self._sums)
                continue
            first, second = (part.sums_kg for part in self._residuals[kind])
            best = _DEFAULT_STRENGTH
            if first[0].any() and second[0].any():
                errors = {}
                n, x, x2, r, xr = second
                for strength in product(_STRENGTHS, _STRENGTHS):
                    offset_g, slope_g = _shrunk_lines(first, spread, strength)
                    # the squared error of the lines, less that of the base alone
                    quadratic = offset_g**2 * n + 2 * offset_g * slope_g * x + slope_g**2 * x2
                    errors[strength] = float(np.sum(quadratic - 2 * (offset_g * r + slope_g * xr)))
                best = min(errors, key=errors.__getitem__)
            offset_g, slope_g = _shrunk_lines(first + second, spread, best)
            curves[kind] = GeneLines(
                kind=kind,
                base=self._bases[kind],
                offset_g=np.round(offset_g, _DECIMALS),
                slope_g=np.round(slope_g, _DECIMALS),
                centre=self._residuals[kind][0].centre,
                strength=best,
                floor=self._sums.smallest,
                max_rank=self._sums.max_rank,
                vocabulary_fingerprint=self._vocabulary.fingerprint,
            )
        return curves


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
    # The normal equations; least squares, so that terms that say the same (cells of one length) share the weight.
    scale = np.sqrt(np.maximum(np.diag(products), 1e-300))
    solution = np.linalg.lstsq(products / np.outer(scale, scale), targets / scale, rcond=1e-12)[0]
    return PolynomialCurve(
        kind=kind,
        coefficients=tuple(np.asarray(solution / scale).tolist()),
        floor=sums.smallest,
        max_rank=sums.max_rank,
        length_range=(sums.shortest, sums.longest),
        n_pairs=n_pairs,
    )


def _shrunk_lines(
    residual_kg: NDArray[np.float64], spread: float, strength: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ridge offsets and slopes of all genes: the 2 x 2 normal equations, solved by hand."""
    n, x, x2, r, xr = residual_kg
    n_shrunk, x2_shrunk = n + strength[0], x2 + strength[1] * spread
    determinant = n_shrunk * x2_shrunk - x * x
    return (r * x2_shrunk - x * xr) / determinant, (n_shrunk * xr - x * r) / determinant


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
