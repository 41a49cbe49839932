"""The pieces that all spans left for a shard → the shard: duplicates dropped, shuffled, groups side by side."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytoglot.atomic import atomic_path, write_json
from cytoglot.corpus.assign.cell_groups import dissolve_small
from cytoglot.corpus.assign.duplicates import find_duplicates
from cytoglot.corpus.assign.placement import number_groups, shuffle_order
from cytoglot.corpus.build.count import Decisions, load_decisions
from cytoglot.corpus.build.plan import BuildPlan, load_plan
from cytoglot.corpus.build.rank import HASHES, spill_of
from cytoglot.corpus.build.spill import write_array
from cytoglot.corpus.format.folder import Part, ShardCounts, read_shard_counts
from cytoglot.corpus.format.shard_file import NO_GROUP, CellBlock, row_group_edges, shard_schema, write_shard
from cytoglot.corpus.format.take import gather_cells
from cytoglot.sentence.cell_sentence import gene_id_dtype
from cytoglot.sentence.encode import GrowingArray

DUPLICATES, _FOUND = "duplicates", "found.json"
_CELLS_AT_ONCE = 1 << 19


class ShardTask(NamedTuple):
    """What a worker is told about a shard."""

    work: str
    key: str
    out: str
    part: Part
    number: int
    destination: int
    """its place among the pieces of a span"""

    @property
    def file(self) -> str:
        """Its path within the corpus."""
        return f"{self.part}/shard-{self.number:05d}.parquet"


def drop_duplicates(plan: BuildPlan, work: Path) -> dict[str, int]:
    """Find the cells that repeat an earlier one, once, and write their rows down; return source → cells dropped."""
    folder = work / DUPLICATES
    if not (folder / _FOUND).is_file():
        files = [spill_of(work, number).folder / f"{HASHES}.npy" for number in range(len(plan.spans))]
        rows_of_span, counts = find_duplicates(files, plan.span_sources, cells_at_once=_CELLS_AT_ONCE)
        with atomic_path(folder) as partial:
            partial.mkdir()
            for span, rows in rows_of_span.items():
                write_array(partial / f"{span:06d}.npy", rows)
            pairs = [[dropped, kept, n] for (dropped, kept), n in counts.items()]
            (partial / _FOUND).write_text(json.dumps(pairs), encoding="utf-8")
    dropped = Counter[str]()
    for source, _, n in json.loads((folder / _FOUND).read_text(encoding="utf-8")):
        dropped[source] += n
    return dropped


def build_shard(task: ShardTask) -> dict[str, Any]:
    """Write a shard unless it is there, and return what is in it; "file" is None where no cell came.

    The description of a shard is kept beside the spills, so that a finished shard is not even read again.
    """
    out, described = Path(task.out), Path(task.work) / "shards" / f"{task.destination:06d}.json"
    is_there = (out / task.file).is_file()
    if is_there and described.is_file():
        return json.loads(described.read_text(encoding="utf-8")) | {"resumed": 1}
    columns = ("source", *load_decisions(task.work, task.key).values)
    counts = read_shard_counts(out / task.file, columns) if is_there else _write(task, columns)
    if counts is None:
        return {"file": None, "resumed": 0}
    value = {**asdict(counts.described(out, task.file, task.part)), "counts": counts.values}
    write_json(described, value)
    return value | {"resumed": int(is_there)}


def _write(task: ShardTask, columns: Sequence[str]) -> ShardCounts | None:
    """Write the shard; return what is in it, None if it has no cells."""
    plan, decisions = load_plan(task.work, task.key), load_decisions(task.work, task.key)
    cells = _gathered(task, plan, decisions)
    group = dissolve_small(cells.group, min_cells=plan.recipe.groups.min_cells)
    order = shuffle_order(cells.keys, group)
    if not len(order):
        return None
    group = number_groups(group[order])
    schema = shard_schema(len(plan.vocabulary), tuple(decisions.values))
    values = {"source": tuple(source.name for source in plan.sources), **decisions.values}

    def row_groups() -> Iterator[CellBlock]:
        for first, last in pairwise(row_group_edges(group)):
            chosen = order[first:last]
            offsets, ids = gather_cells(cells.offsets, cells.gene_ids, chosen)
            lists = pa.ListArray.from_arrays(
                pa.array(offsets.astype(np.int32)), pa.array(ids), type=schema.field("gene_ids").type
            )
            table = [
                cells.cell_ids.take(pa.array(chosen)).combine_chunks(),
                lists,
                pa.array(cells.n_expressed[chosen]),
                pa.array(group[first:last]),
                *(_words(cells.codes[name][chosen], known) for name, known in values.items()),
            ]
            yield CellBlock(pa.Table.from_arrays(table, schema=schema))

    counts = ShardCounts(columns)
    write_shard(Path(task.out) / task.file, counts.passing(row_groups()), schema)
    return counts


class _Cells(NamedTuple):
    """All cells of a shard, as they came. Axes: n cells, w ranked genes."""

    cell_ids: pa.ChunkedArray
    offsets: NDArray[np.int64]
    gene_ids: NDArray[Any]
    n_expressed: NDArray[np.int32]
    group: NDArray[np.int64]
    keys: NDArray[np.uint64]
    codes: Mapping[str, NDArray[np.int32]]
    """column → (n,) places in the values of the corpus; `source` too"""


def _gathered(task: ShardTask, plan: BuildPlan, decisions: Decisions) -> _Cells:
    """Read the pieces of all spans; only the ids of the genes are many, and they are joined as they come."""
    columns = tuple(decisions.values)
    schema = plan.piece_schema(columns)
    ids = GrowingArray(gene_id_dtype(len(plan.vocabulary)))
    names: list[pa.Array] = []
    found: dict[str, list[NDArray[Any]]] = {
        name: [] for name in ("lengths", "n_expressed", "group", "key", "source", *columns)
    }
    n_groups = 0
    for number, span in enumerate(plan.spans):
        piece = spill_of(task.work, number).piece(task.destination, schema)
        if piece is None:
            continue
        stays = np.arange(len(piece))
        if number in _spans_with_duplicates(task.work, task.key):
            repeats = np.load(Path(task.work) / DUPLICATES / f"{number:06d}.npy")
            stays = np.flatnonzero(~np.isin(piece["row"].to_numpy(), repeats))
        lists = piece["gene_ids"]
        offsets, genes = lists.offsets.to_numpy().astype(np.int64), lists.values.to_numpy()
        if len(stays) < len(piece):
            offsets, genes = gather_cells(offsets, genes, stays)
        ids.extend(genes)
        names.append(piece["cell_id"].take(pa.array(stays)))
        found["lengths"].append(np.diff(offsets))
        found["source"].append(np.full(len(stays), span.source, np.int32))
        for name in ("n_expressed", "key", *columns):
            found[name].append(piece[name].to_numpy()[stays])
        group = piece["group"].to_numpy().astype(np.int64)
        found["group"].append(np.where(group == NO_GROUP, NO_GROUP, group + n_groups)[stays])
        n_groups += int(group.max(initial=-1)) + 1
    joined = {name: np.concatenate([np.empty(0, np.int64), *arrays]) if not arrays else np.concatenate(arrays)
              for name, arrays in found.items()}  # fmt: skip
    return _Cells(
        cell_ids=pa.chunked_array(names, pa.string()),
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(joined["lengths"])]),
        gene_ids=ids.finished(),
        n_expressed=joined["n_expressed"],
        group=joined["group"],
        keys=joined["key"].astype(np.uint64, copy=False),
        codes={name: joined[name] for name in ("source", *columns)},
    )


@lru_cache(maxsize=2)
def _spans_with_duplicates(work: str, _key: str) -> frozenset[int]:
    return frozenset(int(file.stem) for file in (Path(work) / DUPLICATES).glob("*.npy"))


def _words(codes: NDArray[np.int32], values: Sequence[str]) -> pa.DictionaryArray:
    """Return a dictionary of the values that occur, and no others: Parquet writes all of them."""
    used, compact = np.unique(codes, return_inverse=True)
    is_unknown = codes < 0
    places = compact.astype(np.int32) - int(len(used) > 0 and used[0] < 0)
    texts = pa.array([values[place] for place in used[used >= 0].tolist()], pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(places, mask=is_unknown), texts)
