"""Low-rank adapters on any causal language model :cite:p:`hu2022lora`, by way of `peft`.

An adapted `LanguageModel` scores, embeds and generates as any other. Token vectors and the output layer, where they are
trained besides, are trained in place: tied ones stay tied, and merging has nothing to add to them.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cytoglot.errors import InputError, nearest_names
from cytoglot.extras import require
from cytoglot.lm.model.language_model import LanguageModel, own_progress_only

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

#: The fast kernels of these families read the weights of such layers themselves and would pass an adapter by.
_STATE_SPACE_FAMILIES = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
_READ_BY_KERNELS = {"x_proj", "dt_proj", "out_proj"}


def add_lora(
    lm: LanguageModel,
    *,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.05,
    targets: Literal["all-linear"] | Sequence[str] = "all-linear",
    train_vectors: bool = False,
    seed: int = 0,
) -> LanguageModel:
    """Return the model with an untrained adapter, which leaves its answers as they are; all else is frozen.

    The given model's layers are used, not copied: call this once, and go on with what it returns. The same seed gives
    the same adapter.

    Parameters
    ----------
    rank, alpha
        Each adapter adds alpha / rank · B A to a weight, with A (rank, inputs) random and B (outputs, rank) zero.
    dropout
        Share of an adapter's inputs dropped in training.
    targets
        Last parts of the names of the layers that get an adapter; "all-linear" is every linear layer but the output
        layer.
    train_vectors
        Token vectors and output layer are trained in full besides.

    Raises
    ------
    InputError
        No layer has a name of `targets`; the message says which names there are.
    MissingExtraError
        `peft` is not installed.
    """
    peft = require("peft", extra="train", purpose="training with LoRA")
    output = lm.model.get_output_embeddings()
    barred = _READ_BY_KERNELS if lm.model.config.model_type in _STATE_SPACE_FAMILIES else set()
    layers = {
        name: layer
        for name, layer in lm.model.named_modules()
        if isinstance(layer, (torch.nn.Linear, Conv1D)) and layer is not output and name.split(".")[-1] not in barred
    }
    named = set(layers) if targets == "all-linear" else set()
    for target in () if targets == "all-linear" else targets:
        matching = {name for name in layers if f".{name}".endswith(f".{target}")}
        if not matching:
            kinds = sorted({name.split(".")[-1] for name in layers})
            raise InputError(f"lora.targets: no layer is called {target!r}, {nearest_names(target, kinds)}")
        named |= matching
    chosen = sorted(named)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=chosen,
        # GPT-2 keeps its weights transposed.
        fan_in_fan_out=all(isinstance(layers[name], Conv1D) for name in chosen),
    )
    with torch.random.fork_rng(devices=[lm.device] if lm.device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = with_adapter(lm.model, config)
    if train_vectors:
        for weight in _vectors(model):
            weight.data = weight.data.float()  # steps of training are lost in half precision
            weight.requires_grad_(True)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info(
        "adapters of rank %d on %d layers: %s of %s parameters are trained",
        rank,
        len(chosen),
        f"{trained:,}",
        f"{sum(p.numel() for p in model.parameters()):,}",
    )
    return replace(lm, model=model.train(lm.model.training))


def with_adapter(model: PreTrainedModel, config: Any) -> Any:
    """Return the model with a new adapter of a `peft` configuration; its layers are used, not copied."""
    peft = require("peft", extra="train", purpose="training with LoRA")
    with warnings.catch_warnings():
        # peft 0.21 still asks transformers 5.23 by an old name; nothing that a user could change.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        return peft.get_peft_model(model, config)


def merge_lora(lm: LanguageModel) -> LanguageModel:
    """Return the plain model with its adapter added to its weights; one without an adapter comes back as it is.

    The layers are those of the given model, which is not to be used any more.
    """
    if not lm.is_adapted:
        return lm
    adapted = cast("PeftModel", lm.model)
    dtype, training = adapted.dtype, adapted.training
    merged = cast(PreTrainedModel, cast(Any, adapted).merge_and_unload())
    for weight in _vectors(merged):
        weight.data = weight.data.to(dtype)
    merged.requires_grad_(True)
    return replace(lm, model=merged.train(training))


def save_adapter(lm: LanguageModel, folder: str | Path) -> Path:
    """Write the adapter alone into a folder, as `peft` reads it, with the vectors where they are trained.

    Raises
    ------
    InputError
        The model has no adapter.
    """
    if not lm.is_adapted:
        raise InputError("expected a model with an adapter, found a plain one; add one with add_lora")
    folder = Path(folder)
    for config in cast(Any, lm.model).peft_config.values():
        config.revision = lm.revision  # the adapter fits these weights of its base and no later ones
    trains_vectors = any(weight.requires_grad for weight in _vectors(lm.model))
    with own_progress_only():
        cast("PeftModel", lm.model).save_pretrained(str(folder), save_embedding_layers=trains_vectors)
    (folder / "README.md").unlink(missing_ok=True)  # an empty form; the model's own card says more
    return folder


def _vectors(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters of the token vectors and of the output layer, tied ones once."""
    layers = [cast(Any, model).get_input_embeddings(), cast(Any, model).get_output_embeddings()]
    found = {id(p): p for layer in layers if layer is not None for p in layer.parameters()}
    return list(found.values())
