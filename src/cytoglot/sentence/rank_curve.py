"""The shapes of rank curves (polynomials, one line per gene, monotone steps), what they predict, and their JSON.

Expression is y = log10(1 + counts per 10,000), x = log10(rank) with rank 1 for the most expressed gene, l = log10 of
the number of genes that the cell expresses. Every curve but `peer_line` is never below the smallest expression seen in
training (an expressed gene has at least one count, so 0 would be wrong) and stays level beyond the ranks and lengths
seen there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cytoglot.errors import InputError, UnknownNameError, VocabularyMismatchError
from cytoglot.sentence.cell_sentence import CellSentences
from cytoglot.sentence.rank_sums import expressed_of_words, term_values, word_blocks

CurveKind = Literal[
    "peer_line",
    "line",
    "isotonic",
    "gene_lines",
    "line_length",
    "cubic_length",
    "isotonic_length",
    "gene_lines_length",
]
#: In the order of the result tables; `peer_line` is a reference to compare with and not meant for use.
CURVE_KINDS: tuple[CurveKind, ...] = get_args(CurveKind)
#: The best on held-out cells of pbmc3k and on each held-out batch of cellbench (full and HVG): docs/results.md.
DEFAULT_CURVE: CurveKind = "gene_lines_length"

POLYNOMIAL_TERMS: dict[str, tuple[str, ...]] = {
    "peer_line": ("1", "x"),
    "line": ("1", "x"),
    "line_length": ("1", "x", "l", "xl"),
    "cubic_length": ("1", "x", "x2", "x3", "l", "xl"),
}
#: The curve of all genes that the lines of single genes are drawn towards.
GENE_LINE_BASES: dict[str, CurveKind] = {"gene_lines": "line", "gene_lines_length": "isotonic_length"}


@dataclass(frozen=True, kw_only=True)
class PolynomialCurve:
    """One curve for all genes, linear in its coefficients.

    `line` is the original's global line a + b·x :cite:p:`levine2024cell2sentence`, fitted on all ranks; `line_length`
    lets both a and b depend on l; `cubic_length` is a + b·x + c·x² + d·x³ + e·l + f·x·l, held level where it would
    rise with the rank. `peer_line` is fitted and used as that paper's code does: ranks below 1,000 only, never clipped.
    """

    kind: CurveKind
    coefficients: tuple[float, ...]
    """in the order of the kind's terms"""
    floor: float
    """smallest value returned, but for `peer_line`"""
    max_rank: int
    length_range: tuple[float, float]
    n_pairs: int
    """training pairs that the fit rests on"""
    vocabulary_fingerprint: ClassVar[None] = None

    def predict(self, ranks: ArrayLike, gene_ids: NDArray[np.integer], n_expressed: ArrayLike) -> NDArray[np.float32]:
        """Return y, float32, for aligned flat arrays of 1-based ranks, gene ids and lengths of the cells.

        Raises
        ------
        InputError
            A rank is below 1.
        """
        rank, length = _checked_ranks(ranks), np.asarray(n_expressed, dtype=np.float64)
        if self.kind == "peer_line":
            return self._at(np.log10(rank), np.zeros_like(length)).astype(np.float32)
        x = np.log10(np.minimum(rank, self.max_rank))
        length = np.log10(np.clip(length, *self.length_range))
        value = self._at(x, length)
        if self.kind == "cubic_length":
            # level beyond its minimum, where that lies between rank 1 and x; and never above the value at rank 1
            _, slope, quadratic, cubic, _, slope_length = self.coefficients
            turn = _minimum_of_cubic(slope + slope_length * length, 2 * quadratic, 3 * cubic)
            passed = (turn > 0) & (turn < x)
            at_first = self._at(np.zeros_like(x), length)
            value = np.minimum(value, at_first)
            value = np.where(passed, np.minimum(value, self._at(np.where(passed, turn, 0.0), length)), value)
        return np.maximum(value, self.floor).astype(np.float32)

    def _at(self, x: NDArray[np.float64], length: NDArray[np.float64]) -> NDArray[np.float64]:
        values = term_values(x, length)
        terms = zip(self.coefficients, POLYNOMIAL_TERMS[self.kind], strict=True)
        return np.sum([c * values[term] for c, term in terms], axis=0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        terms = dict(zip(POLYNOMIAL_TERMS[self.kind], self.coefficients, strict=True))
        return {**asdict(self), "coefficients": terms, "length_range": list(self.length_range)}


@dataclass(frozen=True, kw_only=True)
class IsotonicCurve:
    """The best curve that never rises with the rank: steps, each the mean of the training values of its ranks.

    `isotonic_length` has one such curve per group of sentences of like length (at most 8, each holding the same number
    of pairs) and goes from one to the next in a straight line of l.
    """

    kind: CurveKind
    lengths: tuple[float, ...]
    """mean l of each group, rising"""
    last_ranks: tuple[tuple[int, ...], ...]
    """last rank of each step, per group"""
    values: tuple[tuple[float, ...], ...]
    """y of each step, per group"""
    n_pairs: int
    vocabulary_fingerprint: ClassVar[None] = None

    def predict(self, ranks: ArrayLike, gene_ids: NDArray[np.integer], n_expressed: ArrayLike) -> NDArray[np.float32]:
        """Return y; see `PolynomialCurve.predict`."""
        table_kr = self._table_kr
        rank = np.minimum(_checked_ranks(ranks).astype(np.int64), table_kr.shape[1]) - 1
        if len(self.lengths) == 1:
            return table_kr[0, rank]
        length = np.log10(np.maximum(np.asarray(n_expressed, dtype=np.float64), 1.0))
        place = np.interp(length, self.lengths, np.arange(len(self.lengths)))
        lower = np.minimum(place.astype(np.int64), len(self.lengths) - 2)
        weight = (place - lower).astype(np.float32)
        return (1 - weight) * table_kr[lower, rank] + weight * table_kr[lower + 1, rank]

    @cached_property
    def _table_kr(self) -> NDArray[np.float32]:
        rank = np.arange(1, max(steps[-1] for steps in self.last_ranks) + 1)
        step = [np.minimum(np.searchsorted(s, rank), len(s) - 1) for s in self.last_ranks]
        return np.stack([np.asarray(v, dtype=np.float32)[s] for v, s in zip(self.values, step, strict=True)])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # lists for tuples, numbers to the last bit
        return values


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneLines:
    """One line per gene, drawn towards the curve of all genes where the gene was seen rarely.

    y = base(x, l) + offset_g + slope_g · (x - centre), the offsets and slopes by ridge regression on what the base
    leaves over: the HVG paper's equation 1 (y = a_g + b_g·x) with shrinkage, which it does not have. A gene never seen
    has offset and slope 0. `gene_lines` has `line` as its base, `gene_lines_length` has `isotonic_length`.
    """

    kind: CurveKind
    base: PolynomialCurve | IsotonicCurve
    offset_g: NDArray[np.float64]
    slope_g: NDArray[np.float64]
    centre: float
    strength: tuple[float, float]
    """of the shrinkage of offsets and slopes: pseudo-observations that say 0"""
    floor: float
    max_rank: int
    vocabulary_fingerprint: str

    def predict(self, ranks: ArrayLike, gene_ids: NDArray[np.integer], n_expressed: ArrayLike) -> NDArray[np.float32]:
        """Return y; see `PolynomialCurve.predict`."""
        x = np.log10(np.minimum(_checked_ranks(ranks), self.max_rank)) - self.centre
        line = self.offset_g[gene_ids] + self.slope_g[gene_ids] * x
        return np.maximum(self.base.predict(ranks, gene_ids, n_expressed) + line, self.floor).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; two numbers per gene of the vocabulary."""
        return {
            "kind": self.kind,
            "base": self.base.to_dict(),
            "offsets": self.offset_g.tolist(),
            "slopes": self.slope_g.tolist(),
            "centre": self.centre,
            "strength": list(self.strength),
            "floor": self.floor,
            "max_rank": self.max_rank,
            "vocabulary": self.vocabulary_fingerprint,
        }


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
        return _gene_lines(value) if kind in GENE_LINE_BASES else _curve_of_all_genes(value)
    except KeyError as error:
        raise InputError(f"not a stored {kind} curve: key {error} is missing; found {sorted(value)}") from error


def _gene_lines(value: Mapping[str, Any]) -> GeneLines:
    return GeneLines(
        kind=value["kind"],
        base=_curve_of_all_genes(value["base"]),
        offset_g=np.asarray(value["offsets"], dtype=np.float64),
        slope_g=np.asarray(value["slopes"], dtype=np.float64),
        centre=value["centre"],
        strength=_tuples(value["strength"]),
        floor=value["floor"],
        max_rank=value["max_rank"],
        vocabulary_fingerprint=value["vocabulary"],
    )


def _curve_of_all_genes(value: Mapping[str, Any]) -> PolynomialCurve | IsotonicCurve:
    terms = POLYNOMIAL_TERMS.get(value["kind"])
    if terms is not None:
        value = {**value, "coefficients": [value["coefficients"][term] for term in terms]}
    kind = IsotonicCurve if terms is None else PolynomialCurve
    return kind(**{field.name: _tuples(value[field.name]) for field in fields(kind)})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


#: What turns ranks into expression. `vocabulary_fingerprint` is None where it treats all genes alike.
RankCurve = PolynomialCurve | IsotonicCurve | GeneLines


def _checked_ranks(ranks: ArrayLike) -> NDArray[np.float64]:
    rank = np.asarray(ranks, dtype=np.float64)
    if rank.size and not rank.min() >= 1:
        raise InputError(f"ranks start at 1 for the most expressed gene, found {rank.min():g}")
    return rank


def _minimum_of_cubic(constant: NDArray[np.float64], linear: float, quadratic: float) -> NDArray[np.float64]:
    """Return where a cubic with the derivative constant + linear·x + quadratic·x² has its minimum, -1 for nowhere."""
    discriminant = linear**2 - 4 * quadratic * constant
    root = np.sqrt(np.maximum(discriminant, 0.0))
    with np.errstate(over="ignore"):  # hardly cubic at all: its minimum lies at infinity
        if linear > 0:
            turn = -2 * constant / (linear + root)
        elif quadratic != 0:
            turn = (root - linear) / (2 * quadratic)
        else:
            return np.full_like(root, -1.0)
    return np.where(discriminant > 0, turn, -1.0)
