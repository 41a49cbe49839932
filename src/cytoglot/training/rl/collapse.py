"""Whether answers to one prompt grow alike, or repeat themselves, while a reward is followed.

A reward that compares with cells is best served by their average: overlap with real cells rises while the variety of
what is written falls. So alike answers are looked for beside the reward, on the same held-out prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from cytoglot.metrics.generation import duplicate_share, pairwise_overlap
from cytoglot.training.rl.rewards.mixture import known_mean, plain

_MAX_REPEATED_GAIN = 0.05
"""more repeated words than before, as a share of all words, that are worth a word"""


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """How alike the answers to a prompt are, as means over prompts; NaN where nothing can be compared."""

    between_samples: float
    """mean of 2·|A ∩ B| / (|A| + |B|) over pairs of answers to one prompt"""
    repeated_answers: float
    """share of the answers that equal an earlier answer to their prompt"""
    repeated_words: float
    """share of the words that were there before in their answer"""
    words: float
    """words of an answer"""

    def as_row(self) -> dict[str, float | None]:
        """Return plain JSON values."""
        return plain(asdict(self))

    @classmethod
    def from_row(cls, row: Mapping[str, float | None]) -> Diversity:
        """Read what `as_row` wrote."""
        return cls(**{name: math.nan if value is None else value for name, value in row.items()})


def diversity(samples_of_prompts: Sequence[Sequence[Sequence[str]]]) -> Diversity:
    """Return how alike answers are; prompt → sample → word."""
    alike, repeated, words, lengths = [], [], [], []
    for samples in samples_of_prompts:
        alike.append(pairwise_overlap(samples))
        repeated.append(1 - len({tuple(sample) for sample in samples}) / len(samples) if samples else math.nan)
        words += [duplicate_share(sample) for sample in samples]
        lengths += [float(len(sample)) for sample in samples]
    means = (float(known_mean(np.array(values, dtype=np.float64))) for values in (alike, repeated, words, lengths))
    return Diversity(
        **dict(zip(("between_samples", "repeated_answers", "repeated_words", "words"), means, strict=True))
    )


@dataclass(frozen=True, kw_only=True)
class CollapseMonitor:
    """Compares with what was written before training."""

    before: Diversity
    max_overlap_gain: float
    on_collapse: Literal["warn", "stop"]
    real: float = math.nan
    """`between_samples` of real cells of one type, for comparison"""

    def warning(self, now: Diversity) -> str | None:
        """Return what is wrong, None while all is well. Without two answers to a prompt nothing can be said."""
        if self._too_alike(now):
            real = "" if math.isnan(self.real) else f", and above that of real cells of one type ({self.real:.2f})"
            return (
                f"answers to one prompt grow alike: their overlap rose from {self.before.between_samples:.2f} to "
                f"{now.between_samples:.2f}, by more than grpo.max_overlap_gain = {self.max_overlap_gain:g}{real}; "
                "raise grpo.kl or the weight of diversity, lower optim.learning_rate or train fewer steps"
            )
        if now.repeated_words - self.before.repeated_words > _MAX_REPEATED_GAIN:
            return (
                f"answers repeat their words: from {self.before.repeated_words:.1%} to {now.repeated_words:.1%} of all "
                "words; add the reward distinctness, or set grpo.constrained"
            )
        return None

    def collapsed(self, now: Diversity) -> bool:
        """Tell whether training is to be stopped."""
        return self.on_collapse == "stop" and self._too_alike(now)

    def _too_alike(self, now: Diversity) -> bool:
        """A model that wrote cells more different than real ones are may become like these, but no more."""
        gain = now.between_samples - self.before.between_samples
        return gain > self.max_overlap_gain and not now.between_samples <= self.real
