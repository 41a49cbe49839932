"""Writing the same cells in every format that is read, for the tests of reading."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse


def h5ad(adata: AnnData, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(Observation|Variable) names are not unique")
        adata.write_h5ad(path)
    return path


def zarr(adata: AnnData, path: Path, *, version: int) -> Path:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(Observation|Variable) names are not unique")
        warnings.filterwarnings("ignore", message="Writing zarr v2|zarr v3 autosharding|Consolidated metadata")
        with anndata.settings.override(zarr_write_format=version):
            adata.write_zarr(path)
    return path


def tenx_h5(adata: AnnData, path: Path, *, version: int, feature_types: list[str] | None = None) -> Path:
    by_cell = sparse.csr_matrix(adata.X)
    symbols = np.array(adata.var_names, dtype="S")
    ids = np.array([f"ENSG{i:011d}" for i in range(adata.n_vars)], dtype="S")
    with h5py.File(path, "w") as handle:
        group = handle.create_group("matrix" if version == 3 else "hg19")
        group["barcodes"] = np.array(adata.obs_names, dtype="S")
        group["data"], group["indices"], group["indptr"] = (
            by_cell.data,
            by_cell.indices.astype(np.int64),
            by_cell.indptr,
        )
        group["shape"] = np.array([adata.n_vars, adata.n_obs])
        if version == 3:
            types = feature_types or ["Gene Expression"] * adata.n_vars
            features = group.create_group("features")
            features["id"], features["name"] = ids, symbols
            features["feature_type"] = np.array(types, dtype="S")
            features["genome"] = np.array(["GRCh38"] * adata.n_vars, dtype="S")
        else:
            group["genes"], group["gene_names"] = ids, symbols
    return path


def mtx_folder(
    adata: AnnData,
    folder: Path,
    *,
    zipped: bool,
    prefix: str = "",
    by_cell: bool = False,
    features: str = "features.tsv",
) -> Path:
    folder.mkdir()
    matrix = sparse.coo_matrix(adata.X if by_cell else adata.X.T)
    lines = ["%%MatrixMarket matrix coordinate integer general", '%metadata_json: {"format_version": 2}']
    lines.append(f"{matrix.shape[0]} {matrix.shape[1]} {matrix.nnz}")
    lines += [f"{r + 1} {c + 1} {v}" for r, c, v in zip(matrix.row, matrix.col, matrix.data, strict=True)]
    names = [f"ENSG{i:011d}\t{name}\tGene Expression" for i, name in enumerate(adata.var_names)]
    if features == "genes.tsv":
        names = [line.rsplit("\t", 1)[0] for line in names]
    contents = {"matrix.mtx": lines, features: names, "barcodes.tsv": list(adata.obs_names)}
    for name, content in contents.items():
        text = "\n".join(content) + "\n"
        if zipped:
            with gzip.open(folder / f"{prefix}{name}.gz", "wt") as handle:
                handle.write(text)
        else:
            (folder / f"{prefix}{name}").write_text(text)
    return folder


def with_x(adata: AnnData, make: Callable) -> AnnData:
    """The same cells with X in another layout."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Variable names are not unique")
        return AnnData(X=make(adata.X), obs=adata.obs, var=adata.var)


FORMATS: dict[str, Callable[[AnnData, Path], Path]] = {
    "h5ad_csr": lambda a, p: h5ad(a, p / "a.h5ad"),
    "h5ad_csc": lambda a, p: h5ad(with_x(a, sparse.csc_matrix), p / "a.h5ad"),
    "h5ad_dense": lambda a, p: h5ad(with_x(a, lambda x: x.toarray()), p / "a.h5ad"),
    "h5ad_float": lambda a, p: h5ad(with_x(a, lambda x: x.astype(np.float32)), p / "a.h5ad"),
    "zarr2_csr": lambda a, p: zarr(a, p / "a.zarr", version=2),
    "zarr3_csr": lambda a, p: zarr(a, p / "a.zarr", version=3),
    "zarr3_csc": lambda a, p: zarr(with_x(a, sparse.csc_matrix), p / "a.zarr", version=3),
    "zarr2_dense": lambda a, p: zarr(with_x(a, lambda x: x.toarray()), p / "a.zarr", version=2),
    "tenx_h5_v3": lambda a, p: tenx_h5(a, p / "filtered_feature_bc_matrix.h5", version=3),
    "tenx_h5_v2": lambda a, p: tenx_h5(a, p / "filtered_gene_bc_matrices.h5", version=2),
    "mtx_gz": lambda a, p: mtx_folder(a, p / "mtx", zipped=True),
    "mtx_plain": lambda a, p: mtx_folder(a, p / "mtx", zipped=False, features="genes.tsv"),
    "mtx_geo_prefix": lambda a, p: mtx_folder(a, p / "mtx", zipped=True, prefix="GSM1_s1_"),
    "mtx_by_cell": lambda a, p: mtx_folder(a, p / "mtx", zipped=False, by_cell=True),
}


def cells_with_duplicates(n_cells: int = 37, n_genes: int = 23, seed: int = 0) -> AnnData:
    """Counts whose columns 5 and 9 carry the names of columns 2 and 3; cell 4 is empty."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.7, (n_cells, n_genes)).astype(np.int32)
    if n_cells > 4:
        counts[4] = 0
    names = [f"G{i}" for i in range(n_genes)]
    names[5], names[9] = names[2], names[3]
    obs = pd.DataFrame({"cell_type": ["a", "b"] * (n_cells // 2) + ["a"] * (n_cells % 2)})
    obs.index = [f"cell{i}" for i in range(n_cells)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Variable names are not unique")
        return AnnData(X=sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=names))


def totals_by_gene(adata: AnnData) -> pd.DataFrame:
    """Cells × genes, duplicated columns summed with pandas."""
    dense = pd.DataFrame(np.asarray(adata.X.toarray(), dtype=np.int64), index=list(adata.obs_names))
    dense.columns = list(adata.var_names)
    return dense.T.groupby(level=0, sort=False).sum().T
