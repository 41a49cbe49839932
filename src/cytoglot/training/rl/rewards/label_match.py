"""The right label, or one that the Cell Ontology puts near it."""

from __future__ import annotations

from functools import lru_cache

from pydantic import Field

from cytoglot.data.knowledge.ontology import map_labels
from cytoglot.data.knowledge.ontology_graph import package_ontology, read_ontology
from cytoglot.tasks.answers import parse_label
from cytoglot.training.rl.rewards.context import Answer, RewardInputs
from cytoglot.training.rl.rewards.reward import AnswerReward, RewardSettings, is_label, register_reward


class LabelMatchSettings(RewardSettings):
    """Of `label_match`."""

    half_distance: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    """steps in the ontology at which the reward has fallen to a half"""
    ontology: str | None = None
    """table of terms with the columns id and parents; by default the part that ships with the package"""


@register_reward
class LabelMatch(AnswerReward[LabelMatchSettings]):
    """1 for the true label; for another, 2^(−d / half_distance) with the distance d of the two in the Cell Ontology.

    d is the number of is-a steps up to a common ancestor and down again, at least; 2 between siblings, at least 1 for
    any text that is not the label itself. Between 0 and 1; a text or a label without a term earns 1 or 0. Texts are
    compared as annotations are read: the first line, regardless of case and spacing.
    """

    name = "label_match"
    settings_type = LabelMatchSettings

    def __init__(self, settings: LabelMatchSettings, context: RewardInputs) -> None:
        super().__init__(settings, context)
        if settings.ontology is not None:
            self._ontology = read_ontology(settings.ontology)
        else:
            self._ontology = context.ontology or package_ontology()
        self._term = lru_cache(maxsize=65536)(self._look_up)

    def rate(self, answer: Answer) -> float | None:
        """Return the reward; None unless a label was asked for, or the settings name the task."""
        if not (is_label(answer) or answer.task in self.settings.tasks) or not answer.true:
            return None
        labels = self.context.labels
        parsed = parse_label(answer.text, labels if answer.true in labels else (*labels, answer.true))
        written = parsed.label or parsed.text
        if written == answer.true:
            return 1.0
        first, second = self._term(answer.true), self._term(written)
        steps = self._ontology.path_length(first, second) if first and second else None
        return 0.0 if steps is None else 2 ** (-max(steps, 1) / self.settings.half_distance)

    def _look_up(self, label: str) -> str | None:
        term = self.context.label_ids[label] if label in self.context.label_ids else map_labels([label]).ids[label]
        return term if term in self._ontology else None
