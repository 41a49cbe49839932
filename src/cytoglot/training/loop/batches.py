"""Where batches come from, and how they are made while a device computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from cytoglot.training.loop.loss import Batch


class BatchSource(Protocol):
    """Batches of one process for ever or to an end, from a position that can be kept."""

    def __iter__(self) -> Iterator[Batch]:
        """Go on after the last batch that was given."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position, as plain JSON values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position."""


class ReadAhead:
    """A `BatchSource` that makes the batches of another one in a thread, while a device computes.

    Its position is that of the batches given, not of those made.
    """

    def __init__(self, source: BatchSource, *, n_ahead: int = 4) -> None:
        self._source, self._n_ahead = source, n_ahead
        self._state = source.state_dict()

    def __iter__(self) -> Iterator[Batch]:
        """Go on after the last batch that was given."""
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
        """Return the position after the last batch that was given."""
        return self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position."""
        self._state = dict(state)
