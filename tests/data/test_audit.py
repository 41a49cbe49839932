import json

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from cytoglot.data.audit import AuditReport, audit
from cytoglot.data.audit_obs import Finding
from cytoglot.errors import InputError

# anndata's own warning about the faults that are made here on purpose
pytestmark = pytest.mark.filterwarnings("ignore:(Variable|Observation) names are not unique:UserWarning")

GENES = ["CD3E", "NKG7", "LYZ", "MS4A1", "GNLY", "MT-CO1", "SEPT2", "CD79A"]


@pytest.fixture(autouse=True)
def no_local_data(monkeypatch, tmp_path):
    monkeypatch.setenv("CYTOGLOT_DATA", str(tmp_path / "absent"))


def cells(n=60, genes=GENES, seed=0, **obs):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(3.0, size=(n, len(genes))).astype(np.float32)
    counts[np.arange(n), rng.integers(0, len(genes), n)] += np.arange(n) + 1  # no two cells alike
    columns = {
        "cell_type": np.tile(["T cell", "B cell", "NK"], n)[:n],
        "donor": np.repeat(["d1", "d2", "d3", "d4"], n)[::4][:n],
    }
    frame = pd.DataFrame({**columns, **obs}, index=[f"cell{i}" for i in range(n)])
    return AnnData(sparse.csr_matrix(counts), obs=frame, var=pd.DataFrame(index=list(genes)))


def found(report, check, level=None):
    return [f for f in report.findings if f.check == check and level in (None, f.level)]


def test_good_data_have_no_warning_beyond_their_few_genes():
    report = audit(cells(genes=[*GENES[:6], "CD8A", "CD79A"]))
    assert [f for f in report.findings if f.level in ("warning", "error") and f.check != "cells"] == []
    assert report.facts["species"] == "human"
    assert report.facts["label_counts"] == {"T cell": 20, "B cell": 20, "NK": 20}
    assert report.facts["groups_per_label"] == {"B cell": 4, "NK": 4, "T cell": 4}
    assert report.facts["split"]["by"] == "donor"
    assert report.facts["ontology"]["ids"]["NK"] == "CL:0000623"
    assert found(report, "matrix")[0].message == "read X: integer counts"


def test_every_finding_that_is_not_fine_has_a_fix():
    bad = cells(
        n=12,
        genes=["2-Sep", "CD3E", "CD3E", "cd3e", "SEPT2", "IL8", "LYZ", "MT-CO1"],
        donor="d1",
        organism="Mus musculus",
    )
    bad.obs["cell_type"] = ["1", "2", "unknown"] * 4
    bad.X = sparse.csr_matrix(np.vstack([np.zeros((1, 8)), bad.X.toarray()[1:]]))
    report = audit(bad)
    assert all(f.fix for f in report.findings if f.level in ("warning", "error"))
    assert {f.check for f in report.findings if f.level != "ok"} >= {
        "gene names",
        "gene columns",
        "outdated symbols",
        "cells",
        "organism",
        "labels",
        "cell ontology",
        "split",
    }


def test_the_report_is_json_and_text():
    report = audit(cells())
    again = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert again["worst"] == report.worst
    assert again["findings"][0].keys() == {"level", "check", "message", "fix"}
    text = report.to_text()
    assert text == str(report) == repr(report), "a notebook shows what the command line shows"
    assert text.startswith("AnnData: 60 cells x 8 genes\n")
    assert (
        "  note     outdated symbols: 1 of 8 symbols have new names by the list of the package: SEPT2 → SEPTIN2" in text
    )
    assert "           → pass gene_mapping=" in text


def test_the_worst_level_is_that_of_the_gravest_finding():
    def worst(*levels):
        findings = tuple(Finding(level, "x", "y") for level in levels)
        return AuditReport(source="s", n_cells=0, n_genes=0, findings=findings).worst

    assert worst() == "ok"
    assert worst("ok", "note") == "note"
    assert worst("warning", "error", "ok") == "error"


# Matrix and cells


