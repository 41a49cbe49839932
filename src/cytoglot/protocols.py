"""The sockets: what an outsider implements to plug in. One contract test per socket runs over all registered parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cytoglot.answer_format import AnswerFormat, GeneratedAnswer

if TYPE_CHECKING:
    from anndata import AnnData


@runtime_checkable
class TextGenerator(Protocol):
    """Samples answers."""

    def generate(
        self, prompts: Sequence[str], answer_format: AnswerFormat, n_samples: int = 1, seed: int = 0
    ) -> list[list[str]]:
        """Return `n_samples` answers for each prompt."""
        ...


@runtime_checkable
class AnswerSampler(Protocol):
    """Samples answers that belong to the key of their prompt, and says how likely they were."""

    def sample(
        self,
        prompts: Sequence[str],
        answer_format: AnswerFormat,
        n_samples: int = 1,
        seed: int = 0,
        *,
        keys: Sequence[str] | None = None,
    ) -> list[list[GeneratedAnswer]]:
        """Return `n_samples` answers for each prompt; equal keys (by default places in the list) have equal noise."""
        ...


@runtime_checkable
class AnswerScorer(Protocol):
    """Scores a closed set of answers."""

    def log_likelihood(self, prompts: Sequence[str], answers: Sequence[str]) -> NDArray[np.float64]:
        """Return log p(answer | prompt) in nats, shape (n_prompts, n_answers)."""
        ...


@runtime_checkable
class CellEmbedder(Protocol):
    """Turns cells into vectors."""

    def embed(self, adata: AnnData) -> NDArray[np.float32]:
        """Return float32 of shape (n_cells, d) in the order of the cells; `adata` is not changed."""
        ...


@runtime_checkable
class FittedCellEmbedder(CellEmbedder, Protocol):
    """An embedder that learns from training cells, without labels, before it is asked."""

    def fit(self, train: AnnData) -> Self:
        """Learn from the training cells alone; `train` is not changed."""
        ...


@runtime_checkable
class PerturbationPredictor(Protocol):
    """Predicts perturbed cells."""

    def predict(self, control: AnnData, perturbations: Sequence[str], *, seed: int) -> AnnData:
        """Return predicted cells with `obs["perturbation"]`."""
        ...


@runtime_checkable
class Reward(Protocol):
    """Rates completions, in the shape that TRL calls."""

    def __call__(self, completions: list[str], **columns: list[object]) -> list[float | None]:
        """Return one reward per completion; None skips it."""
        ...
