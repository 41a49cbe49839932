"""A file of cells of any size → a Parquet file of cell sentences, in chunks, through kills and full disks.

Chunks are read and ranked in one thread and written in another. Each finished chunk is also kept as a part, so that the
same command after a kill goes on where it stopped and ends with the same bytes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cytoglot.data.genes.options import DEFAULT_GENES, GeneOptions
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.data.readers.stream import CellStream, open_cells
from cytoglot.errors import InputError
from cytoglot.manifest import Manifest, fingerprint_bytes, fingerprint_file
from cytoglot.progress import progress_bar
from cytoglot.resume import Parts
from cytoglot.sentence.cell_sentence import CellSentences, RankSettings
from cytoglot.sentence.encode import TieRates, ranked_chunks, ranker_for, restrict, tie_rates_for
from cytoglot.sentence.parquet import FORMAT_VERSION, SentenceHeader, open_writer, record_table
from cytoglot.sentence.ranker import RankedBlock, Ranker

logger = logging.getLogger(__name__)

_EVERY_GENE = RankSettings()


@dataclass(frozen=True, kw_only=True)
class EncodeSummary:
    """What `encode_file` wrote."""

    cells: int
    genes: int
    """genes of the vocabulary"""
    empty_cells: int
    output: str
    resumed_cells: int = 0
    """cells whose sentences an earlier, interrupted run had made"""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def encode_file(
    path: str | Path,
    out: str | Path,
    *,
    settings: RankSettings = _EVERY_GENE,
    genes: GeneVocabulary | Sequence[str] | None = None,
    hvg: int | None = None,
    layer: str | None = None,
    gene_options: GeneOptions = DEFAULT_GENES,
    chunk_cells: int | None = None,
    text: bool = False,
    tie_rates: TieRates | None = None,
    overwrite: bool = False,
) -> EncodeSummary:
    """Write the cell sentences of a file as Parquet; the columns are those of `write_sentences`.

    Parameters
    ----------
    path
        Whatever `cytoglot.read` takes.
    out
        The Parquet file; an older one is replaced when the new one is whole, and not before.
    settings, genes, layer, tie_rates
        As in `cytoglot.encode`.
    hvg
        Make sentences of this many highly variable genes; choosing them needs the whole matrix in memory.
    gene_options
        How the columns of the file become genes.
    chunk_cells
        Cells that are in memory at a time, twice; None: 8,192, fewer where cells express many genes.
    text
        Write a column `sentence` too.
    overwrite
        Begin anew where an interrupted run of other settings or another input has left parts.

    Raises
    ------
    InputError
        The file cannot be read or ranked, both `genes` and `hvg` are given, the disk is full, another process is
        writing the same output, or an interrupted run was given something else (the message says what). Nothing
        half-written is left under the name `out`.

    Notes
    -----
    Memory is bounded by the chunk, apart from `obs` (under 1 GB with the default). The same input and settings give the
    same bytes, interrupted or not.
    """
    started = time.perf_counter()
    path, out = Path(path), Path(out)
    if genes is not None and hvg is not None:
        raise InputError(f"pass either genes or hvg, found {len(genes)} genes and hvg={hvg}")
    if hvg is not None:
        # imported late: most files are encoded without a choice of genes, which needs scanpy
        from cytoglot.data.hvg import select_hvg
        from cytoglot.data.readers.read import read

        genes = select_hvg(read(path, layer=layer, **gene_options.keywords), n_top=hvg)
    with open_cells(path, layer=layer, **gene_options.keywords) as cells:
        chunk_cells = cells.cells_per_block if chunk_cells is None else chunk_cells
        vocabulary, _ = restrict(cells.vocabulary, genes)
        rates = tie_rates_for(vocabulary, tie_rates) if settings.needs_tie_rates else None
        config = {
            **settings.to_dict(),
            "hvg": hvg,
            "layer": layer,
            **gene_options.to_dict(),
            "vocabulary": vocabulary.fingerprint,
            "tie_rates": None if rates is None else fingerprint_bytes([np.asarray(rates, np.float32).tobytes()]),
        }
        # no time of creation: it would be the only difference between two runs
        manifest = Manifest(command="encode", config=config, inputs={path.name: fingerprint_file(path)}, created="")
        decisive = {
            **manifest.config,
            "data": manifest.inputs[path.name],
            "chunk_cells": chunk_cells,
            "format": FORMAT_VERSION,
            "version": manifest.versions.get("cytoglot"),
        }
        with Parts(out, decisive).opened(overwrite=overwrite) as parts:
            if tie_rates is None and parts.has("tie_rates"):  # which cost a pass over the cells
                tie_rates = parts.read("tie_rates")["rate"].to_numpy()
            ranker = ranker_for(cells, genes=genes, settings=settings, tie_rates=tie_rates)
            if tie_rates is None and ranker.tie_rates is not None:
                parts.write("tie_rates", pa.table({"rate": ranker.tie_rates}))
            header = SentenceHeader(
                vocabulary=vocabulary, settings=settings, tie_rates=ranker.tie_rates, manifest=manifest
            )
            summary = _write_all(cells, ranker, header, parts, chunk_cells=chunk_cells, text=text)
    logger.info("%s: %d cells in %.1f s; %s", out, summary.cells, time.perf_counter() - started, cells.message)
    return summary


def _write_all(
    cells: CellStream, ranker: Ranker, header: SentenceHeader, parts: Parts, *, chunk_cells: int, text: bool
) -> EncodeSummary:
    n_cells, n_done, n_empty = cells.n_cells, 0, 0
    n_parts = -(-n_cells // chunk_cells)
    n_old = n_parts - len(parts.missing(n_parts))
    n_resumed = min(n_old * chunk_cells, n_cells)
    if n_resumed:
        logger.info("%d of %d cells are kept from an interrupted run", n_resumed, n_cells)
    schema = header.schema(text=text)
    with (
        parts.whole() as path,
        progress_bar(total=n_cells, description="encode", unit="cell") as bar,
        open_writer(path, schema) as writer,
        _one_behind() as in_background,
    ):
        old = (_block_of(parts.read(number)) for number in range(n_old))
        new = (ranked for _, ranked in ranked_chunks(cells, ranker, chunk_cells=chunk_cells, first_cell=n_resumed))
        for number, block in enumerate(chain(old, new)):
            ids = cells.cell_ids[n_done : n_done + len(block.lengths)]
            if number >= n_old and n_parts > 1:
                in_background(parts.write, number, _table_of(block))
            in_background(_write_row_group, writer, schema, ranker.sentences(block, ids))
            n_done += len(ids)
            n_empty += int(np.count_nonzero(block.lengths == 0))
            bar.update(len(ids))
    return EncodeSummary(
        cells=n_done,
        genes=len(header.vocabulary),
        empty_cells=n_empty,
        output=str(parts.output),
        resumed_cells=n_resumed,
    )


def _table_of(block: RankedBlock) -> pa.Table:
    offsets = np.concatenate([np.zeros(1, np.int32), np.cumsum(block.lengths, dtype=np.int32)])
    ids = pa.ListArray.from_arrays(pa.array(offsets), pa.array(block.gene_ids))
    return pa.table({"gene_ids": ids, "n_expressed": block.n_expressed})


def _block_of(table: pa.Table) -> RankedBlock:
    table = table.combine_chunks()
    ids = table["gene_ids"].chunk(0)
    return RankedBlock(
        lengths=np.diff(ids.offsets.to_numpy()),
        gene_ids=ids.flatten().to_numpy(),
        n_expressed=table["n_expressed"].to_numpy(),
    )


def _write_row_group(writer: pq.ParquetWriter, schema: pa.Schema, sentences: CellSentences) -> None:
    writer.write_table(record_table(sentences, schema), row_group_size=max(len(sentences), 1))


@contextmanager
def _one_behind() -> Iterator[Any]:
    """Yield a function that runs calls in one other thread, in order, waiting while two are under way.

    An error of a call is raised by the next one, or at the end.
    """
    pending: list[Future[None]] = []
    # the number of threads that numba may use is each thread's own
    with ThreadPoolExecutor(1, initializer=numba.set_num_threads, initargs=(numba.get_num_threads(),)) as pool:

        def run(work: Any, *arguments: Any) -> None:
            while len(pending) > 1:
                pending.pop(0).result()
            pending.append(pool.submit(work, *arguments))

        yield run
        for future in pending:
            future.result()
