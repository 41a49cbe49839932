"""What a training run is made of. Every field can be set in a YAML recipe or with `--set a.b=value`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cytoglot.cell_model.spec import SPEC_FILE
from cytoglot.config import Settings
from cytoglot.data.qc import QcSettings
from cytoglot.errors import UnknownNameError, nearest_names
from cytoglot.lm.model.scratch import ScratchSettings
from cytoglot.sentence.augment import AugmentSettings
from cytoglot.sentence.cell_sentence import RankSettings, TieRule
from cytoglot.tasks.task import check_context, tasks


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
    ties: TieRule = RankSettings.ties
    """order of equally expressed genes; docs/results.md has the measurement behind the default"""


class ModelRecipe(Settings):
    """Which model is trained."""

    base: str | None = None
    """a Hugging Face model by name or folder; None for a model from nothing"""
    revision: str | None = None
    """the revision of a model on the hub"""
    min_known_genes: float = Field(default=0.3, ge=0, le=1)
    """share of the genes to train on that a base which was trained here must know"""
    scratch: ScratchSettings = ScratchSettings()
    """the model from nothing"""
    word_vectors: Literal["co_expression", "random"] = "co_expression"
    """gene vectors of a model from nothing start from the singular vectors of the training cells, or at random"""
    word_vector_rank: int = Field(default=64, gt=0)
    """number of singular vectors"""
    profile: bool | None = None
    """written cells start from the profile of their type: the genes' Plackett–Luce weights among its training cells.
    None: where cells are written and each gene is one token; false: a pure language model"""
    sentence_head: bool = True
    """fit a linear head on the ranks of all genes, which annotation averages with the language model (a hybrid) where
    that lowers the validation loss"""
    profile_fields: tuple[str, ...] = ("cell_type",)
    """metadata that have a profile, together, the most important first; unseen combinations lose the last ones"""


class LoraRecipe(Settings):
    """Low-rank adapters instead of full weights :cite:p:`hu2022lora`."""

    rank: int = Field(default=16, gt=0)
    """inner size of each adapter"""
    alpha: float = Field(default=32.0, gt=0)
    """adapters are scaled by alpha / rank"""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """share of an adapter's inputs dropped in training"""
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    """names of the layers that get one; all-linear: every linear layer but the output layer"""
    train_vectors: bool = False
    """train the token vectors and the output layer in full besides, as new words need"""
    quantize: Literal["none", "8bit", "4bit"] = "none"
    """hold the frozen weights in 8 or 4 bits (QLoRA; needs a GPU and bitsandbytes)"""

    @model_validator(mode="before")
    @classmethod
    def _former_names(cls, values: Any) -> Any:
        """Read the recipes that are kept in models of earlier versions."""
        if isinstance(values, dict) and "quantise" in values:
            return {"quantize" if name == "quantise" else name: value for name, value in values.items()}
        return values


class GrpoRecipe(Settings):
    """Alignment by group-relative policy optimization :cite:p:`shao2024deepseekmath`; only for `kind: grpo`."""

    rewards: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """reward → its settings, such as overlap: {weight: 1.0}; docs/grpo.md lists them"""
    group_size: int = Field(default=8, ge=2)
    """answers written to each prompt and compared with each other"""
    prompts_per_step: int = Field(default=4, gt=0)
    """prompts of an optimizer step, over all devices"""
    kl: float = Field(default=0.02, ge=0)
    """weight of the divergence from the model that training starts from; 0 keeps no reference"""
    updates: int = Field(default=1, gt=0)
    """optimizer steps on the answers of a step; from the second on they are of an older model, which `clip` bounds"""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """how far the ratio of new to old probabilities counts"""
    loss: Literal["grpo", "dr_grpo", "bnpo", "dapo"] = "dr_grpo"
    """how token losses are averaged; dr_grpo does not favor long wrong answers"""
    scale_rewards: Literal["group", "batch", "none"] = "none"
    """what advantages are divided by the standard deviation of"""
    temperature: float = Field(default=1.0, gt=0)
    """of the answers written while training"""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """share of probability that they are drawn from"""
    max_answer_tokens: int = Field(default=256, gt=0)
    """most tokens of an answer"""
    constrained: bool | None = None
    """write only valid answers; the same mask is then in all log-probabilities. None: where cells are written by a base
    with a profile, which it needs"""
    probes: Literal["refuse", "warn", "off"] = "refuse"
    """what to do where an answer without content (a constant, a copy of the prompt, …) earns a high reward"""
    held_out_prompts: int = Field(default=32, gt=0)
    """prompts of validation cells on which rewards and diversity are watched"""
    held_out_samples: int = Field(default=4, ge=2)
    """answers to each of them at every evaluation"""
    max_overlap_gain: float = Field(default=0.15, gt=0)
    """training stops being called healthy when answers to one prompt share so much more than before it, and more than
    real cells of one type do"""
    on_collapse: Literal["warn", "stop"] = "warn"
    """what to do then"""
    vllm: Literal["off", "colocate", "server"] = "off"
    """who writes the answers: the training process, vLLM beside it, or a vLLM server"""
    vllm_server: str | None = None
    """address of that server, such as http://node1:8000"""


