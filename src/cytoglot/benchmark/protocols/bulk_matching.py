"""A cell and the bulk profile that it is part of: how many profiles are nearer to the cell than its own (FOSCTTM)."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from cytoglot.benchmark.cells import BenchmarkCells, check_counts
from cytoglot.benchmark.protocols.base import PROTOCOLS, Maker, Outcome, Protocol
from cytoglot.errors import InputError
from cytoglot.metrics.embedding.foscttm import foscttm_per_pair


@PROTOCOLS.register("bulk_matching")
class BulkMatching(Protocol):
    """Counts of ten cells of one donor (or batch) and label are summed to a profile; cells and profiles are embedded.

    As in C2S-Scale, which does not say the direction, the denominator or what it compares with: here both directions,
    n − 1 and centred cosine similarity; each cell is judged among the profiles, so profiles are few and none is twice.
    """

    judges: ClassVar[Literal["labels", "embedding"]] = "embedding"
    cells_per_profile: int = 10

    def splits(self, cells: BenchmarkCells, seed: int) -> list[str]:
        """Return the one split; an InputError with fewer than three profiles or without counts."""
        check_counts(cells.adata, what="bulk profiles")
        if len(self._profiles(cells, seed)) < 3:
            raise InputError(f"{cells.name} has fewer than 3 groups of {self.cells_per_profile} cells of one label")
        return ["whole"]

    def run(self, cells: BenchmarkCells, maker: Maker, split: str, seed: int) -> Outcome:
        """Embed one cell of each profile, and the profile of the other nine."""
        members = self._profiles(cells, seed)
        single = np.array([rows[0] for rows in members])
        rest = np.concatenate([rows[1:] for rows in members])
        which = np.repeat(np.arange(len(members)), self.cells_per_profile - 1)
        sums = csr_matrix((np.ones(len(rest)), (which, np.arange(len(rest))))) @ csr_matrix(cells.adata.X)[rest]
        names = [f"profile {number}" for number in range(len(members))]
        bulk = AnnData(sums.astype(np.float32), obs=pd.DataFrame(index=names), var=cells.adata.var.copy())
        others = np.setdiff1d(np.arange(cells.adata.n_obs), np.concatenate([single, rest]))
        embedder = maker.fitted_embedder(cells.take(others), seed, new_cells=True)
        x_nd, y_nd = embedder.embed(cells.take(single)), embedder.embed(bulk)
        x_nd, y_nd = (part - part.mean(axis=0) for part in (x_nd, y_nd))
        of_cell, of_profile = foscttm_per_pair(x_nd, y_nd)
        table = pd.DataFrame(
            {
                "cell": cells.adata.obs_names[single].astype(str),
                "group": "" if cells.groups is None else cells.groups[single],
                "foscttm": (of_cell + of_profile) / 2,
                "condition": "",
            }
        )
        return Outcome(cells=table)

    def _profiles(self, cells: BenchmarkCells, seed: int) -> list[np.ndarray]:
        """Return the rows of the cells of each profile: at most half of the cells, as the embedder needs the others."""
        kinds = pd.Series(cells.labels)
        for column in (cells.groups, cells.batches):
            kinds = kinds if column is None else kinds + "\n" + pd.Series(column)
        rng = np.random.default_rng([seed, 6])
        shuffled = rng.permutation(len(kinds))
        size, found = self.cells_per_profile, []
        for _, rows in pd.Series(shuffled).groupby(kinds.to_numpy()[shuffled]):
            found += [rows.to_numpy()[i : i + size] for i in range(0, len(rows) - size + 1, size)]
        n_kept = min(len(found), len(kinds) // (2 * size))
        return [found[place] for place in np.sort(rng.choice(len(found), n_kept, replace=False))]
