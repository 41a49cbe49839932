"""Batches of numbered examples, shared out so that a step has the same examples on any number of processes.

With w processes, b examples in a batch and a batches in a step, step s holds examples [s·w·b·a, (s+1)·w·b·a), and its
batches are consecutive pieces of them, dealt to the processes in turn.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch.utils.data import Dataset

from cytoglot.training.loop.loss import Batch


class BatchSource(Protocol):
    """Batches of one process for ever or to an end, from a position that can be kept."""

    def __iter__(self) -> Iterator[Batch]:
        """Go on behind the last batch that was given."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position, as plain JSON values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position."""


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
        """Go on behind the last batch that was given."""
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


class ReadAhead:
    """A `BatchSource` that makes the batches of another one in a thread, while a device computes.

    Its position is that of the batches given, not of those made.
    """

    def __init__(self, source: BatchSource, *, n_ahead: int = 4) -> None:
        self._source, self._n_ahead = source, n_ahead
        self._state = source.state_dict()

    def __iter__(self) -> Iterator[Batch]:
        """Go on behind the last batch that was given."""
        self._source.load_state_dict(self._state)
        made: queue.Queue[tuple[Batch | None, Any]] = queue.Queue(self._n_ahead)
        stopped = threading.Event()

        def put(item: tuple[Batch | None, Any]) -> None:
            while not stopped.is_set():
                try:
                    made.put(item, timeout=0.1)
                except queue.Full:
                    continue
                return

        def make() -> None:
            try:
                for batch in self._source:
                    put((batch, self._source.state_dict()))
                    if stopped.is_set():
                        return
                put((None, None))
            except BaseException as error:  # noqa: BLE001 - raised again where the batch would be given
                put((None, error))

        thread = threading.Thread(target=make, daemon=True, name="batches")
        thread.start()
        try:
            while True:
                batch, state = made.get()
                if batch is None:
                    if state is not None:
                        raise state
                    return
                self._state = state
                yield batch
        finally:
            stopped.set()
            thread.join()

    def state_dict(self) -> dict[str, Any]:
        """Return the position behind the last batch that was given."""
        return self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position."""
        self._state = dict(state)
