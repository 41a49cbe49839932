"""No gene twice: a penalty on repeated words."""

from __future__ import annotations

from pydantic import Field

from cytoglot.metrics.generation import duplicate_share
from cytoglot.training.rl.rewards.context import Answer
from cytoglot.training.rl.rewards.reward import AnswerReward, RewardSettings, register_reward


class DistinctnessSettings(RewardSettings):
    """Of `distinctness`."""

    strength: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """how much a share of repeated words costs: at 4, a quarter of repeats costs everything"""


@register_reward
class Distinctness(AnswerReward[DistinctnessSettings]):
    """1 − strength · (share of the written words that repeat an earlier one), at least 0; an empty answer earns 0."""

    name = "distinctness"
    settings_type = DistinctnessSettings

    def rate(self, answer: Answer) -> float | None:
        """Return the reward; None for what is no sentence."""
        if not answer.is_sentence:
            return None
        return max(0.0, 1 - self.settings.strength * duplicate_share(answer.words)) if answer.words else 0.0
