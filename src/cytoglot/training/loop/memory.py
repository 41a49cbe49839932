"""What training a model takes of each device's memory, by arithmetic: for choosing a device before renting it.

Counts weights, gradients, the two moments of AdamW, adapters, activations and logits; leaves out what a framework and
the fragments of its allocator hold (2 to 5 GB on a GPU).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

Mode = Literal["full", "lora", "qlora"]

# Bytes of a parameter: float32 weight and gradient and two moments; a frozen weight in bf16; in 4 bits with its scales.
_TRAINED, _FROZEN, _QUANTIZED = 16.0, 2.0, 0.53
#: Bytes of activations that a layer keeps per token and hidden dimension in 16 bits, without attention's matrix, which
#: the fused kernels do not keep :cite:p:`korthikanti2023activations`.
_PER_LAYER = 34.0
#: Bytes of a logit: 16-bit output, float32 for the loss, and its gradient.
_PER_LOGIT = 10.0


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """The numbers of a model that memory follows from."""

    parameters: int
    vectors: int
    """of them, in the input and output vectors"""
    linear_ends: int
    """sum over the linear layers, without the output layer, of their inputs and outputs: an adapter of rank r has r of
    each"""
    layers: int
    width: int
    vocabulary: int


def model_size(config: PreTrainedConfig) -> ModelSize:
    """Return the size of the causal language model of a configuration; no weight is made."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    output = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not output]
    text = config.get_text_config()
    tables = {id(table.weight): table.weight.numel() for table in (model.get_input_embeddings(), output)}
    return ModelSize(
        parameters=sum(p.numel() for p in model.parameters()),
        vectors=sum(tables.values()),
        linear_ends=sum(m.in_features + m.out_features for m in linear),
        layers=int(text.num_hidden_layers),
        width=int(text.hidden_size),
        vocabulary=int(text.vocab_size),
    )


def training_memory(
    size: ModelSize,
    *,
    mode: Mode = "full",
    rank: int = 16,
    tokens: int = 8192,
    learned_share: float = 0.1,
    checkpointing: bool = True,
    shards: int = 1,
) -> float:
    """Return the bytes that each device needs.

    Parameters
    ----------
    mode
        Full weights, adapters on 16-bit weights, or adapters on 4-bit weights.
    rank
        Of the adapters.
    tokens
        Of a batch on one device.
    learned_share
        Share of them that the output layer runs on: those of the answers.
    checkpointing
        Keep the input of each layer only, and compute the rest twice.
    shards
        Devices that share weights, gradients and moments (FSDP2, or stage 3 of DeepSpeed). 4-bit weights are not
        shared.

    Raises
    ------
    ValueError
        A number is not positive.
    """
    if min(rank, tokens, shards) < 1 or not 0 < learned_share <= 1:
        raise ValueError("rank, tokens and shards must be at least 1 and learned_share above 0 and at most 1")
    adapters = rank * size.linear_ends
    if mode == "full":
        states = _TRAINED * size.parameters / shards
    elif mode == "lora":
        states = (_FROZEN * size.parameters + _TRAINED * adapters) / shards
    else:
        quantized = _QUANTIZED * (size.parameters - size.vectors) + _FROZEN * size.vectors
        states = quantized + _TRAINED * adapters
    # Under sharding the layer at work, and the next one on its way, are there whole.
    gathered = 0.0 if shards == 1 else 2 * _FROZEN * (size.parameters - size.vectors) / size.layers
    layer = _PER_LAYER * tokens * size.width
    activations = layer + 2.0 * tokens * size.width * size.layers if checkpointing else layer * size.layers
    logits = _PER_LOGIT * learned_share * tokens * size.vocabulary
    return states + gathered + activations + logits
