"""What happens around the steps of alignment: the one bar, the log, and looks at held-out prompts."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from cytoglot.atomic import write_json
from cytoglot.errors import NotFiniteError
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.training.loop.callbacks import History
from cytoglot.training.loop.distributed import is_first
from cytoglot.training.rl.collapse import CollapseMonitor, Diversity
from cytoglot.training.rl.reward_eval import CONSTRAINED, RewardEval, ValidationRewards

logger = logging.getLogger(__name__)

HISTORY = "alignment.json"
"""the last file of a checkpoint"""
_LOGGED = {
    "loss": "loss",
    "reward": "reward",
    "reward_std": "reward_std",
    "group_std": "group_std",
    "frac_reward_zero_std": "share_without_spread",
    "kl": "kl",
    "entropy": "entropy",
    "clip_ratio/region_mean": "clipped_share",
    "grad_norm": "gradient_norm",
    "learning_rate": "learning_rate",
    "completions/mean_length": "answer_tokens",
    "completions/clipped_ratio": "cut_off_share",
    "num_tokens": "tokens",
}
"""TRL's name → ours; beside these each reward has `rewards/NAME`, its `…/std` and the share `…/clipped`"""


class GrpoCallback(History):
    """Rows of the log, evaluations on held-out prompts, and the end of a training that has collapsed.

    The model is evaluated every `every` steps and at the end; each good evaluation makes a checkpoint. Where training
    is stopped for lack of diversity, the weights of the last good evaluation are kept.
    """

    def __init__(
        self, lm: LanguageModel, held_out: ValidationRewards, *, every: int, max_overlap_gain: float, on_collapse: str
    ) -> None:
        super().__init__("align")
        self._lm, self._held_out, self._every = lm, held_out, every
        self._max_overlap_gain, self._on_collapse = max_overlap_gain, on_collapse
        self.evaluations: list[RewardEval] = []
        self.messages: list[str] = []
        self.last_good_step: int | None = None
        """the step whose weights are kept, where these are not the last"""
        self._last_good: tuple[int, dict[str, torch.Tensor]] | None = None
        self._monitor: CollapseMonitor | None = None
        self._flat_steps = 0

    def evaluate_start(self) -> None:
        """Look at the model before training, unless a checkpoint has told."""
        if not self.evaluations:
            self._evaluate(0)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the bar, at the step where a resumed run goes on."""
        super().on_train_begin(args, state, control)
        self._keep(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Advance the bar; evaluate where it is time."""
        self._bar.update(1)
        if state.global_step % self._every and state.global_step < state.max_steps:
            return
        evaluation = self._evaluate(state.global_step)
        if self._collapsed(evaluation):
            control.should_training_stop, control.should_save = True, False
            return
        self._keep(state.global_step)
        control.should_save = state.global_step < state.max_steps

    def _evaluate(self, step: int) -> RewardEval:
        started = time.perf_counter()
        evaluation = self._held_out.evaluate(self._lm, step)
        self.evaluations.append(evaluation)
        mode = self._held_out.mode
        alike = evaluation.diversity[CONSTRAINED].between_samples
        logger.info(
            "step %d: held-out reward %.4f%s; answers to one prompt share %.2f (%.1f s)",
            step,
            evaluation.mean(mode),
            "" if step == 0 else f" (before: {self.evaluations[0].mean(mode):.4f})",
            alike,
            time.perf_counter() - started,
        )
        if self._monitor is None:
            self._monitor = self._make_monitor()
        elif (warning := self._monitor.warning(self._seen(evaluation))) is not None:
            self._say(f"step {step}: {warning}")
        return evaluation

    def _say(self, message: str) -> None:
        logger.warning("%s", message)
        self.messages.append(message)

    def _make_monitor(self) -> CollapseMonitor:
        return CollapseMonitor(
            before=self._seen(self.evaluations[0]),
            max_overlap_gain=self._max_overlap_gain,
            on_collapse="stop" if self._on_collapse == "stop" else "warn",
            real=self._held_out.real_overlap(),
        )

    def _seen(self, evaluation: RewardEval) -> Diversity:
        """Return overlaps of answers of equal length and repeats of answers as they are written in training."""
        written = evaluation.diversity[self._held_out.mode]
        return replace(evaluation.diversity[CONSTRAINED], repeated_words=written.repeated_words)

    def _collapsed(self, evaluation: RewardEval) -> bool:
        return self._monitor is not None and self._monitor.collapsed(self._seen(evaluation))

    def _keep(self, step: int) -> None:
        """Keep a copy of the weights that training may have to come back to."""
        if self._on_collapse != "stop":
            return
        trained = {name: p for name, p in self._lm.model.named_parameters() if p.requires_grad}
        self._last_good = step, {name: p.detach().to("cpu", copy=True) for name, p in trained.items()}

    def restore_last_good(self) -> None:
        """Put the weights of the last good evaluation back, if the last evaluation was none."""
        if self._last_good is None or not self._collapsed(self.evaluations[-1]):
            return
        step, weights = self._last_good
        with torch.no_grad():
            for name, parameter in self._lm.model.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])
        self.last_good_step = step
        self._say(f"training was stopped at step {self.evaluations[-1].step}; the weights of step {step} are kept")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Keep a row; show the reward on the bar; say when no group had any spread."""
        if not logs or "loss" not in logs:
            return
        row: dict[str, Any] = {"step": state.global_step, "seconds": round(self.seconds, 2)}
        row |= {ours: logs[theirs] for theirs, ours in _LOGGED.items() if theirs in logs}
        # `rewards/overlap/mean` is the reward itself.
        row |= {name.removesuffix("/mean"): value for name, value in logs.items() if name.startswith("rewards/")}
        self.rows.append(row)
        if not math.isfinite(logs["loss"]):
            raise NotFiniteError(
                f"the loss is {logs['loss']} at step {state.global_step}, so no step could follow; lower "
                "optim.learning_rate, or raise grpo.kl; the same call goes on from the last checkpoint"
            )
        # Steps without any difference between rewards teach nothing; that is said once.
        if row.get("share_without_spread") == 1.0:
            self._flat_steps += 1
            if self._flat_steps == 1:
                self._say(
                    f"step {state.global_step}: all answers to each prompt earned the same, so nothing is learned from "
                    "them; raise grpo.temperature or grpo.group_size, or choose a reward with finer steps"
                )
        reward = row.get("reward")
        self._bar.set_postfix_str("" if reward is None else f"reward {reward:.3f}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the bar."""
        super().on_train_end(args, state, control)
        if self._flat_steps > 1:
            self.messages.append(f"in {self._flat_steps} steps no group of answers had any spread of rewards")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write rows and evaluations into the checkpoint."""
        if not is_first():
            return
        # The trainer has written all else by now.
        value = {
            "rows": self.rows,
            "evaluations": [evaluation.to_dict() for evaluation in self.evaluations],
            "messages": self.messages,
            "flat_steps": self._flat_steps,
            "seconds": self.seconds,
        }
        write_json(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / HISTORY, value)

    def restore(self, checkpoint: Path) -> None:
        """Read what `on_save` wrote."""
        value = json.loads((checkpoint / HISTORY).read_text(encoding="utf-8"))
        self.rows, self.messages = value["rows"], value["messages"]
        self.evaluations = [RewardEval.from_dict(evaluation) for evaluation in value["evaluations"]]
        self._seconds_before, self._flat_steps = value["seconds"], value["flat_steps"]
        self._monitor = self._make_monitor()
