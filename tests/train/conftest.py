"""A recipe that trains in seconds."""

from __future__ import annotations

import pytest

from cytoglot.lm.scratch import ScratchSettings
from cytoglot.train.recipe import ModelRecipe, OptimRecipe, SentenceRecipe, TrainRecipe


@pytest.fixture(scope="session")
def tiny_recipe() -> TrainRecipe:
    """One small layer, forty steps."""
    scratch = ScratchSettings(hidden_size=32, n_layers=1, n_heads=2, feed_forward=64, context_length=512)
    return TrainRecipe(
        sentence=SentenceRecipe(top_genes=40, hvg=None),
        model=ModelRecipe(scratch=scratch, word_vector_rank=16),
        optim=OptimRecipe(steps=40, batch_size=16, learning_rate=5e-3, evaluate_every=10, patience=None),
        views=1,
    )
