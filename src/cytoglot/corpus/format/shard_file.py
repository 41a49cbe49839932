"""Cells of a corpus as Arrow tables, and a shard: a Parquet file of them.

Columns: `cell_id`, `gene_ids` (ranked, highest first), `n_expressed`, `cell_group`, `source`, the metadata under their
canonical names, and for each relation to other cells `relation:NAME`, a list of their ids with weights, the heaviest
first. Related cells are of the same source and in the same shard. `tied`, where it is known, says of each gene whether
it is expressed as much as the gene before it. Any reader of Parquet reads a shard; the gene names
are in the corpus's `vocabulary.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cytoglot.atomic import atomic_path
from cytoglot.data.relations import Relation
from cytoglot.errors import InputError
from cytoglot.sentence.cell_sentence import gene_id_dtype
from cytoglot.sentence.parquet import METADATA_KEY

FIXED_COLUMNS = ("cell_id", "gene_ids", "n_expressed", "cell_group", "source")
"""columns of every shard; all others are metadata, or relations"""
TIED = "tied"
"""the column of ties, where they are known"""
RELATION = "relation:"
"""what the columns of relations begin with"""
NO_GROUP = -1
ROW_GROUP_CELLS = 8192
_TIES = pa.list_(pa.field("element", pa.bool_(), nullable=False))
_IDS = "gene_ids.list.element"
_WORD = pa.dictionary(pa.int32(), pa.string())
_RELATED = pa.list_(pa.struct([("cell_id", pa.string()), ("weight", pa.float32())]))


@dataclass(frozen=True)
class CellBlock:
    """Some cells of a corpus: an Arrow table of the shard's columns in one chunk. Axes: n cells, w ranked genes."""

    table: pa.Table

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def cell_ids(self) -> pa.StringArray:
        """(n,) ids of the cells, unique within a source."""
        return _one_chunk(self.table["cell_id"])

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """(n + 1,) where each cell's genes begin in `gene_ids`; the first is 0."""
        lists = _one_chunk(self.table["gene_ids"])
        offsets = lists.offsets.to_numpy().astype(np.int64)
        return offsets - offsets[0]

    @cached_property
    def gene_ids(self) -> NDArray[np.uint16] | NDArray[np.uint32]:
        """(w,) ids of all cells' genes, one cell after another, each from the highest to the lowest."""
        return _one_chunk(self.table["gene_ids"]).flatten().to_numpy()

    @cached_property
    def group(self) -> NDArray[np.int32]:
        """(n,) number of the cell group within the shard, −1 for none; equal numbers are neighbors."""
        return _one_chunk(self.table["cell_group"]).to_numpy()

    @cached_property
    def n_expressed(self) -> NDArray[np.int32]:
        """(n,) genes above 0 before the sentence was cut off."""
        return _one_chunk(self.table["n_expressed"]).to_numpy()

    @property
    def metadata_columns(self) -> tuple[str, ...]:
        """Names of the metadata columns."""
        others = (*FIXED_COLUMNS, TIED, *self._relation_columns)
        return tuple(name for name in self.table.column_names if name not in others)

    @cached_property
    def tied(self) -> NDArray[np.bool_] | None:
        """(w,) whether each gene is expressed as much as the one before it in its cell; None where that is unknown."""
        if TIED not in self.table.column_names:
            return None
        return _one_chunk(self.table[TIED]).flatten().to_numpy(zero_copy_only=False)

    @property
    def relations(self) -> tuple[str, ...]:
        """Names of the relations."""
        return tuple(name.removeprefix(RELATION) for name in self._relation_columns)

    @property
    def _relation_columns(self) -> list[str]:
        return [name for name in self.table.column_names if name.startswith(RELATION)]

    def related(self, relation: str) -> Relation:
        """Return the cells that each cell is related to; none for a relation that the block does not have."""
        name = RELATION + relation
        if name not in self.table.column_names:
            return Relation(np.zeros(len(self) + 1, np.int64), np.empty(0, object), np.empty(0, np.float32))
        lists = _one_chunk(self.table[name])
        lengths = np.asarray(lists.value_lengths().fill_null(0))
        pairs = lists.flatten()
        return Relation(
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.array(pairs.field("cell_id").to_pylist(), dtype=object),
            pairs.field("weight").to_numpy(),
        )

    def values(self, column: str) -> tuple[NDArray[np.int32], list[str]]:
        """Return codes (n,), −1 where unknown, and the texts they stand for; `source` is a column too."""
        encoded = _one_chunk(self.table[column])
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
        return codes, encoded.dictionary.to_pylist()

    def ids(self, cell: int) -> NDArray[np.uint16] | NDArray[np.uint32]:
        """Return a view of the ranked gene ids of one cell."""
        return self.gene_ids[self.offsets[cell] : self.offsets[cell + 1]]

    def take(self, cells: NDArray[np.integer]) -> CellBlock:
        """Return these cells, in this order."""
        return CellBlock(self.table.take(pa.array(cells)).combine_chunks())

    def slice(self, first: int, last: int) -> CellBlock:
        """Return the cells from `first` up to `last`, without a copy."""
        return CellBlock(self.table.slice(first, last - first))


