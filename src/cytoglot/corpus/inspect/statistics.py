"""What is in a corpus, in numbers: one pass over its shards, with one row group in memory at a time.

Nothing is drawn at random and nothing is estimated: every cell, group and row of the tables is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cytoglot.corpus.format.folder import PARTS, Corpus, Part
from cytoglot.corpus.inspect.gene_counts import GeneUse
from cytoglot.corpus.inspect.label_counts import LabelCounts
from cytoglot.corpus.inspect.lengths import Histogram, Lengths, add_histograms, histogram_quantiles
from cytoglot.corpus.inspect.scan import scan_corpus
from cytoglot.corpus.inspect.task_balance import TaskBalance, TaskLine
from cytoglot.data.audit import PROMPT_TOKENS

CONTEXTS = (1024, 2048, 4096, 8192)
LISTED_VALUES = 200
"""values of a metadata column that are listed; the others are counted together"""
LISTED_GENES = 50
SEVERAL = "several parts"
_DONOR = "donor_id"


@dataclass(frozen=True, kw_only=True)
class PartNumbers:
    """Size of a part."""

    part: Part
    cells: int
    cell_groups: int
    ranked_ids: int
    shards: int
    bytes: int
    gene_sets: int
    cell_type_terms: int


@dataclass(frozen=True, kw_only=True)
class SourceNumbers:
    """Where cells came from, and where they went."""

    name: str
    title: str
    organism: str
    study: str
    licence: str
    """empty where the recipe states none"""
    cells_in: int
    """cells of the source; 0 where the corpus was not built from a file"""
    cells: dict[Part, int]
    """part → cells in the corpus"""
    removed: dict[str, int]
    """reason → cells that were left out"""


@dataclass(frozen=True, kw_only=True)
class ColumnNumbers:
    """Values of a metadata column."""

    column: str
    n_values: int
    n_known: int
    """cells that have a value"""
    values: list[tuple[str, dict[Part, int]]]
    """value and its cells by part, most frequent first, `LISTED_VALUES` at most"""
    n_others: int
    """cells with a value that is not listed"""


@dataclass(frozen=True, kw_only=True)
class Binned:
    """A histogram with bins of equal width on a logarithmic scale, by part (of donors: by where their cells are)."""

    edges: list[float]
    """b + 1 edges; a bin holds its lower edge and not its upper"""
    counts: dict[str, list[int]]
    """part → b counts"""
    n_zero: dict[str, int]
    """part → how often the value was 0, which has no place on the scale"""


@dataclass(frozen=True, kw_only=True)
class TokenNumbers:
    """What a context window takes of the cell sentences of all parts."""

    tokens_per_gene: float
    """1 where a gene is a word of the tokenizer, about 3.8 in the byte-pair encoding of a general language model"""
    context: int
    tokens: int
    """of all sentences, each cut to what is left of the context beside a prompt"""
    tokens_uncut: int
    cells_cut: int
    share_of_cells_cut: float


@dataclass(frozen=True, kw_only=True)
class GeneNumbers:
    """Which genes are in the sentences."""

    vocabulary: int
    expressed: int
    """genes in the sentence of at least one cell"""
    frequent: list[dict[str, Any]]
    """gene, cells and detection rate (share of all cells), most frequent first"""


@dataclass(frozen=True, kw_only=True)
class CorpusStatistics:
    """All numbers of the page about a corpus."""

    fingerprint: str
    parts: list[PartNumbers]
    sources: list[SourceNumbers]
    skipped: dict[str, str]
    """source → why it is not in the corpus"""
    warnings: list[str]
    columns: list[ColumnNumbers]
    genes_per_cell: Binned
    genes_per_cell_quantiles: list[dict[str, Any]]
    """by part, of all sources together and of each"""
    group_sizes: dict[Part, dict[int, int]]
    """part → cells in a group → groups"""
    cells_per_donor: Binned
    """a donor is told apart within its study; counted under the part that holds all its cells, or under `SEVERAL`"""
    donors: dict[str, float]
    """number, smallest, largest, mean and quantiles of the cells of a donor; empty where no donor is known"""
    genes: GeneNumbers
    tokens: list[TokenNumbers]
    prompt_tokens: int
    """what `tokens` leave free of each context"""
    tasks: list[TaskLine]
    shards: list[dict[str, Any]]
    """file, cells, ranked ids and bytes"""

    @property
    def n_cells(self) -> int:
        """Cells of all parts."""
        return sum(part.cells for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def corpus_statistics(corpus: Corpus, *, contexts: Sequence[int] = CONTEXTS) -> CorpusStatistics:
    """Count what is in a corpus.

    Each shard is read once. Beside one row group, what is kept in memory grows with the number of genes, and of values
    of the metadata, and not with that of cells. A corpus without cells gives zeros.

    Raises
    ------
    InputError
        A shard is damaged.
    """
    labels, lengths, balance = LabelCounts(), Lengths(), TaskBalance(corpus)
    names = sorted({source.name for source in corpus.description.sources})
    genes = GeneUse(names, len(corpus.vocabulary))
    scan_corpus(corpus, (labels, lengths, genes, balance), description="statistics")
    balance.see_tables()
    description = corpus.description
    donors = _cells_of_donors(corpus, labels)
    return CorpusStatistics(
        fingerprint=description.fingerprint,
        parts=_parts(corpus),
        sources=_sources(corpus, labels),
        skipped=dict(description.skipped),
        warnings=_warnings(corpus),
        columns=[_column(name, labels) for name in description.metadata_columns],
        genes_per_cell=_binned({part: lengths.cell_histogram(part) for part in PARTS}, per_doubling=4),
        genes_per_cell_quantiles=lengths.quantiles(),
        group_sizes={part: _nonzero(lengths.cells_per_group.get(part)) for part in PARTS},
        cells_per_donor=_binned({where: np.bincount(n) for where, n in donors.items()}, per_doubling=1),
        donors=_quantiles(donors),
        genes=_genes(corpus, genes),
        tokens=_tokens(lengths, contexts),
        prompt_tokens=PROMPT_TOKENS,
        tasks=balance.lines(),
        shards=[
            {"file": s.file, "cells": s.n_cells, "ranked_ids": s.n_ids, "bytes": s.bytes} for s in description.shards
        ],
    )


def _parts(corpus: Corpus) -> list[PartNumbers]:
    total = corpus.description.total
    return [
        PartNumbers(
            part=part,
            cells=total("n_cells", part),
            cell_groups=total("n_groups", part),
            ranked_ids=total("n_ids", part),
            shards=len(corpus.shards(part)),
            bytes=total("bytes", part),
            gene_sets=len(corpus.gene_sets(part)),
            cell_type_terms=len(corpus.cell_type_terms(part)),
        )
        for part in PARTS
    ]


def _sources(corpus: Corpus, labels: LabelCounts) -> list[SourceNumbers]:
    return [
        SourceNumbers(
            name=source.name,
            title=source.title,
            organism=source.organism,
            study=source.study,
            licence=source.licence,
            cells_in=source.n_cells,
            cells={part: labels.cells(part, source.name) for part in PARTS},
            removed=dict(source.removed),
        )
        for source in corpus.description.sources
    ]


def _warnings(corpus: Corpus) -> list[str]:
    """Return what the split warned of, and what the description shows to be amiss."""
    description = corpus.description
    found = list(map(str, corpus.splits.get("warnings", ())))
    empty = [part for part in PARTS if not description.total("n_cells", part)]
    if empty:
        found.append(f"no cells in the part(s) {', '.join(empty)}")
    unstated = [source.name for source in description.sources if not source.licence]
    if unstated:
        found.append(f"no licence is stated for {', '.join(unstated)}")
    bare = [source.name for source in description.sources if source.n_cells and not source.n_kept]
    if bare:
        found.append(f"no cell of {', '.join(bare)} is in the corpus")
    return found


def _column(column: str, labels: LabelCounts) -> ColumnNumbers:
    by_part = {part: labels.of_part(column, part) for part in PARTS}
    total = sum(by_part.values(), Counter[str]())
    ordered = sorted(total, key=lambda value: (-total[value], value))
    listed = ordered[:LISTED_VALUES]
    return ColumnNumbers(
        column=column,
        n_values=len(ordered),
        n_known=total.total(),
        values=[(value, {part: by_part[part][value] for part in PARTS}) for value in listed],
        n_others=sum(total[value] for value in ordered[LISTED_VALUES:]),
    )


def _cells_of_donors(corpus: Corpus, labels: LabelCounts) -> dict[str, list[int]]:
    """Return where the cells of a donor are → the number of cells of each such donor."""
    study = {source.name: source.study or source.name for source in corpus.description.sources}
    cells: dict[tuple[str, str], Counter[Part]] = {}
    for (source, part, column), values in labels.values.items():
        for donor, n in values.items() if column == _DONOR else ():
            cells.setdefault((study.get(source, source), donor), Counter())[part] += n
    found: dict[str, list[int]] = {where: [] for where in (*PARTS, SEVERAL)}
    for by_part in cells.values():
        found[next(iter(by_part)) if len(by_part) == 1 else SEVERAL].append(by_part.total())
    return found


def _quantiles(donors: dict[str, list[int]]) -> dict[str, float]:
    every = [n for n_cells in donors.values() for n in n_cells]
    return histogram_quantiles(np.bincount(every)) if every else {}


def _genes(corpus: Corpus, use: GeneUse) -> GeneNumbers:
    n_cells = max(corpus.description.total("n_cells"), 1)
    order = np.argsort(-use.n_cells_g, kind="stable")[:LISTED_GENES]
    names = corpus.vocabulary.symbols
    return GeneNumbers(
        vocabulary=len(names),
        expressed=int(np.count_nonzero(use.n_cells_g)),
        frequent=[
            {"gene": names[g], "cells": int(use.n_cells_g[g]), "detection_rate": float(use.n_cells_g[g] / n_cells)}
            for g in order.tolist()
            if use.n_cells_g[g]
        ],
    )


def _tokens(lengths: Lengths, contexts: Sequence[int]) -> list[TokenNumbers]:
    cells = lengths.cell_histogram()
    rows = []
    for per_gene in lengths.tokens_per_gene:
        n_tokens = np.ceil(np.arange(len(cells)) * per_gene).astype(np.int64)
        for context in contexts:
            room = max(context - PROMPT_TOKENS, 0)
            n_cut = int(cells[n_tokens > room].sum())
            rows.append(
                TokenNumbers(
                    tokens_per_gene=per_gene,
                    context=context,
                    tokens=int((cells * np.minimum(n_tokens, room)).sum()),
                    tokens_uncut=int((cells * n_tokens).sum()),
                    cells_cut=n_cut,
                    share_of_cells_cut=n_cut / max(int(cells.sum()), 1),
                )
            )
    return rows


def _binned(histograms: dict[Any, Histogram], *, per_doubling: int) -> Binned:
    """Put exact histograms of numbers from 0 on into shared bins, `per_doubling` from a number to its double."""
    total = np.zeros(0, np.int64)
    for histogram in histograms.values():
        total = add_histograms(total, histogram)
    values = np.flatnonzero(total[1:]) + 1
    if not len(values):
        return Binned(edges=[], counts={key: [] for key in histograms}, n_zero=_zeros(histograms))
    first, last = np.floor(np.log2(values[0])), np.floor(np.log2(values[-1])) + 1
    edges = 2.0 ** np.linspace(first, last, int(last - first) * per_doubling + 1)
    counts = {}
    for key, histogram in histograms.items():
        found = np.flatnonzero(histogram[1:]) + 1
        counts[key] = np.histogram(found, edges, weights=histogram[found])[0].astype(np.int64).tolist()
    return Binned(edges=edges.tolist(), counts=counts, n_zero=_zeros(histograms))


def _zeros(histograms: dict[Any, Histogram]) -> dict[str, int]:
    return {key: int(histogram[0]) if len(histogram) else 0 for key, histogram in histograms.items()}


def _nonzero(histogram: Histogram | None) -> dict[int, int]:
    return {} if histogram is None else {int(i): int(histogram[i]) for i in np.flatnonzero(histogram)}
