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
from cytoglot.train.rewards.context import RewardContext, RewardPrompts
from cytoglot.train.rewards.mixture import MixedReward, make_reward
from cytoglot.train.rewards.probe_answers import TRUE, ProbeAnswers

Floats = NDArray[np.float64]
_REMEDIES = ("diversity", "validity", "distinctness", "label_match")
"""rewards that need no more than the context and are tried as remedies, in this order"""
_WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """What one kind of answer earns on the prompts of one task."""

    task: str
    answer: str
    """which kind: "true answers", "mean profile of the type", …"""
    is_probe: bool
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
class ProbeReport:
    """What `probe_reward` found."""

    rows: tuple[ProbeRow, ...]
    """by task, real answers first, then probes by falling reward"""
    hackable: bool
    message: str
    """one line: which probes reach the real answers, by which rewards, and what would stop them"""

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


def probe_reward(
    reward: MixedReward,
    prompts: RewardPrompts,
    context: RewardContext,
    *,
    margin: float = 0.0,
    group_size: int = 4,
    max_words: int | None = None,
    seed: int = 0,
) -> ProbeReport:
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
    rated: list[_RatedTask] = []
    for task in dict.fromkeys(prompts.columns["task"]):
        of_task = prompts.take(i for i, name in enumerate(prompts.columns["task"]) if name == task)
        answers = ProbeAnswers(of_task, context, group_size=group_size, max_words=max_words, seed=seed)
        rated.append(_RatedTask(reward, answers, context, task=str(task), margin=margin, seed=seed))
    rows = tuple(row for of_task in rated for row in of_task.rows())
    hackable = any(row.reaches for row in rows)
    return ProbeReport(rows=rows, hackable=hackable, message=_message(rows, rated, hackable=hackable))


class _RatedTask:
    """All answers to the prompts of one task, rated."""

    def __init__(
        self,
        reward: MixedReward,
        answers: ProbeAnswers,
        context: RewardContext,
        *,
        task: str,
        margin: float,
        seed: int,
    ) -> None:
        self.task, self._answers, self._context, self._margin, self._seed = task, answers, context, margin, seed
        self._weights = {term.name: term.weight for term in reward.terms}
        self._parts = {kind: self._rate(reward, completions) for kind, completions in answers.completions.items()}
        self._totals = {kind: _sum(parts, self._weights) for kind, parts in self._parts.items()}
        if np.isnan(self._totals[answers.standard]).all():
            raise InputError(
                f"none of the rewards {', '.join(self._weights)} rates answers to the task {task!r}; add one that does "
                "(docs/grpo.md lists them), or leave the task out"
            )

    def rows(self) -> list[ProbeRow]:
        """Return the row of each kind of answer, real ones first, probes by falling reward."""
        rows = [self._row(kind) for kind in self._totals]
        return sorted(rows, key=lambda row: (row.is_probe, -row.reward.value))

    def explain(self, row: ProbeRow) -> str:
        """Say what a probe earns, which rewards let it through and what would stop it."""
        real = self._row(self._answers.standard)
        lets_in = {
            name: value - (real.parts[name] or 0.0)
            for name, value in row.parts.items()
            if value is not None and value >= (real.parts[name] or 0.0)
        }
        by = ", ".join(f"{name} ({gain:+.2f})" for name, gain in sorted(lets_in.items(), key=lambda item: -item[1]))
        return (
            f"{self.task}: {row.answer} earns {_interval(row.reward)}, {self._answers.standard} "
            f"{_interval(real.reward)}; let through by {by or 'too few prompts to tell'}; {self._remedy(row.answer)}"
        )

    def _row(self, kind: str) -> ProbeRow:
        behind = self._behind(kind)
        is_probe = kind not in self._answers.real
        parts = {
            name: None if np.isnan(values).all() else float(np.nanmean(values)) * self._weights[name]
            for name, values in self._parts[kind].items()
        }
        return ProbeRow(
            task=self.task,
            answer=kind,
            is_probe=is_probe,
            reward=_mean(self._totals[kind], self._seed),
            behind=behind,
            parts=parts,
            reaches=is_probe and not behind.low > self._margin,
        )

    def _behind(self, kind: str, extra: tuple[Floats, Floats] | None = None) -> Interval:
        """Return real less probe, with a further reward of both added where `extra` gives its weighted values."""
        real, probe = self._totals[self._answers.standard], self._totals[kind]
        if extra is not None:
            real, probe = real + np.nan_to_num(extra[0]), probe + np.nan_to_num(extra[1])
        return _mean(real - probe, self._seed)

    def _remedy(self, kind: str) -> str:
        """Name a reward and the least weight, of a few, at which this probe falls behind."""
        for name in [*self._weights, *(name for name in _REMEDIES if name not in self._weights)]:
            real, probe = (self._part(which, name) for which in (self._answers.standard, kind))
            if real is None or probe is None:
                continue
            least = self._weights.get("overlap", 0.0) if name == "diversity" else 0.0
            for weight in (w for w in _WEIGHTS if w >= least):
                if self._behind(kind, (weight * real, weight * probe)).low > self._margin:
                    total = self._weights.get(name, 0.0) + weight
                    return f"{'raise' if name in self._weights else 'add'} {name}: {{weight: {total:g}}}"
        return "no single reward of these would stop it: lower the weight of what lets it through, or ask more prompts"

    def _part(self, kind: str, name: str) -> Floats | None:
        """Return the unweighted values of a reward, in the mixture or not; None if it cannot rate these answers."""
        if name in self._weights:
            return self._parts[kind][name]
        values = self._rate(make_reward({name: {}}, self._context), self._answers.completions[kind])[name]
        return None if np.isnan(values).all() else values

    def _rate(self, reward: MixedReward, completions: Sequence[str]) -> dict[str, Floats]:
        """Return name → mean over the k answers to each prompt, shape (n,), NaN where the reward says nothing."""
        parts = reward.parts(list(completions), **self._answers.columns)
        return {name: _mean_of_group(values, self._answers.group_size) for name, values in parts.items()}


