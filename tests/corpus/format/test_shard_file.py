"""Shards: what goes in comes out, in the same bytes each time, and no group is torn apart."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytoglot.corpus.format.shard_file import (
    CellBlock,
    ShardFile,
    concat_blocks,
    make_block,
    row_group_edges,
    shard_schema,
    write_shard,
)
from cytoglot.errors import InputError

SENTENCES = [[3, 1, 2], [], [70_000, 5], [0]]


def block(sentences: list[list[int]], *, n_genes: int = 80_000, tissue: str | None = "lung") -> CellBlock:
    lengths = [len(sentence) for sentence in sentences]
    return make_block(
        cell_ids=[f"c{i}" for i in range(len(sentences))],
        offsets=np.cumsum([0, *lengths]),
        gene_ids=np.array([gene for sentence in sentences for gene in sentence], np.int64),
        n_genes=n_genes,
        source=["s"] * len(sentences),
        metadata={"tissue": [tissue] * len(sentences), "cell_type": ["B", None, "T", "B"][: len(sentences)]},
        group=np.array([0, 0, 1, -1][: len(sentences)]),
    )


def test_a_block_gives_back_what_it_is_made_of() -> None:
    made = block(SENTENCES)
    assert [made.ids(i).tolist() for i in range(4)] == SENTENCES
    assert made.gene_ids.dtype == np.uint32
    assert block([[3]], n_genes=65_536).gene_ids.dtype == np.uint16
    assert made.n_expressed.tolist() == [3, 0, 2, 1]
    codes, texts = made.values("cell_type")
    assert [texts[c] if c >= 0 else None for c in codes] == ["B", None, "T", "B"]
    assert made.metadata_columns == ("tissue", "cell_type")


def test_taking_slicing_and_joining_keep_cells_whole() -> None:
    made = block(SENTENCES)
    taken = made.take(np.array([2, 0]))
    assert [taken.ids(i).tolist() for i in range(2)] == [SENTENCES[2], SENTENCES[0]]
    assert taken.cell_ids.to_pylist() == ["c2", "c0"]
    sliced = made.slice(2, 4)
    assert [sliced.ids(i).tolist() for i in range(2)] == SENTENCES[2:]
    joined = concat_blocks([sliced, block([[9]], tissue="blood")])
    assert [joined.ids(i).tolist() for i in range(3)] == [*SENTENCES[2:], [9]]
    codes, texts = joined.values("tissue")
    assert [texts[c] for c in codes] == ["lung", "lung", "blood"]


def test_a_shard_gives_back_its_row_groups_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    made, schema = block(SENTENCES), shard_schema(80_000, ["cell_type", "tissue", "sex"], header={"seed": 1})
    for name in ("a", "b"):
        write_shard(tmp_path / name, [made.slice(0, 2), made.slice(2, 4)], schema)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with ShardFile(tmp_path / "a") as shard:
        assert (shard.n_cells, shard.row_group_cells) == (4, [2, 2])
        second = shard.row_group(1)
    assert [second.ids(i).tolist() for i in range(2)] == SENTENCES[2:]
    assert second.metadata_columns == ("cell_type", "tissue", "sex")
    assert second.values("sex")[0].tolist() == [-1, -1]  # a column that these cells do not have


def test_missing_and_damaged_shards_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"shard .*none.parquet is missing; build the corpus again"):
        ShardFile(tmp_path / "none.parquet")
    path = tmp_path / "shard.parquet"
    write_shard(path, [block(SENTENCES)] * 500, shard_schema(80_000, ["cell_type"]))
    content = bytearray(path.read_bytes())
    content[20:60] = bytes(40)
    path.write_bytes(content)
    with ShardFile(path) as shard, pytest.raises(InputError, match=r"damaged in row group 0"):
        shard.row_group(0)
    path.write_bytes(content[:100])
    with pytest.raises(InputError, match=r"shard .* is damaged"):
        ShardFile(path)


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 25))
def test_row_groups_end_between_cell_groups(lengths: list[int], cells: int) -> None:
    group = np.repeat(np.arange(len(lengths)), lengths)
    edges = row_group_edges(group, cells=cells)
    assert edges[0] == 0
    assert edges[-1] == len(group)
    assert all(a < b for a, b in pairwise(edges))
    assert all(group[edge] != group[edge - 1] for edge in edges[1:-1])
    assert all(b - a < cells + 30 for a, b in pairwise(edges))
