"""scFoundation (Hao 2024) and CellFM (Zeng 2025): log values as they are, with the depth of the cell beside them.

Axes: v genes of the model, t tokens.
"""

from __future__ import annotations

import numpy as np

TARGET_SUM = 10_000.0


def scfoundation_values(counts_v: np.ndarray, *, target: str = "t4") -> np.ndarray:
    """Return float64 (v + 2): ln(1 + counts per 10,000), then the tokens T (depth wanted) and S (depth found).

    S is log10 of the cell's counts over the genes of the model. T is, by `target`: "t4" the number 4, "f5" the log10 of
    five times the counts, "a1" S + 1. A cell without counts is all zero but for a T that is a number.
    """
    counts_v = np.asarray(counts_v, dtype=np.float64)
    total = float(counts_v.sum())
    kind, number = target[:1], float(target[1:])
    if kind not in ("t", "f", "a"):
        raise ValueError(f"target must begin with t, f or a, found {target!r}")
    found = np.log10(total) if total > 0 else 0.0
    wanted = {"t": number, "f": found + np.log10(number) if kind == "f" else 0.0, "a": found + number}[kind]
    log_v = np.log1p(counts_v / (total if total > 0 else 1.0) * TARGET_SUM)
    return np.concatenate([log_v, [wanted, found]])


def scfoundation_tokens(values_v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values above 0 and their places, each (t): the encoder reads expressed genes, T and S alone."""
    places = np.flatnonzero(values_v > 0)
    return np.asarray(values_v)[places], places


MAX_DEPTH = 100_000.0
"""CellFM scales cells with more counts down to this and rounds"""


def cellfm_input(
    counts_g: np.ndarray,
    genes_g: np.ndarray,
    rng: np.random.Generator,
    *,
    depth: float | None = None,
    max_genes: int = 2_048,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values ln(1 + counts per 10,000) (t), gene numbers (t), and ln(1 + depth / 1000) twice (S and T).

    `depth` is that of the whole cell, before genes that the model does not know were left out; above 100,000 the counts
    are scaled down to it and rounded. Of more than `max_genes` expressed genes those are drawn, without replacement and
    by ln(1 + count), that the model sees; they stay in their order. No read-depth is simulated, as it is in training.
    """
    counts_g = np.asarray(counts_g, dtype=np.float64)
    depth = float(counts_g.sum()) if depth is None else float(depth)
    counts_g = np.round(counts_g / max(1.0, depth / MAX_DEPTH))
    total = float(counts_g.sum())
    expressed = np.flatnonzero(counts_g > 0)
    if len(expressed) > max_genes:
        weights = np.log1p(counts_g[expressed])
        expressed = np.sort(rng.choice(expressed, max_genes, replace=False, p=weights / weights.sum()))
    values = np.log1p(counts_g[expressed] / (total if total > 0 else 1.0) * TARGET_SUM).astype(np.float32)
    return values, np.asarray(genes_g, dtype=np.int64)[expressed], np.full(2, np.log1p(total / 1000), np.float32)
