"""Embeddings and groups of cells as they are handed over, checked once. Axes: n cells, d dimensions, k neighbors."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


def embedding_array(embedding_nd: ArrayLike) -> Floats:
    """Return the vectors as a float64 array, (n, d); raise ValueError if they are no table of finite numbers."""
    vectors_nd = np.ascontiguousarray(embedding_nd, dtype=np.float64)
    if vectors_nd.ndim != 2:
        raise ValueError(f"an embedding is an array of cells × dimensions, found the shape {vectors_nd.shape}")
    bad = int((~np.isfinite(vectors_nd).all(axis=1)).sum())
    if bad:
        raise ValueError(f"an embedding has finite values, found NaN or infinity in {bad} of {len(vectors_nd)} cells")
    return vectors_nd


def group_codes(groups: ArrayLike, n_cells: int) -> tuple[Codes, int]:
    """Return the number of each cell's group, from 0 on, and how many groups there are.

    Raises
    ------
    ValueError
        There is not one group for each cell, or it is missing (None or NaN) for some.
    """
    codes_n, names = pd.factorize(np.asarray(groups, dtype=object))
    if len(codes_n) != n_cells:
        raise ValueError(f"need one label or batch for each cell, found {len(codes_n)} for {n_cells} cells")
    if (codes_n < 0).any():
        n_missing = int((codes_n < 0).sum())
        raise ValueError(f"{n_missing} of {n_cells} cells have no label or batch; leave these cells out first")
    return codes_n.astype(np.int64), len(names)
