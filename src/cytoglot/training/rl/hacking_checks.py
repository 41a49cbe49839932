"""Answers without content, rated before training: whatever earns more than real cells here, a model would learn.

Axes: n prompts, k answers to each prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytoglot.errors import InputError
from cytoglot.metrics.uncertainty import Interval, bootstrap
from cytoglot.training.rl.rewards.adversarial_answers import ONE_CELL, AdversarialAnswers
from cytoglot.training.rl.rewards.context import RewardInputs, RewardPrompts
from cytoglot.training.rl.rewards.mixture import TOTAL, MixedReward, known_mean, mean_statistic, plain
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
            parts = ["–" if (part := row.parts.get(name)) is None else f"{part:.3f}" for name in names]
            marked = f"**{row.answer}**" if row.reaches else row.answer
            lines.append(_line([row.task, marked, _interval(row.reward), _interval(row.behind), *parts]))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return plain(asdict(self))


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
    weights = {term.name: term.weight for term in reward.terms}
    favorites = {term.name: own.favorites for term in reward.terms if isinstance(own := term.reward, AnswerReward)}
    rows: list[HackingCheckRow] = []
    standards: dict[str, HackingCheckRow] = {}
    for task in dict.fromkeys(map(str, prompts.columns["task"])):
        of_task = prompts.take(i for i, name in enumerate(prompts.columns["task"]) if name == task)
        answers = AdversarialAnswers(
            of_task, context, favorites=favorites, group_size=group_size, max_words=max_words, seed=seed
        )
        rated = {kind: _rate(reward, texts, answers) for kind, texts in answers.completions.items()}
        if answers.memorized:
            rated[ONE_CELL] = _rate_memorized(reward, answers)
        real_n = known_mean(rated[answers.standard][TOTAL])
        if np.isnan(real_n).all():
            raise InputError(
                f"none of the rewards {', '.join(weights)} rates answers to the task {task!r}; add one that does "
                "(docs/grpo.md lists them), or leave the task out"
            )
        found = []
        for kind, parts in rated.items():
            earned_n, is_adversarial = known_mean(parts[TOTAL]), kind not in answers.real
            behind = _bootstrap(real_n - earned_n, seed)
            found.append(
                HackingCheckRow(
                    task=task,
                    answer=kind,
                    is_adversarial=is_adversarial,
                    reward=_bootstrap(earned_n, seed),
                    behind=behind,
                    parts={
                        name: None if np.isnan(parts[name]).all() else float(np.nanmean(parts[name])) * weight
                        for name, weight in weights.items()
                    },
                    # Where so few prompts leave it open, the bound is NaN, and the probe counts as one that reaches.
                    reaches=is_adversarial and not behind.low > margin,
                )
            )
        rows += sorted(found, key=lambda row: (row.is_adversarial, -row.reward.value))
        standards[task] = next(row for row in found if row.answer == answers.standard)
    hackable = any(row.reaches for row in rows)
    return HackingReport(rows=tuple(rows), hackable=hackable, message=_message(rows, standards))


def _rate(reward: MixedReward, completions: Sequence[str], answers: AdversarialAnswers) -> dict[str, Floats]:
    """Return the sum and each reward, unweighted → values of shape (n, k), NaN where a reward says nothing."""
    return reward.by_prompt(list(completions), answers.group_size, **answers.columns)


def _rate_memorized(reward: MixedReward, answers: AdversarialAnswers) -> dict[str, Floats]:
    """Rate the answers of a model that knows one cell of each type by heart: the best of a few for each type."""
    candidates = [_rate(reward, texts, answers) for texts in answers.memorized]
    earned_cn = np.nan_to_num([known_mean(rated[TOTAL]) for rated in candidates])
    types_n = np.array(answers.types, dtype=object)
    best_n = np.zeros(len(types_n), dtype=np.int64)
    for name in set(answers.types):
        best_n[types_n == name] = earned_cn[:, types_n == name].mean(axis=1).argmax()
    return {name: np.stack([candidates[c][name][i] for i, c in enumerate(best_n)]) for name in candidates[0]}


def _bootstrap(values_n: Floats, seed: int) -> Interval:
    return bootstrap(mean_statistic(values_n), unit="prompt", n_resamples=1000, seed=seed)


def _message(rows: Sequence[HackingCheckRow], standards: Mapping[str, HackingCheckRow]) -> str:
    """Say what probes earn that reach real answers, and which rewards pay them no less: by how much more, than what."""
    through = sorted((row for row in rows if row.reaches), key=lambda row: row.behind.value)
    if not through:
        nearest = min((row for row in rows if row.is_adversarial), key=lambda row: row.behind.low)
        return (
            f"no answer without content reaches the real ones; nearest comes {nearest.answer} on {nearest.task}, "
            f"{_interval(nearest.behind)} behind"
        )
    faults = []
    for row in through[:3]:
        real = standards[row.task]
        gains = {name: value - (real.parts[name] or 0.0) for name, value in row.parts.items() if value is not None}
        paying = sorted((name for name, gain in gains.items() if gain >= 0), key=lambda name: -gains[name])
        by = ", ".join(f"{name} ({gains[name]:+.2f} to {real.parts[name] or 0.0:.3g})" for name in paying)
        faults.append(
            f"{row.task}: {row.answer} earns {_interval(row.reward)}, {real.answer} {_interval(real.reward)}, let "
            f"through by {by or 'too few prompts to tell'}"
        )
    more = f"; and {len(through) - 3} more" if len(through) > 3 else ""
    return f"the mixture can be fooled: {'; '.join(faults)}{more}"


def _interval(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
