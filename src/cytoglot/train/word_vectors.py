"""Gene vectors to start from: the singular vectors of the training cells.

A model that pools the vectors of a sentence's genes then begins near the principal components of the cell, and not at
noise; the labels are not looked at.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.utils.extmath import randomized_svd

_MAX_CELLS = 20_000  # a dense block of this many cells × 2,000 genes is 160 MB in float32; more cells change nothing


def co_expression_vectors(
    log_ng: csr_matrix, gene_use_g: NDArray[np.floating], *, rank: int, seed: int
) -> NDArray[np.float32]:
    """Return one vector per gene, shape (g, rank), centred and scaled to unit mean square over the words in use.

    Parameters
    ----------
    log_ng
        Log expression of the training cells, shape (n, g).
    gene_use_g
        How often each gene stands in a training sentence, shape (g,); any scale.

    Notes
    -----
    With Z = U S Vᵀ the centred matrix and m_g the mean of gene g where it is expressed, the vector of gene g is
    m_g V_g / √S: a sentence's mean vector then approximates the cell's principal components, each scaled by the root
    of its singular value. Entries are clipped to ±8.
    """
    rng = np.random.default_rng(seed)
    if log_ng.shape[0] > _MAX_CELLS:
        log_ng = log_ng[np.sort(rng.choice(log_ng.shape[0], _MAX_CELLS, replace=False))]
    dense_ng = log_ng.toarray().astype(np.float32)
    n_expressing_g = (dense_ng > 0).sum(axis=0)
    level_g = dense_ng.sum(axis=0) / np.maximum(n_expressing_g, 1)
    dense_ng -= dense_ng.mean(axis=0)
    rank = min(rank, *(size - 1 for size in dense_ng.shape))
    _, singular_r, loadings_rg = randomized_svd(dense_ng, rank, random_state=seed)
    vectors_gr = loadings_rg.T * level_g[:, None] / np.sqrt(np.maximum(singular_r, 1e-6))
    share_g = gene_use_g / max(gene_use_g.sum(), 1e-12)
    vectors_gr -= share_g @ vectors_gr
    vectors_gr /= max(float(np.sqrt((share_g[:, None] * vectors_gr**2).sum() / rank)), 1e-12)
    return np.clip(vectors_gr, -8, 8).astype(np.float32)
