"""How little the answers to one prompt are alike: what keeps a model from writing the average cell for every cell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from cytoglot.training.rl.rewards.context import Answer
from cytoglot.training.rl.rewards.reward import AnswerReward, RewardSettings, register_reward


@register_reward
class Diversity(AnswerReward[RewardSettings]):
    """½ · (mean of m over the group) − m, where m is an answer's mean overlap with the other answers to its prompt.

    Overlap is |A ∩ B| / max(words asked, written in A, written in B), on genes. Between −1 and 0.5. The sum of
    `overlap` and `diversity` at equal weights is, averaged over a group, the kernel score
    E k(answer, truth) − ½ E k(answer, answer′) :cite:p:`gneiting2007scoring`, which no distribution of answers beats
    the true one in; and each answer's share of it is what the group's sum gains by that answer. Groups are the answers
    to one prompt in one call: a group that is split over processes is compared within each of them.
    """

    name = "diversity"
    low, high = -1.0, 0.5

    def rate_all(self, answers: Sequence[Answer]) -> list[float | None]:
        """Return the rewards; None for what is no sentence and for the only answer to a prompt."""
        groups: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for i, answer in enumerate(answers):
            if answer.is_sentence:
                groups[answer.prompt, answer.key].append(i)
        rated: list[float | None] = [None] * len(answers)
        for members in (group for group in groups.values() if len(group) > 1):
            group = [answers[i] for i in members]
            genes = [self.context.gene_set.intersection(answer.words) for answer in group]
            sums = [0.0] * len(group)
            for i in range(len(group)):
                for j in range(i):
                    overlap = len(genes[i] & genes[j]) / max(group[i].longest, group[j].longest)
                    sums[i] += overlap
                    sums[j] += overlap
            likeness = [total / (len(group) - 1) for total in sums]
            for i, m in zip(members, likeness, strict=True):
                rated[i] = sum(likeness) / len(likeness) / 2 - m
        return rated

    def rate(self, answer: Answer) -> float | None:
        """Return None: an answer alone is neither like nor unlike others."""
        return None
