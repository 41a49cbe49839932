"""A model with an environment of its own as an embedder that a recipe can name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cytoglot.benchmark.embedders.base import BATCH, EMBEDDERS

if TYPE_CHECKING:
    from cytoglot.benchmark.runners.embedder import RunnerEmbedder
    from cytoglot.benchmark.runners.settings import Option


@EMBEDDERS.register("runner")
def embed_by_runner(
    *,
    name: str,
    options: Mapping[str, Option] | None = None,
    weights: str | Path | None = None,
    runners: Sequence[str | Path] = (),
    seed: int = 0,
) -> RunnerEmbedder:
    """Return a runner as an embedder; it sees the batch where it reads one, and no label.

    Parameters
    ----------
    name
        A name that `cytoglot runner list` shows, such as "scvi-tools".
    options
        Options of its script that differ from their defaults.
    weights
        Folder of its files; None for that of the cache.
    runners
        Folders with runners of your own.
    seed
        Of its script.
    """
    from cytoglot.benchmark.runners import RunnerEmbedder, find_runner

    found = find_runner(name, [Path(folder) for folder in runners])
    return RunnerEmbedder(
        runner=found,
        options=options or {},
        weights=None if weights is None else Path(weights),
        batch_column=BATCH if "batch" in found.settings.reads else None,
        seed=seed,
    )