def _mean_of_group(values: Sequence[float | None], group_size: int) -> Floats:
    values_nk = np.array([np.nan if v is None else v for v in values]).reshape(-1, group_size)
    known_n = (~np.isnan(values_nk)).sum(axis=1)
    return np.where(known_n > 0, np.nansum(values_nk, axis=1) / np.maximum(known_n, 1), np.nan)


def _sum(parts: Mapping[str, Floats], weights: Mapping[str, float]) -> Floats:
    weighted = np.array([weights[name] * values for name, values in parts.items()])
    return np.where(np.isnan(weighted).all(axis=0), np.nan, np.nansum(weighted, axis=0))


def _mean(values_n: Floats, seed: int) -> Interval:
    known = values_n[~np.isnan(values_n)]
    rows = np.column_stack([known, np.ones(len(known))])
    statistic = AdditiveStatistic(rows_nk=rows, combine=lambda sums: np.asarray(sums[..., 0] / sums[..., 1]))
    return bootstrap(statistic, unit="prompt", n_resamples=1000, seed=seed)


def _message(rows: Sequence[ProbeRow], rated: Sequence[_RatedTask], *, hackable: bool) -> str:
    if not hackable:
        nearest = min((row for row in rows if row.is_probe), key=lambda row: row.behind.low)
        return (
            f"no answer without content reaches the real ones; nearest comes {nearest.answer} on {nearest.task}, "
            f"{_interval(nearest.behind)} behind"
        )
    task_of = {of_task.task: of_task for of_task in rated}
    through = sorted((row for row in rows if row.reaches), key=lambda row: row.behind.value)
    lines = [task_of[row.task].explain(row) for row in through[:3]]
    more = f"; and {len(through) - 3} more" if len(through) > 3 else ""
    return "the mixture can be fooled: " + "; ".join(lines) + more


def _interval(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


__all__ = ["TRUE", "ProbeReport", "ProbeRow", "probe_reward"]
