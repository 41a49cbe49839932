"""Genes that the answer shares with the true cell, or with the cells of its type."""

from __future__ import annotations

from typing import Literal

from cytoglot.training.rl.rewards.context import Answer
from cytoglot.training.rl.rewards.reward import AnswerReward, RewardSettings, register_reward

Against = Literal["truth", "profile"]


class OverlapSettings(RewardSettings):
    """Of `overlap`."""

    against: Against = "truth"
    """truth: the true sentence; profile: as many most typical genes of the type's training cells"""


@register_reward
class Overlap(AnswerReward[OverlapSettings]):
    """|distinct written ∩ reference| / max(asked, written), the reference cut to the number of words asked for.

    Between 0 and 1. Words that are no genes, and repeats, count among the written, so neither a short nor a long answer
    gains. Alone it favors the average cell: the mean profile of a type overlaps more with its cells than they do with
    each other.
    """

    name = "overlap"
    settings_type = OverlapSettings

    def rate(self, answer: Answer) -> float | None:
        """Return the reward; None for what is no sentence, and without training cells of the type."""
        if not answer.is_sentence:
            return None
        wanted = reference_genes(self, answer, self.settings.against)
        return len(set(wanted) & set(answer.words)) / answer.longest if wanted else None


def reference_genes(reward: AnswerReward[OverlapSettings], answer: Answer, against: Against) -> tuple[str, ...]:
    """Return the genes that an answer is compared with, highest first, as many as were asked for at most."""
    if against == "truth":
        return tuple(answer.true.split())[: answer.num_genes]
    return reward.context.profiles.top(answer.cell_type, answer.num_genes)
