"""A value beside what it is when labels say nothing: the same computation with the labels in random order.

Axes: r permutations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cytoglot.metrics.spec import Direction
from cytoglot.metrics.uncertainty import Floats


@dataclass(frozen=True, kw_only=True)
class AgainstChance:
    """A value and its null distribution."""

    value: float
    null_r: Floats
    """values with labels in random order; NaN where undefined"""
    direction: Direction = "higher"
    """which end is better"""

    @property
    def mean(self) -> float:
        """Mean of the null; NaN if no permutation gave a value."""
        defined = self.null_r[~np.isnan(self.null_r)]
        return float(defined.mean()) if len(defined) else float("nan")

    @property
    def sd(self) -> float:
        """Standard deviation of the null; NaN with fewer than two values."""
        defined = self.null_r[~np.isnan(self.null_r)]
        return float(defined.std(ddof=1)) if len(defined) > 1 else float("nan")

    @property
    def p_value(self) -> float:
        """(1 + permutations at least as good) / (1 + permutations); NaN where the value or all of the null is."""
        defined = self.null_r[~np.isnan(self.null_r)]
        if np.isnan(self.value) or not len(defined):
            return float("nan")
        as_good = defined >= self.value if self.direction == "higher" else defined <= self.value
        return float((1 + as_good.sum()) / (1 + len(defined)))
