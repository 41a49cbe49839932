"""What a training run will cost: tokens and parameters by counting, memory by arithmetic, time by trying.

Nothing is trained or written, and of a base model only configuration and tokenizer are read.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from cytoglot.corpus.read.examples import CorpusExamples
from cytoglot.lm.model.load import read_configuration
from cytoglot.lm.model.scratch import llama_config
from cytoglot.lm.model.tokenizer import encode_completions, encode_prompts
from cytoglot.training.cells import TrainingCells
from cytoglot.training.loop.memory import Mode, ModelSize, model_size, training_memory
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.supervised.train import new_tokenizer

_EXAMPLES = 200
_TRIED_PARAMETERS, _TRIED_TOKENS = 60_000_000, 1024
"""a model of so many parameters at most is tried for its speed, on so many tokens"""
_LONGEST = 1 << 15
_BYTES = 4


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
    if recipe.model.base is not None:
        config, tokenizer = read_configuration(recipe.model.base, revision=recipe.model.revision)
    else:
        tokenizer = new_tokenizer(cells, recipe.model.scratch.context_length)
        config = llama_config(tokenizer, recipe.model.scratch)
    size, prompts, answers = model_size(config), 1.0, 1.0
    context = getattr(config.get_text_config(), "max_position_embeddings", None) or _LONGEST
    if examples:  # mean tokens, an answer's with its end of text
        prompts = float(np.mean([len(ids) for ids in encode_prompts(tokenizer, [e.prompt for e in examples])]))
        written = encode_completions(tokenizer, [example.completion for example in examples])
        answers = 1 + float(np.mean([len(ids) for ids in written]))
    if recipe.kind == "grpo":
        answers = min(answers, recipe.grpo.max_answer_tokens)
    per_example = min(prompts + answers, float(context))
    optim = recipe.optim
    trained = size.parameters
    if recipe.lora is not None:
        trained = recipe.lora.rank * size.linear_ends + (size.vectors if recipe.lora.train_vectors else 0)
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
        "trainable_parameters": trained,
        "seconds": _seconds(config, size, recipe, n_examples * per_example, answers / per_example),
        "memory_mb": round(_memory(size, recipe, trained, int(batch_tokens), answers / per_example) / 1e6),
        # The model, and two checkpoints of weights, moments and averages of what is trained.
        "disk_mb": round(_BYTES * (size.parameters + 2 * 5 * trained) / 1e6),
    }


def _memory(size: ModelSize, recipe: TrainRecipe, trained: int, batch_tokens: int, learned_share: float) -> float:
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
    needed += _BYTES * averages * trained
    if recipe.kind == "grpo" and recipe.grpo.kl > 0 and lora is None:
        needed += _BYTES * size.parameters
    return needed


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
    taken: list[float] = []
    for _ in range(2):
        started = time.perf_counter()
        hidden_btd = model.base_model(input_ids=ids_bt, use_cache=False).last_hidden_state
        model.get_output_embeddings()(hidden_btd[:, -n_learned:]).logsumexp(-1).mean().backward()
        taken.append(time.perf_counter() - started)
    return round(min(taken) * tokens / ids_bt.numel(), 1)
