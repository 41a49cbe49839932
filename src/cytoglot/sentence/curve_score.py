"""How well reconstructed expression agrees with observed expression: R², Pearson and Spearman, chunk by chunk.

Scope "expressed": the (cell, gene) pairs that the sentences hold. Scope "all": every gene of every cell, where a gene
outside the sentence is reconstructed as 0. Pairs of two zeros are counted and never made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from cytoglot.sentence.cell_sentence import CellSentences
from cytoglot.sentence.rank_curve import CurveKind, RankCurve, predict_words
from cytoglot.sentence.rank_sums import canonical, hash_uniform, positions_in

Scope = Literal["expressed", "all"]
SCOPES: tuple[Scope, ...] = ("expressed", "all")
#: More words than this are sampled, by whole cells, for Spearman's coefficient.
SPEARMAN_WORDS = 2_000_000


class CurveScore(TypedDict):
    """One row of the reconstruction table."""

    curve: CurveKind
    genes: str
    """the sentences: "full" or "hvg" """
    scope: Scope
    held_out: bool
    """whether the curve was fitted on other cells than these"""
    r2: float | None
    """1 - squared error / squared deviation from the mean; below 0 where the mean would do better"""
    pearson: float | None
    spearman: float | None
    """tie-aware: equal values share their mean rank"""
    n: int
    """(cell, gene) pairs of the scope"""
    n_spearman: int
    """pairs that `spearman` rests on: those of all cells, or of a seeded sample of whole cells"""


@dataclass(frozen=True, kw_only=True)
class ScoredCells:
    """A chunk of cells to score: one entry per word, per missed gene and per cell."""

    observed: NDArray[np.float32]
    """expression of every word"""
    rows: NDArray[np.int64]
    """cell of every word"""
    missed: NDArray[np.float32]
    """expression of genes that are expressed but not in the sentence, which was cut off"""
    missed_rows: NDArray[np.int64]
    chance_n: NDArray[np.float64]
    """number in [0, 1) of every cell, by which it is drawn for Spearman"""
    n_genes: int


@dataclass
class _Moments:
    """n, Σo, Σp, Σo², Σp², Σop and Σ(o-p)² of observed o and predicted p."""

    n: int = 0
    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(6))

    def add(self, observed: NDArray[np.float32], predicted: NDArray[np.float32]) -> None:
        o, p = observed.astype(np.float64), predicted.astype(np.float64)
        self.n += o.size
        self.sums += [o.sum(), p.sum(), o @ o, p @ p, o @ p, (o - p) @ (o - p)]

    def r2_and_pearson(self) -> tuple[float | None, float | None]:
        """Return both, None where the observed (Pearson: or the predicted) values are all the same."""
        if self.n == 0:
            return None, None
        o, p, oo, pp, op, squared_error = self.sums
        spread_o, spread_p = oo - o * o / self.n, pp - p * p / self.n
        if spread_o <= 1e-12 * oo:
            return None, None
        r2 = float(1 - squared_error / spread_o)
        if spread_p <= 1e-12 * pp:
            return r2, None
        return r2, float(np.clip((op - o * p / self.n) / np.sqrt(spread_o * spread_p), -1.0, 1.0))


class CurveScorer:
    """Gathers observed and predicted expression of several curves.

    R² and Pearson rest on sums over every pair. Spearman needs its values at once: they are kept for the share
    `spearman_share` of the cells (1: all).
    """

    def __init__(self, curves: Sequence[CurveKind], *, spearman_share: float = 1.0) -> None:
        self._share = spearman_share
        self._words = {curve: _Moments() for curve in curves}
        self._missed = _Moments()
        self._n_zero_pairs = self._kept_zero_pairs = 0
        none = np.zeros(0, np.float32)
        self._kept_observed, self._kept_missed = [none], [none]
        self._kept = {curve: [none] for curve in curves}

    def add(self, cells: ScoredCells, predicted: Mapping[CurveKind, NDArray[np.float32]]) -> None:
        """Add a chunk; `predicted` holds the expression of every word by curve."""
        n_cells = len(cells.chance_n)
        words_n, missed_n = (np.bincount(rows, minlength=n_cells) for rows in (cells.rows, cells.missed_rows))
        n_zero_n = cells.n_genes - words_n - missed_n
        keep_n = cells.chance_n < self._share
        self._n_zero_pairs += int(n_zero_n.sum())
        self._kept_zero_pairs += int(n_zero_n[keep_n].sum())
        self._missed.add(cells.missed, np.zeros_like(cells.missed))
        self._kept_missed.append(cells.missed[keep_n[cells.missed_rows]])
        keep = keep_n[cells.rows]
        self._kept_observed.append(cells.observed[keep])
        for curve, values in predicted.items():
            self._words[curve].add(cells.observed, values)
            self._kept[curve].append(values[keep])

    def scores(self, *, genes: str, held_out: bool) -> list[CurveScore]:
        """Return one row per curve and scope."""
        observed, missed = np.concatenate(self._kept_observed), np.concatenate(self._kept_missed)
        ranks = {
            "expressed": SparseRanks(observed),
            "all": SparseRanks(np.concatenate([observed, missed]), n_zeros=self._kept_zero_pairs),
        }
        rows: list[CurveScore] = []
        for curve, words in self._words.items():
            predicted = np.concatenate(self._kept[curve])
            everything = _Moments(words.n + self._missed.n + self._n_zero_pairs, words.sums + self._missed.sums)
            with_missed = np.concatenate([predicted, np.zeros_like(missed)])
            for scope, moments, values in zip(SCOPES, (words, everything), (predicted, with_missed), strict=True):
                r2, pearson = moments.r2_and_pearson()
                reference = ranks[scope]
                rows.append(
                    CurveScore(
                        curve=curve,
                        genes=genes,
                        scope=scope,
                        held_out=held_out,
                        r2=r2,
                        pearson=pearson,
                        spearman=reference.correlation(SparseRanks(values, n_zeros=reference.n_zeros)),
                        n=moments.n,
                        n_spearman=reference.n,
                    )
                )
        return rows


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


class SparseRanks:
    """Mean ranks of values, together with `n_zeros` zeros that are not stored, less the mean of all ranks."""

    def __init__(self, values: NDArray[np.floating], *, n_zeros: int = 0) -> None:
        self.n_zeros, self.n = n_zeros, values.size + n_zeros
        n_below, n_stored = int((values < 0).sum()), int((values == 0).sum())
        _, place, times = np.unique(values, return_inverse=True, return_counts=True)
        rank = (np.cumsum(times) - (times - 1) / 2)[place]
        rank += np.where(values > 0, n_zeros, 0) + np.where(values == 0, n_zeros / 2, 0)
        # Zeros hold the ranks n_below + 1 to n_below + n_zeros + n_stored.
        self.centred = rank - (self.n + 1) / 2
        self.centred_zero = n_below + (n_zeros + n_stored + 1) / 2 - (self.n + 1) / 2

    def correlation(self, other: SparseRanks) -> float | None:
        """Return Spearman's coefficient with aligned other values; None where either side is constant or empty."""
        product = self._product(other)
        spread = self._product(self) * other._product(other)
        return float(np.clip(product / np.sqrt(spread), -1.0, 1.0)) if spread > 0 else None

    def _product(self, other: SparseRanks) -> float:
        return float(self.centred @ other.centred) + self.n_zeros * self.centred_zero * other.centred_zero
