"""The weighted sum of rewards, each of them checked and clipped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from cytoglot.errors import InputError, nearest_names
from cytoglot.metrics.uncertainty import AdditiveStatistic
from cytoglot.protocols import Reward
from cytoglot.training.rl.rewards.context import RewardInputs
from cytoglot.training.rl.rewards.own_function import load_own
from cytoglot.training.rl.rewards.reward import AnswerReward, RewardSettings, rewards

_COMMON = frozenset(RewardSettings.model_fields)
TOTAL = "reward"
"""the weighted sum, beside the parts by their names"""


class CheckedReward:
    """A reward that is checked at each call and clipped, under the name that logs show.

    Raises
    ------
    InputError
        The reward raised, returned another number of values than completions, or a value that is no finite number;
        the message names it.
    """

    def __init__(self, name: str, reward: Reward, settings: RewardSettings) -> None:
        self.name = self.__name__ = name  # what TRL logs it under
        self.weight = settings.weight
        self.reward, self.settings = reward, settings

    def __call__(self, completions: list[str], **columns: Any) -> list[float | None]:
        """Return one reward per completion, None where it says nothing."""
        try:
            returned = self.reward(completions, **columns)
        except InputError as error:
            raise InputError(f"reward {self.__name__!r}: {error}") from error
        except Exception as error:
            raise InputError(
                f"reward {self.__name__!r} failed on {len(completions)} completions: {type(error).__name__}: {error}"
            ) from error
        n, has_length = len(completions), hasattr(returned, "__len__") and hasattr(returned, "__iter__")
        if isinstance(returned, (str, Mapping)) or not has_length:
            raise InputError(
                f"reward {self.__name__!r} must return a list of {n} rewards, one per completion, found "
                f"{type(returned).__name__}"
            )
        if len(returned) != n:
            raise InputError(
                f"reward {self.__name__!r} must return {n} rewards, one per completion, found {len(returned)}"
            )
        values = [None if value is None else self._clipped(value, i) for i, value in enumerate(returned)]
        if not self.settings.tasks:
            return values
        return [v if t in self.settings.tasks else None for v, t in zip(values, columns["task"], strict=True)]

    def _clipped(self, value: object, i: int) -> float:
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(
                f"reward {self.__name__!r} must return finite numbers, or None to say nothing, found {value!r} for "
                f"completion {i}"
            )
        low, high = self.settings.clip_low, self.settings.clip_high
        number = number if low is None else max(number, low)
        return number if high is None else min(number, high)


class MixedReward:
    """The weighted sum of rewards; make it with `make_reward`.

    Parts that say nothing of an answer (None) are left out of its sum, as TRL does.
    """

    def __init__(self, terms: Sequence[CheckedReward]) -> None:
        self.terms = tuple(terms)

    def parts(self, completions: list[str], **columns: Any) -> dict[str, list[float | None]]:
        """Return the clipped, unweighted value of each reward, by name."""
        return {term.name: term(completions, **columns) for term in self.terms}

    def total(self, parts: Mapping[str, Sequence[float | None]]) -> list[float | None]:
        """Return the weighted sum of what `parts` returned; None for an answer of which no reward says anything."""
        weights = {term.name: term.weight for term in self.terms}
        sums: list[float | None] = []
        for values in zip(*(parts[name] for name in weights), strict=True):
            known = [w * v for w, v in zip(weights.values(), values, strict=True) if v is not None]
            sums.append(math.fsum(known) if known else None)
        return sums

    def by_prompt(self, completions: list[str], n_each: int, **columns: Any) -> dict[str, NDArray[np.float64]]:
        """Return the sum, as `TOTAL`, and what `parts` returns, of shape (prompts, answers to each); NaN for None."""
        parts = self.parts(completions, **columns)
        found = {TOTAL: self.total(parts), **parts}
        return {name: np.array(values, dtype=np.float64).reshape(-1, n_each) for name, values in found.items()}

    def __call__(self, completions: list[str], **columns: Any) -> list[float | None]:
        """Return the weighted sum for each completion; the mean of each part goes to `log_metric`, if that is given."""
        parts = self.parts(completions, **columns)
        log_metric: Callable[[str, float], None] | None = columns.get("log_metric")
        if log_metric is not None:
            for name, values in parts.items():
                known = [value for value in values if value is not None]
                if known:
                    log_metric(f"reward/{name}", sum(known) / len(known))
        return self.total(parts)


def known_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means over the last axis of what is known (no NaN), NaN where nothing is."""
    n_known = (~np.isnan(values)).sum(axis=-1)
    return np.where(n_known > 0, np.nansum(values, axis=-1) / np.maximum(n_known, 1), np.nan)


def mean_statistic(values_n: NDArray[np.float64]) -> AdditiveStatistic:
    """Return the mean of what is known as a statistic to be resampled."""
    known_n = values_n[~np.isnan(values_n)]
    rows_n2 = np.column_stack([known_n, np.ones(len(known_n))])
    return AdditiveStatistic(rows_nk=rows_n2, combine=lambda sums: sums[..., 0] / np.maximum(sums[..., 1], 1))


def plain(value: Any) -> Any:
    """Return JSON values: lists for arrays, None for what is no number."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def make_reward(terms: Mapping[str, Mapping[str, Any]], context: RewardInputs) -> MixedReward:
    """Return the mixture that a recipe describes.

    Parameters
    ----------
    terms
        Name → settings, such as `{"overlap": {"weight": 0.5}}`. The name is that of a registered reward or a path
        `package.module:name`: of a class like ours, or of a function, which is called as TRL calls rewards,
        `function(completions, **columns)`, with the settings that are not ours as further arguments. With
        `reward: NAME` among the settings the key is any name of one's own, so that a reward can be there twice.

    Raises
    ------
    InputError
        There is no term; a name, a setting or a value is unknown or impossible; the context lacks what a reward needs.
        The message names the reward.
    """
    if not terms:
        raise InputError(f"a mixture needs at least one reward; known: {', '.join(rewards)}; see docs/grpo.md")
    made = []
    for name, given in terms.items():
        settings = dict(given or {})
        kind = str(settings.pop("reward", name))
        found: Any = load_own(kind) if ":" in kind else rewards[kind]
        if isinstance(found, type) and issubclass(found, AnswerReward):
            checked = _check_settings(found.settings_type, settings, name)
            try:
                reward: Reward = found(checked, context)
            except InputError as error:
                raise InputError(f"reward {name!r}: {error}") from error
        else:
            own = {key: settings.pop(key) for key in list(settings) if key not in _COMMON}
            checked = _check_settings(RewardSettings, settings, name)
            reward = partial(found, **own)
        made.append(CheckedReward(name, reward, checked))
    return MixedReward(made)


def _check_settings(model: type[RewardSettings], settings: Mapping[str, Any], name: str) -> RewardSettings:
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            hint = nearest_names(key, model.model_fields)
            raise InputError(f"reward {name!r} has no setting {key!r}; {hint}") from error
        where = f"setting {key!r} of reward {name!r}" if key else f"settings of reward {name!r}"
        raise InputError(f"{where}: {fault['msg']}, found {fault['input']!r}") from error
