"""UCE (Rosen 2023): genes drawn by their log counts, in the order of the genome, chromosome by chromosome.

Axes: g genes of a cell, t tokens.
"""

from __future__ import annotations

import numpy as np

PAD, CHROMOSOME_END, CLS = 0, 2, 3
FIRST_CHROMOSOME = 143_574
"""token of chromosome 0: the tokens below are genes of all species"""
SAMPLE_SIZE, MAX_TOKENS = 1_024, 1_536


def drawn_genes(counts_g: np.ndarray, rng: np.random.Generator, *, n_draws: int = SAMPLE_SIZE) -> np.ndarray:
    """Return places of genes, int64 (`n_draws`), drawn with replacement by ln(1 + count), evenly in an empty cell."""
    weights = np.log1p(np.asarray(counts_g, dtype=np.float64))
    weights = weights / weights.sum() if weights.sum() > 0 else np.full(len(weights), 1 / len(weights))
    return rng.choice(len(weights), n_draws, replace=True, p=weights)


def chromosome_tokens(
    genes: np.ndarray,
    tokens_g: np.ndarray,
    chromosome_g: np.ndarray,
    start_g: np.ndarray,
    rng: np.random.Generator,
    *,
    max_tokens: int = MAX_TOKENS,
) -> np.ndarray:
    """Return int64 (t): `CLS`, then for each chromosome its token, its genes from the lowest start on, and an end.

    Chromosomes are in random order. A gene that was drawn twice is there twice. A sentence that is longer than
    `max_tokens`, which only very many chromosomes bring about, is cut.
    """
    chromosomes = np.unique(np.asarray(chromosome_g)[genes])
    rng.shuffle(chromosomes)
    tokens = [CLS]
    for chromosome in chromosomes:
        inside = genes[np.asarray(chromosome_g)[genes] == chromosome]
        inside = inside[np.argsort(np.asarray(start_g)[inside], kind="stable")]
        tokens += [int(chromosome) + FIRST_CHROMOSOME, *np.asarray(tokens_g)[inside].tolist(), CHROMOSOME_END]
    return np.array(tokens[:max_tokens], dtype=np.int64)
