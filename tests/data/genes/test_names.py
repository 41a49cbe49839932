import anndata
import pytest

from cytoglot.data.genes.harmonize import outdated_symbols
from cytoglot.data.genes.names import RENAMED, guess_species, mangled_names
from cytoglot.errors import InputError


@pytest.mark.parametrize(
    ("names", "species"),
    [
        (["CD3E", "MT-CO1", "C1orf112", "HLA-DRA", "RP11-34P13.7"], "human"),
        (["Cd3e", "mt-Co1", "0610007P14Rik", "H2-Aa"], "mouse"),
        (["ENSG00000141510.17", "ENSG00000012048"], "human"),
        (["ENSMUSG00000059552", "ENSMUSG00000017146"], "mouse"),
        (["ENSRNOG00000010756", "ENSRNOG00000020701"], None),
        (["gene1", "gene2"], None),
        (["CD3E", "Cd3e", "gene", "mt-Nd1"], "mouse"),
        ([], None),
    ],
)
def test_the_species_is_told_from_case_prefix_and_ids(names, species):
    assert guess_species(names)[0] == species
    assert guess_species(names)[1]


def test_renamed_symbols_are_named_with_their_new_name():
    assert outdated_symbols(["SEPT2", "MARCH1", "CD3E", "SEPTIN2", "IL8"]) == {
        "SEPT2": "SEPTIN2",
        "MARCH1": "MARCHF1",
        "IL8": "CXCL8",
    }


def test_approved_and_ambiguous_names_are_not_outdated(tmp_path):
    table = tmp_path / "hgnc.tsv"
    table.write_text("symbol\tprev_symbol\nNEW1\tOLD1|SHARED\nNEW2\tSHARED|NEW3\nNEW3\t\n")
    assert outdated_symbols(["OLD1", "SHARED", "NEW3", "NEW1"], hgnc=table) == {"OLD1": "NEW1"}
    table.write_text("symbol\talias\nA\tB\n")
    with pytest.raises(InputError, match="columns symbol, prev_symbol; prev_symbol not found, but symbol, alias"):
        outdated_symbols(["A"], hgnc=table)


def test_dates_and_numbers_of_a_spreadsheet_are_found():
    names = [
        "2-Sep",
        "Mar-01",
        "1-DEC",
        "15-Sep",
        "2020-09-02",
        "2.31E+13",
        "9/2/2020",
        "HLA-A",
        "SEPT2",
        "1-8U",
        "A-1",
    ]
    assert mangled_names(names) == {
        "2-Sep": ("SEPTIN2",),
        "Mar-01": ("MARCHF1", "MTARC1"),
        "1-DEC": ("DELEC1",),
        "15-Sep": (),
        "2020-09-02": (),
        "2.31E+13": (),
        "9/2/2020": (),
    }


@pytest.mark.data
def test_the_list_of_renamed_symbols_agrees_with_hgnc(data_path):
    table = data_path("knowledge/hgnc_symbols_aliases.tsv.gz")
    assert outdated_symbols(RENAMED, hgnc=table) == RENAMED


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "species"),
    [
        ("pbmc3k_counts_labeled", "human"),
        ("cellbench_mixology_5batches", "human"),
        ("pancreas_endocrinogenesis_3696", "mouse"),
        ("paul15_myeloid_2730", "mouse"),
    ],
)
def test_the_species_of_the_data_sets_is_right(data_path, name, species):
    assert guess_species(list(anndata.read_h5ad(data_path(f"{name}.h5ad"), backed="r").var_names))[0] == species


@pytest.mark.data
def test_genes_of_hg19_are_largely_renamed(data_path):
    names = anndata.read_h5ad(data_path("pbmc3k_counts_labeled.h5ad"), backed="r").var_names
    found = outdated_symbols(names, hgnc=data_path("knowledge/hgnc_symbols_aliases.tsv.gz"))
    assert len(found) > 1000
    assert found["CPSF3L"] == "INTS11"
