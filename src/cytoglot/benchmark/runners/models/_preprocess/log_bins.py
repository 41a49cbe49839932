"""scBERT (Yang 2022): every gene of its list has a token, the whole part of its log value.

Axes: n cells, v genes of the model.
"""

from __future__ import annotations

import numpy as np

N_BINS = 5
TARGET_SUM = 10_000.0


def log_bin_tokens(counts_nv: np.ndarray, *, n_bins: int = N_BINS) -> np.ndarray:
    """Return int64 (n, v + 1): the whole part of log2(1 + counts per 10,000), at most `n_bins`, and a 0 at the end.

    Genes are those of the model in its order. A cell without counts has zeros alone; the published preprocessing leaves
    cells of fewer than 200 genes out, this keeps them, as each cell must have a vector.
    """
    counts_nv = np.asarray(counts_nv, dtype=np.float64)
    total_n = counts_nv.sum(axis=1, keepdims=True)
    log_nv = np.log2(1 + counts_nv * TARGET_SUM / np.where(total_n > 0, total_n, 1))
    tokens_nv = np.minimum(log_nv, n_bins).astype(np.int64)
    return np.hstack([tokens_nv, np.zeros((len(tokens_nv), 1), dtype=np.int64)])
