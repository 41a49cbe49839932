"""Simple methods that a model has to beat."""

from cytoglot.benchmark.baselines.base import BASELINES, Baseline
from cytoglot.benchmark.baselines.type_profile import TypeProfile

__all__ = ["BASELINES", "Baseline", "TypeProfile"]
