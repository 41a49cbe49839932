"""Answers without content, rated before training: whatever earns more than real cells here, a model would learn.

Axes: n prompts, k answers to each prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytoglot.errors import InputError
from cytoglot.metrics.uncertainty import AdditiveStatistic, Interval, bootstrap
from cytoglot.training.rl.rewards.adversarial_answers import ONE_CELL, AdversarialAnswers
from cytoglot.training.rl.rewards.context import RewardInputs, RewardPrompts
from cytoglot.training.rl.rewards.mixture import MixedReward
from cytoglot.training.rl.rewards.reward import AnswerReward

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class HackingCheckRow:
    """What one kind of answer earns on the prompts of one task."""

    task: str
    answer: str
    """which kind: "true answers", "mean profile of the type", …"""
    is_adversarial: bool
    """False for real answers"""
    reward: Interval
    """mean over prompts, bootstrapped over them"""
    behind: Interval
    """by how much the real answers that the task is judged by earn more, paired by prompt"""
    parts: Mapping[str, float | None]
    """weighted mean of each reward, None where it says nothing"""
    reaches: bool
    """a probe that earns as much as real answers, as far as these prompts can tell"""


@dataclass(frozen=True, kw_only=True)
class HackingReport:
    """What `check_reward_hacking` found."""

    rows: tuple[HackingCheckRow, ...]
    """by task, real answers first, then probes by falling reward"""
    hackable: bool
    message: str
    """one line: which probes reach the real answers, and by which rewards"""

    def table(self) -> str:
        """Return the rows as a Markdown table."""
        names = list(dict.fromkeys(name for row in self.rows for name in row.parts))
        head = ["task", "answer", "reward", "real − this", *names]
        lines = [_line(head), _line(["---"] * len(head))]
        for row in self.rows:
            parts = [_number(row.parts.get(name)) for name in names]
            marked = f"**{row.answer}**" if row.reaches else row.answer
            lines.append(_line([row.task, marked, _interval(row.reward), _interval(row.behind), *parts]))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def check_reward_hacking(
    reward: MixedReward,
    prompts: RewardPrompts,
    context: RewardInputs,
    *,
    margin: float = 0.0,
    group_size: int = 4,
    max_words: int | None = None,
    seed: int = 0,
) -> HackingReport:
    """Rate answers without content beside real ones, and tell whether the mixture can be fooled.

    Every kind of answer is given `group_size` times to each prompt, as a model would that has learned to write it. A
    task is judged by its true answers; where the prompt does not tell which cell is meant (`cell_generation`,
    `unconditional_generation`) by other real cells of the type, since no model can know that very cell. A probe
    reaches the real answers if the 95 % interval of how far it is behind them, bootstrapped over prompts and paired,
    does not lie above `margin`. So few prompts, which leave it open, count as hackable too.

    Parameters
    ----------
    prompts
        Prompts of held-out cells, 30 of each task or more.
    margin
        In units of the mixture.
    max_words
        Words of the longest answer that a model may write; by default four times the words asked for.

    Raises
    ------
    InputError
        There is no prompt, no reward says anything about the answers to a task, or a reward fails.
    """
    if not len(prompts):
        raise InputError("probes of a reward need prompts of held-out cells, found none")
    favorites = {
        term.name: own.favorites for term in reward.terms if isinstance(own := term.function.reward, AnswerReward)
    }
    rated: list[_RatedTask] = []
    for task in dict.fromkeys(prompts.columns["task"]):
        of_task = prompts.take(i for i, name in enumerate(prompts.columns["task"]) if name == task)
        answers = AdversarialAnswers(
            of_task, context, favorites=favorites, group_size=group_size, max_words=max_words, seed=seed
        )
        rated.append(_RatedTask(reward, answers, task=str(task), margin=margin, seed=seed))
    rows = tuple(row for of_task in rated for row in of_task.rows())
    hackable = any(row.reaches for row in rows)
    return HackingReport(rows=rows, hackable=hackable, message=_message(rows, rated, hackable=hackable))


class _RatedTask:
    """All answers to the prompts of one task, rated."""

    def __init__(
        self,
        reward: MixedReward,
        answers: AdversarialAnswers,
        *,
        task: str,
        margin: float,
        seed: int,
    ) -> None:
        self.task, self._answers, self._margin, self._seed = task, answers, margin, seed
        self._weights = {term.name: term.weight for term in reward.terms}
        self._parts = {kind: self._rate(reward, completions) for kind, completions in answers.completions.items()}
        self._memorize(reward)
        self._totals = {kind: _total(parts, self._weights) for kind, parts in self._parts.items()}
        if np.isnan(self._totals[answers.standard]).all():
            raise InputError(
                f"none of the rewards {', '.join(self._weights)} rates answers to the task {task!r}; add one that does "
                "(docs/grpo.md lists them), or leave the task out"
            )

    def _memorize(self, reward: MixedReward) -> None:
        """Add the answer of a model that knows one cell of each type by heart: the best of a few for each type."""
        candidates = [(texts, self._rate(reward, texts)) for texts in self._answers.memorized]
        if not candidates:
            return
        earned_cn = np.array([_of_prompts(_total(parts, self._weights)) for _, parts in candidates])
        types_n = np.array(self._answers.types, dtype=object)
        best_n = np.zeros(len(types_n), dtype=np.int64)
        for name in set(self._answers.types):
            best_n[types_n == name] = np.nan_to_num(earned_cn[:, types_n == name]).mean(axis=1).argmax()
        self._parts[ONE_CELL] = {
            name: np.stack([candidates[c][1][name][i] for i, c in enumerate(best_n)]) for name in self._weights
        }
        n_each = self._answers.group_size
        self._answers.completions[ONE_CELL] = [
            text for i, c in enumerate(best_n) for text in candidates[c][0][i * n_each : (i + 1) * n_each]
        ]

    def rows(self) -> list[HackingCheckRow]:
        """Return the row of each kind of answer, real ones first, probes by falling reward."""
        rows = [self._row(kind) for kind in self._totals]
        return sorted(rows, key=lambda row: (row.is_adversarial, -row.reward.value))

    def explain(self, row: HackingCheckRow) -> str:
        """Say what a probe earns, and which rewards pay it no less than real answers: by how much more, than what."""
        real = self._row(self._answers.standard)
        gains = {name: value - (real.parts[name] or 0.0) for name, value in row.parts.items() if value is not None}
        through = sorted((name for name, gain in gains.items() if gain >= 0), key=lambda name: -gains[name])
        by = ", ".join(f"{name} ({gains[name]:+.2f} to {real.parts[name] or 0.0:.3g})" for name in through)
        return (
            f"{self.task}: {row.answer} earns {_interval(row.reward)}, {self._answers.standard} "
            f"{_interval(real.reward)}, let through by {by or 'too few prompts to tell'}"
        )

    def _row(self, kind: str) -> HackingCheckRow:
        behind = self._behind(kind)
        is_adversarial = kind not in self._answers.real
        parts = {
            name: None if np.isnan(values).all() else float(np.nanmean(values)) * self._weights[name]
            for name, values in self._parts[kind].items()
        }
        return HackingCheckRow(
            task=self.task,
            answer=kind,
            is_adversarial=is_adversarial,
            reward=_mean(_of_prompts(self._totals[kind]), self._seed),
            behind=behind,
            parts=parts,
            reaches=is_adversarial and not behind.low > self._margin,
        )

    def _behind(self, kind: str) -> Interval:
        """Return real less probe by prompt."""
        return _mean(_of_prompts(self._totals[self._answers.standard]) - _of_prompts(self._totals[kind]), self._seed)

    def _rate(self, reward: MixedReward, completions: Sequence[str]) -> dict[str, Floats]:
        """Return name → values of shape (n, k), NaN where the reward says nothing."""
        parts = reward.parts(list(completions), **self._answers.columns)
        return {
            name: np.array([np.nan if v is None else v for v in values]).reshape(-1, self._answers.group_size)
            for name, values in parts.items()
        }


def _of_prompts(values_nk: Floats) -> Floats:
    """Return the mean over the answers to each prompt, NaN where none is rated."""
    known_n = (~np.isnan(values_nk)).sum(axis=1)
    return np.where(known_n > 0, np.nansum(values_nk, axis=1) / np.maximum(known_n, 1), np.nan)


def _total(parts: Mapping[str, Floats], weights: Mapping[str, float]) -> Floats:
    weighted = np.array([weights[name] * values for name, values in parts.items()])
    return np.where(np.isnan(weighted).all(axis=0), np.nan, np.nansum(weighted, axis=0))


def _mean(values_n: Floats, seed: int) -> Interval:
    known = values_n[~np.isnan(values_n)]
    rows = np.column_stack([known, np.ones(len(known))])
    statistic = AdditiveStatistic(rows_nk=rows, combine=lambda sums: np.asarray(sums[..., 0] / sums[..., 1]))
    return bootstrap(statistic, unit="prompt", n_resamples=1000, seed=seed)


def _message(rows: Sequence[HackingCheckRow], rated: Sequence[_RatedTask], *, hackable: bool) -> str:
    if not hackable:
        nearest = min((row for row in rows if row.is_adversarial), key=lambda row: row.behind.low)
        return (
            f"no answer without content reaches the real ones; nearest comes {nearest.answer} on {nearest.task}, "
            f"{_interval(nearest.behind)} behind"
        )
    task_of = {of_task.task: of_task for of_task in rated}
    through = sorted((row for row in rows if row.reaches), key=lambda row: row.behind.value)
    faults = [task_of[row.task].explain(row) for row in through[:3]]
    more = f"; and {len(through) - 3} more" if len(through) > 3 else ""
    return f"the mixture can be fooled: {'; '.join(faults)}{more}"


def _interval(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
