"""Where batches come from, and how they are made while a device computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from cytoglot.lm.runtime.prefetch import ahead
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
        made = ((batch, self._source.state_dict()) for batch in self._source)
        for batch, state in ahead(made, n=self._n_ahead):
            self._state = state
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch that was given."""
        return self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position."""
        self._state = dict(state)
