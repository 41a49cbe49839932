"""A file of cells of any size → their vectors in a file, in chunks, through kills and full disks.

Each finished chunk is kept in a hidden folder beside the output, so that the same command after a kill goes on where it
stopped and ends with the same bytes. One chunk of cells is in memory, and the next is read, ranked and tokenised while
the model computes.

Axes: n cells, d embedding dimensions.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cytoglot.applications.embedding import KEY, embedding_record
from cytoglot.atomic import atomic_path
from cytoglot.cell_model.load import MIN_OVERLAP, CellModel, CellPooling, check_pooling
from cytoglot.cell_model.sentence_stream import SentenceStream, open_sentences
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
from cytoglot.lm.model.fingerprint import model_fingerprint
from cytoglot.lm.runtime.prefetch import one_ahead
from cytoglot.manifest import fingerprint_file, fingerprint_texts, package_versions
from cytoglot.progress import progress_bar
from cytoglot.sentence.cell_sentence import CellSentences
from cytoglot.sentence.unfinished import UnfinishedOutput

logger = logging.getLogger(__name__)

#: Cells between two saved parts: with 800 tokens each a minute of work for a model of 14M parameters on one core.
CHUNK_CELLS = 1024
SUFFIXES = (".h5ad", ".parquet")


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

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


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
) -> EmbedSummary:
    """Write the vectors of a file's cells: into a copy of an h5ad, or alone as Parquet.

    Parameters
    ----------
    path
        For an h5ad output an h5ad; for Parquet whatever `cytoglot.read` takes.
    out
        `.h5ad`: the input byte for byte with `obsm[key_added]`, float32 (n, d), and `uns["cytoglot"]["embedding"]`
        besides; a matrix larger than memory is copied, not loaded. `.parquet`: a column `cell_id` and a column
        `key_added` of lists of d float32. An older file is replaced when the new one is whole, and not before.
    layer, gene_options, context, min_overlap, hidden_layer, pooling, dtype, batch_tokens
        As in `cytoglot.embed`, whose vectors these are.
    chunk_cells
        Cells in memory at a time, and between two saved parts.

    Raises
    ------
    InputError
        The file cannot be read or ranked, an h5ad is asked for of another kind of file, the disk is full, or another
        process is writing the same output. Nothing half-written is left under the name `out`.
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
    if out.suffix not in SUFFIXES:
        raise InputError(f"the output must end in {' or '.join(SUFFIXES)}, found {out.name!r}")
    if out.suffix == ".h5ad" and not takes_vectors(path):
        raise InputError(
            f"expected an h5ad of anndata 0.7 or later to copy, found {path}; write a .parquet file of the vectors, "
            "or read it with cytoglot.read and call cytoglot.embed"
        )
    if chunk_cells < 1:
        raise InputError(f"expected chunk_cells of at least 1, found {chunk_cells}")
    check_pooling(pooling)
    work = _Work(
        model=replace(model, lm=in_precision(model.lm, dtype)),
        context=context,
        hidden_layer=checked_layer(model.lm, hidden_layer),
        pooling=pooling,
        batch_tokens=batch_tokens,
    )
    with open_sentences(
        model, path, layer=layer, gene_options=gene_options, min_overlap=min_overlap, chunk_cells=chunk_cells
    ) as cells:
        record = embedding_record(model, cells.overlap, key_added=key_added, hidden_layer=hidden_layer, pooling=pooling)
        inputs = {"layer": layer, "chunk_cells": chunk_cells, **gene_options.to_dict()}
        with UnfinishedOutput(out, work.key(path, inputs)).opened() as unfinished:
            parts = _Parts(unfinished.folder)
            n_resumed = work.run(cells, parts)
            write = _write_h5ad if out.suffix == ".h5ad" else _write_parquet
            write(path, unfinished.partial, cells, parts, record, n_dimensions(model.lm))
            unfinished.finish()
    logger.info("%s: %d cells in %.1f s", out, cells.n_cells, time.perf_counter() - started)
    return EmbedSummary(
        cells=cells.n_cells,
        dimensions=n_dimensions(model.lm),
        key=key_added,
        overlap=str(cells.overlap),
        output=str(out),
        resumed_cells=n_resumed,
    )


def takes_vectors(path: str | Path) -> bool:
    """Return whether the file is an h5ad whose copy vectors can be added to: one written by anndata 0.7 or later.

    Raises
    ------
    InputError
        The file is HDF5 and damaged.
    """
    path = Path(path)
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    with readable(path), h5py.File(path, "r") as file:
        return "obs" in file and "var" in file and "encoding-type" in file["obs"].attrs


