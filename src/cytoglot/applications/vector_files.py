"""What an embedding of cells is called, its record, and its Parquet file.

Axes: n cells, d embedding dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cytoglot.cell_model.load import CellModel, CellPooling, VocabularyOverlap
from cytoglot.lm.embedding.embed import checked_layer

KEY = "X_cytoglot"
SUFFIXES = (".h5ad", ".parquet")


def embedding_record(
    model: CellModel, overlap: VocabularyOverlap, *, key_added: str, hidden_layer: int, pooling: CellPooling
) -> dict[str, str | int]:
    """Return what `uns["cytoglot"]["embedding"]` says: values that every AnnData format can store."""
    pooled = {"mean": "mean over real tokens", "last": "last token", "sentence": "mean over the tokens of the genes"}
    layer = checked_layer(model.lm, hidden_layer)
    n_layers = checked_layer(model.lm, -1)
    which = "last hidden state" if layer == n_layers else f"hidden state {layer} of {n_layers}"
    return {
        "key": key_added,
        "pooling": f"{pooled[pooling]}, {which}",
        "hidden_layer": layer,
        "overlap": str(overlap),
    }


def write_vectors(
    path: Path,
    cell_ids: NDArray[np.object_],
    parts: Iterable[NDArray[np.float32]],
    record: Mapping[str, str | int],
    *,
    n_d: int,
) -> None:
    """Write cell ids and vectors as Parquet, a row group for each part; `record` becomes metadata of the file."""
    schema = pa.schema(
        [("cell_id", pa.string()), (str(record["key"]), pa.list_(pa.float32(), n_d))],
        metadata={"cytoglot": json.dumps(dict(record))},
    )
    first = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for vectors_nd in parts:
            ids = pa.array(cell_ids[first : first + len(vectors_nd)], type=pa.string())
            writer.write_table(pa.table([ids, vector_column(vectors_nd)], schema=schema))
            first += len(vectors_nd)


def vector_column(vectors_nd: NDArray[np.float32]) -> pa.Array:
    """Return the vectors as a column of lists of d values."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors_nd.reshape(-1)), vectors_nd.shape[1])
