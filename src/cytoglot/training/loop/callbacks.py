"""What happens around the steps: the one bar, the history of the losses, and the average of the weights."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cytoglot.progress import progress_bar
from cytoglot.training.loop.distributed import is_first

AVERAGE_FILE = "weight_average.safetensors"
AVERAGE_STATE = "weight_average.json"
HISTORY_FILE = "history.json"
_START_SHARE = 0.25  # the first steps are far from where training ends and would only slow the average down


class WeightAverage(TrainerCallback):
    """A running average of the trained weights, the best one of the evaluations, and the patience that ends training.

    Evaluations are at the average, never at the weights of one step. With a decay of 0 the average is the weights
    themselves. Its state is saved in each checkpoint, so a resumed run ends as the unbroken one.

    Parameters
    ----------
    decay
        Of the average, at each step.
    patience
        Evaluations without a gain that end the training; None never ends it.
    stop_on
        What is compared, "loss" or the name of a score.
    higher
        Whether more of it is better.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        decay: float,
        patience: int | None,
        stop_on: str = "loss",
        higher: bool = False,
    ) -> None:
        self._model, self._decay, self._patience = model, decay, patience
        self._stop_on, self._sign = stop_on, -1.0 if higher else 1.0
        self._average: dict[str, torch.Tensor] | None = None
        self._best: dict[str, torch.Tensor] | None = None
        self._lowest = math.inf
        """of what is compared, negated where more is better"""
        self.best_step = 0
        self._looks_without_gain = 0

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        return self._patience is not None and self._looks_without_gain >= self._patience

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the average towards the weights."""
        if self._decay == 0 or state.global_step < _START_SHARE * state.max_steps:
            return
        if self._average is None:
            self._average = {name: value.detach().clone() for name, value in self._weights()}
            return
        with torch.no_grad():
            for name, value in self._weights():
                self._average[name].lerp_(value, 1 - self._decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the model for the length of a block."""
        if self._average is None:
            yield
            return
        current = {name: value.detach().clone() for name, value in self._weights()}
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
        metrics: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Keep the best average; stop when it has not improved for `patience` evaluations."""
        value = self._sign * (metrics or {}).get(f"eval_{self._stop_on}", math.nan)
        if value < self._lowest:
            self._lowest, self.best_step, self._looks_without_gain = value, state.global_step, 0
            source = self._average or {name: value.detach() for name, value in self._weights()}
            # A second copy of a large model has no room on an accelerator.
            self._best = {name: value.to("cpu", copy=True) for name, value in source.items()}
        else:
            self._looks_without_gain += 1
        if self.is_over:
            control.should_training_stop = True

    def keep_best(self) -> None:
        """Leave the best average in the model (the last one where no evaluation was ever taken)."""
        best = self._best or self._average
        if best is not None:
            self._put(best)

    def save(self, checkpoint: Path) -> None:
        """Write the averages into a checkpoint."""
        if not is_first():
            return
        tensors = {f"average.{n}": v for n, v in (self._average or {}).items()}
        tensors |= {f"best.{n}": v for n, v in (self._best or {}).items()}
        save_file({name: value.contiguous() for name, value in tensors.items()}, checkpoint / AVERAGE_FILE)
        lowest = self._lowest if math.isfinite(self._lowest) else None
        numbers = {"lowest": lowest, "best_step": self.best_step, "waited": self._looks_without_gain}
        (checkpoint / AVERAGE_STATE).write_text(json.dumps(numbers), encoding="utf-8")

    def restore(self, checkpoint: Path) -> None:
        """Read what `save` wrote."""
        tensors = load_file(checkpoint / AVERAGE_FILE)
        parts = {
            part: {n.removeprefix(part): v for n, v in tensors.items() if n.startswith(part)}
            for part in ("average.", "best.")
        }
        devices = {name: value.device for name, value in self._weights()}
        self._average = {name: value.to(devices[name]) for name, value in parts["average."].items()} or None
        self._best = parts["best."] or None
        numbers = json.loads((checkpoint / AVERAGE_STATE).read_text(encoding="utf-8"))
        self._lowest = math.inf if numbers["lowest"] is None else numbers["lowest"]
        self.best_step, self._looks_without_gain = numbers["best_step"], numbers["waited"]

    def _weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        return ((name, value) for name, value in self._model.named_parameters() if value.requires_grad)

    def _put(self, weights: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, value in self._weights():
                value.copy_(weights[name])


class History(TrainerCallback):
    """Rows of step, tokens, losses and held-out scores, and the one progress bar."""

    def __init__(self, description: str = "train") -> None:
        self._description = description
        self.rows: list[dict[str, Any]] = []
        self.n_tokens = 0
        self._bar: Any = None
        self._started = 0.0
        self._seconds_before = 0.0

    @property
    def seconds(self) -> float:
        """Time that training has taken so far, that of an interrupted run included."""
        return self._seconds_before + time.perf_counter() - self._started

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the bar, at the step where a resumed run goes on."""
        self._started = time.perf_counter()
        self._tokens_before = self.n_tokens
        self._bar = progress_bar(total=state.max_steps, description=self._description, unit="step")
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
        """Keep the losses and scores; show loss and tokens per second."""
        logs = logs or {}
        if "loss" not in logs and "eval_loss" not in logs:
            return
        scores = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
        self.rows.append(
            {
                "step": state.global_step,
                "tokens": self.n_tokens,
                "train_loss": logs.get("loss"),
                "validation_loss": _finite(scores.pop("loss", None)),
                **{name: _finite(value) for name, value in scores.items()},
                "seconds": round(self.seconds, 2),
            }
        )
        if "loss" in logs:
            rate = (self.n_tokens - self._tokens_before) / max(self.seconds - self._seconds_before, 1e-9)
            self._bar.set_postfix_str(f"loss {logs['loss']:.3f}, {rate:,.0f} tokens/s")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the bar."""
        self._bar.close()

    def save(self, checkpoint: Path) -> None:
        """Write the rows into a checkpoint."""
        if is_first():
            value = {"rows": self.rows, "n_tokens": self.n_tokens, "seconds": self.seconds}
            (checkpoint / HISTORY_FILE).write_text(json.dumps(value), encoding="utf-8")

    def restore(self, checkpoint: Path) -> None:
        """Read what `save` wrote."""
        value = json.loads((checkpoint / HISTORY_FILE).read_text(encoding="utf-8"))
        self.rows, self.n_tokens, self._seconds_before = value["rows"], value["n_tokens"], value["seconds"]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
