"""What rewards say of a model's answers to held-out prompts, before, during and after alignment.

The answers are drawn with the same noise at every evaluation. Where a number of words is asked for, they are written
under constraint too, with exactly that many: a reward that rises with the length of free answers does not rise
there. Axes: p prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytoglot.answer_format import AnswerFormat, FreeText
from cytoglot.lm.generation.generate import generate_answers
from cytoglot.lm.generation.sampling import Sampling
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.metrics.generation import gene_overlap, pairwise_overlap
from cytoglot.metrics.uncertainty import AdditiveStatistic, bootstrap, bootstrap_difference
from cytoglot.training.rl.collapse import Diversity, diversity
from cytoglot.training.rl.prompts import EvalPrompt, reward_prompts
from cytoglot.training.rl.rewards.context import RewardInputs, read_answers
from cytoglot.training.rl.rewards.mixture import MixedReward

TOTAL = "reward"
"""the weighted sum, beside the parts by their names"""
FREE, CONSTRAINED = "free", "constrained"
_MIN_GROUPS = 5


@dataclass(frozen=True, kw_only=True)
class RewardEval:
    """One look at a model. Means over the answers to a prompt, NaN where a reward says nothing of them."""

    step: int
    rewards: Mapping[str, Mapping[str, NDArray[np.float64]]]
    """how answers were written → reward → (p,)"""
    diversity: Mapping[str, Diversity]
    """how answers were written → how alike sentences are; without those of closed tasks"""
    overlap: Mapping[str, float]
    """how answers were written → mean share of the true cell's genes that were written"""

    def mean(self, mode: str, name: str = TOTAL) -> float:
        """Return a reward over all prompts that it says something of."""
        known = self.rewards[mode][name]
        known = known[~np.isnan(known)]
        return float(known.mean()) if len(known) else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "step": self.step,
            "rewards": {m: {n: _plain(v) for n, v in parts.items()} for m, parts in self.rewards.items()},
            "diversity": {mode: found.as_row() for mode, found in self.diversity.items()},
            "overlap": {mode: _plain(np.array([value]))[0] for mode, value in self.overlap.items()},
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> RewardEval:
        """Read what `to_dict` wrote."""
        return cls(
            step=value["step"],
            rewards={m: {n: _numbers(v) for n, v in parts.items()} for m, parts in value["rewards"].items()},
            diversity={mode: Diversity.from_row(row) for mode, row in value["diversity"].items()},
            overlap={mode: float(_numbers([one])[0]) for mode, one in value["overlap"].items()},
        )


