"""The records of some pieces in the order in which they are asked, and what is asked of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cytoglot.corpus.format.folder import Corpus
from cytoglot.corpus.read.epoch_plan import Piece, ReadingPlan
from cytoglot.corpus.read.fitting import common_length
from cytoglot.corpus.read.mixture import TWO_32, Question, TaskMixture
from cytoglot.corpus.read.records import (
    REPEAT,
    TABLE_UNITS,
    VARIANT,
    BlockRecords,
    Key,
    RecordReader,
    draw,
    read_row_group,
)
from cytoglot.tasks.record import CellTypeTerm, GeneSet, Record, Unit

_UNITS: tuple[Unit, ...] = ("cell", "cell_group", "gene_set", "cell_type_term")


class Visits:
    """What is asked about the pieces of a window, in random order.

    Parameters
    ----------
    top_genes, context
        Sentences have no more genes than `top_genes`, or than could fit `context` tokens.
    skipped
        Counts the records that no task can ask.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        reader: RecordReader,
        mixture: TaskMixture,
        plan: ReadingPlan,
        tables: Mapping[Unit, list[GeneSet] | list[CellTypeTerm]],
        seed: int,
        top_genes: int | None,
        context: int,
        skipped: Counter[str],
    ) -> None:
        self._corpus, self._reader, self._mixture, self._plan, self._tables = corpus, reader, mixture, plan, tables
        self._seed, self._top_genes, self._context = seed, top_genes, context
        self._skipped = skipped

    def chunks(self, window: Sequence[Piece], epoch: int, *, size: int) -> Iterator[tuple[list[Question], bool]]:
        """Yield the questions of up to `size` visits at a time, and whether these are the last."""
        opened = self._open(window)
        every = [self._visits(place, piece, opened[place], epoch) for place, piece in enumerate(window)]
        visits = np.concatenate(every)
        rng = np.random.default_rng([self._seed, 12, epoch, window[0].number])
        visits = visits[rng.permutation(len(visits))]
        for begin in range(0, len(visits), size):
            asked = [self._question(visit, opened, epoch) for visit in visits[begin : begin + size].tolist()]
            yield [question for question in asked if question is not None], begin + size >= len(visits)

    def _question(
        self, visit: tuple[int, int, int, int], opened: Sequence[BlockRecords | None], epoch: int
    ) -> Question | None:
        place, unit_number, row, time = visit
        unit = _UNITS[unit_number]
        record, key = self._record(unit, opened[place], row, time, epoch)
        question = self._mixture.ask(record, unit, key)
        if question is None:
            self._skipped[f"no task can ask about this {unit.replace('_', ' ')}"] += 1
        return question

    def _record(self, unit: Unit, records: BlockRecords | None, row: int, time: int, epoch: int) -> tuple[Record, Key]:
        top_genes, context = self._top_genes, self._context
        if records is None or unit in TABLE_UNITS:
            listed = self._tables[unit][row]
            key = draw(self._seed, epoch, time, unit, listed.key)
            return replace(listed, variant=key[VARIANT]).cut(top_genes or context), key
        limit = min(top_genes or context, context)  # a gene is a token or more
        if unit == "cell":
            key = records.cell_draw(row, epoch=epoch, visit=time)
            return records.cell(row, key, top_genes=limit), key
        key = records.group_draw(row, epoch=epoch, visit=time)
        limit = min(limit, max(1, common_length(records.group_lengths(row), context)))
        return records.group(row, key, top_genes=limit), key

    def _open(self, window: Sequence[Piece]) -> list[BlockRecords | None]:
        """Read each row group once."""
        opened: dict[tuple[str, int], BlockRecords] = {}
        found: list[BlockRecords | None] = []
        for piece in window:
            if piece.row_group is None:
                found.append(None)
                continue
            name = piece.row_group.shard.file, piece.row_group.number
            if name not in opened:
                opened[name] = self._reader.open(read_row_group(self._corpus, piece.row_group))
            found.append(opened[name])
        return found

    def _visits(self, place: int, piece: Piece, records: BlockRecords | None, epoch: int) -> NDArray[np.int64]:
        """Return (n, 4): place of the piece in the window, number of the unit, row, and which visit to it this is."""
        found = [np.empty((0, 4), np.int64)]

        def add(unit: Unit, rows: NDArray[np.integer], times: NDArray[np.integer]) -> None:
            n = len(rows)
            found.append(np.column_stack([np.full(n, place), np.full(n, _UNITS.index(unit)), rows, times]))

        if records is not None and self._plan.cell_rate:
            rows = np.arange(piece.first, piece.last)
            add("cell", *_repeated(rows, self._counts("cell", rows, records, epoch)))
        if records is not None and self._plan.group_rate:
            starts = np.array([first for first, _ in records.groups], np.int64)
            groups = np.flatnonzero((starts >= piece.first) & (starts < piece.last))
            add("cell_group", *_repeated(groups, self._counts("cell_group", groups, records, epoch)))
        for unit, (first, last) in piece.tables.items():
            visit = np.arange(first, last)
            size = len(self._tables[unit])
            listed = [int(_shuffled(self._seed, epoch, unit, v // size, size)[v % size]) for v in visit.tolist()]
            add(unit, np.array(listed, np.int64), visit // size)
        return np.concatenate(found)

    def _counts(self, unit: Unit, rows: NDArray[np.int64], records: BlockRecords, epoch: int) -> NDArray[np.int64]:
        """Return how often each cell or group is visited; fractions are settled by a hash."""
        rate = self._plan.cell_rate if unit == "cell" else self._plan.group_rate
        weights = self._plan.sources
        if rate == 1 and all(weight == 1 for weight in weights.values()):
            return np.ones(len(rows), np.int64)
        first_rows = rows.tolist() if unit == "cell" else [records.groups[g][0] for g in rows.tolist()]
        rates = np.array([rate * weights.get(records.sources[row] or "", 1.0) for row in first_rows])
        counts = np.floor(rates).astype(np.int64)
        for i in np.flatnonzero(rates > counts).tolist():
            chosen = records.cell_draw if unit == "cell" else records.group_draw
            counts[i] += chosen(int(rows[i]), epoch=epoch)[REPEAT] < (rates[i] - counts[i]) * TWO_32
        return counts


def _repeated(rows: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each row as often as its count says, and which time it is."""
    ends = np.cumsum(counts)
    times = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
    return np.repeat(rows, counts), times


@lru_cache(maxsize=64)
def _shuffled(seed: int, epoch: int, unit: Unit, time: int, size: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 14, epoch, _UNITS.index(unit), time]).permutation(size)
