"""Questions → token ids that fit: what is too long loses genes from the end of its sentences, never of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytoglot.corpus.read.mixture import Question
from cytoglot.corpus.read.packing import TokenExample
from cytoglot.corpus.read.tokenize import GeneTokenizer
from cytoglot.tasks.record import CellGroup, CellRecord, CellTypeTerm, GeneSet, Record
from cytoglot.tasks.task import Task


class Fitter:
    """Makes token ids of questions, and of questions with fewer genes.

    Parameters
    ----------
    generation_weight
        What the tokens of an answer weigh in the loss together; those of a label weigh 1 each.
    learn_prompts
        Prompts are learned too: `generation_weight` over their tokens.
    """

    def __init__(self, tokenizer: GeneTokenizer, *, generation_weight: float, learn_prompts: bool) -> None:
        self._tokenizer, self._weight, self._learn_prompts = tokenizer, generation_weight, learn_prompts

    def tokens(self, questions: Sequence[Question], rooms: Sequence[int]) -> list[TokenExample | None]:
        """Return each question as at most so many tokens; None where nothing can be asked of what would fit."""
        made: list[TokenExample | None] = [None] * len(questions)
        waiting = dict(enumerate(questions))
        while waiting:
            texts = [question.example() for question in waiting.values()]
            pairs = self._tokenizer.encode_pairs([t.prompt for t in texts], [t.completion for t in texts])
            for (i, question), (ids, n_prompt) in zip(list(waiting.items()), pairs, strict=True):
                del waiting[i]
                if len(ids) <= rooms[i]:
                    made[i] = self._weighed(question.task, ids, n_prompt)
                elif (shorter := shortened(question, len(ids), rooms[i])) is not None:
                    waiting[i] = shorter
        return made

    def shorter(
        self, questions: Sequence[Question], examples: Sequence[TokenExample], rooms: Sequence[int]
    ) -> list[TokenExample | None]:
        """Return examples that are too long once more with fewer genes, as at most so many tokens."""
        cut = [shortened(q, len(e), room) for q, e, room in zip(questions, examples, rooms, strict=True)]
        possible = [(question, room) for question, room in zip(cut, rooms, strict=True) if question is not None]
        made = iter(self.tokens([question for question, _ in possible], [room for _, room in possible]))
        return [None if question is None else next(made) for question in cut]

    def _weighed(self, task: Task[Any, Any], ids: NDArray[np.int32], n_prompt: int) -> TokenExample:
        return TokenExample(
            ids,
            n_prompt,
            1.0 if task.closed_answer else self._weight / max(len(ids) - n_prompt, 1),
            self._weight / max(n_prompt, 1) if self._learn_prompts else 0.0,
        )


def shortened(question: Question, n_tokens: int, room: int) -> Question | None:
    """Return the question with fewer genes, so that it takes about `room` tokens instead of `n_tokens`."""
    lengths = _lengths(question.record)
    n_genes = sum(lengths)
    if n_genes == 0:
        return None
    too_many = n_tokens - room
    fewer = n_genes - int(np.ceil(too_many * n_genes / n_tokens))
    top_genes = min(common_length(lengths, max(fewer, 0)), max(lengths) - 1)
    return question.cut(top_genes)


def _lengths(record: Record) -> list[int]:
    match record:
        case CellGroup():
            return [len(cell.genes) for cell in record.cells]
        case CellRecord() | GeneSet():
            return [len(record.genes)]
        case CellTypeTerm():
            return [len(record.markers)]


def common_length(lengths: Sequence[int], total: int) -> int:
    """Return the largest k so that lists cut to k have `total` entries at most together."""
    left = total
    for n_done, length in enumerate(sorted(lengths)):
        n_left = len(lengths) - n_done
        if length * n_left > left:
            return left // n_left
        left -= length
    return max(lengths, default=0)
