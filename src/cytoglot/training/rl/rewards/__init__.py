"""What a model is rewarded for: one file per reward, found by the registry; `make_reward` mixes them."""

from cytoglot.training.rl.rewards.context import Answer, RewardInputs, RewardPrompts
from cytoglot.training.rl.rewards.mixture import MixedReward, make_reward
from cytoglot.training.rl.rewards.reward import AnswerReward, RewardSettings, register_reward, rewards

__all__ = [
    "Answer",
    "AnswerReward",
    "MixedReward",
    "RewardInputs",
    "RewardPrompts",
    "RewardSettings",
    "make_reward",
    "register_reward",
    "rewards",
]
