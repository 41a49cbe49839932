"""scGPT (Cui 2024): the expressed genes of a cell, each with the bin of its value among those of the cell.

Axes: g genes of a cell, t tokens.
"""

from __future__ import annotations

import numpy as np

N_BINS = 51
"""bin 0 is "not expressed"; 1 to 50 are the quantiles of the expressed genes"""


def value_bins(values_g: np.ndarray, *, n_bins: int = N_BINS) -> np.ndarray:
    """Return the bin of each value, int64 (g): 0 for 0, else 1 to `n_bins` − 1 by the quantiles of the values above 0.

    The edges are the quantiles 0, 1/(n_bins − 2), …, 1 of the values above 0. A value is in the highest bin whose edge
    it reaches, so the cell's largest value has bin n_bins − 1, and equal values have the same bin; releases of scGPT
    that draw a bin at random among those which equal edges allow differ here.
    """
    values_g = np.asarray(values_g, dtype=np.float64)
    binned = np.zeros(len(values_g), dtype=np.int64)
    expressed = values_g > 0
    if expressed.any():
        edges = np.quantile(values_g[expressed], np.linspace(0, 1, n_bins - 1))
        binned[expressed] = np.digitize(values_g[expressed], edges)
    return binned


def scgpt_input(
    counts_g: np.ndarray,
    tokens_g: np.ndarray,
    rng: np.random.Generator,
    *,
    cls: int,
    cls_value: float = 0.0,
    max_tokens: int = 1_200,
) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens (t) and bins (t): `<cls>`, then the expressed genes, drawn at random where there are more."""
    expressed = np.flatnonzero(np.asarray(counts_g) > 0)
    bins = value_bins(np.asarray(counts_g)[expressed])
    if len(expressed) > max_tokens - 1:
        chosen = np.sort(rng.choice(len(expressed), max_tokens - 1, replace=False))
        expressed, bins = expressed[chosen], bins[chosen]
    tokens = np.concatenate([[cls], np.asarray(tokens_g)[expressed]]).astype(np.int64)
    return tokens, np.concatenate([[cls_value], bins]).astype(np.float32)
