"""The records of some pieces in the order in which they are asked, and what is asked of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytoglot.corpus.read.epoch_plan import Piece, ReadingPlan
from cytoglot.corpus.read.mixture import TaskMixture
from cytoglot.corpus.read.records import BlockRecords, RecordReader, source_of_cells
from cytoglot.tasks.instance import TaskInstance
from cytoglot.tasks.record import Record
from cytoglot.tasks.record_source import Draws, common_length, record_sources


@dataclass(kw_only=True)
class EpochSampler:
    """What is asked about the pieces of a window, in random order."""

    reader: RecordReader
    mixture: TaskMixture
    plan: ReadingPlan
    tables: Mapping[str, list[Any]]
    """unit → the rows of its table"""
    seed: int
    top_genes: int | None
    """sentences have no more genes than this, or than could fit `context` tokens"""
    context: int
    skipped: Counter[str]
    """counts the records that no task can ask"""

    def __post_init__(self) -> None:
        self._units = [*self.plan.rates, *self.tables]

    def chunks(
        self, window: Sequence[Piece], epoch: int, *, size: int
    ) -> Iterator[tuple[list[TaskInstance], list[int], bool]]:
        """Yield the questions of up to `size` visits at a time, the genes of each, and whether these are the last.

        The genes are those that the record itself has, before a random view drops some.
        """
        read: dict[tuple[str, int], BlockRecords] = {}
        opened: list[BlockRecords | None] = []
        for group in (piece.row_group for piece in window):
            key = ("", 0) if group is None else (group.shard.file, group.number)
            if group is not None and key not in read:  # read once, though several pieces are of it
                read[key] = self.reader.read(group)
            opened.append(read.get(key))
        every = [self._sampler(place, piece, opened[place], epoch) for place, piece in enumerate(window)]
        visits = np.concatenate(every)
        rng = np.random.default_rng([self.seed, 12, epoch, window[0].number])
        visits = visits[rng.permutation(len(visits))]
        for begin in range(0, len(visits), size):
            asked: list[TaskInstance] = []
            n_genes: list[int] = []
            for place, number, row, time in visits[begin : begin + size].tolist():
                unit, cells = self._units[number], opened[place]
                record, draws = self._record(unit, cells, row, time, epoch)
                instance = self.mixture.ask(record, unit, draws)
                if instance is None:
                    self.skipped[f"no task can ask about this {record_sources[unit].words}"] += 1
                    continue
                asked.append(instance)
                limit = self.top_genes or self.context
                if unit in self.tables or cells is None:
                    n_genes.append(min(sum(self.tables[unit][row].lengths()), limit))
                else:
                    n_genes.append(sum(min(length, limit) for length in source_of_cells(unit).lengths(cells, row)))
            yield asked, n_genes, begin + size >= len(visits)

    def _record(self, unit: str, cells: BlockRecords | None, row: int, time: int, epoch: int) -> tuple[Record, Draws]:
        top_genes, context = self.top_genes, self.context
        if unit in self.tables:
            listed = self.tables[unit][row]
            draws = Draws(self.seed, epoch, time, unit, listed.key)
            return listed.with_variant(draws("variant")).truncate(top_genes or context), draws
        assert cells is not None
        source, draws = source_of_cells(unit), cells.draws(row, unit, epoch=epoch, visit=time)
        limit = min(top_genes or context, context)  # a gene is a token or more
        lengths = source.lengths(cells, row)
        if len(lengths) > 1:
            limit = min(limit, max(1, common_length(lengths, context)))
        return source.record(cells, row, draws, top_genes=limit), draws

    def _sampler(self, place: int, piece: Piece, records: BlockRecords | None, epoch: int) -> NDArray[np.int64]:
        """Return (n, 4): place of the piece in the window, number of the unit, row, and which visit to it this is."""
        found = [np.empty((0, 4), np.int64)]

        def add(unit: str, rows: NDArray[np.integer], times: NDArray[np.integer]) -> None:
            n = len(rows)
            found.append(np.column_stack([np.full(n, place), np.full(n, self._units.index(unit)), rows, times]))

        for unit, rate in self.plan.rates.items():
            if records is None:
                break
            rows = source_of_cells(unit).rows(records)
            rows = rows[(rows >= piece.first) & (rows < piece.last)]
            weights, counts = self.plan.sources, np.ones(len(rows), np.int64)
            if rate != 1 or any(weight != 1 for weight in weights.values()):
                rates = np.array([rate * weights.get(records.sources[row] or "", 1.0) for row in rows.tolist()])
                counts = np.floor(rates).astype(np.int64)
                for i in np.flatnonzero(rates > counts).tolist():  # fractions are settled by a hash
                    draws = records.draws(int(rows[i]), unit, epoch=epoch)
                    counts[i] += draws.happens(rates[i] - counts[i], "one visit more")
            times = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            add(unit, np.repeat(rows, counts), times)
        for unit, (first, last) in piece.tables.items():
            visit = np.arange(first, last)
            size = len(self.tables[unit])
            listed = [int(_shuffled(self.seed, epoch, unit, v // size, size)[v % size]) for v in visit.tolist()]
            add(unit, np.array(listed, np.int64), visit // size)
        return np.concatenate(found)


@lru_cache(maxsize=64)
def _shuffled(seed: int, epoch: int, unit: str, time: int, size: int) -> NDArray[np.int64]:
    return Draws(seed, epoch, unit, time).rng("order").permutation(size)
