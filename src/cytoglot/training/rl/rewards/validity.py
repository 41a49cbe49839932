"""The form that was asked for: genes of the vocabulary, as many as asked, and an end."""

from __future__ import annotations

from pydantic import Field

from cytoglot.metrics.generation import validity
from cytoglot.tasks.answers import parse_label
from cytoglot.training.rl.rewards.context import Answer
from cytoglot.training.rl.rewards.reward import AnswerReward, RewardSettings, is_label, register_reward


class ValiditySettings(RewardSettings):
    """Of `validity`."""

    unended: float = Field(default=0.5, ge=0, le=1)
    """an answer without its terminator keeps this share of the reward"""


@register_reward
class Validity(AnswerReward[ValiditySettings]):
    """Share of the words that are genes, times min(asked, written) / max(asked, written), times the end.

    For a label: 1 if it is one of the labels, else 0, times the end. Between 0 and 1; an empty answer earns 0. Repeated
    genes count as genes: `distinctness` looks at those.
    """

    name = "validity"
    settings_type = ValiditySettings

    def rate(self, answer: Answer) -> float | None:
        """Return the reward; None for an answer in free text, and for labels where the set is not known."""
        end = 1.0 if answer.ended else self.settings.unended
        if is_label(answer) and self.context.labels:
            return end * (parse_label(answer.text, self.context.labels).match != "none")
        if not answer.is_sentence:
            return None
        if not answer.words:
            return 0.0
        length = min(answer.num_genes, len(answer.words)) / answer.longest
        return end * length * validity(answer.words, self.context.gene_set)
