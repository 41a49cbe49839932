"""What each task can be asked of in each part, and which tasks a corpus cannot show.

Whether a task can be asked depends on what is known of a record and on how much there is of it, not on which genes it
has. So cells and groups are sorted by these traits, and the tasks are put to the first records of each kind only.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytoglot.corpus.format.folder import PARTS, Corpus, Part
from cytoglot.corpus.inspect.scan import ScannedBlock, group_edges
from cytoglot.corpus.read.records import (
    BlockRecords,
    RecordReader,
    source_of_cells,
    units_of_cells,
    units_of_tables,
)
from cytoglot.tasks.answers import LabelAnswer
from cytoglot.tasks.record import Record
from cytoglot.tasks.record_source import Draws, record_sources
from cytoglot.tasks.task import Task
from cytoglot.tasks.task import tasks as registered_tasks

_RECORDS_OF_A_KIND = 3
"""so many records of a kind are asked for their answers, to see whether these differ"""
_MOST_LENGTH = 4
"""from so many genes on no task asks how many there are"""
_ENOUGH_ANSWERS = 3
_NEEDED: tuple[Part, ...] = ("train", "test")
"""parts without which a task can be neither learned nor measured"""


@dataclass(frozen=True, kw_only=True)
class TaskLine:
    """What a corpus has for a task."""

    task: str
    unit: str
    records: dict[Part, int]
    """part → records that can be asked about"""
    answers: dict[Part, int] | None
    """part → possible answers, for a task with a closed set of them"""
    not_shown: str
    """why the corpus cannot show the task; empty if it can"""


@dataclass
class TaskBalance:
    """A look at what can be asked."""

    corpus: Corpus
    _tasks_of_kind: dict[tuple[Any, ...], list[str]] = field(default_factory=dict)
    """traits that records share → the tasks that can ask them"""
    _n_looked_at: Counter[tuple[Any, ...]] = field(default_factory=Counter)
    _n_records: Counter[tuple[str, Part]] = field(default_factory=Counter)
    _answers: dict[str, set[str]] = field(default_factory=dict)
    _closed: dict[tuple[str, Part], set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._reader = RecordReader(self.corpus)
        self._draws = Draws("task balance")
        self._tasks: dict[str, Task[Any, Any]] = {name: registered_tasks[name] for name in registered_tasks}
        texts = sorted({source.abstract.strip() for source in self.corpus.description.sources} - {""})
        number = {"": 0} | {text: i for i, text in enumerate(texts, start=1)}
        self._abstract = {source.name: number[source.abstract.strip()] for source in self.corpus.description.sources}

    def update(self, seen: ScannedBlock) -> None:
        """Sort the records of a row group by their traits and ask the tasks about new kinds."""
        opened: list[BlockRecords] = []

        def records() -> BlockRecords:
            if not opened:
                opened.append(self._reader.open(seen.block))
            return opened[0]

        codes = {column: seen.codes(column) for column in seen.block.metadata_columns}
        lengths = np.diff(seen.block.offsets)
        traits = [np.minimum(lengths, _MOST_LENGTH), self._with_ortholog(seen)]
        traits += [column_codes >= 0 for column_codes, _ in codes.values()]
        table = np.column_stack([np.asarray(trait, np.int32) for trait in traits])
        every_cell = source_of_cells("cell")
        self._see_kinds("cell", seen.part, table, lambda row: every_cell.record(records(), row, self._draws))
        for task in self._tasks.values():
            if task.unit == "cell" and _has_labels(task) and task.field in codes:
                column_codes, texts = codes[task.field]
                self._note_labels(task, seen.part, column_codes[lengths > 0], texts)
        self._see_groups(seen, codes, records)
        for unit in units_of_cells():
            # What related cells have in common is not known beforehand, so each record is asked.
            source = source_of_cells(unit)
            rows = source.rows(records()).tolist() if source.relation in seen.block.relations else ()
            for row in rows:
                record = source.record(records(), row, self._draws)
                for name in self._askable(record, unit):
                    self._n_records[name, seen.part] += 1
                    self._note_answer(name, record)
                    if _has_labels(self._tasks[name]):
                        answer = self._tasks[name].templates.bare(self._tasks[name].completion(record))
                        self._closed.setdefault((name, seen.part), set()).add(answer)

    def see_tables(self) -> None:
        """Put the tasks about gene sets and cell types to each row."""
        for part in PARTS:
            for unit in units_of_tables():
                for row in self._reader.table(unit, part):
                    for name in self._askable(row, unit):
                        self._n_records[name, part] += 1
                        self._note_answer(name, row)

    def lines(self) -> list[TaskLine]:
        """Return a line for each task, in alphabetical order."""
        lines = []
        for name, task in sorted(self._tasks.items()):
            records = {part: self._n_records[name, part] for part in PARTS}
            closed = {part: self._closed.get((name, part), set()) for part in PARTS} if _has_labels(task) else {}
            possible = set().union(*closed.values()) if closed else self._answers.get(name, set())
            lines.append(
                TaskLine(
                    task=name,
                    unit=task.unit,
                    records=records,
                    answers={part: len(found) for part, found in closed.items()} if closed else None,
                    not_shown=self._why_not(task, records, possible, closed),
                )
            )
        return lines

    def _why_not(
        self, task: Task[Any, Any], records: dict[Part, int], possible: set[str], closed: dict[Part, set[str]]
    ) -> str:
        unit = record_sources[task.unit].words
        needs = f", which needs {' and '.join(task.required_metadata)}" if task.required_metadata else ""
        if not any(records.values()):
            return f"no {unit} can be asked{needs}"
        if len(possible) == 1 and sum(records.values()) > 1:
            return f"a single possible answer: {_only(possible)}"
        for part in _NEEDED:
            if not records[part]:
                return f"no {unit} of the {part} part can be asked{needs}"
            if part in closed and len(closed[part]) == 1:
                return f"a single answer in the {part} part: {_only(closed[part])}"
        return ""

    def _see_groups(self, seen: ScannedBlock, codes: dict[str, Any], records: Any) -> None:
        starts, sizes = group_edges(seen.block.group)
        if not len(starts):
            return
        ends = np.concatenate([[0], np.cumsum(sizes)[:-1]])  # where each group begins among the rows of all groups
        rows = np.repeat(starts - ends, sizes) + np.arange(sizes.sum())
        lengths = np.diff(seen.block.offsets)[rows]
        source_n, sources = seen.codes("source")
        same_source = np.maximum.reduceat(source_n[rows], ends) == np.minimum.reduceat(source_n[rows], ends)
        abstracts = np.array([self._abstract[name] for name in sources])[source_n[starts]]
        traits = [
            np.minimum(sizes, _MOST_LENGTH),
            np.minimum(np.minimum.reduceat(lengths, ends), _MOST_LENGTH),
            np.minimum(np.maximum.reduceat(lengths, ends), _MOST_LENGTH),
            np.where(same_source, abstracts, 0),
        ]
        for column, (column_codes, texts) in codes.items():
            low, high = (f.reduceat(column_codes[rows], ends) for f in (np.minimum, np.maximum))
            shared = np.where(low == high, low, -1)
            traits += [shared >= 0, low >= 0]
            for task in self._tasks.values():
                if task.unit == "cell_group" and _has_labels(task) and task.field == column:
                    self._note_labels(task, seen.part, shared, texts)
        table = np.column_stack([np.asarray(trait, np.int64) for trait in traits])
        groups = source_of_cells("cell_group")
        self._see_kinds("cell_group", seen.part, table, lambda i: groups.record(records(), int(starts[i]), self._draws))

    def _see_kinds(self, unit: str, part: Part, traits: NDArray[np.integer], record_of: Any) -> None:
        kinds, first, number, counts = np.unique(
            traits, axis=0, return_index=True, return_inverse=True, return_counts=True
        )
        for i, (trait, row, n) in enumerate(zip(kinds.tolist(), first.tolist(), counts.tolist(), strict=True)):
            key = (unit, *trait)
            if key not in self._tasks_of_kind:
                self._tasks_of_kind[key] = self._askable(record_of(row), unit)
            names = self._tasks_of_kind[key]
            for name in names:
                self._n_records[name, part] += n
            if self._n_looked_at[key] < _RECORDS_OF_A_KIND and names:
                rows = np.flatnonzero(number.ravel() == i)[: _RECORDS_OF_A_KIND - self._n_looked_at[key]]
                self._n_looked_at[key] += len(rows)
                for one in rows.tolist():
                    record = record_of(one)
                    for name in names:
                        self._note_answer(name, record)

    def _askable(self, record: Record, unit: str) -> list[str]:
        return [name for name, task in self._tasks.items() if task.unit == unit and task.can_ask(record)]

    def _note_answer(self, name: str, record: Record) -> None:
        answers = self._answers.setdefault(name, set())
        if len(answers) < _ENOUGH_ANSWERS:
            answers.add(self._tasks[name].completion(record).strip())

    def _note_labels(self, task: Task[Any, Any], part: Part, codes: NDArray[np.int32], texts: list[str]) -> None:
        found = self._closed.setdefault((task.name, part), set())
        found.update(texts[code] for code in np.unique(codes[codes >= 0]).tolist())

    def _with_ortholog(self, seen: ScannedBlock) -> NDArray[np.bool_]:
        """Tell as `BlockRecords.cell` does which cells have orthologs: none that is told in another species' genes."""
        orthologs = self.corpus.orthologs
        if orthologs is None:
            return np.zeros(len(seen.block), bool)
        n_before = np.concatenate([[0], np.cumsum(orthologs[seen.block.gene_ids] >= 0)])
        found = np.asarray(np.diff(n_before[seen.block.offsets]) > 0)
        if "organism" not in seen.block.metadata_columns:
            return found
        species = {source.name: source.organism for source in self.corpus.description.sources}
        (source_n, sources), (organism_n, organisms) = seen.codes("source"), seen.codes("organism")
        is_own = np.array([[*(organism == species.get(source) for organism in organisms), True] for source in sources])
        return np.asarray(found & is_own[source_n, organism_n]) if len(found) else found


def _has_labels(task: Task[Any, Any]) -> bool:
    return isinstance(task, LabelAnswer) and record_sources[task.unit].is_of_cells


def _only(answers: set[str]) -> str:
    (answer,) = answers
    return repr(answer if len(answer) <= 60 else answer[:57] + "…")
