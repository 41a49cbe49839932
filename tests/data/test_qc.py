import json

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from cytoglot.config import load_recipe
from cytoglot.data.qc import QcSettings, quality_control
from cytoglot.errors import InputError

LOOSE = {"min_genes": 0, "min_cells": 0}


def small():
    # genes expressed: 3, 1, 4, 2; mitochondrial share: 1/6, 0, 6/10, 1/2
    counts = np.array([[1, 3, 2, 0], [0, 5, 0, 0], [6, 1, 1, 2], [2, 2, 0, 0]], dtype=np.int32)
    obs = pd.DataFrame({"cell_type": list("ABAB")}, index=list("wxyz"))
    return AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=["MT-CO1", "CD3E", "NKG7", "LYZ"]))


def random_cells(n=300, g=500, seed=0):
    rng = np.random.default_rng(seed)
    depth = rng.lognormal(0, 1, size=(n, 1))
    counts = rng.poisson(depth * rng.gamma(0.3, 1.0, size=(1, g))).astype(np.float32)
    names = [f"MT-{i}" if i < 20 else f"G{i}" for i in range(g)]
    return AnnData(sparse.csr_matrix(counts), var=pd.DataFrame(index=names))


def test_each_step_reports_what_it_removed_in_a_case_worked_out_by_hand():
    kept, report = quality_control(small(), QcSettings(min_genes=2, max_genes=3, max_mito_share=0.4, min_cells=1))
    assert list(kept.obs_names) == ["w"]  # x has one gene, y has four, z has half of its counts in MT-CO1
    assert list(kept.var_names) == ["MT-CO1", "CD3E", "NKG7"]  # LYZ is in y alone
    assert [(s.name, s.removed_cells, s.removed_genes, s.kept_cells, s.kept_genes) for s in report.steps] == [
        ("min_genes", 1, 0, 3, 4),
        ("max_genes", 1, 0, 2, 4),
        ("max_mito_share", 1, 0, 1, 4),
        ("min_cells", 0, 1, 1, 3),
    ]
    assert kept.obs["cell_type"].tolist() == ["A"]
    assert "min_genes 2: removed 1 cells, kept 3 cells x 4 genes" in report.messages()
    json.dumps(report.to_dict())


def test_thresholds_are_inclusive():
    kept, _ = quality_control(small(), QcSettings(min_genes=2, max_genes=4, max_mito_share=0.6, min_cells=0))
    assert list(kept.obs_names) == ["w", "y", "z"]


@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
def test_it_removes_what_scanpy_removes(kind):
    sc = pytest.importorskip("scanpy")
    adata = random_cells()
    expected = adata.copy()
    expected.var["mt"] = expected.var_names.str.startswith("MT-")
    sc.pp.calculate_qc_metrics(expected, qc_vars=["mt"], percent_top=None, inplace=True)
    expected = expected[expected.obs["pct_counts_mt"] <= 6].copy()
    sc.pp.filter_cells(expected, min_genes=100)
    sc.pp.filter_cells(expected, max_genes=250)
    sc.pp.filter_genes(expected, min_cells=5)
    adata.X = {"csr": adata.X, "csc": adata.X.tocsc(), "dense": adata.X.toarray()}[kind]
    kept, _ = quality_control(adata, QcSettings(min_genes=100, max_genes=250, max_mito_share=0.06, min_cells=5))
    assert 0 < kept.n_obs < adata.n_obs
    assert list(kept.obs_names) == list(expected.obs_names)
    assert list(kept.var_names) == list(expected.var_names)


@pytest.mark.parametrize("base", [np.e, 10.0, 2.0])
def test_log_values_give_the_same_cells_and_genes_as_counts(base):
    adata = random_cells()
    logged = adata.copy()
    totals = np.maximum(np.asarray(adata.X.sum(axis=1)), 1)
    logged.X = sparse.csr_matrix(np.log1p(adata.X.toarray() / totals * 1e4) / np.log(base), dtype=np.float32)
    settings = QcSettings(min_genes=100, max_genes=250, max_mito_share=0.06, min_cells=5)
    kept, _ = quality_control(adata, settings)
    kept_log, report = quality_control(logged, settings)
    assert list(kept.obs_names) == list(kept_log.obs_names)
    assert list(kept.var_names) == list(kept_log.var_names)
    assert "values taken out of the log" in report.steps[2].note


def test_no_mitochondrial_gene_and_switched_off_steps_are_said():
    adata = small()
    adata.var_names = ["a", "b", "c", "d"]
    kept, report = quality_control(adata, QcSettings(**LOOSE, max_genes=None))
    assert kept.shape == adata.shape
    assert report.messages()[1:3] == [
        "max_genes: switched off",
        "max_mito_share: skipped: no gene name begins with MT- or mt-",
    ]


def test_an_empty_cell_and_stored_zeros_count_as_nothing():
    adata = small()
    adata.X = sparse.csr_matrix((np.array([0.0, 2.0]), np.array([0, 1]), np.array([0, 2, 2, 2, 2])), shape=(4, 4))
    kept, _ = quality_control(adata, QcSettings(min_genes=1, min_cells=0))
    assert list(kept.obs_names) == ["w"]
    assert quality_control(adata, QcSettings(**LOOSE))[0].n_obs == 4


def test_the_input_is_not_changed_and_the_defaults_are_those_of_the_field():
    adata = random_cells(g=1000)
    before = adata.X.copy()
    kept, _ = quality_control(adata)
    assert (before != adata.X).nnz == 0
    assert adata.shape == (300, 1000)
    kept.X.data[:] = 0
    assert adata.X.sum() == before.sum()
    assert QcSettings().model_dump() == {
        "min_genes": 200,
        "max_genes": 6000,
        "max_mito_share": 0.5,
        "min_cells": 3,
        "mito_prefixes": ("MT-", "mt-"),
    }


def test_signed_values_and_an_empty_result_are_refused():
    adata = small()
    adata.X = adata.X.toarray() - 1.5
    with pytest.raises(InputError, match="quality control needs counts or log values, found"):
        quality_control(adata)
    with pytest.raises(InputError, match=r"left none of 4 cells \(min_genes 200: removed 4 cells.*loosen"):
        quality_control(small())
    with pytest.raises(InputError, match=r"left none of 4 genes .*min_cells 5: removed 4 genes"):
        quality_control(small(), QcSettings(min_genes=0, min_cells=5, max_mito_share=None))


def test_nan_is_refused_with_cell_and_gene():
    adata = small()
    adata.X = adata.X.astype(np.float32)
    adata.X.data[2] = np.nan
    with pytest.raises(InputError, match=r"found nan in cell 'w' .*, gene 'NKG7'"):
        quality_control(adata)


def test_a_threshold_out_of_range_is_refused():
    with pytest.raises(InputError, match="max_mito_share: Input should be less than or equal to 1"):
        load_recipe(QcSettings, overrides=["max_mito_share=50"])


@pytest.mark.data
def test_pbmc3k_loses_few_cells(data_path):
    import anndata

    kept, report = quality_control(anndata.read_h5ad(data_path("pbmc3k_counts_labeled.h5ad")))
    assert kept.shape == (2700, 13714)  # the gene number of the scanpy and Seurat tutorials, 200 genes and 3 cells
    assert sum(step.removed_cells for step in report.steps) == 0
