"""The processes of a run: one, or as many as `torchrun` started, each with its rank.

All of them train; the first alone writes what is shared.
"""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState

from cytoglot.errors import InputError

logger = logging.getLogger(__name__)
Value = TypeVar("Value")

#: The others wait so long at most while the first fits and writes what follows the training.
PATIENCE = timedelta(hours=4)


def join_processes(device: str) -> None:
    """Take this process's place among those of the run; nothing where it is alone.

    Raises
    ------
    InputError
        A launcher promised several processes and this one finds itself alone.
    """
    promised = int(os.environ.get("WORLD_SIZE", "1"))
    if promised == 1:
        return
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    PartialState(cpu=on_cpu, timeout=PATIENCE)
    if n_processes() != promised:
        raise InputError(
            f"expected {promised} processes (WORLD_SIZE), found {n_processes()}; start them with "
            "`torchrun --nproc_per_node N -m cytoglot.cli.main train …`"
        )
    if not is_first():  # what the first one says is said for all
        logging.getLogger("cytoglot").setLevel(logging.WARNING)
    logger.info("%d processes, joined by %s", promised, torch.distributed.get_backend())


def n_processes() -> int:
    """Return the number of processes of the run."""
    return torch.distributed.get_world_size() if _joined() else 1


def rank() -> int:
    """Return the number of this process among those of the run, from 0."""
    return torch.distributed.get_rank() if _joined() else 0


def is_first() -> bool:
    """Return whether this process is the one that writes."""
    return rank() == 0


def wait_for_all() -> None:
    """Return when every process has come here."""
    if _joined():
        torch.distributed.barrier()


def sum_over_all(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the sum of the processes' tensors, in each of them; it travels by way of their devices."""
    if not _joined():
        return value
    total = value.to(device)
    torch.distributed.all_reduce(total)
    return total


def from_first(value: Value) -> Value:
    """Return the first process's value in each of them; all but the first may pass anything."""
    if not _joined():
        return value
    held = [value]
    torch.distributed.broadcast_object_list(held)
    return held[0]


def _joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
