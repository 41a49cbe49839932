"""What a benchmark compares, as a recipe: data sets, methods and protocols."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from cytoglot.config import Settings

Role = Literal["baseline", "control", "model", "replicate"]


class DataSettings(Settings):
    """A file of labelled cells."""

    name: str
    source: str
    """path, name of a data set, or file of the folder that CYTOGLOT_DATA names"""
    label: str = "cell_type"
    """column of obs with the true labels; cells without one are left out"""
    groups: str | None = None
    """column of donors or batches: left out whole, and resampled whole for intervals"""
    batch: str | None = None
    """column of batches that an integration should mix; by default `groups`"""
    leave_out: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """column of obs → values whose cells are left out, such as {cell_type: [unassigned]}"""
    max_cells: int | None = None
    """at most so many cells, drawn at random within each label"""


class MethodSettings(Settings):
    """What is judged: a classifier, an embedder, or a classifier on an embedder."""

    name: str
    classifier: str | None = None
    """of `cytoglot.benchmark.classifiers`; None: judged as an embedding alone"""
    options: dict[str, Any] = Field(default_factory=dict)
    """arguments of the classifier"""
    embedder: str | None = None
    """of `cytoglot.benchmark.embedders`; None: the classifier reads expression"""
    embedder_options: dict[str, Any] = Field(default_factory=dict)
    role: Role = "baseline"
    """baselines are what a model has to beat, controls what none may fall to; a replicate shows the ceiling"""
    contamination: Literal["none", "known", "unknown"] = "none"
    """whether a pretrained model has seen these cells: "unknown" never wins"""

    @model_validator(mode="after")
    def _something(self) -> MethodSettings:
        if self.classifier is None and self.embedder is None:
            raise ValueError(f"method {self.name!r} needs a classifier, an embedder or both")
        return self


class BenchmarkRecipe(Settings):
    """A whole comparison."""

    name: str = "benchmark"
    data: tuple[DataSettings, ...] = ()
    methods: tuple[MethodSettings, ...] = ()
    protocols: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """name of a protocol → its settings"""
    seeds: tuple[int, ...] = (0,)
    """of folds and of methods; each is a whole repetition"""
    reference: str = "logistic_regression"
    """the simple baseline that is 0 on the common scale"""
    margin: float = 0.01
    """differences up to this are practically none"""

    @model_validator(mode="after")
    def _names(self) -> BenchmarkRecipe:
        for what, names in (("data set", [d.name for d in self.data]), ("method", [m.name for m in self.methods])):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"every {what} needs a name of its own, found {twice[0]!r} twice")
        return self
