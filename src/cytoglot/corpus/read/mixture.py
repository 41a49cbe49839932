"""What is asked of a record: which task, in which wording, and what is told of the record."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from cytoglot.errors import InputError, UnknownNameError
from cytoglot.manifest import fingerprint_texts
from cytoglot.tasks.instance import TaskInstance
from cytoglot.tasks.record import Record
from cytoglot.tasks.record_source import TWO_32, Draws
from cytoglot.tasks.task import Task
from cytoglot.tasks.task import tasks as registered_tasks

OPTIONAL_METADATA = (
    "organism",
    "tissue",
    "disease",
    "condition",
    "development_stage",
    "sex",
    "assay",
    "perturbation",
    "dose",
    "time",
    "ethnicity",
    "suspension_type",
)
"""what a user may or may not know of a cell, and a prompt may therefore tell or not; all else stays as it is"""
_TRIES = ("task", "another task")


def vary_metadata(
    metadata: Mapping[str, str], required: Sequence[str], draws: Draws, *, share: float = 0.5
) -> dict[str, str]:
    """Return the metadata with each field of `OPTIONAL_METADATA` present or absent, independently of the others.

    Parameters
    ----------
    required
        Fields that stay, because the task asks for them or answers with them.
    draws
        Random choices of the example; whether a field is told depends on its key and the field alone.
    share
        Probability that an optional field is told; with 1 all are.
    """
    kept = dict(metadata)
    for name in OPTIONAL_METADATA:
        if name in kept and name not in required and not draws.happens(share, "metadata", name):
            del kept[name]
    return kept


class TaskMixture:
    """Chooses what is asked of a record, and in which wording.

    Parameters
    ----------
    weights
        Task → its share of all examples (they are normalized), of every unit together. Within a unit a record is asked
        by one of the tasks that can ask it, with the probability of its weight among those.
    replaced
        Task → one with other templates, such as those that a released model was trained with.
    paraphrase_share
        Share of the examples whose prompt is any training paraphrase; the rest have the terse wording.
    metadata_share
        Probability that an optional field of the metadata is told (see `vary_metadata`).
    held_out
        Ask in the wordings that training never sees.

    Raises
    ------
    InputError
        A task is unknown, a weight is negative, none is above 0, or a task has no held-out wording where one is asked
        for.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        replaced: Mapping[str, Task[Any, Any]] | None = None,
        seed: int = 0,
        paraphrase_share: float = 0.2,
        metadata_share: float = 0.5,
        held_out: bool = False,
    ) -> None:
        for name, weight in weights.items():
            if name not in registered_tasks:
                raise UnknownNameError("task", name, list(registered_tasks))
            if weight < 0:
                raise InputError(f"the weight of task {name!r} must be at least 0, found {weight}")
        total = sum(weights.values())
        if total <= 0:
            raise InputError("at least one task needs a weight above 0")
        self.weights = {name: weight / total for name, weight in weights.items() if weight > 0}
        chosen = [((replaced or {}).get(name) or registered_tasks[name], weight)
                  for name, weight in self.weights.items()]  # fmt: skip
        without = [task.name for task, _ in chosen if held_out and not task.templates.held_out]
        if without:
            raise InputError(f"expected held-out wordings of every task, found none of {without}; leave these out")
        self._seed, self._held_out = seed, held_out
        self._paraphrase_share, self._metadata_share = paraphrase_share, metadata_share
        self._by_unit: dict[str, list[tuple[Task[Any, Any], float]]] = {}
        for task, weight in chosen:
            self._by_unit.setdefault(task.unit, []).append((task, weight))
        self._edges = {unit: list(accumulate(w for _, w in found)) for unit, found in self._by_unit.items()}

    @property
    def unit_shares(self) -> dict[str, float]:
        """Unit → share of the examples that are about it."""
        return {unit: sum(weight for _, weight in found) for unit, found in self._by_unit.items()}

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with any wording of any of the tasks."""
        found = sorted((task.name, task.templates.fingerprint) for rows in self._by_unit.values() for task, _ in rows)
        return fingerprint_texts([text for pair in found for text in pair])

    def ask(self, record: Record, unit: str, draws: Draws) -> TaskInstance | None:
        """Return what is asked of a record; None if no task of its unit can ask it."""
        found, edges = self._by_unit[unit], self._edges[unit]
        for name in _TRIES:  # a task that cannot ask is drawn again, which is faster than asking all of them
            task = found[_place(edges, draws(name))][0]
            if task.can_ask(record):
                return self._instance(task, record, draws)
        possible = [(task, weight) for task, weight in found if task.can_ask(record)]
        if not possible:
            return None
        edges = list(accumulate(weight for _, weight in possible))
        return self._instance(possible[_place(edges, draws("possible task"))][0], record, draws)

    def _instance(self, task: Task[Any, Any], record: Record, draws: Draws) -> TaskInstance:
        # A view of a cell is noise that a reader has to see through; to learn to write it would be to learn the noise.
        record = told = record.whole() if task.writes_cells else record
        if record.metadata and self._metadata_share < 1:
            varied = vary_metadata(record.metadata, task.required_metadata, draws, share=self._metadata_share)
            if len(varied) < len(record.metadata):
                told = record.with_metadata(varied)
                told = told if task.can_ask(told) else record
        paraphrased = self._held_out or draws.happens(self._paraphrase_share, "wording")
        template = None if paraphrased else task.short_template(told)
        return TaskInstance(task, told, template, seed=self._seed, held_out=self._held_out)


def _place(edges: list[float], number: int) -> int:
    """Return which of the intervals that end at the edges a random number below 2³² falls into."""
    return min(bisect_right(edges, number / TWO_32 * edges[-1]), len(edges) - 1)
