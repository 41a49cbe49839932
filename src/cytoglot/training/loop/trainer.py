"""`transformers`' Trainer with a loss weight on each token, exact sums over steps, and checkpoints that are whole.

What is ours: the loss (`cytoglot.training.loop.loss`), which is that of all examples of a step together, however they
are spread over batches and processes; batches that halve themselves where memory runs out; the end of training where a
loss is not a number; checkpoints that appear at once and hold numbers alone; looks at the averaged weights.
"""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerControl,
    TrainingArguments,
    get_scheduler,
)

from cytoglot.atomic import write_json
from cytoglot.errors import InputError, NotFiniteError
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.runtime.halve_on_oom import release_memory
from cytoglot.lm.scoring.distinct_words import AnswerWords
from cytoglot.training.loop.batches import BatchSource
from cytoglot.training.loop.callbacks import History, WeightAverage
from cytoglot.training.loop.distributed import from_first, is_first, n_processes, rank, sum_over_all, wait_for_all
from cytoglot.training.loop.loss import Batch, halves, loss_sum
from cytoglot.training.loop.run_folder import MARK_FILE, discard_old_checkpoints, writing
from cytoglot.training.recipe import OptimRecipe, TrainRecipe

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

WEIGHTS_FILE = "weights.safetensors"
_STATE_FILE = "trainer_state.json"


class HeldOutScores(Protocol):
    """What a model in training is asked at each evaluation, beside the loss."""

    def scores(self, lm: LanguageModel) -> Mapping[str, float]:
        """Return name of a score → its value."""

    def better(self, name: str) -> str:
        """Return which end of a score is better, "higher" or "lower"; an InputError for an unknown one."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What is learned and what is looked at. A batch is as `cytoglot.training.loop.loss` says, and tells `n_examples`.

    It may hold `about`, a text for each example that names it where training ends in a fault.
    """

    batches: BatchSource
    """of this process; a step takes `gradient_accumulation` of them"""
    validation: Sequence[Batch] = ()
    """of all processes together"""
    held_out: HeldOutScores | None = None
    words: AnswerWords | None = None
    """what answers of distinct words are made of; None: their loss is over all tokens, like that of any text"""


def n_averaged(batch: Batch) -> int:
    """Return the number that the loss of a batch is divided by: its examples, or its learned tokens."""
    return int(batch["n_averaged" if "n_averaged" in batch else "n_examples"])


