"""Two maps of the held-out cells, side by side: UMAP of the model's embeddings and UMAP of a PCA. For the eye only."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD

from cytoglot.data.normalize import log_normalize
from cytoglot.data.readers.read import matrix_state_of
from cytoglot.extras import require

if TYPE_CHECKING:
    from anndata import AnnData

MAX_CELLS = 3000
_N_COMPONENTS = 30


def two_maps(
    embedding_nd: NDArray[np.floating],
    adata: AnnData,
    rows: NDArray[np.int64],
    labels: NDArray[np.object_],
    *,
    seed: int,
) -> pd.DataFrame:
    """Return cell_id, truth and two pairs of coordinates for the cells of `rows` (at most 3,000 of them, drawn)."""
    if len(rows) > MAX_CELLS:
        rows = np.sort(np.random.default_rng([seed, 7]).choice(rows, MAX_CELLS, replace=False))
    log_ng = log_normalize(csr_matrix(adata.X), matrix_state_of(adata))[rows]
    n_components = max(2, min(_N_COMPONENTS, min(log_ng.shape) - 1))
    pca_nd = TruncatedSVD(n_components=n_components, random_state=seed).fit_transform(log_ng)
    ours, theirs = _umap(embedding_nd[rows], seed), _umap(pca_nd, seed)
    return pd.DataFrame(
        {
            "cell_id": adata.obs_names[rows].astype(str),
            "truth": labels[rows],
            "umap_x": ours[:, 0],
            "umap_y": ours[:, 1],
            "pca_umap_x": theirs[:, 0],
            "pca_umap_y": theirs[:, 1],
        }
    )


def _umap(x_nd: NDArray[np.floating], seed: int) -> NDArray[np.float32]:
    umap = require("umap", extra="report", purpose="a map of the cells")
    with warnings.catch_warnings():
        # umap-learn 0.5 tells that a seed makes it run on one thread; that is what is wanted here.
        warnings.filterwarnings("ignore", message="n_jobs value .* overridden")
        reducer = umap.UMAP(n_neighbors=min(15, len(x_nd) - 1), random_state=seed)
        return np.asarray(reducer.fit_transform(np.asarray(x_nd, dtype=np.float32)), dtype=np.float32)
