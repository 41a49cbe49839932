import json

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cytoglot.data.schema import group_values, labels
from cytoglot.data.splits.assignment import PARTS
from cytoglot.data.splits.leakage import leakage_report
from cytoglot.data.splits.split import Split
from cytoglot.data.splits.splitting import folds, split_cells
from cytoglot.errors import InputError


def cells(n=400, n_donors=8, n_types=4, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "cell_type": rng.choice([f"type {t}" for t in range(n_types)], n, p=np.arange(1, n_types + 1) / 10),
            "donor": rng.choice([f"d{d}" for d in range(n_donors)], n),
        },
        index=[f"cell{i}" for i in range(n)],
    )


def shares(split):
    n = sum(len(split.cells(p)) for p in PARTS)
    return [len(split.cells(p)) / n for p in PARTS]


# Whole groups


def test_auto_keeps_donors_whole_and_gives_each_part_its_share():
    obs = cells()
    split = split_cells(obs, label="cell_type", seed=3)
    assert split.by == "donor"
    assert split.warnings == ()
    donors = [set(obs.loc[list(split.cells(part)), "donor"]) for part in PARTS]
    assert sum(len(d) for d in donors) == 8
    assert len(set.union(*donors)) == 8
    assert np.allclose(shares(split), [0.7, 0.1, 0.2], atol=0.08)


def test_groups_are_shared_out_by_label_where_size_alone_would_not_do():
    # Six donors of 30 cells; type B is in d4 and d5 alone, so one of the two must train and the other test.
    obs = pd.DataFrame({"donor": np.repeat([f"d{i}" for i in range(6)], 30), "cell_type": "A"})
    obs.index = [f"c{i}" for i in range(len(obs))]
    obs.loc[obs["donor"].isin(["d4", "d5"]), "cell_type"] = ["A", "B", "B"] * 20
    for seed in range(10):
        split = split_cells(obs, label="cell_type", fractions=(0.5, 0.0, 0.5), seed=seed)
        assert {len(set(obs.loc[list(split.cells(p)), "donor"]) & {"d4", "d5"}) for p in ("train", "test")} == {1}


def test_without_test_cells_few_groups_give_validation_cells_and_no_whole_group():
    two = cells(n_donors=2)
    split = split_cells(two, by="donor", label="cell_type", fractions=(0.9, 0.1, 0.0))
    assert np.allclose(shares(split), [0.9, 0.1, 0.0], atol=0.01)
    assert "validation cells are taken from them" in split.warnings[-1]
    eight = cells(n_donors=8)
    split = split_cells(eight, by="donor", label="cell_type", fractions=(0.9, 0.1, 0.0))
    assert not set(eight.loc[list(split.train), "donor"]) & set(eight.loc[list(split.validation), "donor"])
    assert split.validation
    assert not split.test


def test_another_seed_gives_another_split_and_the_same_seed_the_same():
    obs = cells(n_donors=12)
    splits = [split_cells(obs, label="cell_type", seed=seed) for seed in range(6)]
    assert len({s.test for s in splits}) > 2
    assert split_cells(obs, label="cell_type", seed=0) == splits[0]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n_donors=st.integers(1, 12),
    by=st.sampled_from(["auto", "cell"]),
    shuffle=st.randoms(use_true_random=False),
)
def test_a_split_is_a_partition_that_ignores_the_order_of_rows(seed, n_donors, by, shuffle):
    obs = cells(60, n_donors, seed=seed)
    order = list(obs.index)
    shuffle.shuffle(order)
    split = split_cells(obs, by=by, label="cell_type", seed=seed)
    assert split_cells(obs.loc[order], by=by, label="cell_type", seed=seed) == split
    assert sorted(split.train + split.validation + split.test) == sorted(obs.index)
    assert all(split.cells(part) for part in PARTS)


def test_a_categorical_donor_with_unused_levels_and_numbers_works():
    obs = cells()
    obs["donor"] = pd.Categorical(obs["donor"].str[1:].astype(int), categories=range(20))
    assert split_cells(obs).by == "donor"


def test_doublets_and_missing_donors_train_and_are_counted():
    obs = cells()
    obs.loc[["cell0", "cell1"], "donor"] = "doublet"
    obs.loc["cell2", "donor"] = "ambiguous"
    obs.loc["cell3", "donor"] = None
    split = split_cells(obs, label="cell_type")
    assert {"cell0", "cell1", "cell2", "cell3"} <= set(split.train)
    assert split.warnings == ("4 cells without a group (missing, doublet or ambiguous) are training cells",)


