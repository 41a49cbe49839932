"""Weights that no process holds whole: FSDP2 and stage 3 of DeepSpeed.

Training leaves each process its part. What is written at the end is made of all parts, in the first process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from cytoglot.errors import InputError
from cytoglot.extras import require
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.lora import with_adapter
from cytoglot.training.recipe import TrainRecipe


def check_sharding(recipe: TrainRecipe, device: torch.device) -> None:
    """Refuse what cannot be shared, before anything is read.

    Raises
    ------
    InputError
        There is no GPU (it would silently become plain data parallelism), a file is missing, or a setting asks the
        whole model of a process that holds a part of it.
    """
    if recipe.fsdp is None and recipe.deepspeed is None:
        return
    name = "fsdp" if recipe.fsdp is not None else "deepspeed"
    if device.type != "cuda":
        raise InputError(
            f"{name} shares weights among GPUs, found device {device}; leave it out, or run on a machine with GPUs: "
            "`torchrun --nproc_per_node N -m cytoglot train …`"
        )
    if recipe.deepspeed is not None:
        if not Path(recipe.deepspeed).is_file():
            raise InputError(f"deepspeed names {recipe.deepspeed}, which is no file; see recipes/cluster")
        require("deepspeed", extra="deepspeed", purpose="sharing weights by DeepSpeed")
        if recipe.optim.weight_average > 0:
            raise InputError("deepspeed holds no whole weights to average; set optim.weight_average: 0")
    if recipe.optim.stop_on != "loss":
        raise InputError(f"{name} compares evaluations by the loss alone; set optim.stop_on: loss")
    if recipe.lora is not None and recipe.lora.quantize != "none":
        raise InputError(f"quantized weights are not shared; leave out {name}, or lora.quantize")


def whole_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return every weight whole, on the CPU, by the names of `state_dict`; each process has to call it."""
    values = model.state_dict().items()
    return {n: (v.full_tensor() if isinstance(v, DTensor) else v).detach().cpu() for n, v in values}


def whole_model(lm: LanguageModel, weights: Mapping[str, torch.Tensor]) -> LanguageModel:
    """Return a model of the same structure with the given weights, on the CPU, that no other process has a part of."""
    model: Any = AutoModelForCausalLM.from_config(lm.model.config)
    if lm.is_adapted:
        (config,) = cast(Any, lm.model).peft_config.values()
        model = with_adapter(model, config)
    model.load_state_dict(dict(weights))
    return replace(lm, model=model.eval(), device=torch.device("cpu"))