class OneLineFaults(Trainer):
    """A trainer that says in one line what is wrong with a checkpoint."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with readable_checkpoint(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with readable_checkpoint(checkpoint):
            super()._load_rng_state(checkpoint)


class AnswerTrainer(OneLineFaults):
    """Minimizes the weighted negative log-likelihood per example; validation looks at the averaged weights."""

    optimizer: torch.optim.Optimizer | None
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None
    control: TrainerControl

    def __init__(
        self,
        *,
        lm: LanguageModel,
        data: TrainingData,
        recipe: TrainRecipe,
        args: TrainingArguments,
        average: WeightAverage,
        history: History,
    ) -> None:
        # Set before: the base class asks for them.
        self._lm, self._data, self._recipe = lm, data, recipe
        self._average, self._history = average, history
        super().__init__(model=lm.model, args=args, callbacks=[average, history], eval_dataset=list(data.validation))
        self.remove_callback(PrinterCallback)  # the bar and the history say it all
        self.loss_is_scaled_for_ga = True
        self._n_halvings = 0
        self._step_batches: list[Batch] = []
        self._step_losses: list[torch.Tensor] = []

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Return AdamW for the weights that are trained."""
        if self.optimizer is None:
            from_nothing = self._recipe.model.base is None
            self.optimizer = make_optimizer(model or self.model, self._recipe.optim, from_nothing=from_nothing)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Return the schedule of the learning rates."""
        if self.lr_scheduler is None:
            self.lr_scheduler = make_schedule(optimizer or self.create_optimizer(), self._recipe.optim)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_train_dataloader(self) -> Any:
        """Return this process's batches as they come; on an accelerator they are made while it computes."""
        return self._data.batches

    # A step.

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor | None]:
        """Return the batches of a step, and what their loss is a mean over, counted over all processes."""
        batches, n_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._step_batches, self._step_losses = [], []
        return batches, n_items

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> torch.Tensor | None:
        if not batch_samples:
            return None
        counts = [sum(map(n_averaged, batch_samples)), sum(int(batch["n_tokens"]) for batch in batch_samples)]
        n_items, n_tokens = sum_over_all(torch.tensor(counts), device).tolist()
        self._history.n_tokens += n_tokens
        return torch.tensor(n_items, device=device)

    def training_step(
        self, model: torch.nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Add the gradients of a batch, in halves where memory runs out; return its share of the step's loss."""
        shared = self.is_fsdp_enabled or self.is_deepspeed_enabled  # these wrap in place
        if n_processes() > 1 and model is self.model and not shared:
            # They would not exchange gradients, and train several models without a word.
            raise RuntimeError(f"{n_processes()} processes, but {type(model).__name__} is not wrapped to join them")
        model.train()
        batch = self._prepare_inputs(inputs)
        assert num_items_in_batch is not None
        # Gradients are averaged over processes, and the loss is that of all of their examples.
        scale = n_processes() / num_items_in_batch
        has_failed = False

        def add(parts: list[Batch]) -> torch.Tensor:
            nonlocal has_failed
            if has_failed:  # the failed attempt has left some of its gradients
                model.zero_grad()
                with self.accelerator.no_sync(model):
                    for earlier in self._step_batches:
                        self._add_gradients(model, self._parts(earlier), scale)
            has_failed = True
            return self._add_gradients(model, parts, scale)

        loss = self._in_parts(batch, add)
        self._step_batches.append(batch)
        self._step_losses.append(loss)
        return loss

    def _add_gradients(
        self, model: torch.nn.Module, parts: Sequence[Batch], scale: torch.Tensor | float
    ) -> torch.Tensor:
        total = torch.zeros((), device=self.args.device)
        self._has_sent = False
        for number, part in enumerate(parts):
            # Gradients are exchanged once, with the last part.
            with self.accelerator.no_sync(model) if number < len(parts) - 1 else nullcontext():
                with self.compute_loss_context_manager():
                    loss = loss_sum(model, part, inside=self._lm.model, words=self._data.words) * scale
                self._has_sent = number == len(parts) - 1 and self.accelerator.sync_gradients
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _validation_loss(self, parts: Sequence[Batch]) -> float:
        return sum(float(loss_sum(self._lm.model, part, words=self._data.words)) for part in parts)

    def _parts(self, batch: Batch) -> list[Batch]:
        parts = [batch]
        for _ in range(self._n_halvings):
            parts = [half for part in parts for half in halves(part)]
        return parts

    def _in_parts(self, batch: Batch, compute: Callable[[list[Batch]], Result]) -> Result:
        """Return what is computed of a batch's parts, which are twice as many from where memory runs out."""
        while True:
            parts = self._parts(batch)
            try:
                return compute(parts)
            except torch.OutOfMemoryError as error:
                self._n_halvings += 1
                if len(self._parts(batch)) == len(parts):
                    error.add_note("a single example does not fit the memory of the device; shorten sentence.top_genes")
                    raise
                if n_processes() > 1 and (self._has_sent or self.is_fsdp_enabled or self.is_deepspeed_enabled):
                    error.add_note(
                        "gradients were being exchanged; lower optim.batch_size, raise optim.gradient_accumulation"
                    )
                    raise
            # Outside of the handler, whose traceback would keep the tensors of the failed attempt alive.
            release_memory()
            logger.warning(
                "out of memory at step %d; batches of %d examples go on in %d parts, with the same loss",
                self.state.global_step + 1,
                int(batch["n_examples"]),
                len(self._parts(batch)),
            )

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """End the training where a loss or a gradient is not a number, before the weights take it up."""
        norm = super()._get_grad_norm(model, grad_norm)
        seen = [*self._step_losses, torch.as_tensor(0.0 if norm is None else norm, device=self.args.device)]
        if bool(torch.isfinite(torch.stack([value.float() for value in seen])).all()):
            return norm
        step = self.state.global_step + 1
        file = Path(str(self.args.output_dir)) / f"not_finite-step-{step}-process-{rank()}.json"
        losses = [float(loss) for loss in self._step_losses]
        batches = [
            {
                "loss": str(loss),
                "examples": list(batch.get("about", ())),
                "rows": [self._lm.tokenizer.decode(row) for row in batch["input_ids"].tolist()],
            }
            for batch, loss in zip(self._step_batches, losses, strict=True)
        ]
        write_json(file, {"step": step, "reader": self._data.batches.state_dict(), "batches": batches})
        raise NotFiniteError(
            f"expected a finite loss and gradient at step {step}, found losses {losses}; the examples are in {file}; "
            "lower optim.learning_rate or optim.max_grad_norm and pass --overwrite"
        )

    # An evaluation.

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure the averaged weights on the validation examples: the loss, and the held-out scores if there are."""
        with self._average.applied():
            self._lm.model.eval()
            total, batches = torch.zeros(2, dtype=torch.float64), self._data.validation
            for start in range(0, len(batches), n_processes()):
                # Each process computes as often as the others: under shared weights they need each other for it.
                batch = self._prepare_inputs(batches[min(start + rank(), len(batches) - 1)])
                self._has_sent = False
                with torch.no_grad(), self.compute_loss_context_manager():
                    loss = self._in_parts(batch, self._validation_loss)
                if start + rank() < len(batches):
                    total += torch.tensor([loss, n_averaged(batch)])
            loss, n_items = sum_over_all(total, self.args.device).tolist()
            metrics = {"eval_loss": loss / n_items if n_items else float("nan")}
            if self._data.held_out is not None:
                scores = self._data.held_out.scores(self._lm) if is_first() else {}
                metrics |= {f"eval_{name}": value for name, value in from_first(dict(scores)).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # A checkpoint.

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write a checkpoint under another name, and give it its own once it is whole."""
        work = Path(str(self.args.output_dir))
        partial, whole = work / ".checkpoint", work / f"checkpoint-{self.state.global_step}"
        with writing(f"the checkpoint of step {self.state.global_step}", work):
            if is_first():
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            wait_for_all()
            try:
                if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                    self.save_model(str(partial), _internal_call=True)
                elif is_first():
                    trained = ((n, p) for n, p in self._lm.model.named_parameters() if p.requires_grad)
                    save_file({n: p.detach().contiguous() for n, p in trained}, partial / WEIGHTS_FILE)
                self._save_optimizer_and_scheduler(str(partial))
                self._save_rng_state(str(partial))
                self._average.save(partial)
                self._history.save(partial)
                write_json(partial / f"reader-{rank()}.json", self._data.batches.state_dict())
                wait_for_all()
                if is_first():
                    self.state.save_to_json(str(partial / _STATE_FILE))
                    write_json(partial / MARK_FILE, self._mark())
                    shutil.rmtree(whole, ignore_errors=True)
                    partial.replace(whole)
                    discard_old_checkpoints(work, n_kept=2)
            except Exception:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        wait_for_all()

    def _mark(self) -> dict[str, Any]:
        """Return what a checkpoint must agree in with the run that it is read into."""
        trained = [(n, list(p.shape)) for n, p in self._lm.model.named_parameters() if p.requires_grad]
        return {
            "processes": n_processes(),
            "vocabulary": self._lm.n_vocabulary,
            "trained_weights": len(trained),
            "trained_numbers": sum(torch.Size(shape).numel() for _, shape in trained),
        }

    def restore(self, checkpoint: Path) -> None:
        """Read from a checkpoint what `Trainer.train` does not.

        Raises
        ------
        InputError
            It was made by other processes, of another vocabulary, or of other weights.
        """
        with readable_checkpoint(checkpoint):
            found: Mapping[str, Any] = json.loads((checkpoint / MARK_FILE).read_text(encoding="utf-8"))
        mine = self._mark()
        for name, value in mine.items():
            if found.get(name) != value:
                raise InputError(
                    f"{checkpoint} is of another run: expected {name.replace('_', ' ')} {value}, found "
                    f"{found.get(name)}; go on as it was begun, or pass --overwrite to start anew"
                )
        with readable_checkpoint(checkpoint):
            self._average.restore(checkpoint)
            self._history.restore(checkpoint)
            position = (checkpoint / f"reader-{rank()}.json").read_text(encoding="utf-8")
            self._data.batches.load_state_dict(json.loads(position))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        file = Path(resume_from_checkpoint) / WEIGHTS_FILE
        with readable_checkpoint(file):
            weights = load_file(file)
        with torch.no_grad():
            for name, value in self._lm.model.named_parameters():
                if value.requires_grad:
                    if name not in weights or weights[name].shape != value.shape:
                        raise InputError(f"{file} holds other weights than this model: {name}; pass --overwrite")
                    value.copy_(weights[name])


@contextmanager
def readable_checkpoint(checkpoint: str | Path | None) -> Iterator[None]:
    """Say in one line that a checkpoint is damaged, or holds something else than numbers, which is never run."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{checkpoint} holds other things than numbers and was not written by cytoglot; delete it, or pass "
            "--overwrite to start anew"
        ) from error
    except (OSError, SafetensorError, EOFError, json.JSONDecodeError, KeyError, RuntimeError) as error:
        # torch's reader of archives says so by a RuntimeError of many lines.
        if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error):
            raise
        reason = str(error).split(".")[0] if isinstance(error, RuntimeError) else error
        raise InputError(
            f"{checkpoint} is damaged ({type(error).__name__}: {reason}); delete it and run the same command again: it "
            "goes on from the checkpoint before"
        ) from error


def make_optimizer(model: torch.nn.Module, recipe: OptimRecipe, *, from_nothing: bool) -> torch.optim.Optimizer:
    """Return AdamW for the weights that are trained.

    Input vectors have a learning rate of their own in a model from nothing, because they start from the data and the
    rest starts from noise. Vectors and norms are not decayed.
    """
    vectors = {id(p) for p in model.get_input_embeddings().parameters()}  # type: ignore[operator]
    ratio = recipe.word_learning_rate_ratio if from_nothing else 1.0
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in vectors], "lr": recipe.learning_rate * ratio, "weight_decay": 0.0},
        {"params": [p for p in trained if id(p) not in vectors and p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if id(p) not in vectors and p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    on_gpu = trained[0].device.type == "cuda"
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=on_gpu or None)


def make_schedule(optimizer: torch.optim.Optimizer, recipe: OptimRecipe) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the warm-up and what follows it."""
    warmup = max(1, round(recipe.warmup_share * recipe.steps)) if recipe.warmup_share else 0
    name = "constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule
    return get_scheduler(name, optimizer, warmup, recipe.steps)


def uses_bf16(recipe: OptimRecipe, device: torch.device) -> bool:
    """Return whether training computes in bfloat16: as the recipe says, else where a GPU can."""
    if recipe.bf16 is not None:
        return recipe.bf16
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def training_arguments(
    work: Path, recipe: TrainRecipe, lm: LanguageModel, *, seed: int, validates: bool
) -> TrainingArguments:
    """Return what `transformers` is to do: our steps, evaluations and checkpoints, our bar."""
    optim = recipe.optim
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=optim.steps,
        per_device_train_batch_size=optim.batch_size,
        gradient_accumulation_steps=optim.gradient_accumulation,
        max_grad_norm=optim.max_grad_norm,
        bf16=uses_bf16(optim, lm.device),
        eval_strategy="steps" if validates else "no",
        eval_steps=optim.evaluate_every,
        save_strategy="steps",
        save_steps=optim.evaluate_every,
        logging_steps=max(1, min(10, optim.steps // 10)),
        logging_nan_inf_filter=False,  # the trainer stops at them
        ignore_data_skip=True,  # the batches themselves go to where the checkpoint was made
        ddp_find_unused_parameters=any("expert" in name for name, _ in lm.model.named_parameters()),
        remove_unused_columns=False,
        disable_tqdm=True,
        log_level="error",
        fsdp=recipe.fsdp is not None,
        fsdp_config=None if recipe.fsdp is None else dict(recipe.fsdp),
        deepspeed=recipe.deepspeed,
        report_to=list(recipe.report_to) or "none",
        seed=seed,
        use_cpu=lm.device.type == "cpu",
    )
    if arguments.n_gpu > 1:  # several GPUs and one process: `torchrun` is the way to use them all
        arguments._n_gpu = 1
    return arguments
