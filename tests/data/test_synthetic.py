"""The made-up cells have what tests rely on."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from cytoglot.data.synthetic import make_cells


def test_counts_look_like_counts() -> None:
    adata = make_cells(n_cells=400, n_genes=1000, expressed=150, seed=1)
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.int32
    assert adata.X.data.min() >= 1
    assert np.diff(adata.X.indptr).mean() == pytest.approx(150, rel=0.15)
    assert 0.5 < (adata.X.data == 1).mean() < 0.9


def test_the_seed_alone_decides() -> None:
    first, again, other = make_cells(seed=5), make_cells(seed=5), make_cells(seed=6)
    assert (first.X != again.X).nnz == 0
    assert first.obs.equals(again.obs)
    assert (first.X != other.X).nnz > 0


def test_types_differ_more_than_donors() -> None:
    adata = make_cells(n_cells=600, n_genes=500, seed=2)
    logs = np.log1p(adata.X.toarray())

    def spread(column: str) -> float:
        means = [logs[adata.obs[column] == value].mean(axis=0) for value in adata.obs[column].unique()]
        return float(np.var(means, axis=0).sum())

    assert spread("cell_type") > 5 * spread("donor")


def test_names_are_unique_and_groups_are_there() -> None:
    adata = make_cells(n_cells=30, n_genes=250, n_types=5, n_donors=4)
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    assert adata.var_names.str.startswith("MT-").sum() == 2
    assert adata.obs["cell_type"].nunique() == 5
    assert adata.obs["donor"].nunique() == 4
    assert adata.obs.groupby("donor", observed=True)["batch"].nunique().max() == 1


def test_no_cells_are_an_empty_matrix() -> None:
    assert make_cells(n_cells=0, n_genes=7).shape == (0, 7)
