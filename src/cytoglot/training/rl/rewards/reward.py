"""The base of our rewards and the registry by which recipes name them."""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import Field, model_validator

from cytoglot.config import Settings
from cytoglot.registry import Registry
from cytoglot.tasks.task import tasks
from cytoglot.training.rl.rewards.context import Answer, RewardInputs, read_answers


class RewardSettings(Settings):
    """What can be set of every reward."""

    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """the reward is multiplied by it in the sum"""
    clip_low: float | None = Field(default=None, allow_inf_nan=False)
    """a smaller reward counts as this"""
    clip_high: float | None = Field(default=None, allow_inf_nan=False)
    """a greater reward counts as this"""
    tasks: tuple[str, ...] = ()
    """rate answers to these tasks only; empty: wherever the reward applies"""

    @model_validator(mode="after")
    def _ordered(self) -> RewardSettings:
        if self.clip_low is not None and self.clip_high is not None and self.clip_low >= self.clip_high:
            raise ValueError(f"clip_low must be below clip_high, found {self.clip_low} and {self.clip_high}")
        return self


S = TypeVar("S", bound=RewardSettings)


class AnswerReward(ABC, Generic[S]):
    """A reward of single answers; a new one sets the class variables and implements `rate`, or `rate_all`.

    Raises
    ------
    InputError
        The context lacks what the reward needs.
    """

    name: ClassVar[str]
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0
    """every value lies between `low` and `high`"""
    settings_type: ClassVar[type[RewardSettings]] = RewardSettings

    def __init__(self, settings: S, context: RewardInputs) -> None:
        self.settings, self.context = settings, context

    def __call__(self, completions: list[str], **columns: Any) -> list[float | None]:
        """Return one reward per completion; None where the reward says nothing about such an answer."""
        return self.rate_all(read_answers(completions, columns, self.context))

    def rate_all(self, answers: Sequence[Answer]) -> list[float | None]:
        """Return the reward of each answer; overridden where answers are rated together."""
        return [self.rate(answer) for answer in answers]

    def favorites(self, cell_type: str) -> tuple[str, ...]:
        """Return genes that please this reward alone, for a probe that writes them first; by default none."""
        return ()

    @abstractmethod
    def rate(self, answer: Answer) -> float | None:
        """Return the reward of one answer, None if it does not apply; never raises on any text."""


_FOUNDATIONS = {"context", "reward", "mixture", "own_function", "type_profile", "text_encoder", "adversarial_answers"}


# Every module beside this one but these is a reward: a new file is a new one.
_modules = {module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])} - _FOUNDATIONS

rewards: Registry[type[AnswerReward[Any]]] = Registry(
    "reward", tuple(f"cytoglot.training.rl.rewards.{name}" for name in sorted(_modules))
)

R = TypeVar("R", bound=type[AnswerReward[Any]])


def register_reward(reward: R) -> R:
    """File a class of rewards under its name."""
    rewards.register(reward.name)(reward)
    return reward


def is_label(answer: Answer) -> bool:
    """Whether a label out of a closed set was asked for."""
    return not answer.is_sentence and answer.task in tasks and tasks[answer.task].closed_answer
