"""Rewards as a user would write them, good and bad, and faults that a mixture must name."""

from __future__ import annotations

import math

from cytoglot.training.rl.rewards import Answer, AnswerReward, RewardSettings

ANSWER = "no function"


def length(completions: list[str], *, scale: float = 1.0, **columns: object) -> list[float | None]:
    return [scale * len(text.split()) for text in completions]


def nothing_of_short(completions: list[str], **columns: object) -> list[float | None]:
    return [None if len(text.split()) < 2 else 1.0 for text in completions]


def fails(completions: list[str], **columns: object) -> list[float | None]:
    return [1 / 0 for _ in completions]


def one_too_few(completions: list[str], **columns: object) -> list[float | None]:
    return [1.0] * (len(completions) - 1)


def not_a_number(completions: list[str], **columns: object) -> list[float | None]:
    return [math.nan for _ in completions]


def texts(completions: list[str], **columns: object) -> list[str]:
    return ["good" for _ in completions]


def one_number(completions: list[str], **columns: object) -> float:
    return 1.0


class BrevitySettings(RewardSettings):
    words: int = 1


class Brevity(AnswerReward[BrevitySettings]):
    """Words that are enough, over words written."""

    name = "brevity"
    settings_type = BrevitySettings

    def rate(self, answer: Answer) -> float | None:
        return self.settings.words / len(answer.words) if answer.words else None
