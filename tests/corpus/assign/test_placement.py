"""Shards and the order within: even, whole groups, the same however the cells come in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytoglot.corpus.assign.cell_groups import form_groups
from cytoglot.corpus.assign.cell_keys import cell_keys
from cytoglot.corpus.assign.placement import group_keys, number_groups, shard_of, shuffle_order
from cytoglot.errors import InputError

KEYS = np.array([50, 30, 10, 40, 20], np.uint64)
GROUP = np.array([-1, 1, 0, 1, 0], np.int32)


def test_a_group_goes_by_its_smallest_key() -> None:
    assert group_keys(KEYS, GROUP).tolist() == [50, 30, 10, 30, 10]
    assert group_keys(KEYS, np.full(5, -1)).tolist() == KEYS.tolist()
    assert group_keys(KEYS[:0], GROUP[:0]).tolist() == []


def test_groups_are_numbered_as_they_appear() -> None:
    assert number_groups(np.array([7, 7, -1, 2, 2, 9])).tolist() == [0, 0, -1, 1, 1, 2]
    assert number_groups(np.array([2, 2, 0, 0])).tolist() == [0, 0, 1, 1]
    assert number_groups(np.array([], np.int32)).tolist() == []


def test_shards_are_nearly_of_one_size() -> None:
    keys = cell_keys(0, "a", 0, 60_000)
    part = np.repeat([0, 1], 30_000)
    shard = shard_of(keys, np.full(60_000, -1), part, [30, 3, 0])
    for code, n in ((0, 30), (1, 3)):
        counts = np.bincount(shard[part == code], minlength=n)
        assert len(counts) == n
        expected = 30_000 / n
        assert ((counts - expected) ** 2 / expected).sum() < 58.3  # 29 degrees of freedom, p = 0.001
    assert np.unique(shard[part == 1]).tolist() == [0, 1, 2]


def test_a_part_without_shards_is_refused() -> None:
    with pytest.raises(InputError, match="every part with cells needs a shard"):
        shard_of(KEYS, GROUP, np.full(5, 2), [4, 1, 0])


@settings(max_examples=40, deadline=None)
@given(data=st.data(), n=st.integers(1, 200))
def test_groups_stay_together_and_the_order_of_arrival_does_not_matter(data: st.DataObject, n: int) -> None:
    keys = cell_keys(1, "a", 0, n)
    donor = np.array(data.draw(st.lists(st.integers(-1, 2), min_size=n, max_size=n)))
    part = np.zeros(n, np.int8)
    group = form_groups(keys, part, [donor], min_cells=2, max_cells=4)
    shard = shard_of(keys, group, part, [3, 0, 0])
    for number in range(group.max() + 1):
        assert len(np.unique(shard[group == number])) == 1
    order = shuffle_order(keys, group)
    assert sorted(order.tolist()) == list(range(n))
    in_order = group[order]
    for number in range(group.max() + 1):
        places = np.flatnonzero(in_order == number)
        assert places[-1] - places[0] == len(places) - 1
        assert (np.diff(keys[order][places].astype(object)) > 0).all()
    arrival = np.array(data.draw(st.permutations(range(n))))
    renamed = np.where(group >= 0, group.max() - group, -1)
    again = shuffle_order(keys[arrival], renamed[arrival])
    assert keys[arrival][again].tolist() == keys[order].tolist()


def test_a_shuffled_shard_keeps_nothing_of_the_order_of_the_file() -> None:
    keys = cell_keys(0, "a", 0, 20_000)
    order = shuffle_order(keys, np.full(20_000, -1))
    assert abs(np.corrcoef(order, np.arange(20_000))[0, 1]) < 0.03
    shard = shard_of(keys, np.full(20_000, -1), np.zeros(20_000, int), [10, 0, 0])
    inside = np.flatnonzero(shard == 4)
    order = shuffle_order(keys[inside], np.full(len(inside), -1))
    assert abs(np.corrcoef(order, np.arange(len(inside)))[0, 1]) < 0.08
