"""A task put to one record: what is asked, in which wording, and what is left of it where there is little room."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from cytoglot.tasks.record import Record
from cytoglot.tasks.record_source import common_length
from cytoglot.tasks.segments import Segments
from cytoglot.tasks.task import Example, Task

Text = TypeVar("Text")


@dataclass(frozen=True, slots=True)
class TaskInstance:
    """What is asked of a record: everything that its text depends on."""

    task: Task[Any, Any]
    record: Record
    template: int | str | None
    """None: any paraphrase, by a hash"""
    seed: int = 0
    held_out: bool = False

    def example(self) -> Example:
        """Return prompt and answer as texts."""
        return self.task.example(self.record, **self._wording)

    def segments(self) -> tuple[Segments, Segments]:
        """Return prompt and answer in segments."""
        return self.task.segments(self.record, **self._wording)

    def prompt(self) -> Segments:
        """Return the prompt alone, for which no answer need be known; without a template in the shortest wording."""
        return self.task.prompt_segments(self.record, template=self.template)

    def answer(self) -> str:
        """Return the true answer without what the wording puts around it."""
        return self.task.templates.bare(self.task.completion(self.record))

    def truncate(self, n_genes: int) -> TaskInstance | None:
        """Return the question about the first `n_genes` genes of each list; None if that leaves nothing to ask."""
        record = self.record.truncate(n_genes)
        return replace(self, record=record) if self.task.has_content(record) else None

    @property
    def _wording(self) -> dict[str, Any]:
        return {
            "template": self.template,
            "seed": self.seed,
            "epoch": self.record.variant,
            "held_out": self.held_out,
        }


def truncate_to_fit(
    instances: Sequence[TaskInstance],
    rooms: Sequence[float],
    encode: Callable[[Sequence[TaskInstance]], Sequence[tuple[Text, int]]],
) -> list[tuple[TaskInstance, Text] | None]:
    """Return each question with as many genes as there is room for, and what `encode` makes of it.

    Genes are lost from the end of the longest lists, a guess at a time, never words of an answer.

    Parameters
    ----------
    rooms
        Tokens that each may take.
    encode
        Questions → for each what is wanted of it, and the tokens that it takes.

    Returns
    -------
    list
        None where nothing can be asked of what would fit.
    """
    fitting: list[tuple[TaskInstance, Text] | None] = [None] * len(instances)
    waiting = dict(enumerate(instances))
    while waiting:
        encoded = encode(list(waiting.values()))
        for (i, instance), (made, n_tokens) in zip(list(waiting.items()), encoded, strict=True):
            del waiting[i]
            lengths = instance.record.lengths()
            n_genes = sum(lengths)
            if n_tokens <= rooms[i]:
                fitting[i] = instance, made
            elif n_genes > 0:
                # As if every token were a gene's; where that is too few genes, the next round says so.
                fewer = n_genes - math.ceil((n_tokens - rooms[i]) * n_genes / n_tokens)
                shorter = instance.truncate(min(common_length(lengths, max(fewer, 0)), max(lengths) - 1))
                if shorter is not None:
                    waiting[i] = shorter
    return fitting
