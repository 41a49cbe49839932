"""Ranked genes and metadata of many cells as a folder of Parquet files, written whole or not at all.

    FOLDER/manifest.json         number of cells of each shard, what made them
    FOLDER/shard-00000.parquet   cell_id, gene_ids, n_expressed and one column per column of `obs`

A shard is also a file that `CellSentences.from_parquet` reads: vocabulary and ranking are in its metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cytoglot.atomic import atomic_path, write_json
from cytoglot.errors import InputError
from cytoglot.manifest import Manifest
from cytoglot.sentence.cell_sentence import CellSentences, concat
from cytoglot.sentence.parquet import ROW_GROUP_CELLS, header_of, open_writer, record_table

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
RESERVED = ("cell_id", "gene_ids", "sentence", "n_expressed")
"""columns that `obs` must not have"""


def write_shards(
    sentences: CellSentences,
    obs: pd.DataFrame,
    out: str | Path,
    *,
    cells_per_shard: int = 50_000,
    manifest: Manifest | None = None,
) -> Path:
    """Write cells with their metadata to the folder `out` and return its path; an existing folder is replaced.

    Parameters
    ----------
    obs
        One row per cell, named by cell id, in the order of the sentences; its columns keep their types.
    manifest
        What made the cells; by default that of the sentences.

    Raises
    ------
    InputError
        `obs` has other cells than the sentences, a reserved column name, or a column of mixed types.
    """
    if cells_per_shard < 1:
        raise InputError(f"cells_per_shard must be at least 1, found {cells_per_shard}")
    metadata = _metadata_table(sentences, obs)
    manifest = manifest or sentences.manifest
    starts = range(0, len(sentences), cells_per_shard) if len(sentences) else [0]
    with atomic_path(out) as partial:
        partial.mkdir()
        shards = []
        for number, start in enumerate(starts):
            part = sentences[start : start + cells_per_shard]
            name = f"shard-{number:05d}.parquet"
            _write(part, metadata.slice(start, len(part)), partial / name)
            shards.append({"file": name, "n_cells": len(part)})
        write_json(partial / MANIFEST_FILE, _description(sentences, shards, manifest))
    return Path(out)


def write_table(sentences: CellSentences, obs: pd.DataFrame, path: str | Path) -> None:
    """Write cells with their metadata as a single file, atomically; arguments and errors as in `write_shards`."""
    metadata = _metadata_table(sentences, obs)
    with atomic_path(path) as partial:
        _write(sentences, metadata, partial)


def read_shards(folder: str | Path) -> tuple[CellSentences, pd.DataFrame]:
    """Return all cells of a folder and their metadata, indexed by cell id.

    Raises
    ------
    InputError
        The folder has no manifest (it was not written by `write_shards`), or a shard is missing or has another number
        of cells than the manifest says.
    """
    paths = _shard_paths(Path(folder))
    sentences = concat([CellSentences.from_parquet(path) for path in paths])
    tables = [_read_metadata(path) for path in paths]
    return sentences, _to_obs(pa.concat_tables(tables).unify_dictionaries())


def iterate_shards(folder: str | Path) -> Iterator[tuple[CellSentences, pd.DataFrame]]:
    """Yield each shard's cells and metadata in turn; memory is that of one shard. Errors as in `read_shards`."""
    for path in _shard_paths(Path(folder)):
        yield CellSentences.from_parquet(path), _to_obs(_read_metadata(path))


def _metadata_table(sentences: CellSentences, obs: pd.DataFrame) -> pa.Table:
    if not np.array_equal(np.asarray(obs.index, dtype=object), sentences.cell_ids):
        raise InputError(
            f"obs must have the cells of the sentences in their order, found {len(obs)} rows and {len(sentences)} "
            "sentences" + ("" if len(obs) != len(sentences) else " with other cell ids")
        )
    taken = [column for column in obs.columns if column in RESERVED]
    if taken:
        raise InputError(f"obs columns {taken} have names that the shards use themselves; rename them")
    table: dict[str, pa.Array] = {}
    for column in obs.columns:
        try:
            table[str(column)] = pa.Array.from_pandas(obs[column])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(f"obs column {column!r} cannot be stored: {error}; give it one type") from error
    # A table without columns would forget its number of rows.
    return pa.table({"cell_id": pa.array(sentences.cell_ids, pa.string()), **table})


def _write(sentences: CellSentences, metadata: pa.Table, path: Path) -> None:
    metadata = metadata.drop_columns(["cell_id"])
    base = header_of(sentences).schema(text=False)
    schema = pa.schema([*base, *metadata.schema], metadata=base.metadata)
    with open_writer(path, schema) as writer:
        for start in range(0, len(sentences), ROW_GROUP_CELLS):
            table = record_table(sentences[start : start + ROW_GROUP_CELLS], base)
            rows = metadata.slice(start, len(table))
            writer.write_table(pa.Table.from_arrays([*table.columns, *rows.columns], schema=schema))


def _description(sentences: CellSentences, shards: list[dict[str, Any]], manifest: Manifest | None) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "n_cells": len(sentences),
        "n_genes": len(sentences.vocabulary),
        "vocabulary": sentences.vocabulary.fingerprint,
        "settings": sentences.settings.to_dict(),
        "shards": shards,
        "manifest": None if manifest is None else manifest.to_dict(),
    }


def _shard_paths(folder: Path) -> list[Path]:
    file = folder / MANIFEST_FILE
    if not file.is_file():
        raise InputError(f"{folder} is not a folder of shards: it has no {MANIFEST_FILE}; write it with write_shards")
    description = json.loads(file.read_text(encoding="utf-8"))
    version = description.get("format_version")
    if "shards" not in description or version is None:
        raise InputError(f"{file} is not the manifest of a folder of shards; write the folder with write_shards")
    if version > FORMAT_VERSION:
        raise InputError(f"{folder} has format {version}, this version reads up to {FORMAT_VERSION}; update cytoglot")
    for shard in description["shards"]:
        _check_shard(folder / shard["file"], shard["n_cells"])
    return [folder / shard["file"] for shard in description["shards"]]


def _check_shard(path: Path, n_cells: int) -> None:
    if not path.is_file():
        raise InputError(f"shard {path} is missing; write the folder again")
    try:
        found = pq.read_metadata(path).num_rows
    except pa.ArrowInvalid as error:
        raise InputError(f"shard {path} is damaged: {error}; write the folder again") from error
    if found != n_cells:
        raise InputError(f"shard {path} has {found} cells, its manifest says {n_cells}; write the folder again")


def _read_metadata(path: Path) -> pa.Table:
    columns = [name for name in pq.read_schema(path).names if name == "cell_id" or name not in RESERVED]
    return pq.read_table(path, columns=columns).replace_schema_metadata()


def _to_obs(table: pa.Table) -> pd.DataFrame:
    obs: pd.DataFrame = table.to_pandas().set_index("cell_id")
    return obs.rename_axis(None)
