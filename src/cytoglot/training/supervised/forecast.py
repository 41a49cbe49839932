"""What a training run will cost: tokens and parameters by counting, memory by arithmetic, time by trying.

Nothing is trained or written, and of a base model only configuration and tokenizer are read.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase

from cytoglot.corpus.read.examples import CorpusExamples
from cytoglot.lm.model.load import read_configuration
from cytoglot.lm.model.scratch import llama_config
from cytoglot.lm.model.tokenizer import encode_completions, encode_prompts
from cytoglot.tasks.task import Example
from cytoglot.training.cells import TrainingCells
from cytoglot.training.loop.memory import Mode, ModelSize, model_size, training_memory
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.supervised.train import new_tokenizer

_EXAMPLES = 200
_TRIED_PARAMETERS, _TRIED_TOKENS = 60_000_000, 1024
"""a model of so many parameters at most is tried for its speed, on so many tokens"""
_LONGEST = 1 << 15
_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class _Lengths:
    """Mean tokens of an example, and their shares."""

    prompt: float
    answer: float

    @property
    def whole(self) -> float:
        return self.prompt + self.answer


def forecast_training(cells: TrainingCells, recipe: TrainRecipe) -> dict[str, Any]:
    """Return what one process will do and need.

    Returns
    -------
    dict
        cells, steps, examples (packed rows hold several, so their number is an estimate), tokens (padding left out),
        tokens_per_example, context, parameters, trainable_parameters, seconds (None where trying is not cheap: bases of
        more than 60 million parameters, reinforcement learning), memory_mb, disk_mb.
    """
    drawn = CorpusExamples(
        cells.corpus, "train", top_genes=recipe.sentence.top_genes, metadata_share=cells.metadata_share
    )
    examples = [found.example for found in drawn.sample(_EXAMPLES, tasks=cells.shares)]
    config, tokenizer = _model(recipe, cells)
    size, lengths = model_size(config), _lengths(tokenizer, examples)
    context = getattr(config.get_text_config(), "max_position_embeddings", None) or _LONGEST
    answers = min(lengths.answer, recipe.grpo.max_answer_tokens) if recipe.kind == "grpo" else lengths.answer
    per_example = min(lengths.prompt + answers, float(context))
    optim = recipe.optim
    packed = cells.packed if optim.packing == "auto" else optim.packing == "on"
    if recipe.kind == "grpo":
        n_examples = optim.steps * recipe.grpo.prompts_per_step * recipe.grpo.group_size
        batch_tokens = recipe.grpo.prompts_per_step * recipe.grpo.group_size * per_example
    else:
        rows = optim.steps * optim.batch_size * optim.gradient_accumulation
        n_examples = round(rows * context / per_example) if packed else rows
        batch_tokens = optim.batch_size * (float(context) if packed else per_example)
    return {
        "kind": recipe.kind,
        "cells": cells.corpus.description.total("n_cells", "train"),
        "steps": optim.steps,
        "examples": n_examples,
        "tokens": int(n_examples * per_example),
        "tokens_per_example": round(per_example, 1),
        "context": int(context),
        "parameters": size.parameters,
        "trainable_parameters": _trained(size, recipe),
        "seconds": _seconds(config, size, recipe, n_examples * per_example, answers / per_example),
        "memory_mb": round(_memory(size, recipe, int(batch_tokens), answers / per_example) / 1e6),
        "disk_mb": round(_disk(size, recipe) / 1e6),
    }


def _model(recipe: TrainRecipe, cells: TrainingCells) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Return configuration and tokenizer of the model."""
    if recipe.model.base is not None:
        return read_configuration(recipe.model.base, revision=recipe.model.revision)
    tokenizer = new_tokenizer(cells, recipe.model.scratch.context_length)
    return llama_config(tokenizer, recipe.model.scratch), tokenizer


def _lengths(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> _Lengths:
    if not examples:
        return _Lengths(prompt=1.0, answer=1.0)
    prompts = encode_prompts(tokenizer, [example.prompt for example in examples])
    answers = encode_completions(tokenizer, [example.completion for example in examples])
    return _Lengths(
        prompt=float(np.mean([len(ids) for ids in prompts])), answer=1 + float(np.mean([len(ids) for ids in answers]))
    )


def _trained(size: ModelSize, recipe: TrainRecipe) -> int:
    if recipe.lora is None:
        return size.parameters
    vectors = size.vectors if recipe.lora.train_vectors else 0
    return recipe.lora.rank * size.linear_ends + vectors


def _memory(size: ModelSize, recipe: TrainRecipe, batch_tokens: int, learned_share: float) -> float:
    """Return bytes: those of `training_memory`, and what our averages of the weights and a reference take besides."""
    optim, lora = recipe.optim, recipe.lora
    mode: Mode = "full" if lora is None else "lora" if lora.quantize == "none" else "qlora"
    needed = training_memory(
        size,
        mode=mode,
        rank=1 if lora is None else lora.rank,
        tokens=max(1, batch_tokens),
        learned_share=1.0 if optim.loss_on == "everything" else min(1.0, max(learned_share, 1e-3)),
        checkpointing=optim.gradient_checkpointing,
    )
    averages = 2 if optim.weight_average > 0 else 1  # the running one and the best one
    needed += _BYTES * averages * _trained(size, recipe)
    if recipe.kind == "grpo" and recipe.grpo.kl > 0 and lora is None:
        needed += _BYTES * size.parameters
    return needed


def _disk(size: ModelSize, recipe: TrainRecipe) -> float:
    """Return bytes: the model, and two checkpoints of weights, moments and averages of what is trained."""
    return _BYTES * (size.parameters + 2 * 5 * _trained(size, recipe))


def _seconds(
    config: PreTrainedConfig, size: ModelSize, recipe: TrainRecipe, tokens: float, learned_share: float
) -> float | None:
    """Return seconds on this CPU from two tries on random tokens with random weights."""
    if size.parameters > _TRIED_PARAMETERS or recipe.kind == "grpo":
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).train()
        width = min(512, getattr(config.get_text_config(), "max_position_embeddings", None) or 512)
        ids_bt = torch.randint(0, size.vocabulary, (max(1, _TRIED_TOKENS // width), width))
    n_learned = max(1, round(learned_share * width))
    return round(min(_step(model, ids_bt, n_learned) for _ in range(2)) * tokens / ids_bt.numel(), 1)


def _step(model: torch.nn.Module, ids_bt: torch.Tensor, n_learned: int) -> float:
    started = time.perf_counter()
    hidden_btd = model.base_model(input_ids=ids_bt, use_cache=False).last_hidden_state  # type: ignore[operator]
    model.get_output_embeddings()(hidden_btd[:, -n_learned:]).logsumexp(-1).mean().backward()  # type: ignore[operator]
    return time.perf_counter() - started
