"""What the cells of a corpus are, counted in one pass: labels, genes, lengths, and what can be asked of them.

Axes: n cells, s sources, g genes. A histogram (m,) says how often each value from 0 on occurs.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from cytoglot.corpus.format.folder import PARTS, Corpus, Part
from cytoglot.corpus.inspect.scan import BlockVisitor, ScannedBlock, group_edges, scan_corpus
from cytoglot.corpus.inspect.task_balance import TaskBalance, TaskLine
from cytoglot.data.audit import PROMPT_TOKENS
from cytoglot.tasks.multicell import TOKENS_PER_MARK

Histogram = NDArray[np.int64]
CONTEXTS: tuple[int, ...] = (1024, 2048, 4096, 8192)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_NOTHING: Histogram = np.zeros(0, np.int64)
_Key = TypeVar("_Key", bound=Hashable)


class CorpusCounts:
    """Counts of all cells, whose memory does not grow with the cells.

    Parameters
    ----------
    tokens_per_gene
        Ways to count tokens: 1 where every gene is a word of the tokenizer, about 3.8 in the byte-pair encoding of a
        general language model.
    """

    def __init__(self, corpus: Corpus, tokens_per_gene: tuple[float, ...] = (1.0, 3.8)) -> None:
        self.tokens_per_gene = tokens_per_gene
        names = [source.name for source in corpus.description.sources]
        self._row = {name: i for i, name in enumerate(names)}
        self.values: dict[tuple[str, Part, str], Counter[str]] = {}
        """(source, part, column) → value → cells"""
        self.used_sg: NDArray[np.bool_] = np.zeros((len(names), len(corpus.vocabulary)), bool)
        """whether any cell of a source, in the order of the description, has the gene in its sentence"""
        self.n_cells_g: NDArray[np.int64] = np.zeros(len(corpus.vocabulary), np.int64)
        """cells with the gene in their sentences"""
        self.genes_per_cell: dict[tuple[str, Part], Histogram] = {}
        """(source, part) → histogram of ranked genes per cell"""
        self.cells_per_group: dict[Part, Histogram] = {}
        self.group_tokens: dict[tuple[float, Part], Histogram] = {}
        """(tokens per gene, part) → histogram of the tokens of all sentences of a cell group and their marks"""
        self.tasks: list[TaskLine] = []

    def update(self, seen: ScannedBlock) -> None:
        """Count a row group."""
        block, part = seen.block, seen.part
        source_n, sources = seen.codes("source")
        lengths = np.diff(block.offsets)
        for code in np.unique(source_n).tolist():
            _count(self.genes_per_cell, (sources[code], part), lengths[source_n == code])
        for column in block.metadata_columns:
            codes, texts = seen.codes(column)
            known = codes >= 0
            pairs, counts = np.unique(
                source_n[known].astype(np.int64) * max(len(texts), 1) + codes[known], return_counts=True
            )
            for pair, n in zip(pairs.tolist(), counts.tolist(), strict=True):
                source, text = divmod(pair, max(len(texts), 1))
                self.values.setdefault((sources[source], part, column), Counter())[texts[text]] += n
        rows = np.array([self._row[name] for name in sources], np.int64)[source_n]
        _note_genes(block.offsets, block.gene_ids, rows, self.used_sg, self.n_cells_g)
        starts, sizes = group_edges(block.group)
        if len(starts):
            _count(self.cells_per_group, part, sizes)
            genes = block.offsets[starts + sizes] - block.offsets[starts]
            for per_gene in self.tokens_per_gene:
                tokens = np.ceil(genes * per_gene).astype(np.int64) + TOKENS_PER_MARK * sizes
                _count(self.group_tokens, (per_gene, part), tokens)

    def labels(self, column: str, part: Part, sources: Collection[str] | None = None) -> Counter[str]:
        """Return value → cells of a part, of some sources or of all."""
        total = Counter[str]()
        for (source, of_part, name), values in self.values.items():
            if (of_part, name) == (part, column) and (sources is None or source in sources):
                total.update(values)
        return total

    def coverage(self, columns: Iterable[str]) -> list[dict[str, object]]:
        """Return for each source and part that has cells the share of them of which each column is known."""
        rows: list[dict[str, object]] = []
        for part in PARTS:
            for source in sorted({s for s, p in self.genes_per_cell if p == part}):
                n = self.n_cells(part, source)
                shares = {c: self.values.get((source, part, c), Counter()).total() / n for c in columns}
                rows.append({"part": part, "source": source, "cells": n, **shares})
        return rows

    def n_cells(self, part: Part, source: str | None = None) -> int:
        """Return the cells of a part, of one source or of all."""
        return int(self.cell_histogram(part, source).sum())

    def cell_histogram(self, part: Part | None = None, source: str | None = None) -> Histogram:
        """Return how many cells have 0, 1, … ranked genes."""
        return add_histograms(
            found for (s, p), found in self.genes_per_cell.items() if part in (None, p) and source in (None, s)
        )

    def quantiles(self) -> list[dict[str, Any]]:
        """Return for each part quantiles of the ranked genes per cell, for all sources together and for each."""
        rows = []
        for part in PARTS:
            sources: list[str | None] = [None, *sorted({s for s, p in self.genes_per_cell if p == part})]
            for source in sources:
                histogram = self.cell_histogram(part, source)
                if histogram.any():
                    rows.append({"part": part, "source": source or "all", **histogram_quantiles(histogram)})
        return rows

    def over_context(self, contexts: Sequence[int]) -> list[dict[str, Any]]:
        """Return for each part, unit and way of counting the share of sentences that do not fit each context whole.

        A prompt of `PROMPT_TOKENS` is added to each; of a cell the sentence is in the prompt or in the answer, of a
        group all its cells are.
        """
        rows = []
        for part in PARTS:
            for per_gene in self.tokens_per_gene:
                cells = self.cell_histogram(part)
                n_tokens = np.ceil(np.arange(len(cells)) * per_gene).astype(np.int64)
                groups = self.group_tokens.get((per_gene, part), _NOTHING)
                for unit, counts, tokens in (("cell", cells, n_tokens), ("cell_group", groups, np.arange(len(groups)))):
                    if counts.any():
                        shares = {
                            str(c): float(counts[tokens + PROMPT_TOKENS > c].sum() / counts.sum()) for c in contexts
                        }
                        rows.append({"part": part, "unit": unit, "tokens_per_gene": per_gene, "over": shares})
        return rows


def count_corpus(
    corpus: Corpus,
    *,
    tokens_per_gene: tuple[float, ...] = (1.0, 3.8),
    visitors: Sequence[BlockVisitor] = (),
    skip: Collection[str] = (),
    description: str = "cells",
) -> CorpusCounts:
    """Count what is in a corpus in one pass over its shards, which `visitors` see too; files in `skip` are left out."""
    counts, balance = CorpusCounts(corpus, tokens_per_gene), TaskBalance(corpus)
    balance.see_tables()
    scan_corpus(corpus, [counts, balance, *visitors], skip=skip, description=description)
    counts.tasks = balance.lines()
    return counts


def histogram_quantiles(histogram: Histogram) -> dict[str, float]:
    """Return number, smallest, largest, mean and some quantiles of the values that a histogram counts.

    A quantile is the smallest value that at least this share of all do not exceed.
    """
    cumulated = np.cumsum(histogram)
    n = int(cumulated[-1])
    values = np.flatnonzero(histogram)
    named = {f"q{100 * q:02.0f}": float(np.searchsorted(cumulated, np.ceil(q * n))) for q in QUANTILES}
    mean = float((histogram * np.arange(len(histogram))).sum() / n)
    return {"n": n, "min": float(values[0]), **named, "max": float(values[-1]), "mean": round(mean, 2)}


def add_histograms(histograms: Iterable[Histogram]) -> Histogram:
    """Return the histogram of all values together."""
    every = list(histograms)
    total = np.zeros(max(map(len, every), default=0), np.int64)
    for histogram in every:
        total[: len(histogram)] += histogram
    return total


def _count(histograms: dict[_Key, Histogram], key: _Key, values: NDArray[np.integer]) -> None:
    histograms[key] = add_histograms([histograms.get(key, _NOTHING), np.bincount(values)])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _note_genes(offsets, gene_ids, rows, used_sg, n_cells_g):
    for cell in range(len(rows)):
        for word in range(offsets[cell], offsets[cell + 1]):
            used_sg[rows[cell], gene_ids[word]] = True
            n_cells_g[gene_ids[word]] += 1
