"""What a training run will cost, from a few of its own steps."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from cytoglot.lm.scratch import scratch_model
from cytoglot.lm.tokenizer import build_tokenizer
from cytoglot.train.recipe import TrainRecipe

if TYPE_CHECKING:
    from anndata import AnnData

_PROMPT_TOKENS = 15


def forecast_training(adata: AnnData, recipe: TrainRecipe) -> dict[str, Any]:
    """Return tokens, seconds, memory and disk of a run of a model from nothing, timed on three steps of random tokens.

    Sentence lengths are those of the file over all its genes, so with highly variable genes it is an upper bound.
    """
    expressed_n = np.diff(csr_matrix(adata.X).indptr)
    words = float(np.minimum(expressed_n, recipe.sentence.top_genes or expressed_n.max(initial=1)).mean())
    n_words = min(adata.n_vars, recipe.sentence.hvg or adata.n_vars)
    tokenizer = build_tokenizer([f"W{i}" for i in range(n_words)], ["any text"])
    model = scratch_model(tokenizer, recipe.model.scratch, seed=0).train()
    width = int(words) + _PROMPT_TOKENS
    ids_bt = torch.randint(
        0, len(tokenizer), (recipe.optim.batch_size, width), generator=torch.Generator().manual_seed(0)
    )
    seconds = min(_step(model, ids_bt) for _ in range(3))
    n_parameters = sum(p.numel() for p in model.parameters())
    activations_mb = (
        recipe.optim.batch_size * width * (recipe.model.scratch.hidden_size * 40 + 0.2 * len(tokenizer)) * 4 / 1e6
    )
    return {
        "cells": adata.n_obs,
        "parameters": n_parameters,
        "tokens": int(recipe.optim.steps * recipe.optim.batch_size * width),
        "seconds": round(seconds * recipe.optim.steps, 1),
        "memory_mb": round(n_parameters * 4 * 6 / 1e6 + activations_mb + csr_matrix(adata.X).data.nbytes * 3 / 1e6),
        "disk_mb": round(n_parameters * 4 * 12 / 1e6),
    }


def _step(model: torch.nn.Module, ids_bt: torch.Tensor) -> float:
    started = time.perf_counter()
    hidden_btd = model.base_model(input_ids=ids_bt, use_cache=False).last_hidden_state  # type: ignore[operator]
    model.get_output_embeddings()(hidden_btd[:, -20:]).logsumexp(-1).mean().backward()  # type: ignore[operator]
    return time.perf_counter() - started
