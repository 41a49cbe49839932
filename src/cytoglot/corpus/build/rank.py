"""Cells of a span → ranked genes, sorted by the shard that they go to, on disk.

Axes: n cells of the span that stay, w ranked genes, g genes of the vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp
from numpy.typing import NDArray

from cytoglot.corpus.assign.cell_groups import form_groups, grouping_fields
from cytoglot.corpus.assign.cell_keys import salted, uniform
from cytoglot.corpus.assign.duplicates import sort_hashes
from cytoglot.corpus.assign.placement import shard_of
from cytoglot.corpus.build.count import Decisions, SpanCells, SpanTask, codes_of, load_decisions, wanted_cells
from cytoglot.corpus.build.plan import BuildPlan, PlannedSource
from cytoglot.corpus.build.spill import Spill
from cytoglot.corpus.format.take import gather_cells
from cytoglot.corpus.sources.expand import CorpusSource
from cytoglot.data.normalize import normalize_log
from cytoglot.hashing import content_hashes
from cytoglot.sentence.cell_sentence import CellSentences, gene_id_dtype
from cytoglot.sentence.encode import GrowingArray
from cytoglot.sentence.rank_sums import expression_of_words
from cytoglot.sentence.ranker import Ranker

SPANS, TIE_RATES, HASHES = "spans", "tie_rates.npy", "hashes"
_CURVE = ("curve_ids", "curve_lengths", "curve_n_expressed", "curve_expression")


def spill_of(work: str | Path, number: int) -> Spill:
    """Return where a span leaves its cells."""
    return Spill(Path(work) / SPANS / f"{number:06d}")


def rank_span(task: SpanTask) -> dict[str, Any]:
    """Rank the cells of a span and write them down, unless that has been done; return counts."""
    spill = spill_of(task.work, task.number)
    if spill.is_finished:
        return spill.counts() | {"resumed": 1}
    plan, span = task.plan, task.plan.spans[task.number]
    source, decisions = plan.opened(span.source), load_decisions(task.work, task.key)
    cells = wanted_cells(plan, source, span, source_caps=decisions.source_caps, label_caps=decisions.label_caps)
    ranked = _rank(plan, source, task, cells, decisions)
    codes, groups = codes_of(ranked.metadata, decisions.values), plan.recipe.groups
    within = grouping_fields(groups.within, decisions.known.get(source.name, ()))
    group = form_groups(
        ranked.keys,
        ranked.part,
        [codes[name] for name in within],
        min_cells=groups.min_cells,
        max_cells=groups.max_cells,
    )
    first_of_part = np.concatenate([[0], np.cumsum(decisions.shards_of_part)])
    shard = shard_of(ranked.keys, group, ranked.part, decisions.shards_of_part)
    pieces = _pieces(plan, decisions, ranked, codes, group, first_of_part[ranked.part] + shard)
    arrays = dict(ranked.curve)
    if plan.recipe.cells.duplicates == "drop":
        arrays[HASHES] = sort_hashes(content_hashes(ranked.offsets, ranked.gene_ids))
    counts = {
        "source": source.name,
        "cells": len(ranked.keys),
        "ids": len(ranked.gene_ids),
        "removed": {reason: n for reason, n in ranked.removed.items() if n},
    }
    spill.write(pieces, int(first_of_part[-1]), arrays=arrays, counts=counts)
    return counts | {"resumed": 0}


def count_detections(task: SpanTask) -> tuple[int, NDArray[np.int64]]:
    """Return the number of training cells of a span, and (g,) in how many of them each gene is above 0."""
    plan, span = task.plan, task.plan.spans[task.number]
    source, decisions = plan.opened(span.source), load_decisions(task.work, task.key)
    cells = wanted_cells(plan, source, span, source_caps=decisions.source_caps, label_caps=decisions.label_caps)
    rows = cells.rows[decisions.splits.part_of(source.name, cells.metadata, cells.keys) == 0]
    gene_of_column = _gene_of_column(plan, source)
    detected = np.zeros(len(source.symbols), np.int64)
    for _, block in _blocks(source, plan.sources[span.source], span.first, span.last, rows):
        detected += np.bincount(block.indices[block.data > 0], minlength=len(detected))
    if gene_of_column is None:
        return len(rows), detected
    genes = np.zeros(len(plan.vocabulary), np.int64)
    genes[gene_of_column[gene_of_column >= 0]] = detected[gene_of_column >= 0]
    return len(rows), genes


@dataclass(frozen=True, kw_only=True)
class _Ranked:
    """The cells of a span that stay."""

    cell_ids: pa.Array
    offsets: NDArray[np.int64]
    gene_ids: NDArray[Any]
    n_expressed: NDArray[np.int32]
    keys: NDArray[np.uint64]
    part: NDArray[np.int8]
    metadata: Mapping[str, pd.Categorical]
    removed: Mapping[str, int]
    curve: Mapping[str, NDArray[Any]]


def _rank(plan: BuildPlan, source: CorpusSource, task: SpanTask, cells: SpanCells, decisions: Decisions) -> _Ranked:
    """Rank the wanted cells, and leave out those of too few genes."""
    span = plan.spans[task.number]
    planned = plan.sources[span.source]
    gene_of_column = _gene_of_column(plan, source)
    ranker = Ranker(
        plan.vocabulary,
        plan.settings,
        tie_rates=np.load(Path(task.work) / TIE_RATES) if plan.settings.needs_tie_rates else None,
        gene_of_column=gene_of_column,
        column_names=source.symbols,
    )
    part = decisions.splits.part_of(source.name, cells.metadata, cells.keys)
    names = source.cell_ids(span.first, span.last)[cells.rows]
    # The rank curve is fitted on some training cells of sources with counts.
    sampled = (part == 0) & (uniform(salted(cells.keys, "rank curve")) < decisions.curve_share) & planned.is_counts
    ids = GrowingArray(gene_id_dtype(len(plan.vocabulary)))
    lengths, n_expressed = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    samples: list[dict[str, NDArray[Any]]] = []
    for chosen, block in _blocks(source, planned, span.first, span.last, cells.rows):
        ranked = ranker.rank(block, names[chosen])
        ids.extend(ranked.gene_ids)
        lengths.append(ranked.lengths)
        n_expressed.append(ranked.n_expressed)
        for_curve = sampled[chosen] & (ranked.n_expressed >= plan.recipe.cells.min_genes)
        if for_curve.any():
            sentences = _sentences(plan, names[chosen], ranked.lengths, ranked.gene_ids, ranked.n_expressed)
            samples.append(_curve_sample(sentences, block, for_curve, gene_of_column))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    expressed = np.concatenate(n_expressed)
    enough = expressed >= plan.recipe.cells.min_genes
    stays = np.flatnonzero(enough)
    gene_ids = ids.finished()
    if len(stays) < len(enough):
        offsets, gene_ids = gather_cells(offsets, gene_ids, stays)
    return _Ranked(
        cell_ids=pa.array(names[stays], pa.string()),
        offsets=offsets,
        gene_ids=gene_ids,
        n_expressed=expressed[stays],
        keys=cells.keys[stays],
        part=part[stays],
        metadata={name: column.take(stays) for name, column in cells.metadata.items()},
        removed={**cells.removed, "too few genes": len(enough) - len(stays)},
        curve={name: np.concatenate([sample[name] for sample in samples]) for name in _CURVE if samples},
    )


def _pieces(
    plan: BuildPlan,
    decisions: Decisions,
    ranked: _Ranked,
    codes: Mapping[str, NDArray[np.int32]],
    group: NDArray[np.int32],
    destination: NDArray[np.integer],
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the cells of each shard, in the order in which they came."""
    schema = plan.piece_schema(tuple(decisions.values))
    order = np.argsort(destination, kind="stable")
    present, starts = np.unique(destination[order], return_index=True)
    for number, (start, end) in zip(present.tolist(), pairwise([*starts.tolist(), len(order)]), strict=True):
        cells = order[start:end]
        offsets, ids = gather_cells(ranked.offsets, ranked.gene_ids, cells)
        unknown = np.full(len(cells), -1, np.int32)
        columns = [
            ranked.cell_ids.take(pa.array(cells)),
            pa.ListArray.from_arrays(
                pa.array(offsets.astype(np.int32)), pa.array(ids), type=schema.field("gene_ids").type
            ),
            *(pa.array(array[cells]) for array in (ranked.n_expressed, group, ranked.keys)),
            pa.array(cells.astype(np.uint32)),
            *(pa.array(codes[name][cells] if name in codes else unknown) for name in decisions.values),
        ]
        yield number, pa.RecordBatch.from_arrays(columns, schema=schema)