class ValidationRewards:
    """Held-out prompts with the rewards of a model's answers.

    Parameters
    ----------
    constrained
        Answers are written as in training: under constraint alone, or else freely and under constraint besides.
    n_samples
        Answers to each prompt.
    max_tokens
        Of a free answer.
    unit
        What the groups of the prompts are; they are resampled for intervals where there are enough, else prompts are.
    """

    def __init__(
        self,
        asked: Sequence[EvalPrompt],
        reward: MixedReward,
        context: RewardInputs,
        *,
        constrained: bool,
        n_samples: int,
        max_tokens: int,
        sampling: Sampling,
        unit: str = "prompt",
    ) -> None:
        self._asked, self._reward, self._context = tuple(asked), reward, context
        self._n_samples, self._max_tokens, self._sampling = n_samples, max_tokens, sampling
        self.mode = CONSTRAINED if constrained else FREE
        """how answers are written in training"""
        self.modes = (CONSTRAINED,) if constrained else (FREE, CONSTRAINED)
        groups = [one.group for one in self._asked]
        grouped = all(groups) and len(set(groups)) >= _MIN_GROUPS
        self._groups = np.array(groups, dtype=object) if grouped else None
        self._unit = unit if grouped else "prompt"

    def __len__(self) -> int:
        return len(self._asked)

    def evaluate(self, lm: LanguageModel, step: int) -> RewardEval:
        """Write answers and rate them."""
        rewards, alike, overlap = {}, {}, {}
        for mode in self.modes:
            completions = self._write(lm, mode)
            rewards[mode] = self._rate(completions)
            alike[mode], overlap[mode] = self._compare(completions)
        return RewardEval(step=step, rewards=rewards, diversity=alike, overlap=overlap)

    def real_overlap(self) -> float:
        """Return how alike true sentences of one type are among the held-out prompts; NaN where none has two.

        A cell that several prompts ask about is there once: it would be like itself.
        """
        by_type: dict[str, set[tuple[str, ...]]] = {}
        for one in self._asked:
            if one.num_genes:
                by_type.setdefault(one.cell_type, set()).add(tuple(one.answer.split()))
        return _mean([pairwise_overlap(sorted(sentences)) for sentences in by_type.values()])

    def _write(self, lm: LanguageModel, mode: str) -> list[str]:
        """Return the completions, all samples of a prompt one after the other."""
        free: AnswerFormat = FreeText(max_tokens=self._max_tokens)
        formats = [free if mode == FREE else _limited(one.answer_format, self._max_tokens) for one in self._asked]
        answers = generate_answers(
            lm,
            [one.prompt for one in self._asked],
            formats,
            n_samples=self._n_samples,
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            seed=self._sampling.seed,
            keys=[f"{i} {one.key}" for i, one in enumerate(self._asked)],
            terminator=self._context.terminator,
        )
        # A free answer is shown with whatever ends it.
        endings = ["" if isinstance(one, FreeText) else self._context.terminator for one in formats]
        return [f" {text}{end}" for samples, end in zip(answers, endings, strict=True) for text in samples]

    def _columns(self) -> dict[str, list[Any]]:
        rows = [row for row in range(len(self._asked)) for _ in range(self._n_samples)]
        return reward_prompts(self._asked).take(rows).as_columns()

    def _rate(self, completions: list[str]) -> dict[str, NDArray[np.float64]]:
        parts = self._reward.parts(completions, **self._columns())
        found = {TOTAL: self._reward.total(parts), **parts}
        return {name: _per_prompt(values, self._n_samples) for name, values in found.items()}

    def _compare(self, completions: list[str]) -> tuple[Diversity, float]:
        answers = read_answers(completions, self._columns(), self._context)
        samples = [answers[i : i + self._n_samples] for i in range(0, len(answers), self._n_samples)]
        sentences = [some for some in samples if some[0].is_sentence]
        overlap = [gene_overlap(one.words, one.true.split()) for some in sentences for one in some]
        return diversity([[one.words for one in some] for some in sentences]), _mean(overlap)

    def table(self, evaluations: Sequence[RewardEval], *, seed: int = 0) -> list[dict[str, Any]]:
        """Return a row for each evaluation, way of writing and reward, with bootstrap intervals.

        `gain` is the difference from the first look on the same prompts, resampled together; its interval without 0
        says that the reward has moved on held-out prompts. Bounds are None where fewer than two units are known.
        """
        return [
            {
                "step": evaluation.step,
                "answers": mode,
                "reward": name,
                **self._row(evaluations[0], evaluation, mode, name, seed),
            }
            for evaluation in evaluations
            for mode in self.modes
            for name in evaluation.rewards[mode]
        ]

    def _row(self, first: RewardEval, evaluation: RewardEval, mode: str, name: str, seed: int) -> dict[str, Any]:
        now_p, before_p = evaluation.rewards[mode][name], first.rewards[mode][name]
        known_p = ~np.isnan(now_p) & ~np.isnan(before_p)
        groups = None if self._groups is None else self._groups[known_p]
        settings: dict[str, Any] = {"groups": groups, "unit": self._unit, "seed": seed}
        now, before = _mean_of(now_p[known_p]), _mean_of(before_p[known_p])
        level, gain = bootstrap(now, **settings), bootstrap_difference(now, before, **settings)
        found = {
            "mean": level.value,
            "low": level.low,
            "high": level.high,
            "gain": gain.value,
            "gain_low": gain.low,
            "gain_high": gain.high,
        }
        plain: dict[str, Any] = {key: None if math.isnan(value) else float(value) for key, value in found.items()}
        return {**plain, "prompts": int(known_p.sum()), "unit": self._unit, "units": level.n_units}


def _limited(answer_format: AnswerFormat, max_tokens: int) -> AnswerFormat:
    """Return the format with no more tokens of free text than training allows."""
    return FreeText(max_tokens=max_tokens) if isinstance(answer_format, FreeText) else answer_format


def _per_prompt(values: Sequence[float | None], n_samples: int) -> NDArray[np.float64]:
    """Return means over the samples of each prompt, of those that are known."""
    values_ps = np.array([math.nan if v is None else v for v in values], dtype=np.float64).reshape(-1, n_samples)
    known_ps = ~np.isnan(values_ps)
    n_known_p = known_ps.sum(axis=1)
    sums_p = np.where(known_ps, values_ps, 0.0).sum(axis=1)
    return np.where(n_known_p > 0, sums_p / np.maximum(n_known_p, 1), math.nan)


def _mean_of(values_p: NDArray[np.float64]) -> AdditiveStatistic:
    rows_p2 = np.stack([values_p, np.ones_like(values_p)], axis=1)

    def combine(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1))

    return AdditiveStatistic(rows_nk=rows_p2, combine=combine)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    return [None if math.isnan(value) else float(value) for value in values]


def _numbers(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)
