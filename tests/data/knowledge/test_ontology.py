import json
from importlib import resources

import anndata
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytoglot.data.knowledge.ontology import label_key, map_labels
from cytoglot.errors import InputError


def table():
    path = resources.files("cytoglot.data.knowledge") / "cell_ontology_labels.tsv"
    return pd.read_csv(str(path), sep="\t", comment="#", dtype=str, keep_default_na=False)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        # Seurat's pbmc3k tutorial
        ("Naive CD4 T", "CL:0000895"),
        ("Memory CD4 T", "CL:0000897"),
        ("CD14+ Mono", "CL:0001054"),
        ("B", "CL:0000236"),
        ("CD8 T", "CL:0000625"),
        ("FCGR3A+ Mono", "CL:0000875"),
        ("NK", "CL:0000623"),
        ("DC", "CL:0000451"),
        ("Platelet", "CL:0000233"),
        # kang
        ("CD4 T", "CL:0000624"),
        ("CD14 Mono", "CL:0001054"),
        ("CD16 Mono", "CL:0000875"),
        # scanpy's pbmc68k_reduced
        ("CD4+/CD25 T Reg", "CL:0000792"),
        ("CD4+/CD45RA+/CD25- Naive T", "CL:0000895"),
        ("CD4+/CD45RO+ Memory", "CL:0001204"),
        ("CD8+ Cytotoxic T", "CL:0000794"),
        ("CD8+/CD45RA+ Naive Cytotoxic", "CL:0000900"),
        ("CD14+ Monocyte", "CL:0001054"),
        ("CD19+ B", "CL:0001201"),
        ("CD34+", "CL:0008001"),
        ("CD56+ NK", "CL:0000623"),
        ("Dendritic", "CL:0000451"),
        # spellings
        ("Monocytes", "CL:0000576"),
        ("natural_killer.cells", "CL:0000623"),
        ("T cell, CD4-positive naive", "CL:0000895"),
        ("γδ T cells", "CL:0000798"),
        ("B cell", "CL:0000236"),
        ("alpha", "CL:0000171"),
        ("pancreatic beta cells", "CL:0000169"),
        ("L2/3 IT", "CL:4030059"),
    ],
)
def test_common_labels_have_their_term(label, expected):
    assert map_labels([label]).ids == {label: expected}


def test_a_marker_that_is_absent_is_not_one_that_is_there():
    mapping = map_labels(
        ["CD4+/CD45RA+/CD25- Naive T", "CD4+/CD45RA+/CD25+ Naive T", "CD16+ NK", "CD16 NK", "CD16- NK"]
    )
    assert list(mapping.ids.values()) == ["CL:0000895", None, "CL:0000939", "CL:0000939", None]


def test_numbered_clusters_get_the_broader_term_and_say_so():
    mapping = map_labels(["Fibroblasts.2", "retinal rod cell type A", "alveolar epithelial cell type 2", "Th17"])
    assert mapping.ids["Fibroblasts.2"] == "CL:0000057"
    assert mapping.ids["retinal rod cell type A"] == "CL:0000604"
    assert mapping.ids["alveolar epithelial cell type 2"] == "CL:0002063"
    assert list(mapping.matched_as.values()) == ["numbered", "numbered", "synonym", "synonym"]


def test_what_has_no_term_is_reported_and_never_guessed():
    mapping = map_labels(["A549", "T cell", "unlabeled", "Patient1-specific", "7", "", None])
    assert mapping.ids == {
        "A549": None,
        "T cell": "CL:0000084",
        "unlabeled": None,
        "Patient1-specific": None,
        "7": None,
        "": None,
    }
    assert mapping.unmapped == ("A549", "Patient1-specific", "7")
    assert mapping.names == {"CL:0000084": "T cell"}
    assert mapping.matched_as == {"T cell": "label"}
    json.dumps(mapping.to_dict())


def test_no_spelling_names_two_terms():
    frame = table()
    owners = {}
    for row in frame.itertuples():
        for name in [row.label, *row.synonyms.split("|")]:
            if name:
                owners.setdefault(label_key(name), set()).add(row.label)
    assert {key: names for key, names in owners.items() if len(names) > 1} == {}
    assert "" not in owners
    assert frame["id"].is_unique


