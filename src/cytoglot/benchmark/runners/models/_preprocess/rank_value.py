"""Rank-value encoding: the expressed genes of a cell, from the highest value over the gene's usual value to the lowest.

Written from the papers and documentation of Geneformer (Theodoris 2023), LangCell, scCello, Nicheformer,
GeneCompass.
Equal values keep the order of the columns; the published tokenizers leave that order to numpy's sort.

Axes: g genes of a cell, t tokens.
"""

from __future__ import annotations

import numpy as np

TARGET_SUM = 10_000.0
"""counts that each cell is scaled to"""


def scaled_values(
    counts_g: np.ndarray, usual_g: np.ndarray, *, total: float | None = None, target_sum: float | None = TARGET_SUM
) -> np.ndarray:
    """Return counts / total · `target_sum` / usual value of the gene, float64 (g).

    `total` is that of the whole cell; by default that of these genes.
    `target_sum=None` leaves the depth of the cell in.
    A usual value of 0 counts as 1, a cell without counts gives zeros.
    """
    counts_g = np.asarray(counts_g, dtype=np.float64)
    usual_g = np.where(np.asarray(usual_g) == 0, 1.0, usual_g).astype(np.float64)
    if target_sum is None:
        return counts_g / usual_g
    total = float(counts_g.sum()) if total is None else float(total)
    return counts_g / (total if total > 0 else 1.0) * target_sum / usual_g


def ranked_genes(values_g: np.ndarray, *, max_genes: int | None = None) -> np.ndarray:
    """Return the places of the values above 0, from the highest to the lowest, int64 (at most `max_genes`)."""
    values_g = np.asarray(values_g, dtype=np.float64)
    expressed = np.flatnonzero(values_g > 0)
    order = expressed[np.argsort(-values_g[expressed], kind="stable")]
    return order if max_genes is None else order[:max_genes]


def rank_tokens(
    values_g: np.ndarray,
    tokens_g: np.ndarray,
    *,
    max_tokens: int,
    first: int | None = None,
    last: int | None = None,
) -> np.ndarray:
    """Return the tokens of the ranked genes, int64 (t), between a `first` and a `last` token where the model has them.

    Geneformer V1: 2,048 tokens, genes alone. Geneformer V2: 4,096 with `<cls>` first and `<eos>` last.
    scCello, LangCell: `<cls>` first.
    """
    n_special = (first is not None) + (last is not None)
    genes = np.asarray(tokens_g, dtype=np.int64)[ranked_genes(values_g, max_genes=max_tokens - n_special)]
    start = [] if first is None else [first]
    end = [] if last is None else [last]
    return np.concatenate([start, genes, end]).astype(np.int64)


def nicheformer_tokens(
    counts_g: np.ndarray, means_g: np.ndarray, context: tuple[int, ...], *, max_tokens: int = 1_500, reserved: int = 30
) -> np.ndarray:
    """Return `context` tokens (species, modality, technology), then the ranked genes as place + `reserved`, int64 (t).

    `means_g` are the means of the technology that come with the model, over its genes in its order.
    """
    values_g = scaled_values(counts_g, means_g)
    genes = ranked_genes(values_g, max_genes=max_tokens - len(context)) + reserved
    return np.concatenate([np.asarray(context, dtype=np.int64), genes])


def genecompass_input(
    counts_g: np.ndarray, medians_g: np.ndarray, tokens_g: np.ndarray, *, max_genes: int = 2_048
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of the ranked genes and their values log2(1 + count / median), each (t).

    The published preprocessing does not scale a cell to a common total, so neither does this.
    """
    values_g = np.log2(1 + scaled_values(counts_g, medians_g, target_sum=None))
    order = ranked_genes(values_g, max_genes=max_genes)
    return np.asarray(tokens_g, dtype=np.int64)[order], values_g[order].astype(np.float32)


def padded(rows: list[np.ndarray], *, pad: float = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows as one array, filled with `pad` on the right, and the mask that is 1 where a row has a token."""
    longest = max(1, *(len(row) for row in rows)) if rows else 1
    filled = np.full((len(rows), longest), pad, dtype=rows[0].dtype if rows else np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for i, row in enumerate(rows):
        filled[i, : len(row)], mask[i, : len(row)] = row, 1
    return filled, mask