def test_a_scaled_matrix_is_an_error_with_what_to_pass_instead():
    adata = cells()
    adata.layers["lognorm"] = adata.X.copy()
    adata.X = adata.X.toarray() - 1.5
    finding = found(audit(adata), "matrix", "error")[0]
    assert "found X: signed values" in finding.message
    assert "pass layer='lognorm'" in finding.fix
    assert found(audit(adata, layer="lognorm"), "matrix", "ok")


def test_log_values_are_welcome_and_others_doubtful():
    adata = cells()
    adata.X = sparse.csr_matrix(np.log1p(adata.X.toarray() / adata.X.sum(axis=1) * 1e4))
    finding = found(audit(adata), "matrix")[0]
    assert finding.level == "note"
    assert "log1p (natural), likely target sum 10,000" in finding.message
    adata.X = sparse.csr_matrix(np.random.default_rng(0).random((60, 8)))
    assert found(audit(adata), "matrix")[0].level == "warning"


def test_a_value_that_the_sample_missed_is_an_error(tmp_path, monkeypatch):
    adata = cells(n=3000)
    adata.X[1500, 2] = np.nan
    adata.write_h5ad(tmp_path / "nan.h5ad")
    monkeypatch.setattr("cytoglot.data.readers.matrix_choice.sample_positions", lambda n: np.arange(10))
    finding = found(audit(tmp_path / "nan.h5ad"), "matrix", "error")[0]
    assert "found nan in cell 'cell1500'" in finding.message
    assert "gene 'LYZ'" in finding.message


def test_empty_and_identical_cells_are_counted():
    adata = cells()
    dense = adata.X.toarray()
    dense[:3] = 0
    dense[[10, 12]] = dense[11]
    adata.X = sparse.csr_matrix(dense)
    report = audit(adata)
    assert report.facts["quality"]["empty_cells"] == 3
    assert "3 cells express no gene" in found(report, "cells")[0].message
    assert report.facts["identical_cells"] == 2
    assert "2 cells are copies" in found(report, "identical cells", "warning")[0].message


def test_the_token_forecast_is_that_of_the_counts_by_hand():
    adata = cells(n=4, genes=[f"G{i}" for i in range(3000)])
    dense = np.zeros((4, 3000), dtype=np.float32)
    for cell, n in enumerate((100, 960, 961, 3000)):
        dense[cell, :n] = cell + 1
    adata.X = sparse.csr_matrix(dense)
    forecast = audit(adata, tokens_per_gene=2.0).facts["token_forecast"]
    assert [row["whole_cells"] for row in forecast["one token per gene"]] == [0.5, 0.75, 1.0]
    assert [row["genes"] for row in forecast["2 tokens per gene"]] == [480, 992, 4064]
    assert [row["whole_cells"] for row in forecast["2 tokens per gene"]] == [0.25, 0.75, 1.0]
    fix = found(audit(adata), "token length")[0].fix
    assert fix.startswith("--top-genes 960 fits a context of 1,024 with one token per gene, --top-genes 240 with 4;")


def test_repeated_cell_ids_are_an_error():
    adata = cells()
    adata.obs_names = ["cell0", *adata.obs_names[:-1]]
    assert "1 cell ids are repeated, first 'cell0'" in found(audit(adata), "cell ids", "error")[0].message


# Genes


def test_names_from_a_spreadsheet_are_shown_with_what_they_were():
    report = audit(cells(genes=["2-Sep", "1-Mar", *GENES[:6]]))
    finding = found(report, "gene names", "warning")[0]
    assert "1-Mar (MARCHF1 or MTARC1), 2-Sep (SEPTIN2)" in finding.message
    assert report.facts["mangled_names"] == {"2-Sep": ["SEPTIN2"], "1-Mar": ["MARCHF1", "MTARC1"]}


def test_ensembl_ids_without_symbols_are_told():
    names = [f"ENSMUSG{i:011}" for i in range(8)]
    report = audit(cells(genes=names))
    assert "8 Ensembl ids without symbols" in found(report, "gene names", "warning")[0].message
    assert report.facts["species"] == "mouse"
    adata = cells(genes=names)
    adata.var["feature_name"] = [name.capitalize() for name in GENES]
    assert found(audit(adata), "gene names", "ok")[0].message == "8 symbols from var['feature_name']"


