"""Cell sentences with the metadata of their cells as one Parquet file.

It is also a file that `read_sentences` reads: vocabulary and ranking are in its metadata.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from cytoglot.atomic import atomic_path
from cytoglot.errors import InputError
from cytoglot.sentence.cell_sentence import CellSentences
from cytoglot.sentence.parquet import ROW_GROUP_CELLS, header_of, open_writer, record_table

RESERVED = ("cell_id", "gene_ids", "sentence", "n_expressed")
"""columns that `obs` must not have"""


def write_table(sentences: CellSentences, obs: pd.DataFrame, path: str | Path) -> None:
    """Write cells with their metadata, atomically.

    Parameters
    ----------
    obs
        One row per cell, named by cell id, in the order of the sentences; its columns keep their types.

    Raises
    ------
    InputError
        `obs` has other cells than the sentences, a reserved column name, or a column of mixed types.
    """
    if not np.array_equal(np.asarray(obs.index, dtype=object), sentences.cell_ids):
        raise InputError(
            f"obs must have the cells of the sentences in their order, found {len(obs)} rows and {len(sentences)} "
            "sentences" + ("" if len(obs) != len(sentences) else " with other cell ids")
        )
    taken = [column for column in obs.columns if column in RESERVED]
    if taken:
        raise InputError(f"obs columns {taken} have names that the file uses itself; rename them")
    columns: dict[str, pa.Array] = {}
    for column in obs.columns:
        try:
            columns[str(column)] = pa.Array.from_pandas(obs[column])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(f"obs column {column!r} cannot be stored: {error}; give it one type") from error
    base = header_of(sentences).schema(text=False)
    labels = [pa.field(name, values.type) for name, values in columns.items()]
    schema = pa.schema([*base, *labels], metadata=base.metadata)
    with atomic_path(path) as partial, open_writer(partial, schema) as writer:
        for start in range(0, len(sentences), ROW_GROUP_CELLS):
            table = record_table(sentences[start : start + ROW_GROUP_CELLS], base)
            rows = [values.slice(start, len(table)) for values in columns.values()]
            writer.write_table(pa.Table.from_arrays([*table.columns, *rows], schema=schema))
