"""What a run would take in time, memory and disk: a few cells are tried, and the numbers multiplied.

Encoding needs no torch, so what does is imported where it is used. The constants are rounded from runs on one machine
and mean to warn: a forecast is right within a factor of two.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from cytoglot.data.genes.options import GeneOptions
from cytoglot.data.readers.stream import open_cells
from cytoglot.sentence.cell_sentence import RankSettings
from cytoglot.sentence.encode import encode_matrix
from cytoglot.sentence.ranker import detection_rates

if TYPE_CHECKING:
    from anndata import AnnData

    from cytoglot.answer_format import AnswerFormat
    from cytoglot.applications.answering import ModelSource, Prompts
    from cytoglot.cell_model.load import CellModel

_TRIED_CELLS = 32
_LIBRARIES_MB = 700
"""Python, torch and what a batch needs"""
_VALUE_BYTES = 12
"""a value of a sparse matrix, its column and its share of the rest"""


def forecast_encoding(
    source: AnnData | Path, *, settings: RankSettings, text: bool, layer: str | None, gene_options: GeneOptions
) -> dict[str, Any]:
    """Encode a first chunk and multiply; texts take as long again."""
    with open_cells(source, layer=layer, **gene_options.keywords) as cells:
        no_cells = sparse.csr_matrix((0, len(cells.vocabulary)), dtype=np.float32)
        _, chunk = next(cells.chunks(2000), (None, no_cells))
        rates = detection_rates(chunk) if settings.needs_tie_rates else None
        encode_matrix(chunk, cells.vocabulary, settings=settings, tie_rates=rates)  # compiles
        started = time.perf_counter()
        sentences = encode_matrix(chunk, cells.vocabulary, settings=settings, tie_rates=rates)
        n_tried = max(len(sentences), 1)
        seconds, words = (time.perf_counter() - started) / n_tried, len(sentences.gene_ids) / n_tried
        return {
            "cells": cells.n_cells,
            "genes": len(cells.vocabulary),
            "seconds": round(seconds * cells.n_cells * (4 if text else 2) + 2, 1),
            "memory_mb": round(300 + 20_000 * chunk.nnz / n_tried * _VALUE_BYTES / 1e6),
            "disk_mb": round(cells.n_cells * words * (4.5 if text else 1.6) / 1e6, 1),
            "dry_run": True,
        }


def forecast_cells(
    model: CellModel,
    source: AnnData | Path,
    *,
    layer: str | None,
    gene_options: GeneOptions,
    min_overlap: float,
    passes: int = 1,
    copies_cells: bool = True,
    hidden_layer: int = -1,
    **options: Any,
) -> dict[str, Any]:
    """Forecast `passes` readings of all cells by a model.

    Parameters
    ----------
    copies_cells
        The output holds the cells besides what the model says of them.
    options
        As in `CellModel.embeddings`.
    """
    from cytoglot.lm.embedding.embed import n_dimensions

    with model.open_sentences(
        source, layer=layer, gene_options=gene_options, min_overlap=min_overlap, chunk_cells=_TRIED_CELLS
    ) as stream:
        some, started = next(stream.chunks(), None), time.perf_counter()
        if some is not None:
            model.embeddings(some, layer=hidden_layer, **options)  # the first time compiles and warms up
            started = time.perf_counter()
            model.embeddings(some, layer=hidden_layer, **options)
        per_cell = (time.perf_counter() - started) / max(1, min(_TRIED_CELLS, stream.cells.n_cells))
    vectors_mb = stream.cells.n_cells * n_dimensions(model.lm) * 4 / 1e6
    n_expressed = float(some.n_expressed.mean()) if some is not None else 0.0
    cells_mb = stream.cells.n_cells * n_expressed * _VALUE_BYTES / 1e6
    is_file = isinstance(source, Path)
    copied_mb = source.stat().st_size / 1e6 if isinstance(source, Path) else cells_mb / 3  # compressed
    return {
        "cells": stream.cells.n_cells,
        "seconds": round(per_cell * stream.cells.n_cells * passes, 1),
        "memory_mb": round(_weights_mb(model) + _LIBRARIES_MB + (0 if is_file else 2 * cells_mb)),
        "disk_mb": round(2 * vectors_mb + (copied_mb if copies_cells else 0), 1),
        "overlap": str(stream.overlap),
        "dry_run": True,
    }


def forecast_generation(model: CellModel, cell_type: str | None, n: int, n_genes: int | None) -> dict[str, Any]:
    """Write a few short cells and multiply by the number of words; batches make a long run faster than this."""
    from cytoglot.applications.generation import draw_lengths, generate

    generate(model, cell_type, n=1, n_genes=1)  # warms up, and refuses an unknown type
    n_words = n * n_genes if n_genes is not None else int(draw_lengths(model, cell_type, n, seed=0).sum())
    some, words = min(n, 8), min(8, len(model.spec.vocabulary))
    started = time.perf_counter()
    generate(model, cell_type, n=some, n_genes=words)
    per_word = (time.perf_counter() - started) / (some * words)
    return {
        "cells": n,
        "words": n_words,
        "seconds": round(per_word * n_words, 1),
        "memory_mb": round(_weights_mb(model) + _LIBRARIES_MB),
        "disk_mb": round(n_words * _VALUE_BYTES / 1e6, 2),
        "dry_run": True,
    }


def forecast_answers(
    asked: Prompts, answer_format: AnswerFormat, source: ModelSource, output: Path, *, samples: int, part: int
) -> dict[str, Any]:
    """Count prompts, tokens where the tokenizer is at hand, and parts; the model is not loaded."""
    from cytoglot.applications.answering import prompt_lengths
    from cytoglot.applications.parquet_parts import n_parts_done

    n_prompts = len(asked.texts)
    found: dict[str, Any] = {
        "prompts": n_prompts,
        "answers": n_prompts * samples,
        "format": type(answer_format).__name__,
        "characters": sum(map(len, asked.texts)),
        "parts": -(-n_prompts // part),
        "parts_from_earlier": n_parts_done(output),
        "output": output,
        "dry_run": True,
    }
    if source.backend == "openai":
        return found
    lengths = prompt_lengths(asked, source)
    return {**found, "prompt_tokens": sum(lengths), "longest_prompt_tokens": max(lengths)}


def _weights_mb(model: CellModel) -> float:
    return sum(p.numel() * p.element_size() for p in model.lm.model.parameters()) / 1e6