def _blocks(
    source: CorpusSource, planned: PlannedSource, first: int, last: int, rows: NDArray[np.int64]
) -> Iterator[tuple[slice, sp.csr_matrix]]:
    """Yield values of the wanted rows of a span with their places among these."""
    if not len(rows):
        return
    begin, end = first + int(rows[0]), first + int(rows[-1]) + 1
    at = begin
    for block in source.blocks(begin, end, planned.chunk_cells):
        n_cells = block.shape[0]
        here = np.searchsorted(rows, [at - first, at - first + n_cells])
        wanted = rows[here[0] : here[1]] - (at - first)
        at += n_cells
        if len(wanted):
            yield slice(int(here[0]), int(here[1])), block if len(wanted) == n_cells else block[wanted]


def _gene_of_column(plan: BuildPlan, source: CorpusSource) -> NDArray[np.int32] | None:
    """Return the gene of each column, −1 for none; None where columns are genes."""
    return _gene_ids_of(plan.vocabulary, source.symbols)


@functools.lru_cache(maxsize=2)
def _gene_ids_of(vocabulary: Any, symbols: tuple[str, ...]) -> NDArray[np.int32] | None:
    return None if vocabulary.symbols == symbols else vocabulary.index_of(symbols)


def _curve_sample(
    sentences: CellSentences,
    block: sp.csr_matrix,
    sampled: NDArray[np.bool_],
    gene_of_column: NDArray[np.int32] | None,
) -> dict[str, NDArray[Any]]:
    """Return log10(1 + counts per 10,000) of every ranked gene of the sampled cells, normalized by all genes."""
    log = normalize_log(block[np.flatnonzero(sampled)])
    if gene_of_column is not None:
        genes = gene_of_column[log.indices]
        kept = genes >= 0
        indptr = np.concatenate([[0], np.cumsum(kept)])[log.indptr]
        shape = (log.shape[0], len(sentences.vocabulary))
        log = sp.csr_matrix((log.data[kept], genes[kept], indptr), shape=shape)
    chosen = sentences[sampled]
    values = (chosen.gene_ids, chosen.lengths, chosen.n_expressed, expression_of_words(chosen, log))
    return dict(zip(_CURVE, values, strict=True))


def curve_cells(spill: Spill, plan: BuildPlan, number: int) -> tuple[CellSentences, sp.csr_matrix] | None:
    """Return the sampled cells of a span and their expression; None if there are none."""
    if not (spill.folder / f"{_CURVE[0]}.npy").is_file():
        return None
    ids, lengths, n_expressed, expression = (np.load(spill.folder / f"{name}.npy") for name in _CURVE)
    names = np.array([f"{number} {i}" for i in range(len(lengths))], dtype=object)
    sentences = _sentences(plan, names, lengths, ids, n_expressed)
    log = sp.csr_matrix((expression, ids.astype(np.int32), sentences.offsets), shape=(len(names), len(plan.vocabulary)))
    log.sort_indices()
    return sentences, log


def _sentences(
    plan: BuildPlan,
    names: NDArray[np.object_],
    lengths: NDArray[np.int64],
    gene_ids: NDArray[Any],
    n_expressed: NDArray[np.int32],
) -> CellSentences:
    return CellSentences(
        cell_ids=names,
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        gene_ids=gene_ids,
        n_expressed=n_expressed,
        vocabulary=plan.vocabulary,
        settings=plan.settings,
    )