@dataclass(frozen=True, kw_only=True)
class _Work:
    """All that decides the vectors, and the making of them."""

    model: CellModel
    context: Mapping[str, str] | None
    hidden_layer: int
    pooling: CellPooling
    batch_tokens: int | None

    def key(self, path: Path, inputs: Mapping[str, Any]) -> str:
        """Return what tells parts apart: any change in it makes them worthless."""
        spec = self.model.spec
        decisive = [
            fingerprint_file(path),
            model_fingerprint(self.model.lm),
            spec.vocabulary.fingerprint,
            spec.ranking,
            spec.tie_rates,
            self.model.task("cell_type_annotation").templates.fingerprint,
            sorted({**spec.context, **(self.context or {})}.items()),
            (self.hidden_layer, self.pooling),
            sorted(inputs.items()),
            package_versions(["cytoglot"])["cytoglot"],
        ]
        return fingerprint_texts(repr(item) for item in decisive)

    def run(self, cells: SentenceStream, parts: _Parts) -> int:
        """Make the parts that are not there; return how many cells were."""
        n_old = parts.count()
        n_resumed = min(n_old * cells.chunk_cells, cells.n_cells)
        if n_resumed:
            logger.info("%d of %d cells are kept from an interrupted run", n_resumed, cells.n_cells)
        tokens = (self._read(part) for part in cells.chunks(n_resumed))
        tally = EmbedTally()
        with progress_bar(total=cells.n_cells, description="embed", unit="cell") as bar:
            bar.update(n_resumed)
            for number, chunk in enumerate(one_ahead(tokens), start=n_old):
                vectors_nd = embed_tokens(
                    self.model.lm,
                    chunk,
                    layer=self.hidden_layer,
                    batch_tokens=self.batch_tokens,
                    on_text=bar.update,
                    tally=tally,
                )
                parts.write(number, vectors_nd)
        logger.info("%s", tally)
        return n_resumed

    def _read(self, sentences: CellSentences) -> TextTokens:
        prompts = self.model.cell_prompts(sentences, context=self.context)
        return read_texts(
            self.model.lm,
            [prompt.text for prompt in prompts],
            pooling="last" if self.pooling == "last" else "mean",
            spans=[prompt.sentence_span for prompt in prompts] if self.pooling == "sentence" else None,
        )


@dataclass(frozen=True)
class _Parts:
    """Vectors of chunks 0, 1, 2, … as files, each whole or absent."""

    folder: Path

    def count(self) -> int:
        """Return how many there are, counted from the first without a gap."""
        n = 0
        while self._path(n).exists():
            n += 1
        return n

    def write(self, number: int, vectors_nd: NDArray[np.float32]) -> None:
        """Keep one part; it is on the disk when this returns."""
        with atomic_path(self._path(number)) as path:
            np.save(path, vectors_nd)

    def read(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield the cells and the vectors of each part."""
        first = 0
        for number in range(self.count()):
            vectors_nd = np.load(self._path(number))
            yield slice(first, first + len(vectors_nd)), vectors_nd
            first += len(vectors_nd)

    def _path(self, number: int) -> Path:
        return self.folder / f"vectors-{number:06d}.npy"


def _write_h5ad(
    source: Path, partial: Path, cells: SentenceStream, parts: _Parts, record: Mapping[str, str | int], n_d: int
) -> None:
    """Copy the file as it is, then add the vectors and the record."""
    shutil.copyfile(source, partial)
    with h5py.File(partial, "r+") as file:
        for name in ("obsm", "uns"):
            if name not in file:
                anndata.io.write_elem(file, name, {})
        key = str(record["key"])
        if key in file["obsm"]:
            del file["obsm"][key]
        data = file["obsm"].create_dataset(key, shape=(cells.n_cells, n_d), dtype=np.float32)
        data.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for rows, vectors_nd in parts.read():
            data[rows] = vectors_nd
        uns = file["uns"]
        if "cytoglot" not in uns:
            anndata.io.write_elem(uns, "cytoglot", {})
        if not isinstance(uns["cytoglot"], h5py.Group):
            raise InputError(f"expected a mapping in uns['cytoglot'] of {source}, found a value; rename or delete it")
        anndata.io.write_elem(uns["cytoglot"], "embedding", dict(record))


def _write_parquet(
    source: Path, partial: Path, cells: SentenceStream, parts: _Parts, record: Mapping[str, str | int], n_d: int
) -> None:
    found = ((cells.cell_ids[rows], vectors_nd) for rows, vectors_nd in parts.read())
    write_vectors(partial, found, {"source": source.name, **record}, n_d=n_d)


def write_vectors(
    path: Path,
    parts: Iterable[tuple[NDArray[np.object_], NDArray[np.float32]]],
    record: Mapping[str, str | int],
    *,
    n_d: int,
) -> None:
    """Write cell ids and vectors as Parquet, a row group for each part; `record` becomes metadata of the file."""
    schema = pa.schema(
        [("cell_id", pa.string()), (str(record["key"]), pa.list_(pa.float32(), n_d))],
        metadata={"cytoglot": json.dumps(dict(record))},
    )
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for ids, vectors_nd in parts:
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors_nd.reshape(-1)), n_d)
            writer.write_table(pa.table([pa.array(ids, type=pa.string()), vectors], schema=schema))
