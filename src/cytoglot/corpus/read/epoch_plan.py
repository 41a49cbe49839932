"""Who reads what in an epoch: every cell once over all readers, whatever their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from cytoglot.corpus.format.folder import Corpus, Part
from cytoglot.corpus.format.shard_file import RELATION
from cytoglot.corpus.read.records import RecordReader, RowGroup, row_groups, source_of_cells
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.tasks.record_source import record_sources

_SHARDS_PER_READER = 8
_PIECES_PER_READER = 4


@dataclass(frozen=True, slots=True)
class Piece:
    """Some neighboring cells of one row group, with the records that belong to them, and some visits to tables."""

    number: int
    """among all pieces of the part, in the order of the shards"""
    row_group: RowGroup | None
    """None if only tables are asked about"""
    first: int
    last: int
    """rows of the row group, the last one excluded"""
    tables: Mapping[str, tuple[int, int]]
    """visits to the rows of a table, counted over the epoch"""


@dataclass(frozen=True)
class ReadingPlan:
    """How often each record is visited in an epoch, and the pieces that the part is read in."""

    pieces: tuple[Piece, ...]
    by_shard: bool
    """whether whole shards are dealt to readers, else pieces"""
    rates: Mapping[str, float]
    """unit of cells → visits to a record of a source of weight 1"""
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
    unit_shares: Mapping[str, float],
    table_sizes: Mapping[str, int],
    sources: Mapping[str, float] | None = None,
    n_readers: int = 1,
) -> ReadingPlan:
    """Work out an epoch in which each unit has its share of the examples.

    An epoch visits every cell once (times the weight of its source). If no task asks about single cells, it visits
    once every record of the unit of cells that has most, such as cell groups; if none asks about these either, every
    row of the tables at least once. The other units are visited as often as their shares demand: that is more or less
    than once for each record, and fractions are settled by a hash.

    Raises
    ------
    InputError
        The part lacks what a task asks about, a source is unknown, a weight is negative or all are 0, or there are
        fewer cells than readers.
    """
    weights = checked_sources(corpus, sources)
    of_cells = [unit for unit in unit_shares if record_sources[unit].is_of_cells]
    n_of: dict[str, float] = {**_weighed(corpus, part, of_cells, weights), **table_sizes}
    for unit in unit_shares:
        if not n_of[unit]:
            raise InputError(
                f"expected a {record_sources[unit].words} in the {part} part of {corpus.folder}, found none; leave out "
                "the tasks about it"
            )
    if of_cells:
        anchor = max(of_cells, key=lambda unit: n_of[unit])
    else:
        anchor = min(unit_shares, key=lambda unit: unit_shares[unit] / n_of[unit])
    total = n_of[anchor] / unit_shares[anchor]
    visits = {unit: total * share for unit, share in unit_shares.items()}
    tables = {unit: round(visits[unit]) for unit in unit_shares if unit not in of_cells}
    if of_cells:
        pieces = _pieces(corpus, part, tables, n_readers)
    else:
        n = min(sum(tables.values()), 64 * n_readers)
        rows = [{unit: (size * i // n, size * (i + 1) // n) for unit, size in tables.items()} for i in range(n)]
        pieces = tuple(Piece(i, None, 0, 0, of_piece) for i, of_piece in enumerate(rows))
    if len(pieces) < n_readers:
        raise InputError(f"{n_readers} readers share {len(pieces)} records of the {part} part; use fewer readers")
    n_shards = len(corpus.shards(part))
    return ReadingPlan(
        pieces=pieces,
        by_shard=bool(of_cells) and (n_shards % n_readers == 0 or n_shards >= _SHARDS_PER_READER * n_readers),
        rates={unit: visits[unit] / n_of[unit] for unit in of_cells},
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


def _weighed(corpus: Corpus, part: Part, units: Sequence[str], weights: Mapping[str, float]) -> dict[str, float]:
    """Return how many records of each unit a part has, each counted with the weight of its source."""
    sources = {unit: source_of_cells(unit) for unit in units}
    if all(weight == 1 for weight in weights.values()):
        return {unit: corpus.description.count(source.counted_as, part) for unit, source in sources.items()}
    found = dict.fromkeys(units, 0.0)
    reader = RecordReader(corpus)
    columns = ["cell_id", "source", "cell_group", *(RELATION + (source.relation or "") for source in sources.values())]
    for place in row_groups(corpus, part) if units else ():
        with corpus.open(place.shard) as file:  # without the genes, which are most of it
            cells = reader.open(file.row_group(place.number, columns=columns))
        weight_n = np.array([weights.get(name or "", 1.0) for name in cells.sources])
        for unit, source in sources.items():
            found[unit] += float(weight_n[source.rows(cells)].sum())
    return found


def _pieces(corpus: Corpus, part: Part, tables: Mapping[str, int], n_readers: int) -> tuple[Piece, ...]:
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
