"""What an embedding holds without being told: whether types are together, batches mixed, and neighbors of one type."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from cytoglot.benchmark.cells import BenchmarkCells
from cytoglot.benchmark.protocols.base import PROTOCOLS, Maker, Outcome, Protocol
from cytoglot.data.normalize import log_normalize, matrix_state
from cytoglot.metrics.embedding.integration import integration_scores
from cytoglot.metrics.embedding.structure import TypeDistances, consensus_distances, scgraph

_MIN_BATCH = 100
"""cells of a batch whose types' distances are taken as real"""


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
        order = rng.permutation(rows)
        permuted = integration_scores(vectors_nd[order], labels, batches, seed=seed)
        reference = self._within_batches(cells, rows)
        if reference is not None:
            scores |= {"scgraph": scgraph(vectors_nd[rows], labels, reference)}
            permuted |= {"scgraph": scgraph(vectors_nd[order], labels, reference)}
        return Outcome(values=scores | {f"permuted_{name}": value for name, value in permuted.items()})

    def _within_batches(self, cells: BenchmarkCells, rows: NDArray[np.int64]) -> TypeDistances | None:
        """Return the distances of types within batches; None where no batch has 100 cells."""
        batches = np.full(len(rows), "all", dtype=object) if cells.batches is None else cells.batches[rows]
        if np.unique(batches.astype(str), return_counts=True)[1].max() < _MIN_BATCH:
            return None
        log_ng = log_normalize(cells.adata.X[rows], matrix_state(cells.adata.X), base=math.e)
        return consensus_distances(log_ng, cells.labels[rows], batches, min_batch_cells=_MIN_BATCH)
