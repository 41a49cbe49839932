"""Cells made up for tests, examples and benchmarks; every number comes from the seed."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse


def make_cells(
    *,
    n_cells: int = 300,
    n_genes: int = 500,
    n_types: int = 4,
    n_donors: int = 3,
    expressed: float | None = None,
    seed: int = 0,
) -> AnnData:
    """Return gamma-Poisson counts (CSR int32) of cells whose type raises the genes of its own programme.

    Gene means are log-normal, a type raises its own twentieth of the genes eightfold, a donor shifts all genes by about
    10 %, and cell sizes vary by about a third; the dispersion of a gene is 0.3. On average about `expressed` genes of a
    cell are > 0 (default: a fifth of the genes), most of them with a count of 1, so that ties are as common as in real
    data. `obs` has `cell_type` ("type A", …), `donor`, `batch` (two batches of whole donors); cells "cell_0", …; genes
    "GENE0", …, one in a hundred of them "MT-GENE…". Types and donors are drawn independently, each at least once where
    `n_cells` allows it.
    """
    rng = np.random.default_rng(seed)
    cell_type = _spread(n_cells, n_types, rng)
    donor = _spread(n_cells, n_donors, rng)
    profiles = np.tile(np.exp(rng.normal(0.0, 1.2, n_genes)), (n_types, 1))  # share of each gene by type, (t, g)
    order, n_programme = rng.permutation(n_genes), max(1, n_genes // 20)
    for t in range(n_types):
        profiles[t, order[np.arange(t * n_programme, (t + 1) * n_programme) % n_genes]] *= 8.0
    profiles /= profiles.sum(axis=1, keepdims=True)
    donor_effect = np.exp(rng.normal(0.0, 0.1, (n_donors, n_genes)))
    wanted = n_genes / 5 if expressed is None else expressed
    low, high, share = 0.0, 1e9, profiles.mean(axis=0)
    for _ in range(100):  # counts per cell at which so many genes are > 0: bisection on the negative binomial's zeros
        depth = (low + high) / 2
        n_expressed = (1 - (1 + 0.3 * depth * share) ** (-1 / 0.3)).sum()
        low, high = (depth, high) if n_expressed < wanted else (low, depth)
    size = low * np.exp(rng.normal(0.0, 0.3, n_cells))
    blocks = [sparse.csr_matrix(np.zeros((0, n_genes), dtype=np.int32))]
    for start in range(0, n_cells, 1000):  # bounds the dense means
        rows = slice(start, start + 1000)
        means_ng = profiles[cell_type[rows]] * donor_effect[donor[rows]] * size[rows, None]
        counts_ng = rng.poisson(means_ng * rng.gamma(1 / 0.3, 0.3, means_ng.shape))
        blocks.append(sparse.csr_matrix(counts_ng.astype(np.int32)))
    counts = sparse.vstack(blocks, format="csr")
    letters = [chr(ord("A") + t % 26) + (str(t // 26) if t >= 26 else "") for t in range(n_types)]
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical([f"type {letters[t]}" for t in cell_type]),
            "donor": pd.Categorical([f"donor_{d + 1}" for d in donor]),
            "batch": pd.Categorical([f"batch_{d % 2 + 1}" for d in donor]),
        },
        index=[f"cell_{i}" for i in range(n_cells)],
    )
    genes = [f"MT-GENE{i}" if i % 100 == 99 else f"GENE{i}" for i in range(n_genes)]
    return AnnData(X=counts, obs=obs, var=pd.DataFrame(index=genes))


def _spread(n_cells: int, n_groups: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.permutation(np.arange(n_cells) % n_groups)
