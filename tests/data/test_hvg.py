import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from cytoglot.data.hvg import select_hvg
from cytoglot.errors import InputError, MissingExtraError, UnknownNameError

sc = pytest.importorskip("scanpy")


def cells(n=200, g=300, n_marked=30, seed=0):
    """Poisson counts; half of the first `n_marked` genes are high in one half of the cells, half in the other."""
    rng = np.random.default_rng(seed)
    rate = np.tile(rng.gamma(2.0, 1.0, size=g), (n, 1))
    rate[: n // 2, : n_marked // 2] *= 6
    rate[n // 2 :, n_marked // 2 : n_marked] *= 6
    obs = pd.DataFrame(
        {"batch": np.repeat(["b1", "b2"], n // 2)[rng.permutation(n)]}, index=[f"c{i}" for i in range(n)]
    )
    return AnnData(
        sparse.csr_matrix(rng.poisson(rate).astype(np.float32)),
        obs=obs,
        var=pd.DataFrame(index=[f"G{i}" for i in range(g)]),
    )


@pytest.mark.parametrize("flavor", ["seurat", "cell_ranger", "pearson_residuals"])
def test_the_genes_that_vary_are_found(flavor):
    adata = cells()
    chosen = select_hvg(adata, n_top=30, flavor=flavor)
    assert len(set(chosen) & set(adata.var_names[:30])) >= 15  # chance is 3
    assert chosen == [name for name in adata.var_names if name in set(chosen)]


@pytest.mark.parametrize("batch_key", [None, "batch"])
@pytest.mark.parametrize("flavor", ["seurat", "cell_ranger"])
def test_the_choice_is_that_of_scanpy(flavor, batch_key):
    adata = cells()
    logged = adata.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    sc.pp.highly_variable_genes(logged, n_top_genes=50, flavor=flavor, batch_key=batch_key)
    expected = list(logged.var_names[logged.var["highly_variable"]])
    assert select_hvg(adata, n_top=50, flavor=flavor, batch_key=batch_key) == expected


def test_counts_and_their_logs_of_any_base_give_the_same_genes():
    adata = cells()
    expected = select_hvg(adata, n_top=40, flavor="seurat")
    totals = np.asarray(adata.X.sum(axis=1))
    for base in (np.e, 10.0, 2.0):
        logged = adata.copy()
        logged.X = sparse.csr_matrix(np.log1p(adata.X.toarray() / totals * 1e4) / np.log(base), dtype=np.float32)
        assert (
            len(set(select_hvg(logged, n_top=40, flavor="seurat")) & set(expected)) >= 39
        )  # float32 logs may swap the last


def test_a_count_flavor_on_log_values_falls_back_and_says_so(caplog):
    adata = cells()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    chosen = select_hvg(adata, n_top=40, flavor="pearson_residuals")
    assert chosen == select_hvg(adata, n_top=40, flavor="seurat")
    assert "flavor 'pearson_residuals' needs integer counts, found log1p (natural)" in caplog.text


def test_seurat_v3_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("cytoglot.data.hvg.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"'seurat_v3' needs 'scikit-misc'.*pip install scikit-misc"):
        select_hvg(cells(), n_top=10, flavor="seurat_v3")


def test_few_genes_are_all_taken():
    adata = cells(g=20, n_marked=5)
    assert select_hvg(adata, n_top=20) == list(adata.var_names)


def test_small_and_missing_batches_are_left_out(caplog):
    adata = cells()
    adata.obs["batch"] = adata.obs["batch"].astype(object)
    adata.obs.loc[adata.obs_names[:3], "batch"] = "tiny"
    adata.obs.loc[adata.obs_names[3], "batch"] = None
    chosen = select_hvg(adata, n_top=50, batch_key="batch")
    assert chosen == select_hvg(adata[4:].copy(), n_top=50, batch_key="batch")
    assert "4 cells of small or missing batches of 'batch' are left out" in caplog.text


def test_one_batch_is_no_batch(caplog):
    adata = cells()
    adata.obs["batch"] = "one"
    assert select_hvg(adata, n_top=50, batch_key="batch") == select_hvg(adata, n_top=50)
    assert "'batch' has 1 batches of at least 20 cells" in caplog.text


def test_genes_of_one_cell_are_never_chosen():
    adata = cells(g=60)
    rare = np.zeros((200, 20), dtype=np.float32)
    rare[np.arange(20), np.arange(20)] = 50
    adata.X = sparse.hstack([adata.X[:, :40], rare], format="csr")
    assert set(select_hvg(adata, n_top=45)) <= set(adata.var_names[:40])
    with pytest.raises(InputError, match="no gene is expressed in 3 of the 200 cells"):
        select_hvg(adata[:, 40:].copy(), n_top=5)


def test_equal_scores_never_give_more_genes_than_asked_for():
    adata = cells(g=40, n_marked=0)
    adata.X = sparse.hstack([adata.X[:, :10]] * 4, format="csr")
    for flavor in ("seurat", "pearson_residuals"):
        assert len(select_hvg(adata, n_top=10, flavor=flavor)) == 10


def test_the_input_is_not_changed():
    adata = cells()
    before = adata.copy()
    select_hvg(adata, n_top=10, batch_key="batch")
    assert (before.X != adata.X).nnz == 0
    assert list(adata.var.columns) == []
    assert adata.uns == {}


def test_bad_input_is_refused():
    adata = cells()
    with pytest.raises(UnknownNameError, match="unknown HVG flavor 'seurat_v4'; did you mean 'seurat_v3'"):
        select_hvg(adata, flavor="seurat_v4")
    with pytest.raises(InputError, match="n_top must be at least 1, found 0"):
        select_hvg(adata, n_top=0)
    with pytest.raises(InputError, match="cannot be chosen without cells, found 0"):
        select_hvg(adata[:0])
    with pytest.raises(InputError, match="no column 'donor'; its columns are: 'batch'"):
        select_hvg(adata, n_top=10, batch_key="donor")
    scaled = adata.copy()
    scaled.X = adata.X.toarray() - 1.5
    with pytest.raises(InputError, match="chosen from counts or log values, found signed values"):
        select_hvg(scaled, n_top=10)
    adata.var_names = ["A", "A", *adata.var_names[2:]]
    with pytest.raises(InputError, match="gene names must be unique, found 1 repeated ones"):
        select_hvg(adata, n_top=10)


@pytest.mark.data
def test_the_marker_genes_of_blood_are_among_two_thousand(data_path):
    adata = anndata.read_h5ad(data_path("pbmc3k_counts_labeled.h5ad"))
    chosen = select_hvg(adata)
    assert len(chosen) == 2000
    assert {"LYZ", "NKG7", "GNLY", "CD79A", "MS4A1", "PPBP", "S100A8", "FCER1A", "CST3"} <= set(chosen)
