"""Random examples of a corpus, with their records: to look at, and to measure with."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cytoglot.corpus.format.folder import Corpus, Part
from cytoglot.corpus.read.mixture import TaskMixture
from cytoglot.corpus.read.records import (
    TABLE_UNITS,
    VARIANT,
    BlockRecords,
    Key,
    RecordReader,
    draw,
    read_row_group,
    row_groups,
)
from cytoglot.tasks.record import Record, Unit
from cytoglot.tasks.task import Example
from cytoglot.tasks.task import tasks as registered_tasks


@dataclass(frozen=True, kw_only=True)
class CorpusExample:
    """An example and the record that it was made of, with genes by name."""

    example: Example
    record: Record


class CorpusExamples:
    """Random examples of a part of a corpus, to look at or to measure with.

    Parameters
    ----------
    top_genes
        Genes of a cell at most; None for all.
    mixture
        Options of `TaskMixture` beside the weights.
    """

    def __init__(self, corpus: Corpus, part: Part = "train", *, top_genes: int | None = None, **mixture: Any) -> None:
        self._corpus, self._part, self._top_genes = corpus, part, top_genes
        self._mixture = {"replaced": corpus.reworded, **mixture}

    def sample(
        self, n: int, task: str | None = None, *, tasks: Mapping[str, float] | None = None, seed: int = 0
    ) -> list[CorpusExample]:
        """Return up to `n` examples, each of another record, of one task or of several by their weights.

        By default every task that the part can ask has the same weight. Fewer than `n` come back only if the part has
        fewer records that can be asked. The same seed gives the same examples.
        """
        if task is not None:
            weights: Mapping[str, float] = {task: 1.0}
        else:
            weights = tasks or dict.fromkeys(askable_tasks(self._corpus, self._part), 1.0)
        if not weights:
            return []
        rng = np.random.default_rng([seed, 5])
        names = list(weights)
        shares = np.array([weights[name] for name in names], float)
        wanted = rng.multinomial(n, shares / shares.sum())
        found = [
            example
            for name, count in zip(names, wanted.tolist(), strict=True)
            if count
            for example in self._of_task(name, count, seed)
        ]
        return [found[i] for i in rng.permutation(len(found))]

    def _of_task(self, name: str, n: int, seed: int) -> list[CorpusExample]:
        mixture = TaskMixture({name: 1.0}, seed=seed, **self._mixture)
        (unit,) = mixture.unit_shares
        found: list[CorpusExample] = []
        for record, key in self._records(unit, n, np.random.default_rng([seed, zlib.crc32(name.encode())]), seed):
            question = mixture.ask(record, unit, key)
            if question is not None:
                found.append(CorpusExample(example=question.example(), record=question.record))
            if len(found) == n:
                break
        return found

    def _records(self, unit: Unit, n: int, rng: np.random.Generator, seed: int) -> Iterator[tuple[Record, Key]]:
        reader = RecordReader(self._corpus, seed=seed)
        if unit in TABLE_UNITS:
            rows = reader.table(unit, self._part)
            for i in rng.permutation(len(rows)):
                key = draw(seed, unit, rows[i].key)
                yield replace(rows[i], variant=key[VARIANT]), key
            return
        places = row_groups(self._corpus, self._part)
        per_place = max(1, -(-n // max(len(places), 1)))
        later: list[tuple[BlockRecords, list[int]]] = []
        for i in rng.permutation(len(places)):
            records = reader.open(read_row_group(self._corpus, places[i]))
            rows_of_place = rng.permutation(len(records) if unit == "cell" else len(records.groups)).tolist()
            later.append((records, rows_of_place[per_place:]))
            yield from self._visit(records, unit, rows_of_place[:per_place])
        for records, rest in later:
            yield from self._visit(records, unit, rest)

    def _visit(self, records: BlockRecords, unit: Unit, rows: Sequence[int]) -> Iterator[tuple[Record, Key]]:
        for row in rows:
            if unit == "cell":
                key = records.cell_draw(row)
                yield records.cell(row, key, top_genes=self._top_genes), key
            else:
                key = records.group_draw(row)
                yield records.group(row, key, top_genes=self._top_genes), key


def sample_examples(
    corpus: Corpus,
    part: Part = "train",
    n: int = 1,
    *,
    task: str | None = None,
    tasks: Mapping[str, float] | None = None,
    seed: int = 0,
    top_genes: int | None = None,
    **mixture: Any,
) -> list[Example]:
    """Return up to `n` random examples as `CorpusExamples.sample` does, without their records."""
    drawn = CorpusExamples(corpus, part, top_genes=top_genes, **mixture).sample(n, task, tasks=tasks, seed=seed)
    return [found.example for found in drawn]


def askable_tasks(corpus: Corpus, part: Part = "train", *, n_cells: int = 4096) -> tuple[str, ...]:
    """Return the names of all tasks that can ask something of the part, in alphabetical order.

    Looked at are the tables and the first `n_cells` cells, which stand in random order, with their groups; a task that
    can ask none of those is left out.
    """
    reader, left, places = RecordReader(corpus), n_cells, row_groups(corpus, part)
    waiting = {name: registered_tasks[name] for name in registered_tasks}
    found: set[str] = set()

    def try_on(record: Record, unit: Unit) -> None:
        asked = [name for name, task in waiting.items() if task.unit == unit and task.can_ask(record)]
        found.update(asked)
        for name in asked:
            del waiting[name]

    for unit in TABLE_UNITS:
        for row in reader.table(unit, part):
            try_on(row, unit)
    key = draw("askable")
    for place in places:
        records = reader.open(read_row_group(corpus, place))
        for row_number in range(min(len(records), left)):
            if any(task.unit == "cell" for task in waiting.values()):
                try_on(records.cell(row_number, key), "cell")
        for group, (first, _) in enumerate(records.groups):
            if first < left and any(task.unit == "cell_group" for task in waiting.values()):
                try_on(records.group(group, key), "cell_group")
        left -= len(records)
        if left <= 0 or not waiting:
            break
    return tuple(sorted(found))
