"""What an embedding holds without being told: whether types are together, batches mixed, and neighbors of one type."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from cytoglot.benchmark.cells import BenchmarkCells
from cytoglot.benchmark.protocols.base import PROTOCOLS, Maker, Outcome, Protocol
from cytoglot.metrics.integration import integration_scores


@PROTOCOLS.register("embedding")
class Embedding(Protocol):
    """All cells are embedded, by methods that learn from them without labels, and scored.

    Beside each method stand its permuted vectors (`permuted`: the vectors of other cells), which know nothing.
    """

    judges: ClassVar[Literal["labels", "embedding"]] = "embedding"
    max_cells: int = 10_000
    """of more cells a random choice is scored"""

    def splits(self, cells: BenchmarkCells, seed: int) -> list[str]:
        """Return the one split."""
        return ["whole"]

    def run(self, cells: BenchmarkCells, maker: Maker, split: str, seed: int) -> Outcome:
        """Embed the cells and return the scores, and those of the permuted vectors with "permuted" before the name."""
        vectors_nd = maker.fitted_embedder(cells.adata, seed).embed(cells.adata.copy())
        rng = np.random.default_rng([seed, 4])
        rows = np.sort(rng.permutation(len(vectors_nd))[: self.max_cells])
        labels, batches = cells.labels[rows], None if cells.batches is None else cells.batches[rows]
        scores = integration_scores(vectors_nd[rows], labels, batches, seed=seed)
        permuted = integration_scores(vectors_nd[rng.permutation(rows)], labels, batches, seed=seed)
        return Outcome(values=scores | {f"permuted_{name}": value for name, value in permuted.items()})
