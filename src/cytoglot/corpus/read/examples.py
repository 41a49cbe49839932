"""Random examples of a corpus, with their records: to look at, and to measure with."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from cytoglot.corpus.format.folder import Corpus, Part
from cytoglot.corpus.read.mixture import TaskMixture
from cytoglot.corpus.read.records import (
    RecordReader,
    RowGroup,
    row_groups,
    source_of_cells,
    units_of_cells,
    units_of_tables,
)
from cytoglot.tasks.record import Record
from cytoglot.tasks.record_source import Draws, record_sources
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
        self._mixture = {"replaced": corpus.templates_of_tasks, **mixture}

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
            weights = tasks or dict.fromkeys(available_tasks(self._corpus, self._part), 1.0)
        if not weights:
            return []
        rng = np.random.default_rng([seed, 5])
        names = list(weights)
        shares = np.array([weights[name] for name in names], float)
        wanted = rng.multinomial(n, shares / shares.sum())
        found: list[CorpusExample] = []
        for name, count in zip(names, wanted.tolist(), strict=True):
            mixture = TaskMixture({name: 1.0}, seed=seed, **self._mixture)
            (unit,) = mixture.unit_shares
            task_rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
            records = self._records(unit, count, task_rng, seed) if count else ()
            asked = (mixture.ask(record, unit, draws) for record, draws in records)
            known = (CorpusExample(example=one.example(), record=one.record) for one in asked if one is not None)
            found += islice(known, count)
        return [found[i] for i in rng.permutation(len(found))]

    def _records(self, unit: str, n: int, rng: np.random.Generator, seed: int) -> Iterator[tuple[Record, Draws]]:
        reader = RecordReader(self._corpus, seed=seed)
        if not record_sources[unit].is_of_cells:
            rows = reader.table(unit, self._part)
            for i in rng.permutation(len(rows)):
                draws = Draws(seed, unit, rows[i].key)
                yield rows[i].with_variant(draws("variant")), draws
            return
        source, places = source_of_cells(unit), row_groups(self._corpus, self._part)
        per_place = max(1, -(-n // max(len(places), 1)))
        later: list[tuple[RowGroup, list[int]]] = []

        def visit(place: RowGroup, rows: Sequence[int] | None) -> Iterator[tuple[Record, Draws]]:
            cells = reader.read(place)
            if rows is None:
                rows = rng.permutation(source.rows(cells)).tolist()
                later.append((place, list(rows[per_place:])))
                rows = rows[:per_place]
            for row in rows:
                draws = cells.draws(row, unit)
                yield source.record(cells, row, draws, top_genes=self._top_genes), draws

        for i in rng.permutation(len(places)):
            yield from visit(places[i], None)
        for place, rest in later:
            yield from visit(place, rest)


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
    """Return up to `n` random examples as `CorpusExamples.sample` does, without their records.

    Examples
    --------
    >>> import cytoglot as cg
    >>> recipe = cg.corpus.CorpusRecipe(sources=[{"path": "pbmc68k_reduced"}])
    >>> _ = cg.corpus.build_corpus(recipe, "shown", overwrite=True)
    >>> corpus = cg.corpus.open_corpus("shown")
    >>> [example] = cg.corpus.sample_examples(corpus, task="cell_type_annotation", top_genes=4)
    >>> example.prompt
    '4 genes of a human cell: CD74 HLA-DRA CST3 LYZ. Cell type:'
    >>> example.completion
    ' Dendritic.'
    """
    drawn = CorpusExamples(corpus, part, top_genes=top_genes, **mixture).sample(n, task, tasks=tasks, seed=seed)
    return [found.example for found in drawn]


def available_tasks(corpus: Corpus, part: Part = "train", *, n_cells: int = 4096) -> tuple[str, ...]:
    """Return the names of all tasks that can ask something of the part, in alphabetical order.

    Looked at are the tables and the first `n_cells` cells, which stand in random order, with their groups; a task that
    can ask none of those is left out.
    """
    reader, left, places = RecordReader(corpus), n_cells, row_groups(corpus, part)
    waiting = {name: registered_tasks[name] for name in registered_tasks}
    found: set[str] = set()

    def try_on(record: Record, unit: str) -> None:
        asked = [name for name, task in waiting.items() if task.unit == unit and task.can_ask(record)]
        found.update(asked)
        for name in asked:
            del waiting[name]

    for unit in units_of_tables():
        for row in reader.table(unit, part):
            try_on(row, unit)
    draws = Draws("askable")
    for place in places:
        cells = reader.read(place)
        for unit in units_of_cells():
            source = source_of_cells(unit)
            for first_row in source.rows(cells).tolist():
                if first_row >= left or not any(task.unit == unit for task in waiting.values()):
                    break
                try_on(source.record(cells, first_row, draws), unit)
        left -= len(cells)
        if left <= 0 or not waiting:
            break
    return tuple(sorted(found))
