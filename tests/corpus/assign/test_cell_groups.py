"""Cell groups: pure, of the sizes asked for, by seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytoglot.corpus.assign.cell_groups import dissolve_small, form_groups, grouping_fields
from cytoglot.corpus.assign.cell_keys import cell_keys


def test_by_hand_one_donor_of_five_cells_in_pairs_leaves_one() -> None:
    keys = cell_keys(0, "a", 0, 5)
    group = form_groups(keys, np.zeros(5), [np.zeros(5, int)], min_cells=2, max_cells=2)
    assert sorted(group.tolist()) == [-1, 0, 0, 1, 1]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(0, 150), low=st.integers(2, 5), more=st.integers(0, 10))
def test_groups_are_pure_within_their_sizes_and_leave_few_cells_out(
    data: st.DataObject, n: int, low: int, more: int
) -> None:
    def codes(smallest: int, largest: int) -> np.ndarray:
        return np.array(data.draw(st.lists(st.integers(smallest, largest), min_size=n, max_size=n)), int)

    part, donor, tissue = codes(0, 2), codes(-1, 2), codes(-1, 1)
    keys = cell_keys(0, "a", 0, n)
    group = form_groups(keys, part, [donor, tissue], min_cells=low, max_cells=low + more)
    assert group.shape == (n,)
    assert (group[(donor < 0) | (tissue < 0)] == -1).all()
    labels = np.column_stack([part, donor, tissue]) if n else np.empty((0, 3))
    for number in range(group.max(initial=-1) + 1):
        members = labels[group == number]
        assert low <= len(members) <= low + more
        assert (members == members[0]).all()
    for label in np.unique(labels, axis=0):
        left = ((labels == label).all(axis=1) & (group == -1)).sum()
        assert left < low or -1 in label
    arrival = np.array(data.draw(st.permutations(range(n))), int)
    again = form_groups(
        keys[arrival], part[arrival], [donor[arrival], tissue[arrival]], min_cells=low, max_cells=low + more
    )
    np.testing.assert_array_equal(again, group[arrival])


def test_sizes_are_drawn_evenly() -> None:
    keys = cell_keys(0, "a", 0, 110_000)
    group = form_groups(keys, np.zeros(len(keys)), [np.zeros(len(keys), int)], min_cells=2, max_cells=20)
    sizes = np.bincount(np.bincount(group[group >= 0]), minlength=21)[2:]
    expected = sizes.sum() / 19
    assert ((sizes - expected) ** 2 / expected).sum() < 42.3  # 18 degrees of freedom, p = 0.001


def test_a_group_is_no_run_of_the_file() -> None:
    keys = cell_keys(0, "a", 0, 1000)
    group = form_groups(keys, np.zeros(1000), [np.zeros(1000, int)], min_cells=10, max_cells=10)
    spread = [np.ptp(np.flatnonzero(group == number)) for number in range(100)]
    assert np.mean(spread) > 700
    other = form_groups(cell_keys(1, "a", 0, 1000), np.zeros(1000), [np.zeros(1000, int)], min_cells=10, max_cells=10)
    assert (group != other).any()


def test_a_single_donor_split_by_cell_has_no_group_across_parts() -> None:
    part = np.arange(100) % 3
    group = form_groups(cell_keys(0, "a", 0, 100), part, [np.zeros(100, int)], min_cells=2, max_cells=20)
    assert all(len(np.unique(part[group == number])) == 1 for number in range(group.max() + 1))
    assert len(np.unique(part[group >= 0])) == 3


def test_no_columns_no_groups() -> None:
    group = form_groups(cell_keys(0, "a", 0, 4), np.zeros(4), [], min_cells=2, max_cells=4)
    assert group.tolist() == [-1] * 4


@pytest.mark.parametrize(
    ("known", "fields"),
    [
        ({"donor_id", "tissue"}, ["donor_id", "tissue"]),
        ({"donor_id", "sex"}, ["donor_id"]),
        ({"tissue"}, []),
        (set(), []),
    ],
)
def test_a_source_without_tissue_is_grouped_by_donor_and_one_without_donor_not(
    known: set[str], fields: list[str]
) -> None:
    assert grouping_fields(["donor_id", "tissue"], known) == fields


def test_groups_that_lost_cells_are_dissolved() -> None:
    assert dissolve_small(np.array([4, 4, 0, -1, 0, 0, 4]), min_cells=3).tolist() == [4, 4, 0, -1, 0, 0, 4]
    assert dissolve_small(np.array([4, 4, 0, -1, 2]), min_cells=2).tolist() == [4, 4, -1, -1, -1]
    assert dissolve_small(np.array([-1, -1]), min_cells=2).tolist() == [-1, -1]
    assert dissolve_small(np.array([], int), min_cells=2).tolist() == []
