"""Questions → weighted token ids that fit: what is too long loses genes from the end of its sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytoglot.corpus.read.packing import TokenExample
from cytoglot.corpus.read.tokenize import GeneTokenizer
from cytoglot.tasks.instance import TaskInstance, shortened, truncate_to_fit
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

    def tokens(self, instances: Sequence[TaskInstance], rooms: Sequence[int]) -> list[TokenExample | None]:
        """Return each question as at most so many tokens; None where nothing can be asked of what would fit."""
        fitting = truncate_to_fit(instances, rooms, self._encoded)
        return [None if one is None else self._weighed(one[0].task, *one[1]) for one in fitting]

    def shorter(
        self, instances: Sequence[TaskInstance], examples: Sequence[TokenExample], rooms: Sequence[int]
    ) -> list[TokenExample | None]:
        """Return examples that are too long once more with fewer genes, as at most so many tokens."""
        cut = [shortened(one, len(e), room) for one, e, room in zip(instances, examples, rooms, strict=True)]
        possible = [(one, room) for one, room in zip(cut, rooms, strict=True) if one is not None]
        made = iter(self.tokens([one for one, _ in possible], [room for _, room in possible]))
        return [None if one is None else next(made) for one in cut]

    def _encoded(self, instances: Sequence[TaskInstance]) -> list[tuple[tuple[NDArray[np.int32], int], int]]:
        prompts, completions = zip(*(instance.segments() for instance in instances), strict=True)
        return [(pair, len(pair[0])) for pair in self._tokenizer.encode_pairs(prompts, completions)]

    def _weighed(self, task: Task[Any, Any], ids: NDArray[np.int32], n_prompt: int) -> TokenExample:
        return TokenExample(
            ids,
            n_prompt,
            1.0 if task.closed_answer else self._weight / max(len(ids) - n_prompt, 1),
            self._weight / max(n_prompt, 1) if self._learn_prompts else 0.0,
        )
