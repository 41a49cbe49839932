"""A file of cells of any size → their vectors in a file, in chunks, through kills and full disks.

Each finished chunk is kept in a hidden folder beside the output, so that the same command after a kill goes on where it
stopped and ends with the same bytes. One chunk of cells is in memory, and the next is read, ranked and tokenized while
the model computes.

Axes: n cells, d embedding dimensions.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytoglot.applications.outputs import check_names, check_record, check_suffix, model_settings, parts_of
from cytoglot.applications.vector_files import KEY, SUFFIXES, embedding_record, vector_column, write_vectors
from cytoglot.cell_model.load import MIN_OVERLAP, CellModel, CellPooling, check_pooling
from cytoglot.data.genes.options import DEFAULT_GENES, GeneOptions
from cytoglot.data.readers.formats import readable
from cytoglot.errors import InputError
from cytoglot.lm.embedding.embed import (
    EmbedTally,
    Precision,
    TextTokens,
    checked_layer,
    embed_tokens,
    in_precision,
    n_dimensions,
    read_texts,
)
from cytoglot.lm.runtime.prefetch import ahead
from cytoglot.manifest import fingerprint_file
from cytoglot.progress import progress_bar
from cytoglot.tasks.task import check_context

logger = logging.getLogger(__name__)

#: Cells between two saved parts: with 800 tokens each a minute of work for a model of 14M parameters on one core.
CHUNK_CELLS = 1024


@dataclass(frozen=True, kw_only=True)
class EmbedSummary:
    """What `embed_file` wrote."""

    cells: int
    dimensions: int
    key: str
    overlap: str
    output: str
    resumed_cells: int = 0
    """cells whose vectors an earlier, interrupted run had made"""
    cells_without_genes: int = 0
    """cells without one gene of the model, which have the zero vector"""


def embed_file(
    path: str | Path,
    out: str | Path,
    model: CellModel,
    *,
    layer: str | None = None,
    gene_options: GeneOptions = DEFAULT_GENES,
    context: Mapping[str, str] | None = None,
    key_added: str = KEY,
    min_overlap: float = MIN_OVERLAP,
    hidden_layer: int = -1,
    pooling: CellPooling = "mean",
    dtype: Precision = "auto",
    batch_tokens: int | None = None,
    chunk_cells: int = CHUNK_CELLS,
    overwrite: bool = False,
) -> EmbedSummary:
    """Write the vectors of a file's cells: into a copy of an h5ad, or alone as Parquet.

    Parameters
    ----------
    path
        For an h5ad output an h5ad; for Parquet whatever `cytoglot.read` takes.
    out
        `.h5ad`: the input byte for byte with `obsm[key_added]`, float32 (n, d), and the record of `cytoglot.embed`
        besides; a matrix larger than memory is copied, not loaded. `.parquet`: a column `cell_id` and a column
        `key_added` of lists of d float32. An older file is replaced when the new one is whole, and not before.
    layer, gene_options, context, min_overlap, hidden_layer, pooling, dtype, batch_tokens
        As in `cytoglot.embed`, whose vectors these are.
    chunk_cells
        Cells in memory at a time, and between two saved parts.
    overwrite
        Begin anew where an interrupted run of other settings has left parts.

    Raises
    ------
    InputError
        The file cannot be read or ranked, an h5ad is asked for of another kind of file, the disk is full, another
        process is writing the same output, or an interrupted run was given something else (the message says what).
        Nothing half-written is left under the name `out`.
    VocabularyMismatchError
        The genes are not those of the model.

    Notes
    -----
    Memory is bounded by the chunk and the model, apart from `obs`. The same input, model, settings and kind of machine
    give the same bytes, interrupted or not. An h5ad is written beside its vectors in parts, so the disk holds the
    output and n x d x 4 bytes more while it is made.
    """
    started = time.perf_counter()
    path, out = Path(path), Path(out)
    check_suffix(out, SUFFIXES)
    if out.suffix == ".h5ad" and not takes_vectors(path):
        raise InputError(
            f"expected an h5ad of anndata 0.7 or later to copy, found {path}; write a .parquet file of the vectors, "
            "or read it with cytoglot.read and call cytoglot.embed"
        )
    if chunk_cells < 1:
        raise InputError(f"expected chunk_cells of at least 1, found {chunk_cells}")
    name = _check_names(path if out.suffix == ".h5ad" else None, key_added)
    if key_added == "cell_id":
        raise InputError("key_added cannot be 'cell_id', which is the column of the cells' names")
    check_pooling(pooling)
    check_context(context)
    asked = checked_layer(model.lm, hidden_layer)
    model = replace(model, lm=in_precision(model.lm, dtype))
    n_d = n_dimensions(model.lm)
    with model.open_sentences(
        path, layer=layer, gene_options=gene_options, min_overlap=min_overlap, chunk_cells=chunk_cells
    ) as stream:
        record = embedding_record(
            model, stream.overlap, key_added=key_added, hidden_layer=hidden_layer, pooling=pooling
        )

        def settings() -> dict[str, Any]:
            return {
                **model_settings(model, "cell_type_annotation"),
                "data": fingerprint_file(path),
                **gene_options.to_dict(),
                "key_added": key_added,
                "chunk_cells": chunk_cells,
                "layer": layer,
                "context": dict(context or {}),
                "hidden_layer": asked,
                "pooling": pooling,
            }

        with parts_of(out, settings, overwrite=overwrite) as parts:
            assert parts is not None
            n_parts = -(-stream.cells.n_cells // chunk_cells)
            first = n_parts - len(parts.missing(n_parts))
            n_resumed = min(first * chunk_cells, stream.cells.n_cells)
            if n_resumed:
                logger.info("%d of %d cells are kept from an interrupted run", n_resumed, stream.cells.n_cells)

            def read() -> Iterator[tuple[TextTokens, NDArray[np.int64]]]:
                for chunk in stream.chunks(n_resumed):
                    prompts = model.cell_prompts(chunk, context=context)
                    tokens = read_texts(
                        model.lm,
                        [prompt.text for prompt in prompts],
                        pooling="last" if pooling == "last" else "mean",
                        spans=[prompt.sentence_span for prompt in prompts] if pooling == "sentence" else None,
                    )
                    yield tokens, np.diff(chunk.offsets).astype(np.int64)

            tally = EmbedTally()
            with progress_bar(total=stream.cells.n_cells, description="embed", unit="cell") as bar:
                bar.update(n_resumed)
                for number, (tokens, lengths) in enumerate(ahead(read()), start=first):
                    vectors_nd = embed_tokens(
                        model.lm, tokens, layer=asked, batch_tokens=batch_tokens, on_text=bar.update, tally=tally
                    )
                    vectors_nd[lengths == 0] = 0
                    parts.write(number, pa.table({"vector": vector_column(vectors_nd), "n_words": lengths}))
            logger.info("%s", tally)
            n_empty = sum(int((parts.read(number)["n_words"].to_numpy() == 0).sum()) for number in range(n_parts))
            record = {**record, "cells_without_genes": n_empty}
            with parts.whole() as partial:
                columns = (parts.read(number)["vector"].combine_chunks() for number in range(n_parts))
                vectors = (column.flatten().to_numpy().reshape(-1, n_d) for column in columns)
                if out.suffix == ".h5ad":
                    _write_h5ad(path, partial, stream.cells.n_cells, vectors, record, n_d, name)
                else:
                    write_vectors(partial, stream.cells.cell_ids, vectors, {"source": path.name, **record}, n_d=n_d)
    logger.info("%s: %d cells in %.1f s", out, stream.cells.n_cells, time.perf_counter() - started)
    return EmbedSummary(
        cells=stream.cells.n_cells,
        dimensions=n_d,
        key=key_added,
        overlap=str(stream.overlap),
        output=str(out),
        resumed_cells=n_resumed,
        cells_without_genes=n_empty,
    )


def takes_vectors(path: str | Path) -> bool:
    """Return whether the file is an h5ad whose copy vectors can be added to: one written by anndata 0.7 or later.

    Raises
    ------
    InputError
        The file is HDF5 and damaged, or its `uns["cytoglot"]` is no mapping.
    """
    path = Path(path)
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    with readable(path), h5py.File(path, "r") as file:
        if isinstance(file.get("uns/cytoglot"), h5py.Dataset):
            check_record({"cytoglot": None})
        return "obs" in file and "var" in file and "encoding-type" in file["obs"].attrs


def _check_names(path: Path | None, key_added: str) -> str:
    """Refuse a key that cannot be used in the file (None: a new one); return the name of the record."""
    uns: dict[str, Any] = {}
    there: set[str] = set()
    if path is not None:
        with readable(path), h5py.File(path, "r") as file:
            there = set(file.get("obsm", ()))
            if "uns/cytoglot" in file:
                uns = {"cytoglot": anndata.io.read_elem(file["uns/cytoglot"])}
    return check_names(uns, "embedding", key_added, default=KEY, writes={"obsm": [key_added]}, there={"obsm": there})


def _write_h5ad(
    source: Path,
    partial: Path,
    n_cells: int,
    vectors: Iterable[NDArray[np.float32]],
    record: Mapping[str, str | int],
    n_d: int,
    name: str,
) -> None:
    """Copy the file as it is, then add the vectors and the record."""
    shutil.copyfile(source, partial)
    with h5py.File(partial, "r+") as file:
        for part in ("obsm", "uns"):
            if part not in file:
                anndata.io.write_elem(file, part, {})
        key, first = str(record["key"]), 0
        if key in file["obsm"]:
            del file["obsm"][key]
        data = file["obsm"].create_dataset(key, shape=(n_cells, n_d), dtype=np.float32)
        data.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for vectors_nd in vectors:
            data[first : first + len(vectors_nd)] = vectors_nd
            first += len(vectors_nd)
        if "cytoglot" not in file["uns"]:
            anndata.io.write_elem(file["uns"], "cytoglot", {})
        anndata.io.write_elem(file["uns/cytoglot"], name, dict(record))