def test_two_groups_for_three_parts_take_validation_cells_from_the_training_group():
    obs = cells(n_donors=2)
    split = split_cells(obs, label="cell_type")
    assert "2 groups for three parts: validation cells are taken from the training groups" in split.warnings[0]
    test_donor = set(obs.loc[list(split.test), "donor"])
    assert len(test_donor) == 1
    assert test_donor.isdisjoint(obs.loc[[*split.train, *split.validation], "donor"])
    assert len(split.validation) == pytest.approx(len([*split.train, *split.validation]) / 8, abs=2)


# Choosing the column


def test_auto_takes_donor_before_batch_before_study():
    obs = cells().assign(batch=lambda d: d.index.str[-1], study=["s1", "s2"] * 200)
    assert split_cells(obs).by == "donor"
    assert split_cells(obs.drop(columns="donor")).by == "batch"
    assert split_cells(obs[["study"]]).by == "study"


def test_auto_falls_back_to_cells_with_a_warning():
    obs = cells(n_donors=1)
    split = split_cells(obs, label="cell_type")
    assert split.by == "cell"
    assert split.warnings[0] == "column 'donor' was not used for the split: it has 1 group"
    assert "split by cell: no donor, batch or study column has several usable groups" in split.warnings[1]


def test_auto_does_not_take_a_column_in_which_no_label_occurs_twice():
    obs = pd.DataFrame({"batch": ["b1"] * 20 + ["b2"] * 20, "cell_type": ["A"] * 20 + ["B"] * 20})
    obs.index = [f"c{i}" for i in range(40)]
    split = split_cells(obs, label="cell_type")
    assert split.by == "cell"
    assert "no label occurs in two of its groups" in split.warnings[0]
    assert split_cells(obs, by="batch", label="cell_type").warnings[-1] in {
        "1 labels of the test cells have no training cell: A",
        "1 labels of the test cells have no training cell: B",
    }


def test_auto_does_not_take_a_column_of_cell_ids():
    obs = cells().assign(donor=lambda d: d.index)
    assert "each of its groups is a single cell" in split_cells(obs).warnings[0]


def test_a_split_by_cell_that_was_asked_for_gives_no_warning():
    assert split_cells(cells(), by="cell", label="cell_type").warnings == ()


# Cells


def test_a_cell_split_is_exact_for_each_label():
    obs = pd.DataFrame({"t": ["A"] * 50 + ["B"] * 30 + ["C"] * 10}, index=[f"c{i}" for i in range(90)])
    split = split_cells(obs, by="cell", label="t")
    table = {part: obs.loc[list(split.cells(part)), "t"].value_counts().to_dict() for part in PARTS}
    assert table == {
        "train": {"A": 35, "B": 21, "C": 7},
        "validation": {"A": 5, "B": 3, "C": 1},
        "test": {"A": 10, "B": 6, "C": 2},
    }


def test_rare_labels_train_first_and_rounding_does_not_add_up():
    obs = pd.DataFrame({"t": np.repeat([f"t{i:02}" for i in range(40)], 4)}, index=[f"c{i}" for i in range(160)])
    split = split_cells(obs, by="cell", label="t")
    assert set(obs.loc[list(split.train), "t"]) == set(obs["t"])
    assert [len(split.cells(p)) for p in PARTS] == pytest.approx([112, 16, 32], abs=2)
    single = pd.DataFrame({"t": ["A"] * 20 + ["rare"]}, index=[f"c{i}" for i in range(21)])
    assert "c20" in split_cells(single, by="cell", label="t").train


def test_unlabelled_cells_are_split_as_well():
    obs = cells()
    obs.loc[obs.index[:100], "cell_type"] = "unlabeled"
    split = split_cells(obs, by="cell", label="cell_type")
    assert split.mask(obs.index[:100], "train").sum() == pytest.approx(70, abs=1)


# Folds


def test_few_groups_are_left_out_one_at_a_time():
    obs = cells(n_donors=7)
    made = folds(obs, by="donor", label="cell_type", n_folds=5, seed=11)
    assert [len(set(obs.loc[list(s.test), "donor"])) for s in made] == [1] * 7
    assert [s.seed for s in made] == list(range(11, 18))
    assert sorted(c for s in made for c in s.test) == sorted(obs.index)
    for s in made:  # six training groups are enough to set a whole one aside
        donors = [set(obs.loc[list(s.cells(part)), "donor"]) for part in PARTS]
        assert sum(map(len, donors)) == 7
        assert len(donors[1]) == 1


