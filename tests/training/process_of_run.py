"""One process of a training run, for tests: trains, and writes what it saw of the others into a file of its own.

    torchrun --nproc_per_node 2 tests/training/process_of_run.py SETTINGS.json

The settings: source, out, recipe, seen (a folder for what each process tells), stop_at (a step at which the last
process kills itself, or null).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from cytoglot.progress import set_progress
from cytoglot.training.loop.trainer import AnswerTrainer
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.run import train


def main(settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    set_progress(False)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    rank = int(os.environ.get("RANK", "0"))
    seen: dict[str, Any] = {"rank": rank, "world": 1, "wrapper": None, "examples": []}
    plain_step = AnswerTrainer.training_step

    def training_step(self: Any, model: torch.nn.Module, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        if torch.distributed.is_initialized():
            seen["world"] = torch.distributed.get_world_size()
        seen["wrapper"] = type(model).__name__
        # Ids 0 to 2 are special ones, padding among them.
        seen["examples"].append(sorted(row[row > 2].sum().item() for row in inputs["input_ids"]))
        last = rank == int(os.environ.get("WORLD_SIZE", "1")) - 1
        if last and settings["stop_at"] is not None and self.state.global_step == settings["stop_at"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain_step(self, model, inputs, *rest)

    AnswerTrainer.training_step = training_step  # type: ignore[method-assign]
    recipe = TrainRecipe.model_validate(settings["recipe"])
    train(settings["source"], label="cell_type", split_by="donor", out=settings["out"], recipe=recipe, device="cpu")
    folder = Path(settings["seen"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{rank}.json").write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
