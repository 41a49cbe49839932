import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytoglot.data.schema import OBS_FIELDS, UNLABELED, group_values, labels, recognize_obs, unlike_in_spelling
from cytoglot.errors import InputError


def test_cellxgene_columns_and_synonyms_are_recognized_whatever_the_case():
    obs = pd.DataFrame(columns=["Cell.Type", "Patient ID", "orig.ident", "Study", "species", "percent_mito"])
    assert recognize_obs(obs) == {
        "cell_type": "Cell.Type",
        "donor_id": "Patient ID",
        "batch": "orig.ident",
        "dataset_id": "Study",
        "organism": "species",
    }


def test_the_first_synonym_wins_where_two_columns_mean_one_field():
    obs = pd.DataFrame(columns=["sample", "batch", "bulk_labels", "cell_type"])
    assert recognize_obs(obs) == {"cell_type": "cell_type", "batch": "batch"}


def test_no_synonym_is_claimed_by_two_fields():
    names = [name for synonyms in OBS_FIELDS.values() for name in synonyms]
    assert len(names) == len(set(names))


def test_missing_and_unlabelled_values_become_nan():
    obs = pd.DataFrame({"t": pd.Categorical(["B ", "Unknown", None, "unassigned", "NK", "NaN"])}, index=list("abcdef"))
    result = labels(obs, "t")
    assert result.dropna().to_dict() == {"a": "B", "e": "NK"}
    assert result.dtype == object
    assert list(result.index) == list("abcdef")


def test_numbers_become_texts_and_missing_numbers_nan():
    result = labels(pd.DataFrame({"cluster": [0.0, np.nan, 2.5]}), "cluster")
    assert result.tolist()[::2] == ["0", "2.5"]
    assert result.isna().tolist() == [False, True, False]


@pytest.mark.parametrize("read", [labels, group_values])
def test_a_value_has_one_text_whatever_the_type_of_its_column(read):
    columns = {
        "int": np.array([1, 2, 30]),
        "small": np.array([1, 2, 30], dtype=np.uint8),
        "float": np.array([1.0, 2.0, 30.0]),
        "half": np.array([1, 2, 30], dtype=np.float16),
        "nullable": pd.array([1, 2, 30], dtype="Int64"),
        "nullable float": pd.array([1, 2, 30], dtype="Float64"),
        "text": np.array(["1", " 2", "30 "]),
        "bytes": np.array([b"1", b"2", b"30"], dtype=object),
        "object": np.array([1, 2.0, "30"], dtype=object),
        "categorical": pd.Categorical([1, 2, 30]),
        "categorical float": pd.Categorical([1.0, 2.0, 30.0]),
        "categorical text": pd.Categorical(["1", "2", "30"]),
    }
    obs = pd.DataFrame(columns)
    assert all(read(obs, name).tolist() == ["1", "2", "30"] for name in columns)


def test_truth_values_and_other_numbers_have_one_text_too():
    obs = pd.DataFrame({
        "bool": [True, False], "nullable": pd.array([True, False], dtype="boolean"),
        "object": np.array([True, False], dtype=object), "categorical": pd.Categorical([True, False]),
    })  # fmt: skip
    assert all(labels(obs, name).tolist() == ["True", "False"] for name in obs)
    doses = pd.DataFrame({"a": np.array([0.1, 1e20]), "b": np.array([0.1, 1e20], dtype=np.float32)})
    doses["c"] = doses["b"].astype("category")
    assert labels(doses, "c").tolist() == labels(doses, "a").tolist() == labels(doses, "b").tolist() == ["0.1", "1e+20"]
    assert labels(pd.DataFrame({"x": ["1.0", "1"]}), "x").tolist() == ["1.0", "1"], "texts are not read as numbers"


def test_names_of_other_spelling_are_found_and_not_merged():
    known = ["T cell", "B cell", "1", "Müller glia", "CD4+ T", "CD4- T"]
    found = unlike_in_spelling(["t_cell", "B  cell", "1.0", "Mu\u0308ller glia", "NK", "B cell"], known)
    assert found == {"t_cell": "T cell", "B  cell": "B cell", "1.0": "1", "Mu\u0308ller glia": "Müller glia"}
    assert unlike_in_spelling(known, known) == {}
    assert unlike_in_spelling(["CD4+T", "NK cell", "NK-cell"], ["CD4+ T", "NK-cell", "NK_cell"]) == {
        "CD4+T": "CD4+ T",
        "NK cell": "NK-cell",
        "NK-cell": "NK_cell",
    }


def test_demultiplexing_verdicts_are_no_donors_but_could_be_labels():
    obs = pd.DataFrame({"donor": ["101", "doublet", "Ambiguous", "Negative", "unknown"]})
    assert group_values(obs, "donor").tolist()[0] == "101"
    assert group_values(obs, "donor").isna().sum() == 4
    assert labels(obs, "donor").isna().sum() == 1


def test_an_absent_column_lists_those_that_are_there():
    obs = pd.DataFrame({"cell_type": ["B"], "donor": ["d1"]})
    with pytest.raises(InputError, match=r"no column 'celltype'; its columns are: 'cell_type', 'donor'.*did you mean"):
        labels(obs, "celltype")
    with pytest.raises(InputError, match=r"its columns are: 'cell_type', 'donor'$"):  # listed once
        labels(obs, "zzz")
    with pytest.raises(InputError, match="its columns are: none"):
        labels(pd.DataFrame(index=["c1"]), "cell_type")


def test_a_column_that_occurs_twice_is_refused():
    obs = pd.DataFrame([["B", "T"]], columns=["cell_type", "cell_type"])
    with pytest.raises(InputError, match="2 columns named 'cell_type'; rename all but one"):
        labels(obs, "cell_type")


def test_the_input_is_not_changed():
    obs = pd.DataFrame({"t": ["B", "unknown"]})
    labels(obs, "t")
    assert obs["t"].tolist() == ["B", "unknown"]


@given(st.lists(st.text(max_size=8), min_size=1, max_size=20))
def test_a_label_is_kept_stripped_or_is_a_non_value(values):
    result = labels(pd.DataFrame({"t": pd.Series(values, dtype=object)}), "t")
    for value, label in zip(values, result, strict=True):
        assert value.strip().lower() in UNLABELED if pd.isna(label) else label == value.strip()