def test_the_table_states_its_source_and_licence():
    text = (resources.files("cytoglot.data.knowledge") / "cell_ontology_labels.tsv").read_text(encoding="utf-8")
    assert "Cell Ontology" in text.split("id\t")[0]
    assert "CC BY 4.0" in text.split("id\t")[0]


def test_a_larger_table_is_asked_second_and_its_ambiguous_synonyms_not_at_all(tmp_path):
    path = tmp_path / "terms.tsv"
    path.write_text("id\tlabel\tsynonyms\nCL:1\tgnome cell\tgnome|goblin\nCL:2\ttroll\tgoblin\nCL:3\tT cell\t\n")
    mapping = map_labels(["Gnomes", "goblin", "T cells"], terms=path)
    assert mapping.ids == {"Gnomes": "CL:1", "goblin": None, "T cells": "CL:0000084"}


def test_a_table_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"absent\.tsv does not exist; pass a table \(TSV"):
        map_labels(["B"], terms=tmp_path / "absent.tsv")
    (tmp_path / "bad.tsv").write_text("id\tname\nCL:1\tx\n")
    with pytest.raises(InputError, match="must have the columns id, label, synonyms; label, synonyms not found"):
        map_labels(["B"], terms=tmp_path / "bad.tsv")


@given(st.text(max_size=30))
def test_any_text_can_be_looked_up(text):
    assert list(map_labels([text]).ids) == [text]
    assert label_key(text) == label_key(text + " ")


# Real data


@pytest.mark.data
def test_every_id_and_label_is_one_of_the_cell_ontology(data_path):
    terms = pd.read_csv(data_path("knowledge/cell_ontology_cl_terms.tsv.gz"), sep="\t", dtype=str)
    official = dict(zip(terms["id"], terms["label"], strict=True))
    frame = table()
    assert {row.id: row.label for row in frame.itertuples()} == {cl: official.get(cl) for cl in frame["id"]}


@pytest.mark.data
def test_our_synonyms_do_not_contradict_those_of_the_cell_ontology(data_path):
    terms = pd.read_csv(
        data_path("knowledge/cell_ontology_cl_terms.tsv.gz"), sep="\t", dtype=str, keep_default_na=False
    )
    official = {label_key(row.label): row.id for row in terms.itertuples()}
    frame = table()
    wrong = {
        synonym: (row.label, official[label_key(synonym)])
        for row in frame.itertuples()
        for synonym in row.synonyms.split("|")
        if synonym and official.get(label_key(synonym), row.id) != row.id
    }
    assert wrong == {}


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "unmapped"),
    [
        ("pbmc3k_counts_labeled", set()),
        ("kang_ifnb_pbmc_merged", set()),
        ("pancreas_panc8_5tech_500", set()),
        ("pancreas_baron_human_mouse_350", set()),
        ("pancreas_endocrinogenesis_3696", set()),
        ("paul15_myeloid_2730", set()),
        ("spatial_osmfish_cortex", {"Hippocampus"}),
        (
            "nsclc_zilionis_tumor_blood_300",
            {"ND", "bMyeloid precursor-like", *(f"Patient{i}-specific" for i in range(1, 8))},
        ),
        # cell lines and single genes are no cell types
        ("cellbench_mixology_5batches", {"A549", "H1975", "H2228", "H838", "HCC827"}),
        ("spatial_starmap_mpfc_3sections", {"L5-1", "Lhx6", "NPY", "Reln"}),
    ],
)
def test_the_labels_of_the_data_sets_map_where_a_term_exists(data_path, name, unmapped):
    obs = anndata.read_h5ad(data_path(f"{name}.h5ad"), backed="r").obs
    assert set(map_labels(obs["cell_type"].unique()).unmapped) == unmapped


@pytest.mark.data
def test_most_labels_of_nineteen_atlases_map(data_path):
    obs = anndata.read_h5ad(data_path("human_celltype_pseudobulk_profiles.h5ad"), backed="r").obs
    mapping = map_labels(obs["cell_type"].unique())
    assert len(mapping.unmapped) <= 0.16 * len(mapping.ids), mapping.unmapped
