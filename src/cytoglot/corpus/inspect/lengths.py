"""Lengths of cell sentences and of cell groups, and what of them fits a context window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytoglot.corpus.format.folder import PARTS, Part
from cytoglot.corpus.inspect.scan import ScannedBlock
from cytoglot.data.audit import PROMPT_TOKENS
from cytoglot.tasks.multicell import TOKENS_PER_MARK

Histogram = NDArray[np.int64]
"""(m,) how often each value from 0 on occurs"""

_NOTHING: Histogram = np.zeros(0, np.int64)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass
class Lengths:
    """Counts of numbers of genes and of cells.

    Parameters
    ----------
    tokens_per_gene
        Ways to count tokens: 1 where every gene is a word of the tokenizer, about 3.8 in the byte-pair encoding of a
        general language model.
    """

    tokens_per_gene: tuple[float, ...] = (1.0, 3.8)
    genes_per_cell: dict[tuple[str, Part], Histogram] = field(default_factory=dict)
    """(source, part) → histogram of ranked genes per cell"""
    cells_per_group: dict[Part, Histogram] = field(default_factory=dict)
    group_tokens: dict[tuple[float, Part], Histogram] = field(default_factory=dict)
    """(tokens per gene, part) → histogram of the tokens of all sentences of a cell group and their marks"""

    def update(self, seen: ScannedBlock) -> None:
        """Count the lengths of a row group."""
        lengths = np.diff(seen.block.offsets)
        source_n, sources = seen.codes("source")
        for code in np.unique(source_n).tolist():
            key = sources[code], seen.part
            self.genes_per_cell[key] = _added(self.genes_per_cell.get(key, _NOTHING), lengths[source_n == code])
        starts, sizes = group_edges(seen.block.group)
        if not len(starts):
            return
        self.cells_per_group[seen.part] = _added(self.cells_per_group.get(seen.part, _NOTHING), sizes)
        edges = np.concatenate([[0], np.cumsum(lengths)])
        genes = edges[starts + sizes] - edges[starts]
        for per_gene in self.tokens_per_gene:
            tokens = np.ceil(genes * per_gene).astype(np.int64) + TOKENS_PER_MARK * sizes
            counted = self.group_tokens.get((per_gene, seen.part), _NOTHING)
            self.group_tokens[per_gene, seen.part] = _added(counted, tokens)

    def cell_histogram(self, part: Part | None = None, source: str | None = None) -> Histogram:
        """Return how many cells have 0, 1, … ranked genes."""
        total = _NOTHING
        for (name, of_part), histogram in self.genes_per_cell.items():
            if part in (None, of_part) and source in (None, name):
                total = add_histograms(total, histogram)
        return total

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


def group_edges(group: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first row and the number of cells of each cell group of a block, in order."""
    if not len(group):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(group)) + 1]).astype(np.int64)
    sizes = np.diff(np.append(starts, len(group)))
    is_group = group[starts] >= 0
    return starts[is_group], sizes[is_group]


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


def add_histograms(first: Histogram, second: Histogram) -> Histogram:
    """Return the histogram of both."""
    if len(first) < len(second):
        first, second = second, first
    total = first.copy()
    total[: len(second)] += second
    return total


def _added(histogram: Histogram, values: NDArray[np.integer]) -> Histogram:
    return add_histograms(histogram, np.bincount(values))
