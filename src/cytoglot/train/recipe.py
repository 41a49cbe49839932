"""What a training run is made of. Every field can be set in a YAML recipe or with `--set a.b=value`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from cytoglot.config import Settings
from cytoglot.data.qc import QcSettings
from cytoglot.errors import nearest_names
from cytoglot.lm.scratch import ScratchSettings
from cytoglot.sentence.augment import AugmentSettings
from cytoglot.sentence.cell_sentence import TieRule
from cytoglot.tasks.task import tasks


class SentenceRecipe(Settings):
    """How a cell becomes a sentence."""

    top_genes: int | None = Field(default=200, gt=0)
    """words of a sentence at most; None for all expressed genes"""
    hvg: int | None = Field(default=2000, gt=0)
    """sentences hold only this many highly variable genes, chosen on training cells; None for all genes"""
    hvg_flavor: Literal["pearson_residuals", "seurat", "cell_ranger", "seurat_v3"] = "pearson_residuals"
    """scanpy's method of choosing them"""
    hvg_batch_key: str | None = None
    """choose them within the values of this column and combine, as scanpy does"""
    ties: TieRule = "order"
    """order of equally expressed genes; docs/results.md has the measurement behind the default"""


class ModelRecipe(Settings):
    """Which model is trained."""

    base: str | None = None
    """a Hugging Face model by name or folder; None for a model from nothing"""
    revision: str | None = None
    """the revision of a model on the hub"""
    scratch: ScratchSettings = ScratchSettings()
    """the model from nothing"""
    word_vectors: Literal["co_expression", "random"] = "co_expression"
    """gene vectors of a model from nothing start from the singular vectors of the training cells, or at random"""
    word_vector_rank: int = Field(default=64, gt=0)
    """number of singular vectors"""


DEFAULT_TASKS = {"cell_type_annotation": 0.5, "cell_generation": 0.45, "unconditional_generation": 0.05}


class OptimRecipe(Settings):
    """Optimiser, schedule and loss."""

    steps: int = Field(default=400, gt=0)
    """optimiser steps"""
    batch_size: int = Field(default=32, gt=0)
    """examples per step and device"""
    learning_rate: float = Field(default=2e-3, gt=0)
    """peak learning rate, reached after the warm-up, then a cosine down to nothing"""
    word_learning_rate_ratio: float = Field(default=1.0, ge=0)
    """learning rate of the input vectors relative to the rest (a model from nothing only)"""
    weight_decay: float = Field(default=0.05, ge=0)
    """decoupled weight decay of all but vectors and norms"""
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    """share of the steps that warm up"""
    generation_weight: float = Field(default=10.0, ge=0)
    """an example's mean loss per gene counts this much beside the summed loss of a label"""
    loss_on: Literal["answers", "everything"] = "answers"
    """prompt tokens are learned too with `everything`"""
    weight_average: float = Field(default=0.98, ge=0, lt=1)
    """decay of the running average of the weights, which is what is kept; 0 keeps the last weights"""
    max_grad_norm: float = 1.0
    """gradients are clipped to this norm"""
    bf16: bool = False
    """mixed precision"""
    evaluate_every: int = Field(default=100, gt=0)
    """steps between two looks at the validation loss, each with a checkpoint"""
    patience: int | None = Field(default=3, gt=0)
    """looks without a better validation loss before training stops; None trains all steps"""


class TrainRecipe(Settings):
    """One training run."""

    sentence: SentenceRecipe = SentenceRecipe()
    """cells as text"""
    qc: QcSettings | None = None
    """quality control of the training file; off by default, so that every labelled cell is kept"""
    model: ModelRecipe = ModelRecipe()
    """the language model"""
    tasks: dict[str, float] = Field(default=DEFAULT_TASKS)
    """shares of the tasks among the examples (they are normalised); a task that is not named has none. A corpus is
    learned with equal shares of all tasks that it can ask, unless they are named"""
    sources: dict[str, float] = Field(default_factory=dict)
    """of a corpus: source → how often its cells are visited in a pass, 0.5 for every second cell; 1 where not named"""
    paraphrase_share: float = Field(default=0.2, ge=0, le=1)
    """share of the examples whose prompt is any training paraphrase; the rest have the terse one"""
    augment: AugmentSettings = AugmentSettings()
    """views of a sentence"""
    optim: OptimRecipe = OptimRecipe()
    """how it learns"""
    views: int = Field(default=6, gt=0)
    """views averaged when annotating, if that lowers the validation loss; else one"""
    context: dict[str, str] = Field(default_factory=dict)
    """metadata stated in every prompt, such as organism: human"""
    control: Literal["none", "shuffled_labels"] = "none"
    """`shuffled_labels` permutes the labels of the training cells: the control that must reach chance"""

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, shares: dict[str, float]) -> dict[str, float]:
        """Refuse unknown names, negative shares, and a mixture of nothing."""
        for name, share in shares.items():
            if name not in tasks:
                raise ValueError(f"unknown task {name!r}, {nearest_names(name, tasks)}")
            if share < 0:
                raise ValueError(f"the share of task {name!r} must be at least 0")
        if sum(shares.values()) <= 0:
            raise ValueError("at least one task needs a share above 0")
        return {name: share for name, share in shares.items() if share > 0}