def make_block(
    *,
    cell_ids: Sequence[str] | NDArray[Any] | pa.StringArray,
    offsets: NDArray[np.integer],
    gene_ids: NDArray[np.integer],
    n_genes: int,
    source: Sequence[str] | pd.Categorical,
    metadata: Mapping[str, Sequence[str | None] | pd.Categorical],
    n_expressed: NDArray[np.integer] | None = None,
    group: NDArray[np.integer] | None = None,
    relations: Mapping[str, Relation] | None = None,
    tied: NDArray[np.bool_] | None = None,
) -> CellBlock:
    """Return a block from arrays.

    Parameters
    ----------
    offsets, gene_ids
        As in `CellBlock`, at most 2³¹ ids.
    n_genes
        Genes of the vocabulary, which decides the width of the ids.
    metadata
        Canonical name → (n,) texts; None or NaN where unknown.
    n_expressed
        By default the lengths of the sentences.
    group
        By default no cell is in a group.
    relations
        Name → the other cells that each cell is related to.
    tied
        As in `CellBlock`; None where it is unknown.
    """
    n = len(offsets) - 1
    schema = shard_schema(n_genes, tuple(metadata), relations=tuple(relations or ()), has_ties=tied is not None)
    ids = pa.array(np.asarray(gene_ids, gene_id_dtype(n_genes)))
    lists = pa.ListArray.from_arrays(pa.array(np.asarray(offsets, np.int32)), ids, type=schema.field("gene_ids").type)
    expressed = np.diff(offsets) if n_expressed is None else n_expressed
    groups = np.full(n, NO_GROUP) if group is None else group
    columns = [
        pa.array(cell_ids, pa.string()),
        lists,
        pa.array(np.asarray(expressed, np.int32)),
        pa.array(np.asarray(groups, np.int32)),
        _dictionary(source),
        *(_dictionary(values) for values in metadata.values()),
        *(_lists(relation) for relation in (relations or {}).values()),
    ]
    if tied is not None:
        columns.append(pa.ListArray.from_arrays(pa.array(np.asarray(offsets, np.int32)), pa.array(tied), type=_TIES))
    return CellBlock(pa.Table.from_arrays(columns, schema=schema))


def concat_blocks(blocks: Sequence[CellBlock]) -> CellBlock:
    """Join blocks of the same columns, in order; texts of dictionaries are joined too."""
    return CellBlock(pa.concat_tables([block.table for block in blocks]).unify_dictionaries().combine_chunks())


def shard_schema(
    n_genes: int,
    metadata_columns: Sequence[str],
    *,
    relations: Sequence[str] = (),
    has_ties: bool = False,
    header: Mapping[str, Any] | None = None,
) -> pa.Schema:
    """Return the Arrow schema of a shard; `header` goes into its metadata as JSON."""
    ids = pa.list_(pa.field("element", pa.from_numpy_dtype(gene_id_dtype(n_genes)), nullable=False))
    fields = [("cell_id", pa.string()), ("gene_ids", ids), ("n_expressed", pa.int32()), ("cell_group", pa.int32())]
    fields += [("source", _WORD), *((name, _WORD) for name in metadata_columns)]
    fields += [(RELATION + name, _RELATED) for name in relations]
    fields += [(TIED, _TIES)] if has_ties else []
    text = None if header is None else {METADATA_KEY: json.dumps(dict(header), sort_keys=True)}
    return pa.schema(fields, metadata=text)


