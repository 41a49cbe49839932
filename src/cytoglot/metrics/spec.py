"""What every metric says about itself, and the registry by which recipes and result tables name it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from cytoglot.registry import Registry

Direction = Literal["higher", "lower"]
Inputs = Literal[
    "labels", "probabilities", "sentence", "sentence_pair", "sentences", "vectors", "text_pair", "embedding",
    "paired_embeddings", "terms",
]  # fmt: skip
Function = TypeVar("Function", bound=Callable[..., float])


@dataclass(frozen=True, kw_only=True)
class MetricSpec:
    """A registered metric: the function and the facts that a reader of its value needs."""

    name: str
    function: Callable[..., float]
    inputs: Inputs
    """what the function takes, in its first arguments"""
    low: float
    high: float
    direction: Direction
    """which end is better"""
    reference: str
    """where the definition comes from, and where we differ"""
    target: float | None = None
    """the value of a perfect result, where it is not an end of the range"""
    statistic: Callable[..., Any] | None = None
    """the same metric as an `AdditiveStatistic`, for bootstrap intervals; None if it has no such form"""

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"metric {self.name!r}: the range needs low < high, found {self.low} and {self.high}")

    @property
    def best(self) -> float:
        """The value of a perfect result, which may be infinite."""
        if self.target is not None:
            return self.target
        return self.high if self.direction == "higher" else self.low

    def contains(self, value: float) -> bool:
        """Return whether a value lies in the range; NaN, which stands for "undefined here", does."""
        return math.isnan(value) or self.low - 1e-9 <= value <= self.high + 1e-9


metrics: Registry[MetricSpec] = Registry(
    "metric",
    tuple(
        f"cytoglot.metrics.{name}"
        for name in (
            "classification",
            "generation",
            "cell_sets",
            "coexpression",
            "text",
            "embedding.silhouette_width",
            "embedding.integration",
            "embedding.foscttm",
            "ontology",
            "embedding.structure",
            "embedding.onto_rwr",
            "embedding.roughness",
            "embedding.gene_groups",
        )
    ),
)


def metric(
    name: str,
    *,
    inputs: Inputs,
    direction: Direction,
    reference: str,
    low: float = 0.0,
    high: float = 1.0,
    target: float | None = None,
    statistic: Callable[..., Any] | None = None,
) -> Callable[[Function], Function]:
    """Return a decorator that registers a function under `name` and gives it back unchanged.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.metrics["accuracy"].direction  # what `accuracy` was registered with
    'higher'
    """

    def file(function: Function) -> Function:
        spec = MetricSpec(
            name=name,
            function=function,
            inputs=inputs,
            low=low,
            high=high,
            direction=direction,
            target=target,
            reference=reference,
            statistic=statistic,
        )
        metrics.register(name)(spec)
        return function

    return file
