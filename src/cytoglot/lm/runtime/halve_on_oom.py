"""Going on with half of a batch where a whole one does not fit an accelerator's memory."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_halves(
    compute: Callable[[Sequence[Item]], Sequence[Result]], batch: Sequence[Item], *, what: str
) -> list[Result]:
    """Return `compute(batch)`, one result for each item; where memory runs out, that of its two halves.

    Halves are halved again, down to single items; each time is logged. `compute` must not depend on what else is in its
    batch.

    Raises
    ------
    torch.OutOfMemoryError
        A single item does not fit.
    """
    try:
        return list(compute(batch))
    except torch.OutOfMemoryError as error:
        if len(batch) < 2:
            error.add_note(f"a single {what} does not fit the memory of the device; shorten it or use a smaller model")
            raise
    # Outside of the handler, whose traceback would keep the tensors of the failed attempt alive.
    release_memory()
    half = len(batch) // 2
    logger.warning("out of memory with %d x %s in a batch; going on with %d", len(batch), what, len(batch) - half)
    return in_halves(compute, batch[:half], what=what) + in_halves(compute, batch[half:], what=what)


def release_memory() -> None:
    """Give memory that no tensor uses back to the accelerator."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