def test_four_training_groups_give_validation_cells_and_say_so():
    made = folds(cells(n_donors=5), by="donor", label="cell_type")
    assert len(made) == 5
    assert all("4 training groups are too few to set whole ones aside" in s.warnings[0] for s in made)
    assert all(0.05 < len(s.validation) / len(s.train) < 0.15 for s in made)


def test_many_groups_are_shared_out_among_the_folds():
    obs = cells(n_donors=25)
    made = folds(obs, by="donor", label="cell_type", n_folds=4)
    assert len(made) == 4
    assert sorted(c for s in made for c in s.test) == sorted(obs.index)
    assert all(0.2 < shares(s)[2] < 0.3 for s in made)
    assert all(set(obs.loc[list(s.test), "donor"]).isdisjoint(obs.loc[list(s.train), "donor"]) for s in made)


def test_cell_folds_test_each_cell_once_with_every_label_in_each():
    obs = cells(n_donors=1)
    made = folds(obs, by="cell", label="cell_type", n_folds=5)
    assert sorted(c for s in made for c in s.test) == sorted(obs.index)
    counts = pd.DataFrame([obs.loc[list(s.test), "cell_type"].value_counts() for s in made])
    assert (counts.max() - counts.min() <= 1).all()


def test_cells_without_a_group_train_in_every_fold():
    obs = cells(n_donors=3)
    obs.loc["cell0", "donor"] = "doublet"
    assert all("cell0" in {*s.train, *s.validation} for s in folds(obs, by="donor"))


# The stored split


def test_a_split_survives_json_and_finds_its_cells_in_any_order():
    split = split_cells(cells(), label="cell_type")
    again = Split.from_dict(json.loads(json.dumps(split.to_dict())))
    assert again == split
    names = ["stranger", split.test[0], split.train[0], split.validation[0]]
    assert again.part_of(names).tolist() == ["", "test", "train", "validation"]
    assert again.mask(names, "test").tolist() == [False, True, False, False]


def test_a_split_that_is_none_is_refused():
    with pytest.raises(InputError, match="must be disjoint; 1 cells occur twice, first 'b'"):
        Split(train=("a", "b"), test=("b",), by="cell", seed=0, fractions=(0.5, 0, 0.5))
    with pytest.raises(InputError, match="needs at least one training cell"):
        Split(train=(), test=("b",), by="cell", seed=0, fractions=(0.5, 0, 0.5))
    with pytest.raises(InputError, match=r"not a stored split: .*'color'"):
        Split.from_dict({"color": 1})
    with pytest.raises(InputError, match="1 of them are not in it and 1 of its cells are not among them"):
        Split(train=("a", "b"), by="cell", seed=0, fractions=(1, 0, 0)).check_complete(["a", "c"])


def test_bad_input_is_refused():
    obs = cells()
    with pytest.raises(InputError, match="cell ids must be unique, found 1 repeated ones, first 'cell0'"):
        split_cells(pd.concat([obs, obs.iloc[:1]]))
    with pytest.raises(InputError, match=r"sum to 1, the first above 0; found \(0.5, 0.1, 0.1\)"):
        split_cells(obs, fractions=(0.5, 0.1, 0.1))
    with pytest.raises(InputError, match="no column 'patients'; its columns are: 'cell_type', 'donor'"):
        split_cells(obs, by="patients")
    with pytest.raises(InputError, match="a split by 'donor' needs at least two groups, found 1"):
        split_cells(cells(n_donors=1), by="donor")
    with pytest.raises(InputError, match="2 cells cannot be split into 3 parts"):
        split_cells(obs.iloc[:2], by="cell")
    with pytest.raises(InputError, match=r"n_folds must lie between 2 and the number of cells \(400\), found 1"):
        folds(obs, n_folds=1)


def test_labels_that_differ_in_spelling_alone_are_said_and_kept_apart():
    obs = pd.DataFrame(
        {"type": ["T cell", "t-cell", "CD4+", "CD4-", " T cell"] * 8}, index=[f"c{i}" for i in range(40)]
    )
    (warning,) = split_cells(obs, by="cell", label="type").warnings
    assert warning.startswith("labels that differ in spelling alone are kept apart: 'T cell' and 't-cell'; rename")


# Leakage


