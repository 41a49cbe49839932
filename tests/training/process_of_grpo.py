"""One process of an alignment, for tests: trains, and writes what it saw into a file of its own.

    torchrun --nproc_per_node 2 tests/training/process_of_grpo.py SETTINGS.json

The settings: source, out, recipe, seen (a folder for what each process tells).
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch

from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.rl.trainer import CellGrpoTrainer
from cytoglot.training.run import train


def main(settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    seen: dict[str, Any] = {"world": 1, "wrapper": None, "numbers": [], "weights": []}
    compute_loss = CellGrpoTrainer._compute_loss

    def keep(self: Any, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        seen["world"], seen["wrapper"] = torch.distributed.get_world_size(), type(model).__name__
        seen["numbers"].append(sorted(inputs["number"].tolist()))
        seen["weights"].append(sum(p.detach().double().sum().item() for p in model.parameters()))
        return compute_loss(self, model, inputs)

    CellGrpoTrainer._compute_loss = keep  # type: ignore[method-assign]
    recipe = TrainRecipe.model_validate(settings["recipe"])
    train(settings["source"], out=settings["out"], recipe=recipe, device="cpu", seed=3)
    folder = Path(settings["seen"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
