"""Cell sentences ⇄ Parquet: ragged gene ids as a list column, everything else that defines them in the metadata."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cytoglot.atomic import atomic_path
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError
from cytoglot.manifest import Manifest
from cytoglot.sentence.cell_sentence import CellSentences, RankSettings, gene_id_dtype

FORMAT_VERSION = 1
METADATA_KEY = b"cytoglot"
#: Cells of a row group: 2,000 genes each are 32 MB of ids and 110 MB of text, far below Arrow's 2 GiB for a column.
ROW_GROUP_CELLS = 8192


@dataclass(frozen=True, kw_only=True)
class SentenceHeader:
    """What the metadata of a file of sentences says."""

    vocabulary: GeneVocabulary
    settings: RankSettings
    tie_rates: NDArray[np.float32] | None = None
    manifest: Manifest | None = None

    def to_json(self) -> bytes:
        """Return compact JSON; float32 rates go as base64, exact to the last bit."""
        rates = self.tie_rates
        record = {
            "format_version": FORMAT_VERSION,
            "vocabulary": self.vocabulary.to_dict(),
            "settings": self.settings.to_dict(),
            "tie_rates": None if rates is None else base64.b64encode(rates.astype("<f4").tobytes()).decode(),
            "manifest": None if self.manifest is None else self.manifest.to_dict(),
        }
        return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, text: bytes) -> SentenceHeader:
        """Read what `to_json` wrote; a newer format is refused."""
        record = json.loads(text)
        if record["format_version"] > FORMAT_VERSION:
            raise InputError(
                f"sentences of format {record['format_version']} need a newer cytoglot; this one reads up to "
                f"{FORMAT_VERSION}"
            )
        rates, manifest = record["tie_rates"], record["manifest"]
        return cls(
            vocabulary=GeneVocabulary.from_dict(record["vocabulary"]),
            settings=RankSettings(**record["settings"]),
            tie_rates=None if rates is None else np.frombuffer(base64.b64decode(rates), "<f4").astype(np.float32),
            manifest=None if manifest is None else Manifest.from_dict(manifest),
        )

    def schema(self, *, text: bool) -> pa.Schema:
        """Return the Arrow schema of the file."""
        word = pa.from_numpy_dtype(gene_id_dtype(len(self.vocabulary)))
        fields = [("cell_id", pa.string()), ("gene_ids", pa.list_(pa.field("element", word, nullable=False)))]
        fields += [("sentence", pa.string())] if text else []
        fields += [("n_expressed", pa.int32())]
        return pa.schema(fields, metadata={METADATA_KEY: self.to_json()})


def header_of(sentences: CellSentences) -> SentenceHeader:
    """Return what the metadata of these sentences says."""
    return SentenceHeader(**{field.name: getattr(sentences, field.name) for field in fields(SentenceHeader)})


def write_sentences(sentences: CellSentences, path: str | Path, *, text: bool = False) -> None:
    """Write columns `cell_id`, `gene_ids`, `n_expressed` (and `sentence` with `text`), atomically.

    The vocabulary, settings, tie rates and manifest go into the metadata under the key `cytoglot`. The same sentences
    give the same bytes. Memory for text is that of one row group at a time.

    Parameters
    ----------
    sentences
        Cells as ranked genes.
    path
        The Parquet file; an older one is replaced.
    text
        Write the sentences as text too.

    Examples
    --------
    >>> import cytoglot as cg
    >>> sentences = cg.encode(cg.load_dataset("pbmc68k_reduced"), top_genes=50)
    >>> cg.write_sentences(sentences, "cells.parquet", text=True)
    """
    schema = header_of(sentences).schema(text=text)
    with atomic_path(path) as partial, open_writer(partial, schema) as writer:
        for start in range(0, len(sentences), ROW_GROUP_CELLS):
            writer.write_table(record_table(sentences[start : start + ROW_GROUP_CELLS], schema))


def open_writer(path: str | Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Return a writer with our settings.

    Ids are nearly random, so a dictionary and statistics would only cost time; with the bytes of a number side by side
    2,050 genes pack to 3 kB, a third less than plain. Text is stored as it is: to compress it takes seven times as long
    as to write it, and it says the same as the ids. Readers need Arrow 17 or of its age.
    """
    compression = {"cell_id": "zstd", "gene_ids.list.element": "zstd", "sentence": "none", "n_expressed": "zstd"}
    return pq.ParquetWriter(
        path,
        schema,
        compression=compression,
        compression_level={name: 1 for name, codec in compression.items() if codec == "zstd"},
        use_dictionary=False,
        use_byte_stream_split=["gene_ids.list.element"],
        write_statistics=False,
    )


def record_table(sentences: CellSentences, schema: pa.Schema) -> pa.Table:
    """Return the rows of a file; at most 2 GiB of words or text."""
    columns: list[pa.Array] = [pa.array(sentences.cell_ids, pa.string())]
    offsets = pa.array(sentences.offsets.astype(np.int32))
    columns.append(pa.ListArray.from_arrays(offsets, pa.array(sentences.gene_ids), type=schema.field("gene_ids").type))
    if "sentence" in schema.names:
        columns.append(sentences.text())
    columns.append(pa.array(sentences.n_expressed))
    return pa.Table.from_arrays(columns, schema=schema)


def read_sentences(path: str | Path) -> CellSentences:
    """Read what `write_sentences` or `cytoglot encode` wrote; a `sentence` column is not read, it follows from the ids.

    Parameters
    ----------
    path
        A Parquet file.

    Raises
    ------
    InputError
        The file is missing, is no Parquet, or was not written by cytoglot.

    Examples
    --------
    >>> import cytoglot as cg
    >>> cg.write_sentences(cg.encode(cg.load_dataset("pbmc68k_reduced"), top_genes=3), "three.parquet")
    >>> cg.read_sentences("three.parquet").words(0)
    ['FTL', 'CD74', 'AIF1']
    """
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist; expected a Parquet file written by `cytoglot encode`")
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a readable Parquet file: {error}") from error
    metadata: dict[bytes, bytes] = file.schema_arrow.metadata or {}
    if METADATA_KEY not in metadata:
        raise InputError(
            f"{path} holds columns {file.schema_arrow.names} but no cytoglot metadata; expected a file written by "
            "`cytoglot encode` or write_sentences"
        )
    header = SentenceHeader.from_json(metadata[METADATA_KEY])
    # a file without cells has no row group
    lengths, gene_ids = [np.zeros(1, np.int64)], [np.empty(0, gene_id_dtype(len(header.vocabulary)))]
    cell_ids, n_expressed = [np.empty(0, object)], [np.empty(0, np.int32)]
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=["cell_id", "gene_ids", "n_expressed"]).combine_chunks()
        ids = table["gene_ids"].combine_chunks()
        lengths.append(np.diff(ids.offsets.to_numpy()))
        gene_ids.append(ids.flatten().to_numpy())
        cell_ids.append(table["cell_id"].to_numpy())
        n_expressed.append(table["n_expressed"].to_numpy())
    return CellSentences(
        cell_ids=np.concatenate(cell_ids),
        offsets=np.cumsum(np.concatenate(lengths)),
        gene_ids=np.concatenate(gene_ids),
        n_expressed=np.concatenate(n_expressed),
        **vars(header),
    )
