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
from cytoglot.corpus.inspect.counts import (
    CONTEXTS,
    Histogram,
    add_histograms,
    count_corpus,
    histogram_quantiles,
)
from cytoglot.corpus.inspect.task_balance import TaskLine
from cytoglot.data.audit import PROMPT_TOKENS

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
    description, total = corpus.description, corpus.description.total
    counts = count_corpus(corpus, description="statistics")
    warnings = list(map(str, corpus.splits.get("warnings", ())))
    if empty := [part for part in PARTS if not total("n_cells", part)]:
        warnings.append(f"no cells in the part(s) {', '.join(empty)}")
    if unstated := [source.name for source in description.sources if not source.licence]:
        warnings.append(f"no licence is stated for {', '.join(unstated)}")
    if bare := [source.name for source in description.sources if source.n_cells and not source.n_kept]:
        warnings.append(f"no cell of {', '.join(bare)} is in the corpus")

    columns = []
    for name in description.metadata_columns:
        by_part = {part: counts.labels(name, part) for part in PARTS}
        n_of = sum(by_part.values(), Counter[str]())
        ordered = sorted(n_of, key=lambda value: (-n_of[value], value))
        columns.append(
            ColumnNumbers(
                column=name,
                n_values=len(ordered),
                n_known=n_of.total(),
                values=[(v, {part: by_part[part][v] for part in PARTS}) for v in ordered[:LISTED_VALUES]],
                n_others=sum(n_of[value] for value in ordered[LISTED_VALUES:]),
            )
        )

    study = {source.name: source.study or source.name for source in description.sources}
    parts_of_donor: dict[tuple[str, str], Counter[Part]] = {}
    for (source, part, column), values in counts.values.items():
        for donor, n in values.items() if column == _DONOR else ():
            parts_of_donor.setdefault((study.get(source, source), donor), Counter())[part] += n
    donors: dict[str, list[int]] = {where: [] for where in (*PARTS, SEVERAL)}
    for cells in parts_of_donor.values():
        donors[next(iter(cells)) if len(cells) == 1 else SEVERAL].append(cells.total())
    of_every_donor = [n for n_cells in donors.values() for n in n_cells]

    tokens, cells_of_length = [], counts.cell_histogram()
    for per_gene in counts.tokens_per_gene:
        n_tokens = np.ceil(np.arange(len(cells_of_length)) * per_gene).astype(np.int64)
        for context in contexts:
            room = max(context - PROMPT_TOKENS, 0)
            n_cut = int(cells_of_length[n_tokens > room].sum())
            tokens.append(
                TokenNumbers(
                    tokens_per_gene=per_gene,
                    context=context,
                    tokens=int((cells_of_length * np.minimum(n_tokens, room)).sum()),
                    tokens_uncut=int((cells_of_length * n_tokens).sum()),
                    cells_cut=n_cut,
                    share_of_cells_cut=n_cut / max(int(cells_of_length.sum()), 1),
                )
            )

    symbols, n_cells_g, n_cells = corpus.vocabulary.symbols, counts.n_cells_g, max(total("n_cells"), 1)
    most = [g for g in np.argsort(-n_cells_g, kind="stable")[:LISTED_GENES].tolist() if n_cells_g[g]]
    return CorpusStatistics(
        fingerprint=description.fingerprint,
        parts=[
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
        ],
        sources=[
            SourceNumbers(
                name=source.name,
                title=source.title,
                organism=source.organism,
                study=source.study,
                licence=source.licence,
                cells_in=source.n_cells,
                cells={part: counts.n_cells(part, source.name) for part in PARTS},
                removed=dict(source.removed),
            )
            for source in description.sources
        ],
        skipped=dict(description.skipped),
        warnings=warnings,
        columns=columns,
        genes_per_cell=_binned({part: counts.cell_histogram(part) for part in PARTS}, per_doubling=4),
        genes_per_cell_quantiles=counts.quantiles(),
        group_sizes={
            part: {size: n for size, n in enumerate(counts.cells_per_group.get(part, np.zeros(0)).tolist()) if n}
            for part in PARTS
        },
        cells_per_donor=_binned({where: np.bincount(n) for where, n in donors.items()}, per_doubling=1),
        donors=histogram_quantiles(np.bincount(of_every_donor)) if of_every_donor else {},
        genes=GeneNumbers(
            vocabulary=len(symbols),
            expressed=int(np.count_nonzero(n_cells_g)),
            frequent=[
                {"gene": symbols[g], "cells": int(n_cells_g[g]), "detection_rate": float(n_cells_g[g] / n_cells)}
                for g in most
            ],
        ),
        tokens=tokens,
        prompt_tokens=PROMPT_TOKENS,
        tasks=counts.tasks,
        shards=[
            {"file": s.file, "cells": s.n_cells, "ranked_ids": s.n_ids, "bytes": s.bytes} for s in description.shards
        ],
    )


def _binned(histograms: dict[Any, Histogram], *, per_doubling: int) -> Binned:
    """Put exact histograms of numbers from 0 on into shared bins, `per_doubling` from a number to its double."""
    values = np.flatnonzero(add_histograms(histograms.values())[1:]) + 1
    n_zero = {key: int(histogram[:1].sum()) for key, histogram in histograms.items()}
    if not len(values):
        return Binned(edges=[], counts={key: [] for key in histograms}, n_zero=n_zero)
    first, last = np.floor(np.log2(values[0])), np.floor(np.log2(values[-1])) + 1
    edges = 2.0 ** np.linspace(first, last, int(last - first) * per_doubling + 1)
    counts = {}
    for key, histogram in histograms.items():
        found = np.flatnonzero(histogram[1:]) + 1
        counts[key] = np.histogram(found, edges, weights=histogram[found])[0].astype(np.int64).tolist()
    return Binned(edges=edges.tolist(), counts=counts, n_zero=n_zero)
