"""Gene vectors to start from: the singular vectors of the training cells.

A model that pools the vectors of a sentence's genes then begins near the principal components of the cell, and not at
noise; the labels are not looked at.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.utils.extmath import randomized_svd

from cytoglot.errors import InputError

_MAX_CELLS = 20_000  # a dense block of this many cells × 2,000 genes is 160 MB in float32; more cells change nothing


def co_expression_vectors(log_ng: csr_matrix, *, rank: int, seed: int) -> NDArray[np.float32]:
    """Return one vector per gene, shape (g, rank), of no particular scale (`lm.scratch` centres and scales them).

    Parameters
    ----------
    log_ng
        Log expression of the training cells, shape (n, g); n, g ≥ 2.

    Raises
    ------
    InputError
        There are fewer than two cells or genes.

    Notes
    -----
    With Z = U S Vᵀ the centred matrix and m_g the mean of gene g where it is expressed, the vector of gene g is
    m_g V_g / √S: a sentence's mean vector then approximates the cell's principal components, each scaled by the root
    of its singular value.
    """
    if min(log_ng.shape) < 2:
        raise InputError(
            f"gene vectors need at least 2 training cells and genes to start from, found {log_ng.shape[0]} and "
            f"{log_ng.shape[1]}; pass more, or set model.word_vectors: random"
        )
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
    return np.asarray(vectors_gr, dtype=np.float32)
