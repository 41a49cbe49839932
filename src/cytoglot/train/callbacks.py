"""What happens around the steps: the one bar, the history of the losses, and the average of the weights."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cytoglot.progress import progress_bar

AVERAGE_FILE = "weight_average.safetensors"
AVERAGE_STATE = "weight_average.json"
_START_SHARE = 0.25  # the first steps are far from where training ends and would only slow the average down


class WeightAverage(TrainerCallback):
    """A running average of the weights, the best one by validation loss, and the patience that ends training.

    Validation looks at the average, never at the weights of one step. With a decay of 0 the average is the weights
    themselves. Its state is saved in each checkpoint, so a resumed run ends as the unbroken one.
    """

    def __init__(self, model: torch.nn.Module, *, decay: float, patience: int | None) -> None:
        self._model, self._decay, self._patience = model, decay, patience
        self._average: dict[str, torch.Tensor] | None = None
        self._best: dict[str, torch.Tensor] | None = None
        self.best_loss = float("inf")
        self.best_step = 0
        self._looks_without_gain = 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the average towards the weights."""
        if state.global_step < _START_SHARE * state.max_steps and self._decay > 0:
            return
        weights = dict(self._model.named_parameters())
        if self._average is None or self._decay == 0:
            self._average = {name: value.detach().clone() for name, value in weights.items()}
            return
        with torch.no_grad():
            for name, value in weights.items():
                self._average[name].lerp_(value, 1 - self._decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the model for the length of a block."""
        current = {name: value.detach().clone() for name, value in self._model.named_parameters()}
        self._put(self._average)
        try:
            yield
        finally:
            self._put(current)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Keep the best average; stop when it has not improved for `patience` looks."""
        loss = (metrics or {}).get("eval_loss", float("nan"))
        if loss < self.best_loss:
            self.best_loss, self.best_step, self._looks_without_gain = loss, state.global_step, 0
            source = self._average or {n: v.detach() for n, v in self._model.named_parameters()}
            self._best = {name: value.clone() for name, value in source.items()}
        else:
            self._looks_without_gain += 1
        if self._patience is not None and self._looks_without_gain >= self._patience:
            control.should_training_stop = True

    def keep_best(self) -> None:
        """Leave the best average in the model (the last one where no validation loss was ever measured)."""
        self._put(self._best or self._average)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the averages into the checkpoint."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        tensors = {f"average.{n}": v for n, v in (self._average or {}).items()}
        tensors |= {f"best.{n}": v for n, v in (self._best or {}).items()}
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / AVERAGE_FILE)
        numbers = {"best_loss": self.best_loss, "best_step": self.best_step, "waited": self._looks_without_gain}
        (folder / AVERAGE_STATE).write_text(json.dumps(numbers), encoding="utf-8")

    def restore(self, checkpoint: Path) -> None:
        """Read what `on_save` wrote."""
        tensors = load_file(checkpoint / AVERAGE_FILE)
        parts = {
            part: {n.removeprefix(part): v for n, v in tensors.items() if n.startswith(part)}
            for part in ("average.", "best.")
        }
        self._average, self._best = parts["average."] or None, parts["best."] or None
        numbers = json.loads((checkpoint / AVERAGE_STATE).read_text(encoding="utf-8"))
        self.best_loss, self.best_step = numbers["best_loss"], numbers["best_step"]
        self._looks_without_gain = numbers["waited"]

    def _put(self, weights: dict[str, torch.Tensor] | None) -> None:
        if weights is None:
            return
        with torch.no_grad():
            for name, value in self._model.named_parameters():
                value.copy_(weights[name])


class History(TrainerCallback):
    """Rows of step, tokens, training and validation loss, and the one progress bar."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float | int | None]] = []
        self.n_tokens = 0
        self._bar: Any = None
        self._started = 0.0
        self._seconds_before = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the bar, at the step where a resumed run goes on."""
        self._started = time.perf_counter()
        self._tokens_before = self.n_tokens
        self._bar = progress_bar(total=state.max_steps, description="train", unit="step")
        self._bar.update(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Advance the bar."""
        self._bar.update(1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Keep the losses; show loss and tokens per second."""
        logs = logs or {}
        if "loss" not in logs and "eval_loss" not in logs:
            return
        seconds = time.perf_counter() - self._started
        self.rows.append(
            {
                "step": state.global_step,
                "tokens": self.n_tokens,
                "train_loss": logs.get("loss"),
                "validation_loss": logs.get("eval_loss"),
                "seconds": round(self._seconds_before + seconds, 2),
            }
        )
        if "loss" in logs:
            rate = (self.n_tokens - self._tokens_before) / max(seconds, 1e-9)
            self._bar.set_postfix_str(f"loss {logs['loss']:.3f}, {rate:,.0f} tokens/s")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the bar."""
        self._bar.close()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the rows into the checkpoint."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        seconds = self._seconds_before + time.perf_counter() - self._started
        value = {"rows": self.rows, "n_tokens": self.n_tokens, "seconds": seconds}
        (folder / "history.json").write_text(json.dumps(value), encoding="utf-8")

    def restore(self, checkpoint: Path) -> None:
        """Read what `on_save` wrote."""
        value = json.loads((checkpoint / "history.json").read_text(encoding="utf-8"))
        self.rows, self.n_tokens, self._seconds_before = value["rows"], value["n_tokens"], value["seconds"]
