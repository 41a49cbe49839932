"""Cells of many files → a corpus on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytoglot.corpus.engines import Engine
from cytoglot.corpus.recipe import CorpusRecipe, load_corpus_recipe


@dataclass(frozen=True, kw_only=True)
class BuildSummary:
    """What `build_corpus` wrote."""

    cells: int
    cell_groups: int
    genes: int
    """genes of the vocabulary"""
    ranked_ids: int
    shards: int
    fingerprint: str
    skipped: tuple[str, ...] = ()
    """names of the sources that were left out"""
    resumed_spans: int = 0
    """runs of cells that an earlier, interrupted build had ranked"""
    resumed_shards: int = 0
    """shards that it had finished"""


def read_recipe(path: str | Path, overrides: Iterable[str] = ()) -> CorpusRecipe:
    """Read a recipe."""
    return load_corpus_recipe(path, overrides)


def build_corpus(
    recipe: CorpusRecipe | str | Path,
    out: str | Path,
    *,
    engine: Engine = "local",
    workers: int = 1,
    seed: int = 0,
    skip_bad: bool = False,
    overwrite: bool = False,
    overrides: Iterable[str] = (),
) -> BuildSummary:
    """Build a corpus."""
    raise NotImplementedError


def forecast_build(recipe: CorpusRecipe, *, seed: int = 0, skip_bad: bool = False) -> dict[str, Any]:
    """Say what a build would read and write."""
    raise NotImplementedError