def test_the_report_names_shared_groups_and_identical_cells():
    obs = pd.DataFrame(
        {"donor": ["d1", "d1", "d2", "d2"], "batch": ["b1", "b2", "b1", "b3"], "sex": ["f"] * 4}, index=list("wxyz")
    )
    split = Split(train=("w", "x"), test=("y", "z"), by="donor", seed=0, fractions=(0.5, 0, 0.5))
    matrix = sparse.csc_matrix([[1, 0, 2], [0, 0, 0], [0, 0, 0], [1, 0, 2]])
    report = leakage_report(obs, split, matrix)
    assert report["cells"] == {"train": 2, "validation": 0, "test": 2}
    assert report["columns"]["donor_id"]["shared"]["train/test"] == []
    assert report["columns"]["sex"]["shared"]["train/test"] == ["f"]
    assert list(report["shared_groups"]) == ["batch"]
    assert report["shared_groups"]["batch"]["train/test"] == ["b1"]
    assert report["identical_cells"] == {"train/validation": 0, "train/test": 1, "validation/test": 0}
    assert report["identical_examples"] == [["w", "z"]]
    assert report["clean"] is False
    json.dumps(report)


def test_a_clean_split_is_called_clean_and_unknown_cells_are_counted():
    obs = pd.DataFrame({"donor": ["d1", "d2", "d1"]}, index=list("abc"))
    split = Split(train=("a",), test=("b",), by="donor", seed=0, fractions=(0.5, 0, 0.5))
    report = leakage_report(obs, split)
    assert report["clean"] is True
    assert report["not_in_split"] == 1
    assert report["identical_cells"] is None


def test_rows_are_compared_by_content_and_not_by_how_they_are_stored():
    obs = pd.DataFrame({"donor": ["d1", "d2"]}, index=list("ab"))
    split = Split(train=("a",), test=("b",), by="donor", seed=0, fractions=(0.5, 0, 0.5))
    stored_zero = sparse.csr_matrix((np.array([3.0, 0.0, 3.0]), np.array([1, 0, 1]), np.array([0, 2, 3])), shape=(2, 3))
    before = stored_zero.copy()
    assert leakage_report(obs, split, stored_zero)["identical_cells"]["train/test"] == 1
    assert (stored_zero.indices == before.indices).all()
    with pytest.raises(InputError, match="one row per cell: 2 cells, found 3 rows"):
        leakage_report(obs, split, np.zeros((3, 2)))


# Real data


def read_obs(path):
    return anndata.read_h5ad(path, backed="r").obs


def worst_share_error(obs, split, label):
    """Return the largest deviation of a label's share of a part from the share asked for, over labels of 100 cells."""
    known = labels(obs, label)
    table = pd.crosstab(known.dropna(), pd.Series(split.part_of(obs.index), index=obs.index)[known.notna()])
    table = table[table.sum(axis=1) >= 100]
    return (table.div(table.sum(axis=1), axis=0)[list(PARTS)] - np.array([0.7, 0.1, 0.2])).abs().to_numpy().max()


@pytest.mark.data
def test_kang_is_split_by_donor_with_every_label_in_each_part(data_path):
    obs = read_obs(data_path("kang_ifnb_pbmc_merged.h5ad"))
    for seed in range(3):
        split = split_cells(obs, label="cell_type", seed=seed)
        assert split.by == "donor"
        donors = group_values(obs, "donor")
        assert donors.nunique() == 8
        assert set(obs.index[donors.isna()]) <= set(split.train)
        assert leakage_report(obs, split)["columns"]["donor_id"]["shared"]["train/test"] == []
        for part in PARTS:
            assert labels(obs.loc[list(split.cells(part))], "cell_type").nunique() == 7
        assert worst_share_error(obs, split, "cell_type") < 0.2


@pytest.mark.data
def test_cellbench_is_split_by_batch_and_left_out_batch_by_batch(data_path):
    obs = read_obs(data_path("cellbench_mixology_5batches.h5ad"))
    split = split_cells(obs, label="cell_type")
    assert split.by == "batch"
    batches = [set(obs.loc[list(split.cells(part)), "batch"]) for part in PARTS]
    assert [len(b) for b in batches] == [3, 1, 1]
    for part in PARTS:  # two of the five batches hold three of the five lines: neither may stand alone in a part
        assert set(obs.loc[list(split.cells(part)), "cell_type"]) == set(obs["cell_type"])
    made = folds(obs, by="batch", label="cell_type")
    assert sorted(next(iter(set(obs.loc[list(s.test), "batch"]))) for s in made) == sorted(obs["batch"].unique())


@pytest.mark.data
def test_pbmc3k_has_one_donor_and_falls_back_to_cells(data_path):
    split = split_cells(read_obs(data_path("pbmc3k_counts_labeled.h5ad")), label="cell_type")
    assert split.by == "cell"
    assert "split by cell" in split.warnings[-1]
