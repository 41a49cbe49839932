"""Keys of cells: bound to seed, source and row, and even."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cytoglot.corpus.assign.cell_keys import _stream, cell_keys, draw_below, salted, uniform


def test_the_generator_is_splitmix64() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]  # its first numbers from this seed
    assert _stream(np.uint64(1234567), 0, 3).tolist() == published


def test_the_keys_of_an_atlas_stay_as_they_are() -> None:
    """Another value here means that every corpus is another: a change of format."""
    assert cell_keys(0, "pbmc", 0, 3).tolist() == [0x58329C067FBC0141, 0xA7339042E254F002, 0x57B2EEC6FB1B511A]
    assert salted(cell_keys(0, "pbmc", 0, 1), "caps").tolist() == [0x6C13D7AD4AF85C68]


@given(first=st.integers(0, 10**9), lengths=st.lists(st.integers(0, 50), max_size=5), seed=st.integers(0, 2**40))
def test_spans_may_be_cut_anywhere(first: int, lengths: list[int], seed: int) -> None:
    edges = np.cumsum([first, *lengths]).tolist()
    spans = [cell_keys(seed, "a", a, b) for a, b in pairwise(edges)]
    joined = np.concatenate([np.empty(0, np.uint64), *spans])
    np.testing.assert_array_equal(joined, cell_keys(seed, "a", first, edges[-1]))


def test_seed_and_source_give_other_keys_and_no_two_cells_the_same() -> None:
    keys = np.concatenate([cell_keys(seed, source, 0, 20_000) for seed in (0, 1) for source in ("a", "b")])
    assert len(np.unique(keys)) == len(keys)
    assert len(np.unique(salted(keys, "x"))) == len(keys)


def test_keys_of_two_purposes_are_independent() -> None:
    keys = cell_keys(0, "a", 0, 50_000)
    numbers = [uniform(salted(keys, purpose)) for purpose in ("caps", "split")] + [uniform(keys)]
    correlations = np.corrcoef(numbers)[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 0.02
    for number in numbers:
        assert 0 <= number.min() < number.max() < 1
        assert abs(number.mean() - 0.5) < 0.005


def test_draws_cover_every_choice_evenly() -> None:
    drawn = draw_below(cell_keys(3, "a", 0, 70_000), 7)
    counts = np.bincount(drawn, minlength=7)
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 22.5  # chi-square of 6 degrees of freedom, p = 0.001
    each = draw_below(cell_keys(3, "a", 0, 4), np.array([1, 2, 1, 5]))
    assert (each < [1, 2, 1, 5]).all()
