"""Batches of numbered examples for tests of the loop: step s has the same examples on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from cytoglot.corpus.read.packing import best_fit
from cytoglot.training.loop.loss import Batch


class NumberedBatches:
    """A `BatchSource` of a data set's examples in their order, to its end.

    Parameters
    ----------
    collate
        Makes a batch of examples.
    batch_size
        Examples of a batch.
    rank, world
        Of this process and of all.
    """

    def __init__(
        self,
        examples: Dataset[Any],
        collate: Callable[[Sequence[Any]], Batch],
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._examples, self._collate = examples, collate
        self._batch_size, self._rank, self._world = batch_size, rank, world
        self._given = 0  # examples, to all processes

    def __iter__(self) -> Iterator[Batch]:
        """Go on after the last batch that was given."""
        n_examples = len(self._examples)  # type: ignore[arg-type]
        while self._given < n_examples:
            first = self._given + self._rank * self._batch_size
            numbers = range(first, min(first + self._batch_size, n_examples))
            self._given += self._world * self._batch_size
            yield self._collate([self._examples[number] for number in numbers])

    def state_dict(self) -> dict[str, Any]:
        """Return how many examples all processes together were given."""
        return {"examples": self._given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position."""
        self._given = int(state["examples"])


def collate(items: Sequence[Mapping[str, Any]], *, pad_token_id: int, row_tokens: int | None = None) -> Batch:
    """Return examples as a batch: one in each row, or packed into rows of about `row_tokens` tokens.

    An independent way of laying out rows, which the losses of a loader's batches are compared with.
    """
    lengths = [len(item["input_ids"]) for item in items]
    if row_tokens is None:
        rows, width = [[i] for i in range(len(items))], max(lengths)
    else:
        width = min(max(row_tokens, *lengths), sum(lengths))
        rows = best_fit(lengths, width)
    shape = (len(rows), width)
    ids_bt, weights_bt = np.full(shape, pad_token_id, dtype=np.int64), np.zeros(shape, dtype=np.float32)
    positions_bt, segments_bt = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for b, row in enumerate(rows):
        begin = 0
        for segment, i in enumerate(row, start=1):
            place = (b, slice(begin, begin + lengths[i]))
            ids_bt[place], weights_bt[place] = items[i]["input_ids"], items[i]["weights"]
            weights_bt[b, begin] = 0  # nothing before it in its example predicts it
            positions_bt[place], segments_bt[place] = np.arange(lengths[i]), segment
            begin += lengths[i]
    arrays = {"input_ids": ids_bt, "weights": weights_bt}
    if row_tokens is not None:
        arrays |= {"position_ids": positions_bt, "segment_ids": segments_bt}
    return {
        **{name: torch.from_numpy(array) for name, array in arrays.items()},
        "n_examples": len(items),
        "n_tokens": sum(lengths),
        "about": [str(item["about"]) for item in items if "about" in item],
    }