PRESETS: Mapping[str, dict[str, Any]] = {
    "scratch": {},
    "c2s": {
        "learning_rate": 1e-5,
        "schedule": "linear",
        "warmup_share": 0.0,
        "weight_decay": 0.01,
        "batch_size": 8,
        "gradient_accumulation": 32,
        "weight_average": 0.0,
        "betas": (0.9, 0.999),
        "loss": "token_mean",
        "word_loss": "all_tokens",
        "word_share": 1.0,
    },
}
"""`preset` → the defaults of `optim`: ours for models from nothing, and those published for Cell2Sentence models
:cite:p:`rizvi2025c2sscale`."""

_IMPLIED: Mapping[str, dict[str, Any]] = {
    "pretrain": {"loss_on": "everything"},
    # Rewards are noisy: small steps, and no decay of what the model has learned.
    "grpo": {"steps": 100, "schedule": "constant", "weight_decay": 0.0, "evaluate_every": 20},
}
"""`kind` → what it implies of `optim`"""

LORA_LEARNING_RATE = 2e-4
"""the default of `optim.learning_rate` with adapters: rates for models from nothing are too high for trained ones"""

GRPO_LEARNING_RATES = {"small": 2e-4, "pretrained": 1e-6}
"""the default of `optim.learning_rate` for `kind: grpo`: of adapters and of models that were trained here from nothing,
and of the full weights of any other base, which the higher rate would undo"""


