"""What rewards say of a model's answers to held-out prompts, before, during and after alignment.

The answers are drawn with the same noise at every evaluation. Where a number of words is asked for, they are written
under constraint too, with exactly that many: a reward that rises with the length of free answers does not rise
there. Axes: p prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytoglot.answer_format import AnswerFormat, FreeText
from cytoglot.lm.generation.generate import generate_answers
from cytoglot.lm.generation.sampling import Sampling
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.metrics.generation import gene_overlap, pairwise_overlap
from cytoglot.metrics.uncertainty import bootstrap, bootstrap_difference
from cytoglot.training.rl.collapse import Diversity, diversity
from cytoglot.training.rl.prompts import EvalPrompt, reward_prompts
from cytoglot.training.rl.rewards.context import RewardInputs, read_answers
from cytoglot.training.rl.rewards.mixture import TOTAL, MixedReward, known_mean, mean_statistic, plain

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
        return float(known_mean(self.rewards[mode][name]))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return plain(asdict(self))

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> RewardEval:
        """Read what `to_dict` wrote."""
        return cls(
            step=value["step"],
            rewards={
                m: {n: np.array(v, dtype=np.float64) for n, v in parts.items()} for m, parts in value["rewards"].items()
            },
            diversity={mode: Diversity.from_row(row) for mode, row in value["diversity"].items()},
            overlap={mode: math.nan if one is None else one for mode, one in value["overlap"].items()},
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
        return float(known_mean(np.array([pairwise_overlap(sorted(sentences)) for sentences in by_type.values()])))

    def _write(self, lm: LanguageModel, mode: str) -> list[str]:
        """Return the completions, all samples of a prompt one after the other."""
        # Free text has no more tokens than training allows.
        free: AnswerFormat = FreeText(max_tokens=self._max_tokens)
        is_free = [mode == FREE or isinstance(one.answer_format, FreeText) for one in self._asked]
        formats = [free if i else one.answer_format for i, one in zip(is_free, self._asked, strict=True)]
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
        endings = ["" if i else self._context.terminator for i in is_free]
        return [f" {text}{end}" for samples, end in zip(answers, endings, strict=True) for text in samples]

    def _columns(self) -> dict[str, list[Any]]:
        rows = [row for row in range(len(self._asked)) for _ in range(self._n_samples)]
        return reward_prompts(self._asked).take(rows).as_columns()

    def _rate(self, completions: list[str]) -> dict[str, NDArray[np.float64]]:
        found = self._reward.by_prompt(completions, self._n_samples, **self._columns())
        return {name: known_mean(values_ps) for name, values_ps in found.items()}

    def _compare(self, completions: list[str]) -> tuple[Diversity, float]:
        answers = read_answers(completions, self._columns(), self._context)
        samples = [answers[i : i + self._n_samples] for i in range(0, len(answers), self._n_samples)]
        sentences = [some for some in samples if some[0].is_sentence]
        overlap = [gene_overlap(one.words, one.true.split()) for some in sentences for one in some]
        alike = diversity([[one.words for one in some] for some in sentences])
        return alike, float(known_mean(np.array(overlap, dtype=np.float64)))

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

    def diversity_table(self, evaluations: Sequence[RewardEval]) -> list[dict[str, Any]]:
        """Return a row for each evaluation and way of writing: how alike answers are, beside real cells of a type."""
        real = self.real_overlap()
        return [
            {
                "step": evaluation.step,
                "answers": mode,
                **found.as_row(),
                **plain({"overlap_with_true_cell": evaluation.overlap[mode], "between_real_cells": real}),
            }
            for evaluation in evaluations
            for mode, found in evaluation.diversity.items()
        ]

    def _row(self, first: RewardEval, evaluation: RewardEval, mode: str, name: str, seed: int) -> dict[str, Any]:
        now_p, before_p = evaluation.rewards[mode][name], first.rewards[mode][name]
        known_p = ~np.isnan(now_p) & ~np.isnan(before_p)
        groups = None if self._groups is None else self._groups[known_p]
        settings: dict[str, Any] = {"groups": groups, "unit": self._unit, "seed": seed}
        now, before = mean_statistic(now_p[known_p]), mean_statistic(before_p[known_p])
        level, gain = bootstrap(now, **settings), bootstrap_difference(now, before, **settings)
        found = {"mean": level.value, "low": level.low, "high": level.high}
        found |= {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high}
        return {**plain(found), "prompts": int(known_p.sum()), "unit": self._unit, "units": level.n_units}
