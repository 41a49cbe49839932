"""Large count matrices for benchmarks, drawn in seconds: realistic in size, sparsity and ties, not in biology."""

from __future__ import annotations

import numba
import numpy as np
from scipy.sparse import csr_matrix

from cytoglot.hashing import STEP, mixed

_N_PROFILES = 8
#: Spread of the genes' abundances on the log scale, fitted: 65 % of the counts of a typical cell are ones.
_GENE_SPREAD = 2.4


def make_counts(n_cells: int, n_genes: int, mean_expressed: int, seed: int) -> csr_matrix:
    """Draw counts of shape (n, g): float32 CSR with sorted columns, as an h5ad file holds them.

    A cell draws its transcripts from one of eight gene profiles that differ two-fold or so in each gene; its number of
    transcripts is log-normal. About `mean_expressed` genes are above 0 in a cell, 65 % of them with count 1 (measured
    at 30,000 genes and 2,000 expressed).
    """
    rng = np.random.default_rng(seed)
    abundance_g = rng.lognormal(0.0, _GENE_SPREAD, n_genes)
    profiles_pg = abundance_g * rng.lognormal(0.0, 0.7, (_N_PROFILES, n_genes))
    profiles_pg /= profiles_pg.sum(axis=1, keepdims=True)
    low, high = 1.0, 1e7
    while high / low > 1.001:  # transcripts with which a cell expresses so many genes on average, by bisection
        middle = (low * high) ** 0.5
        expressed = -np.expm1(-middle * profiles_pg).sum(axis=1).mean()
        low, high = (middle, high) if expressed < mean_expressed else (low, middle)
    n_transcripts = np.maximum(rng.lognormal(np.log(low), 0.3, n_cells), 1).astype(np.int64)
    profile_of_cell = rng.integers(0, _N_PROFILES, n_cells)
    tables = [_alias_table(profile) for profile in profiles_pg]
    keep_pg, alias_pg = np.stack([keep for keep, _ in tables]), np.stack([alias for _, alias in tables])
    indptr = np.zeros(n_cells + 1, np.int64)
    upper = int(np.minimum(n_transcripts, n_genes).sum())
    columns, counts = np.empty(upper, np.int32), np.empty(upper, np.float32)
    _draw_cells(n_transcripts, profile_of_cell, keep_pg, alias_pg, np.uint64(seed), indptr, columns, counts)
    n_entries = int(indptr[-1])
    columns.resize(n_entries, refcheck=False)
    counts.resize(n_entries, refcheck=False)
    small = n_entries < np.iinfo(np.int32).max
    return csr_matrix((counts, columns, indptr.astype(np.int32) if small else indptr), shape=(n_cells, n_genes))


@numba.njit(cache=True)
def _alias_table(profile):  # type: ignore[no-untyped-def]
    """Return Walker's alias table: a draw takes one number, however many genes there are."""
    n = len(profile)
    keep, alias = profile * n, np.arange(n).astype(np.int32)
    small, large = [0][:0], [0][:0]
    for gene in range(n):
        (small if keep[gene] < 1.0 else large).append(gene)
    while len(small) > 0 and len(large) > 0:
        poor, rich = small.pop(), large[-1]
        alias[poor] = rich
        keep[rich] -= 1.0 - keep[poor]
        if keep[rich] < 1.0:
            small.append(large.pop())
    return keep, alias


@numba.njit(cache=True)
def _draw_cells(n_transcripts, profile_of_cell, keep_pg, alias_pg, seed, indptr, columns, counts):  # type: ignore[no-untyped-def]
    n_genes = keep_pg.shape[1]
    cell_counts = np.zeros(n_genes, np.int32)
    state = seed * STEP + np.uint64(1)
    end = 0
    for cell in range(len(n_transcripts)):
        keep, alias = keep_pg[profile_of_cell[cell]], alias_pg[profile_of_cell[cell]]
        for _ in range(n_transcripts[cell]):
            # SplitMix64; the upper bits choose the gene, the lower ones between the gene and its alias
            state += STEP
            bits = mixed(state)
            gene = np.int64(((bits >> np.uint64(32)) * np.uint64(n_genes)) >> np.uint64(32))
            if np.float64(bits & np.uint64(0xFFFFFFFF)) * 2.0**-32 >= keep[gene]:
                gene = alias[gene]
            cell_counts[gene] += 1
        for column in range(n_genes):
            if cell_counts[column] > 0:
                columns[end] = column
                counts[end] = cell_counts[column]
                cell_counts[column] = 0
                end += 1
        indptr[cell + 1] = end