def write_shard(path: str | Path, blocks: Iterable[CellBlock], schema: pa.Schema) -> None:
    """Write blocks as the row groups of a shard, atomically. The same blocks give the same bytes.

    Ids are nearly random, so a dictionary and statistics would only cost time. With the bytes of a number side by side
    and zstd, the ids of whole sentences take 0.51 to 0.61 of the bytes of their text under zstd; plain ids take 0.72 to
    0.78, Parquet's delta encoding 0.49 to 0.70. Differences between neighbors would take 0.34 to 0.47, and no other
    reader would understand them.
    """
    words = [field.name for field in schema if field.type == _WORD]
    with (
        atomic_path(path) as partial,
        pq.ParquetWriter(
            partial,
            schema,
            compression="zstd",
            compression_level=3,
            use_dictionary=words,
            use_byte_stream_split=[_IDS],
            write_statistics=False,
        ) as writer,
    ):
        for block in blocks:
            table, n = block.table, len(block)
            # Columns in the schema's order, with columns of nothing for what a block does not know.
            absent = {
                _WORD: pa.nulls(n, pa.string()).dictionary_encode().cast(_WORD),
                _RELATED: pa.nulls(n, _RELATED),
            }
            columns = [table[f.name] if f.name in table.column_names else absent[f.type] for f in schema]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=max(n, 1))


class ShardFile:
    """A shard opened for reading, one row group at a time. A context manager.

    Raises
    ------
    InputError
        The file is missing or damaged, or is no shard.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"shard {path} is missing; build the corpus again, which makes the missing shards only")
        try:
            self._file = pq.ParquetFile(self.path)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"shard {path} is damaged: {error}; delete it and build the corpus again") from error
        absent = [name for name in FIXED_COLUMNS if name not in self._file.schema_arrow.names]
        if absent:
            raise InputError(f"{path} is no shard of a corpus: it lacks the columns {absent}")

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self._file.metadata.num_rows

    @property
    def n_row_groups(self) -> int:
        """Number of row groups."""
        return self._file.num_row_groups

    @property
    def row_group_cells(self) -> list[int]:
        """Cells of each row group."""
        return [self._file.metadata.row_group(i).num_rows for i in range(self.n_row_groups)]

    def row_group(self, number: int, *, columns: Sequence[str] | None = None) -> CellBlock:
        """Read one row group, of all columns or of some.

        Raises
        ------
        InputError
            The file is damaged there.
        """
        try:
            table = self._file.read_row_group(number, columns=columns, use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"shard {self.path} is damaged in row group {number}: {error}; delete it and build "
                             "the corpus again") from error  # fmt: skip
        return CellBlock(table.replace_schema_metadata().combine_chunks())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def row_group_edges(group: NDArray[np.integer], *, cells: int = ROW_GROUP_CELLS) -> list[int]:
    """Return where row groups of about `cells` cells begin and the last ends; none ends inside a cell group.

    (n,) numbers of the cell groups in, [0, …, n] out; a row group is longer than `cells` only by the rest of a group.
    """
    n = len(group)
    edges = [0]
    while edges[-1] < n:
        edge = min(edges[-1] + cells, n)
        while 0 < edge < n and group[edge] != NO_GROUP and group[edge] == group[edge - 1]:
            edge += 1
        edges.append(edge)
    return edges


def _one_chunk(column: pa.ChunkedArray) -> Any:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _dictionary(values: Sequence[str | None] | pd.Categorical) -> pa.DictionaryArray:
    categorical = values if isinstance(values, pd.Categorical) else pd.Categorical(list(values))
    codes = categorical.codes.astype(np.int32)
    texts = pa.array([str(text) for text in categorical.categories], pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), texts)


def _lists(relation: Relation) -> pa.ListArray:
    pairs = pa.StructArray.from_arrays(
        [pa.array(relation.cell_ids, pa.string()), pa.array(relation.weights, pa.float32())],
        fields=list(_RELATED.value_type),
    )
    return pa.ListArray.from_arrays(pa.array(relation.offsets.astype(np.int32)), pairs, type=_RELATED)
