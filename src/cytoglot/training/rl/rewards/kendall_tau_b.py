"""The order of the genes: Kendall's τ-b with the true cell, or with the mean profile of its type."""

from __future__ import annotations

import math

from cytoglot.metrics.generation import kendall_tau
from cytoglot.training.rl.rewards.context import Answer
from cytoglot.training.rl.rewards.overlap import OverlapSettings, reference_genes
from cytoglot.training.rl.rewards.reward import AnswerReward, register_reward


@register_reward
class KendallTauB(AnswerReward[OverlapSettings]):
    """τ-b of the ranks of all genes of the vocabulary; genes absent from a sentence share its last rank.

    Between −1 and 1. Only as many words as were asked for are ranked, so further words gain nothing. Where τ-b is
    undefined (no gene was written) the reward is −1: as a metric that counts 0, which would be more than a wrong try.
    Like `overlap`, it favors the average cell.
    """

    name = "kendall_tau_b"
    low = -1.0
    settings_type = OverlapSettings

    def rate(self, answer: Answer) -> float | None:
        """Return the reward; None for what is no sentence, and without training cells of the type."""
        if not answer.is_sentence:
            return None
        wanted = reference_genes(self, answer, self.settings.against)
        if not wanted:
            return None
        tau = kendall_tau(answer.words[: answer.num_genes], wanted, self.context.gene_set)
        return -1.0 if math.isnan(tau) else tau
