"""Who reads what in an epoch: every cell once over all readers, whatever their number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from cytoglot.corpus.format.folder import Corpus, Part
from cytoglot.corpus.read.records import CELL_UNITS, TABLE_UNITS, RowGroup, row_groups
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.tasks.record import Unit

_SHARDS_PER_READER = 8
_PIECES_PER_READER = 4


@dataclass(frozen=True, slots=True)
class Piece:
    """Some neighbouring cells of one row group, with the groups that begin among them, and some visits to tables."""

    number: int
    """among all pieces of the part, in the order of the shards"""
    row_group: RowGroup | None
    """None if only tables are asked about"""
    first: int
    last: int
    """rows of the row group, the last one excluded"""
    tables: Mapping[Unit, tuple[int, int]]
    """visits to the rows of a table, counted over the epoch"""


@dataclass(frozen=True)
class ReadingPlan:
    """How often each record is visited in an epoch, and the pieces that the part is read in."""

    pieces: tuple[Piece, ...]
    by_shard: bool
    """whether whole shards are dealt to readers, else pieces"""
    cell_rate: float
    """visits to a cell of a source of weight 1"""
    group_rate: float
    sources: Mapping[str, float]
    """source → weight; 1 where it is not named"""
    n_visits: float
    """expected over all readers"""

    def order(self, *, seed: int, epoch: int, reader: int, n_readers: int) -> list[Piece]:
        """Return the pieces of one reader in an epoch: shards in random order, and pieces in random order in them."""
        rng = np.random.default_rng([seed, 11, epoch])
        by_file: dict[str, list[Piece]] = {}
        for piece in self.pieces:
            by_file.setdefault(piece.row_group.shard.file if piece.row_group else "", []).append(piece)
        files = list(by_file)
        shards = [by_file[files[i]] for i in rng.permutation(len(files))]
        mixed = [[pieces[i] for i in rng.permutation(len(pieces))] for pieces in shards]
        if self.by_shard:
            return [piece for pieces in mixed[reader::n_readers] for piece in pieces]
        return [piece for pieces in mixed for piece in pieces][reader::n_readers]


def plan_reading(
    corpus: Corpus,
    part: Part,
    *,
    unit_shares: Mapping[Unit, float],
    table_sizes: Mapping[Unit, int],
    sources: Mapping[str, float] | None = None,
    n_readers: int = 1,
) -> ReadingPlan:
    """Work out an epoch in which each unit has its share of the examples.

    An epoch visits every cell once (times the weight of its source). If no task asks about single cells, it visits
    every cell group once; if none asks about groups either, every row of the tables at least once. The other units are
    visited as often as their shares demand: that is more or less than once for each group or row, and fractions are
    settled by a hash.

    Raises
    ------
    InputError
        The part lacks what a task asks about, a source is unknown, a weight is negative or all are 0, or there are
        fewer cells than readers.
    """
    weights = checked_sources(corpus, sources)
    n_cells, n_groups = _weighed(corpus, part, weights)
    n_of: dict[Unit, float] = {"cell": n_cells, "cell_group": n_groups, **table_sizes}
    for unit in unit_shares:
        if not n_of[unit]:
            name = unit.replace("_", " ")
            raise InputError(
                f"expected a {name} in the {part} part of {corpus.folder}, found none; leave out the tasks about it"
            )
    asked = list(unit_shares)
    anchor = min(asked, key=lambda unit: unit_shares[unit] / n_of[unit])
    for unit in reversed(CELL_UNITS):
        anchor = unit if unit in asked else anchor
    total = n_of[anchor] / unit_shares[anchor]
    visits = {unit: total * share for unit, share in unit_shares.items()}
    tables = {unit: round(visits[unit]) for unit in TABLE_UNITS if unit in visits}
    only_tables = not set(CELL_UNITS) & set(asked)
    pieces = _table_pieces(tables, n_readers) if only_tables else _pieces(corpus, part, tables, n_readers)
    if len(pieces) < n_readers:
        raise InputError(f"{n_readers} readers share {len(pieces)} records of the {part} part; use fewer readers")
    n_shards = len(corpus.shards(part))
    return ReadingPlan(
        pieces=pieces,
        by_shard=not only_tables and (n_shards % n_readers == 0 or n_shards >= _SHARDS_PER_READER * n_readers),
        cell_rate=visits["cell"] / n_cells if "cell" in visits else 0.0,
        group_rate=visits["cell_group"] / n_groups if "cell_group" in visits else 0.0,
        sources=weights,
        n_visits=sum(visits.values()),
    )


def checked_sources(corpus: Corpus, sources: Mapping[str, float] | None) -> dict[str, float]:
    """Return the weight of every source, 1 where none is named.

    Raises
    ------
    InputError
        A source is unknown, a weight is negative, or all of them are 0.
    """
    known = [source.name for source in corpus.description.sources]
    for name, weight in (sources or {}).items():
        if name not in known:
            raise UnknownNameError("source", name, known)
        if weight < 0:
            raise InputError(f"the weight of source {name!r} must be at least 0, found {weight}")
    weights = {name: float((sources or {}).get(name, 1.0)) for name in known}
    if weights and not any(weights.values()):
        raise InputError("every source has the weight 0; give one of them more")
    return weights


def _weighed(corpus: Corpus, part: Part, weights: Mapping[str, float]) -> tuple[float, float]:
    """Return the cells and the cell groups of a part, each counted with the weight of its source."""
    if all(weight == 1 for weight in weights.values()):
        return corpus.description.total("n_cells", part), corpus.description.total("n_groups", part)
    n_cells = n_groups = 0.0
    for shard in corpus.shards(part):
        with corpus.open(shard) as file:
            for number in range(file.n_row_groups):
                block = file.row_group(number, columns=("source", "cell_group"))
                codes, texts = block.values("source")
                weight_n = np.array([weights[text] for text in texts])[codes]
                starts = np.flatnonzero((np.diff(block.group, prepend=-2) != 0) & (block.group >= 0))
                n_cells += float(weight_n.sum())
                n_groups += float(weight_n[starts].sum())
    return n_cells, n_groups


def _pieces(corpus: Corpus, part: Part, tables: Mapping[Unit, int], n_readers: int) -> tuple[Piece, ...]:
    places = row_groups(corpus, part)
    n_slices = max(1, -(-_PIECES_PER_READER * n_readers // len(places))) if n_readers > 1 else 1
    slices = [
        (place, place.n_cells * i // n, place.n_cells * (i + 1) // n)
        for place in places
        for n in [max(1, min(n_slices, place.n_cells))]
        for i in range(n)
    ]
    edges = list(accumulate((last - first for _, first, last in slices), initial=0))
    return tuple(
        Piece(number, place, first, last, {
            unit: (n * edges[number] // edges[-1], n * edges[number + 1] // edges[-1]) for unit, n in tables.items()
        })
        for number, (place, first, last) in enumerate(slices)
    )  # fmt: skip


def _table_pieces(tables: Mapping[Unit, int], n_readers: int) -> tuple[Piece, ...]:
    n = min(sum(tables.values()), 64 * n_readers)
    return tuple(
        Piece(i, None, 0, 0, {unit: (size * i // n, size * (i + 1) // n) for unit, size in tables.items()})
        for i in range(n)
    )