def was_trained_from_nothing(base: str) -> bool:
    """Tell whether a base is a model folder of ours whose weights began at random, here or in the base of its own.

    Its manifest says so. A model of the hub, a folder of another make and one whose own base is gone are not.
    """
    seen: set[str] = set()
    while base not in seen:
        seen.add(base)
        try:
            spec = json.loads((Path(base).expanduser() / SPEC_FILE).read_text(encoding="utf-8"))
            model = spec["manifest"]["config"]["recipe"]["model"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if model.get("base") is None:
            return True
        base = str(model["base"])
    return False


DEFAULT_TASKS = {"cell_type_annotation": 0.7, "cell_generation": 0.25, "unconditional_generation": 0.05}


class OptimRecipe(Settings):
    """Optimizer, schedule and loss."""

    steps: int = Field(default=500, gt=0)
    """optimizer steps"""
    batch_size: int = Field(default=32, gt=0)
    """rows of a batch and device: of one example each, or of several where they are packed"""
    gradient_accumulation: int = Field(default=1, gt=0)
    """batches of an optimizer step; the loss is that of all their examples together"""
    gradient_checkpointing: bool = False
    """compute activations twice instead of keeping them: a third slower, a fraction of the memory"""
    packing: Literal["auto", "on", "off"] = "auto"
    """put several examples into one row, where they do not see each other; auto: from a corpus. From a file, examples
    of similar lengths make a batch, with few fillers. A model that would let them see each other is never packed"""
    readers: int | None = Field(default=None, gt=0)
    """streams that the cells are read in, shared out among the processes; None: one for each process. Set it to repeat
    a run of several processes with fewer"""
    learning_rate: float = Field(default=2e-3, gt=0)
    """peak learning rate, reached after the warm-up"""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """how the learning rate falls after the warm-up; cosine and linear end at nothing"""
    word_learning_rate_ratio: float = Field(default=1.0, ge=0)
    """learning rate of the input vectors relative to the rest (a model from nothing only)"""
    weight_decay: float = Field(default=0.05, ge=0)
    """decoupled weight decay of all but vectors and norms"""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    """decay of AdamW's running means of gradients and of their squares"""
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    """share of the steps that warm up"""
    loss: Literal["example_mean", "token_mean"] = "example_mean"
    """a step's loss is a mean over its examples, or over its learned tokens with the same weight for each, as
    published models have it; `generation_weight` is of the first alone"""
    generation_weight: float = Field(default=5.0, ge=0)
    """an example's mean loss per gene counts this much beside the summed loss of a label"""
    word_loss: Literal["unwritten", "all_tokens"] = "unwritten"
    """each gene of an answer is learned among the genes not yet written, as it is sampled; or among all tokens, as
    published models are"""
    word_share: float = Field(default=0.5, gt=0, le=1)
    """share of the genes of an answer of more than 50 that is in the loss, others in each pass: half of them cost less
    and teach the same"""
    loss_on: Literal["answers", "everything"] = "answers"
    """prompt tokens are learned too with `everything`"""
    weight_average: float = Field(default=0.98, ge=0, lt=1)
    """decay of the running average of the weights, which is what is kept; 0 keeps the last weights"""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """gradients are clipped to this norm; 0 leaves them as they are"""
    bf16: bool | None = None
    """mixed precision; None: where a GPU has it"""
    evaluate_every: int = Field(default=100, gt=0)
    """steps between two evaluations on the validation cells, each with a checkpoint"""
    stop_on: str = "loss"
    """what evaluations compare: loss, or a task's metric on validation cells, such as cell_type_annotation.macro_f1"""
    patience: int | None = Field(default=3, gt=0)
    """evaluations without a gain before training stops; None trains all steps"""


class TrainRecipe(Settings):
    """One training run."""

    kind: Literal["pretrain", "sft", "grpo"] = "sft"
    """pretrain learns prompts and answers, sft the answers alone, grpo what rewards like"""
    preset: Literal["scratch", "c2s"] = "scratch"
    """defaults of `optim`: for models from nothing, or those published for Cell2Sentence models"""
    source: str | None = None
    """the file of cells or the corpus, where the command line names none; a path from the working directory"""
    label: str | None = None
    """column of obs with the cell types, where the command line names none"""
    output: str | None = None
    """the folder to write, where the command line names none"""
    sentence: SentenceRecipe = SentenceRecipe()
    """cells as text"""
    qc: QcSettings | None = None
    """quality control of the training file; off by default, so that every labelled cell is kept"""
    model: ModelRecipe = ModelRecipe()
    """the language model"""
    tasks: dict[str, float] = Field(default=DEFAULT_TASKS)
    """shares of the tasks among the examples (they are normalized); a task that is not named has none. A corpus is
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
    lora: LoraRecipe | None = None
    """adapters instead of full weights"""
    grpo: GrpoRecipe = GrpoRecipe()
    """rewards and how they are followed"""
    fsdp: dict[str, Any] | None = None
    """share weights, gradients and moments among GPUs by FSDP2: transformers' fsdp_config, {} for its defaults"""
    deepspeed: str | None = None
    """the same by DeepSpeed: its JSON file"""
    report_to: tuple[str, ...] = ()
    """trackers of transformers' Trainer to report to, such as tensorboard or wandb"""
    push_to_hub: str | None = None
    """owner/name on the Hugging Face hub under which the finished model is published"""
    hub_private: bool = True
    """it is published for its owner alone"""
    train_share: float = Field(default=1.0, gt=0, le=1)
    """share of the training cells of a file that are learned from; a smaller share is a part of a larger one"""
    control: Literal["none", "shuffled_labels"] = "none"
    """`shuffled_labels` permutes the labels of the training cells: the control that must reach chance"""

    @model_validator(mode="before")
    @classmethod
    def _presets(cls, values: Any) -> Any:
        """Put the preset's settings, and what the kind implies, under those that are given."""
        if not isinstance(values, dict):
            return values
        adapted = {"learning_rate": LORA_LEARNING_RATE} if values.get("lora") is not None else {}
        if values.get("kind") == "grpo" and not adapted:
            model = values.get("model") or {}
            base = model.get("base") if isinstance(model, Mapping) else getattr(model, "base", None)
            size = "small" if base is not None and was_trained_from_nothing(str(base)) else "pretrained"
            adapted = {"learning_rate": GRPO_LEARNING_RATES[size]}
        kind, preset = _IMPLIED.get(str(values.get("kind")), {}), PRESETS.get(str(values.get("preset")), {})
        implied = {**adapted, **kind, **preset}
        optim = values.get("optim", {})
        if not implied or not isinstance(optim, (dict, OptimRecipe)):
            return values
        given = optim if isinstance(optim, dict) else {name: getattr(optim, name) for name in optim.model_fields_set}
        return {**values, "optim": {**implied, **given}}

    @model_validator(mode="after")
    def _belong_together(self) -> TrainRecipe:
        if self.model.profile and self.optim.word_loss == "all_tokens":
            raise ValueError("model.profile needs optim.word_loss: unwritten, the loss over genes not yet written")
        if self.kind == "grpo" and self.model.base is None:
            raise ValueError("kind grpo aligns a trained model: set model.base to its folder")
        if self.kind != "grpo" and self.grpo != GrpoRecipe():
            raise ValueError(f"grpo says how rewards are followed, but kind is {self.kind}: set kind: grpo")
        if self.kind == "grpo":
            unfit = {
                "fsdp": self.fsdp is not None,
                "deepspeed": self.deepspeed is not None,
                "control": self.control != "none",
                "train_share": self.train_share != 1,
                "optim.stop_on": self.optim.stop_on != "loss",
            }
            given = [name for name, is_given in unfit.items() if is_given]
            if given:  # they would be passed over without a word
                raise ValueError(f"kind grpo has no {', '.join(given)}; leave that out")
        if self.fsdp is not None and self.deepspeed is not None:
            raise ValueError("fsdp and deepspeed are two ways to the same end; name one of them")
        if self.lora is not None and self.model.base is None:
            raise ValueError("lora adapts a trained model: set model.base to a folder or a name on the hub")
        return self

    @field_validator("context")
    @classmethod
    def _told_by_prompts(cls, context: dict[str, str]) -> dict[str, str]:
        """Refuse fields that no prompt tells."""
        try:
            check_context(context)
        except UnknownNameError as error:  # pydantic takes values that are wrong, not keys
            raise ValueError(str(error)) from error
        return context

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
