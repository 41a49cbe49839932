"""Any text that a model may write → genes in order, with a report of every fault.

Decided here: a word that names no gene consumes no rank; a repeated gene stands at the mean of its positions among the
words that name genes (ties: the gene written first); a wrong case is mended only where one gene alone can be meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from cytoglot.errors import InputError

if TYPE_CHECKING:
    from cytoglot.data.genes.vocabulary import GeneVocabulary

Repeated = Literal["mean", "first"]

#: Stripped from both ends of a word: punctuation, quotes, brackets, markdown, bullets, zero-width characters.
_EDGES = ".,;:!?…·•‣*_~`'\"´‘’‚“”„«»‹›()[]{}<>|/\\#+=–—、。，；：！？（）【】「」\u200b\u200c\u200d\u2060\ufeff\u00ad-"
#: Splits a word that is no gene as it stands ("ACTB,GAPDH", "genes:ACTB").
_SEPARATOR = re.compile(r"[,;:|/\\=<>()\[\]{}\"`*…•·、。，；：\u200b\ufeff]+")
#: Markup such as `</s>` or `<|endoftext|>` that a decoder left glued to a word.
_TAG = re.compile(r"<[^<>\s]{1,32}>")


@dataclass(frozen=True, kw_only=True)
class ParseReport:
    """What was wrong with one text. Punctuation and markup that stand alone are not words."""

    n_words: int
    unknown: tuple[str, ...] = ()
    """words that name no gene of the vocabulary, as written, in order, repeats kept"""
    n_duplicates: int = 0
    """words that name a gene which an earlier word has named"""
    n_case_fixed: int = 0
    """words that named a gene in a wrong case only ("actb")"""
    first_fault: int | None = None
    """0-based position among the words of the first unknown word or repeated gene; a mended case is no fault"""

    @property
    def n_unknown(self) -> int:
        """Return the number of words that name no gene."""
        return len(self.unknown)

    @property
    def valid_share(self) -> float:
        """Return the share of words that name a gene, repeats included; NaN where there are no words."""
        return (self.n_words - len(self.unknown)) / self.n_words if self.n_words else float("nan")


@dataclass(frozen=True, kw_only=True)
class ParsedSentence:
    """Distinct genes of one text in their final order, highest rank first."""

    gene_ids: NDArray[np.int32]
    report: ParseReport


def parse_genes(text: str, vocabulary: GeneVocabulary, *, repeated: Repeated = "mean") -> ParsedSentence:
    """Return the genes that `text` names, most expressed first; never raises on any string.

    A word is looked up as it stands, then without the punctuation around it (so the "." that ends an answer does not
    cost its last gene), then in any case if exactly one gene fits; failing that it is split at commas, colons and
    brackets. Prose words that happen to spell a gene ("was" for WAS) become that gene and count as case fixes.

    Parameters
    ----------
    text
        Words separated by any Unicode white space. An empty text gives no genes.
    repeated
        Where a repeated gene stands: "mean", at the mean of its positions among the words that name genes, which is
        what :cite:p:`levine2024cell2sentence` intend (their code averages positions of an already shortened list, so
        "A A A B" becomes B A; here it is A B); or "first", where it stands first.
    """
    words, ids, n_case_fixed = _look_up(text, _gene_index(vocabulary))
    if -1 not in ids and len(set(ids)) == len(ids):  # the common case: no fault
        report = ParseReport(n_words=len(ids), n_case_fixed=n_case_fixed)
        return ParsedSentence(gene_ids=np.asarray(ids, dtype=np.int32), report=report)

    known = np.asarray([gene for gene in ids if gene >= 0], dtype=np.int32)
    genes, first, which, n_times = np.unique(known, return_index=True, return_inverse=True, return_counts=True)
    if repeated == "first":
        order = np.argsort(first)
    else:
        # Equal means are equal floats: the division of two exact integers is rounded the same way for one quotient.
        mean_position = np.bincount(which, weights=np.arange(len(known)), minlength=len(genes)) / n_times
        order = np.lexsort((first, mean_position))

    seen: set[int] = set()
    first_fault: int | None = None
    for position, gene in enumerate(ids):
        if first_fault is None and (gene < 0 or gene in seen):
            first_fault = position
        if gene >= 0:
            seen.add(gene)
    report = ParseReport(
        n_words=len(words),
        unknown=tuple(word for word, gene in zip(words, ids, strict=True) if gene < 0),
        n_duplicates=len(known) - len(genes),
        n_case_fixed=n_case_fixed,
        first_fault=first_fault,
    )
    return ParsedSentence(gene_ids=genes[order], report=report)


def parse_many(
    texts: Iterable[str], vocabulary: GeneVocabulary, *, repeated: Repeated = "mean"
) -> list[ParsedSentence]:
    """Return `parse_genes` of every text; the index of the vocabulary is built once."""
    if isinstance(texts, str):
        raise InputError("expected several texts, found one str; pass [text]")
    return [parse_genes(text, vocabulary, repeated=repeated) for text in texts]


class _GeneIndex:
    """Word → gene id (-1: several genes fit), by three keys of falling strictness."""

    def __init__(self, symbols: Sequence[str]) -> None:
        self.exact = {symbol: gene for gene, symbol in enumerate(symbols)}
        # For symbols that themselves begin or end with punctuation, such as "(Clone)".
        self.stripped = _unambiguous((symbol.strip(_EDGES), gene) for gene, symbol in enumerate(symbols))
        self.folded = _unambiguous((symbol.strip(_EDGES).casefold(), gene) for gene, symbol in enumerate(symbols))

    def find(self, word: str) -> tuple[int, bool]:
        """Return (gene id or -1, whether only the case had to be mended) of one word."""
        gene = self.exact.get(word, -1)
        if gene >= 0:
            return gene, False
        bare = word.strip(_EDGES)
        gene = self.exact.get(bare, self.stripped.get(bare, -1))
        if gene >= 0:
            return gene, False
        gene = self.folded.get(bare.casefold(), -1) if bare else -1
        return gene, gene >= 0


def _unambiguous(keys: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for key, gene in keys:
        found[key] = -1 if key in found else gene
    found.pop("", None)
    return found


@lru_cache(maxsize=8)
def _gene_index(vocabulary: GeneVocabulary) -> _GeneIndex:
    return _GeneIndex(vocabulary.symbols)


def _look_up(text: str, index: _GeneIndex) -> tuple[list[str], list[int], int]:
    """Return the words, the gene of each (-1: none) and the number of mended cases."""
    words = text.split()
    ids = [index.exact.get(word, -1) for word in words]
    if -1 not in ids:
        return words, ids, 0
    final_words: list[str] = []
    final_ids: list[int] = []
    n_case_fixed = 0
    for word, known in zip(words, ids, strict=True):
        found = [(word, known, False)] if known >= 0 else _look_closer(word, index)
        for piece, gene, mended in found:
            final_words.append(piece)
            final_ids.append(gene)
            n_case_fixed += mended
    return final_words, final_ids, n_case_fixed


def _look_closer(word: str, index: _GeneIndex) -> list[tuple[str, int, bool]]:
    """Return (word, gene, mended) of each piece of a word that is no gene as it stands."""
    gene, mended = index.find(word)
    if gene >= 0:
        return [(word, gene, mended)]
    pieces = [p for p in _SEPARATOR.split(_TAG.sub(",", word)) if p.strip(_EDGES)]
    found = [(piece, *index.find(piece)) for piece in pieces]
    if any(gene >= 0 for _, gene, _ in found):
        return found
    return [(word, -1, False)] if pieces else []
