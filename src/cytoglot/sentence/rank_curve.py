"""Fit rank curves on training cells, judge them on others, keep them as JSON.

`expression` below is a CSR matrix of log10(1 + counts per 10,000) with one row per sentence and one column per gene of
their vocabulary; for sentences of selected genes, take the columns after normalizing by all genes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError, UnknownNameError, VocabularyMismatchError
from cytoglot.sentence.cell_sentence import CellSentences
from cytoglot.sentence.curve_score import CurveScore, CurveScorer, ScoredCells
from cytoglot.sentence.curves import (
    CURVE_KINDS,
    GENE_LINE_BASES,
    POLYNOMIAL_TERMS,
    CurveKind,
    GeneLines,
    IsotonicCurve,
    PolynomialCurve,
    RankCurve,
)
from cytoglot.sentence.fit_curves import fit_curve, fit_gene_lines
from cytoglot.sentence.rank_sums import (
    RankSums,
    ResidualSums,
    canonical,
    expressed_of_words,
    expression_of_words,
    hash_uniform,
    positions_in,
    word_blocks,
)

__all__ = [
    "CURVE_KINDS",
    "DEFAULT_CURVE",
    "CurveFitter",
    "CurveKind",
    "CurveScore",
    "GeneLines",
    "IsotonicCurve",
    "PolynomialCurve",
    "RankCurve",
    "evaluate_curve",
    "fit_rank_curve",
    "fit_rank_curves",
    "predict_words",
    "rank_curve_from_dict",
    "scored_cells",
]

#: The best on held-out cells of pbmc3k and on each held-out batch of cellbench (full and HVG): docs/results.md.
DEFAULT_CURVE: CurveKind = "gene_lines_length"
#: More words than this are sampled, by whole cells, for Spearman's coefficient.
SPEARMAN_WORDS = 2_000_000
#: The strength of shrinkage is chosen on the other training cells.
_FITTED_SHARE = 0.8


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
        """Return the fitted curves."""
        return {kind: self._curve(kind) for kind in self._kinds}

    def _curve(self, kind: CurveKind) -> RankCurve:
        if kind not in GENE_LINE_BASES:
            return fit_curve(kind, self._sums)
        return fit_gene_lines(kind, self._bases[kind], self._sums, self._residuals[kind], self._vocabulary.fingerprint)


def rank_curve_from_dict(value: Mapping[str, Any]) -> RankCurve:
    """Read what a curve's `to_dict` wrote, exactly.

    Raises
    ------
    InputError
        The kind is unknown, or a key is missing.
    """
    kind = str(value.get("kind"))
    if kind not in CURVE_KINDS:
        raise UnknownNameError("rank curve", kind, CURVE_KINDS)
    try:
        if kind in GENE_LINE_BASES:
            return GeneLines.from_dict(value)
        return PolynomialCurve.from_dict(value) if kind in POLYNOMIAL_TERMS else IsotonicCurve.from_dict(value)
    except KeyError as error:
        raise InputError(f"not a stored {kind} curve: key {error} is missing; found {sorted(value)}") from error


def predict_words(curve: RankCurve, sentences: CellSentences) -> NDArray[np.float32]:
    """Return the expression of every word, in the order of the words; float32, never negative but for `peer_line`.

    Raises
    ------
    VocabularyMismatchError
        The curve has a line for each gene of another vocabulary.
    """
    known = curve.vocabulary_fingerprint
    if known is not None and known != sentences.vocabulary.fingerprint:
        raise VocabularyMismatchError(
            f"the {curve.kind} curve was fitted for the genes of vocabulary {known}, but the sentences use vocabulary "
            f"{sentences.vocabulary.fingerprint} ({len(sentences.vocabulary)} genes); use the curve of the same model, "
            f"or a curve without lines per gene"
        )
    ranks, n_expressed = sentences.ranks(), expressed_of_words(sentences)
    value = np.empty(len(ranks), dtype=np.float32)
    for block in word_blocks(len(ranks)):
        value[block] = curve.predict(ranks[block], sentences.gene_ids[block], n_expressed[block])
    return value


def evaluate_curve(
    curve: RankCurve | Sequence[RankCurve],
    sentences: CellSentences,
    expression: csr_matrix,
    *,
    held_out: bool,
    genes: str = "full",
    seed: int = 0,
) -> list[CurveScore]:
    """Return one row per curve and scope for these cells.

    Nothing is made dense: pairs of zeros are counted. Beyond two million words Spearman's coefficient rests on a
    seeded sample of whole cells, whose number of pairs the row states as `n_spearman`.

    Parameters
    ----------
    held_out
        Whether the curves were fitted on other cells; copied into the rows.
    genes
        Name of the sentences' genes for the rows, "full" or "hvg".
    """
    curves = [curve] if not isinstance(curve, Sequence) else list(curve)
    share = min(1.0, SPEARMAN_WORDS / max(len(sentences.gene_ids), 1))
    scorer = CurveScorer([c.kind for c in curves], spearman_share=share)
    scorer.add(scored_cells(sentences, expression, seed=seed), {c.kind: predict_words(c, sentences) for c in curves})
    return scorer.scores(genes=genes, held_out=held_out)


def scored_cells(sentences: CellSentences, expression: csr_matrix, *, seed: int = 0) -> ScoredCells:
    """Return the observed expression of every word, and of every expressed gene that is not a word."""
    matrix = canonical(expression)
    position = positions_in(sentences, matrix)
    observed = np.where(position >= 0, matrix.data[position], 0) if matrix.nnz else np.zeros(position.size)
    missed = np.ones(matrix.nnz, dtype=bool)
    missed[position[position >= 0]] = False
    matrix_rows = np.repeat(np.arange(len(sentences)), np.diff(matrix.indptr))
    return ScoredCells(
        observed=observed.astype(np.float32),
        rows=sentences.cells(),
        missed=matrix.data[missed].astype(np.float32),
        missed_rows=matrix_rows[missed],
        chance_n=hash_uniform(sentences.cell_ids, seed + 1),
        n_genes=len(sentences.vocabulary),
    )