def test_repeated_genes_are_told_with_the_policy():
    report = audit(cells(genes=["CD3E", "CD3E", *GENES[2:]]))
    finding = found(report, "gene columns", "warning")[0]
    assert "'CD3E'" in finding.message
    assert "duplicates='sum'" in finding.fix


def test_a_matrix_without_gene_names_is_an_error():
    report = audit(cells(genes=["nan"] * 8))
    assert "found none among 8 columns" in found(report, "gene names", "error")[0].message


# Columns of obs


def test_an_absent_label_column_lists_those_that_are_there():
    finding = found(audit(cells(), label="celltype"), "labels", "error")[0]
    assert "no column 'celltype'; its columns are: 'cell_type', 'donor'" in finding.message
    adata = cells()
    del adata.obs["cell_type"]
    assert "no column of cell types was recognized" in found(audit(adata), "labels", "note")[0].message


def test_rare_missing_numbered_and_single_labels_are_told():
    adata = cells()
    adata.obs["cell_type"] = ["0"] * 50 + ["1"] * 4 + ["unknown"] * 6
    messages = " | ".join(f.message for f in found(audit(adata), "labels"))
    assert "6 cells have no label" in messages
    assert "fewer than 10 cells in 1 of 2 labels: 1" in messages
    assert "the labels of 'cell_type' are numbers" in messages
    adata.obs["cell_type"] = "T cell"
    assert "one label only" in found(audit(adata), "labels", "warning")[0].message
    adata.obs["cell_type"] = "unknown"
    assert "has no label in any of 60 cells" in found(audit(adata), "labels", "warning")[0].message


def test_a_label_of_one_donor_is_told():
    adata = cells()
    adata.obs.loc[adata.obs["donor"] == "d1", "cell_type"] = "Platelet"
    finding = found(audit(adata), "donors per label", "warning")[0]
    assert finding.message == "in one group of 'donor' or none: 1 of 4 labels, Platelet"


def test_organisms_that_contradict_the_genes_are_told():
    assert (
        found(audit(cells(organism="Mus musculus")), "organism")[0].message
        == "obs says mouse, the gene names look human"
    )
    mixed = cells(organism=["human", "Mus musculus"] * 30)
    assert found(audit(mixed), "organism")[0].message == "2 organisms: human, mouse"
    assert found(audit(cells(organism="Homo sapiens")), "organism") == []


def test_the_warnings_of_the_split_are_findings_and_not_log_lines(caplog):
    report = audit(cells(donor="d1"))
    assert "column 'donor' was not used for the split" in found(report, "split", "warning")[0].message
    assert "donor" not in caplog.text


# Sources


def test_a_file_gives_the_report_of_what_is_in_it(tmp_path):
    adata = cells()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert audit(tmp_path / "cells.h5ad").findings == audit(adata).findings
    before = adata.copy()
    audit(adata)
    assert (before.X != adata.X).nnz == 0
    with pytest.raises(InputError, match=r"absent\.h5ad is neither a file or folder nor the name of a data set"):
        audit(tmp_path / "absent.h5ad")
    (tmp_path / "text.h5ad").write_text("no HDF5")
    with pytest.raises(InputError, match=r"text\.h5ad is not an HDF5 file"):
        audit(tmp_path / "text.h5ad")


def test_the_bundled_data_set_can_be_audited_by_name():
    pytest.importorskip("scanpy")
    report = audit("pbmc68k_reduced")
    assert "read raw.X: log1p (natural)" in found(report, "matrix")[0].message
    assert found(report, "cell ontology", "ok")


@pytest.mark.data
def test_pbmc3k_is_fine_but_has_one_donor(data_path):
    report = audit(data_path("pbmc3k_counts_labeled.h5ad"))
    assert report.worst == "warning"
    assert {f.check for f in report.findings if f.level == "warning"} == {"split"}
    assert report.facts["genes_per_cell"]["median"] == 817
    assert report.facts["unlabelled_cells"] == 62


@pytest.mark.data
def test_signed_plates_are_refused_and_copies_found(data_path):
    assert audit(data_path("l1000_level5_3drugs_65lines.h5ad")).worst == "error"
    assert audit(data_path("pancreas_baron_human_mouse_350.h5ad")).facts["identical_cells"] == 22
