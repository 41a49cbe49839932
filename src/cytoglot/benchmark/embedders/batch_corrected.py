"""Principal components after a correction for batches: Harmony and ComBat, which see all cells and no label."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from cytoglot import extras
from cytoglot.benchmark.embedders.base import BATCH, EMBEDDERS
from cytoglot.benchmark.embedders.principal_components import PrincipalComponents
from cytoglot.data.hvg import select_hvg
from cytoglot.data.normalize import log_normalize, matrix_state
from cytoglot.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData


@EMBEDDERS.register("harmony")
class Harmony:
    """`PrincipalComponents` of all cells, moved by Harmony (`harmonypy`, extra `bench`) until batches mix.

    Parameters
    ----------
    n_components, n_top
        See `PrincipalComponents`.
    batch
        Column of obs with the batches.
    seed
        Of the clusters.
    """

    sees_all_cells = True

    def __init__(self, *, n_components: int = 50, n_top: int = 2000, batch: str = BATCH, seed: int = 0) -> None:
        self.n_components, self.n_top, self.batch, self.seed = n_components, n_top, batch, seed

    def embed(self, adata: AnnData) -> NDArray[np.float32]:
        """Return float32 of shape (n_cells, n_components); an InputError with fewer than two batches."""
        harmonypy: Any = extras.require("harmonypy", extra="bench", purpose="Harmony")
        obs = pd.DataFrame({"batch": _batches(adata, self.batch)}, index=adata.obs_names)
        components = PrincipalComponents(n_components=self.n_components, n_top=self.n_top, seed=self.seed)
        x_nd = components.fit(adata).embed(adata).astype(np.float64)
        found = harmonypy.run_harmony(x_nd, obs, ["batch"], random_state=self.seed, verbose=False)
        corrected = np.asarray(found.Z_corr, dtype=np.float32)
        return corrected if corrected.shape == x_nd.shape else corrected.T  # releases before 2.0 return d x n


@EMBEDDERS.register("combat")
class ComBat:
    """Principal components of variable genes after ComBat's shift and scale of each batch (scanpy's, extra `report`).

    Parameters
    ----------
    n_components, n_top, batch, seed
        See `Harmony`.
    """

    sees_all_cells = True

    def __init__(self, *, n_components: int = 50, n_top: int = 2000, batch: str = BATCH, seed: int = 0) -> None:
        self.n_components, self.n_top, self.batch, self.seed = n_components, n_top, batch, seed

    def embed(self, adata: AnnData) -> NDArray[np.float32]:
        """Return float32 of shape (n_cells, n_components); an InputError with fewer than two batches."""
        import anndata

        scanpy: Any = extras.require("scanpy", extra="report", purpose="ComBat")
        obs = pd.DataFrame({"batch": pd.Categorical(_batches(adata, self.batch))}, index=adata.obs_names)
        genes = select_hvg(adata, n_top=self.n_top)
        matrix_ng = log_normalize(adata.X, matrix_state(adata.X), base=math.e)[:, adata.var_names.isin(genes)].toarray()
        # A gene without variance in a batch has none to scale by.
        varies_g = np.ones(matrix_ng.shape[1], dtype=bool)
        for batch in obs["batch"].cat.categories:
            varies_g &= matrix_ng[(obs["batch"] == batch).to_numpy()].std(axis=0) > 0
        if varies_g.sum() < 2:
            raise InputError(f"ComBat needs genes that vary in every batch, found {int(varies_g.sum())}")
        cells = anndata.AnnData(matrix_ng[:, varies_g].astype(np.float64), obs=obs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            corrected_ng = np.asarray(scanpy.pp.combat(cells, key="batch", inplace=False))
        n_components = max(1, min(self.n_components, min(corrected_ng.shape) - 1))
        pca = PCA(n_components, svd_solver="arpack", random_state=self.seed)
        return np.asarray(pca.fit_transform(corrected_ng), dtype=np.float32)


def _batches(adata: AnnData, column: str) -> NDArray[np.object_]:
    if column not in adata.obs:
        raise InputError(f"a correction for batches needs obs[{column!r}]; this data set names no column of batches")
    batches = adata.obs[column].astype(str).to_numpy(dtype=object)
    if len(set(batches)) < 2:
        raise InputError(f"a correction for batches needs two batches, found {len(set(batches))}")
    return batches
