"""Rows: nothing split, nothing lost, little empty; and what a batch says of its tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytoglot.corpus.read.packing import TokenExample, best_fit, bucket, lay_out, pack
from cytoglot.errors import InputError


def example(length: int, *, first: int = 0, n_prompt: int = 1) -> TokenExample:
    return TokenExample(np.arange(first, first + length, dtype=np.int32), n_prompt, 1.0)


def test_best_fit_by_hand() -> None:
    # 6 opens a row; 5 opens one; 4 goes to the 6, which it fills; 3 to the 5; 2 fills that one.
    assert best_fit([3, 5, 2, 6, 4], 10) == [[3, 4], [1, 0, 2]]
    assert best_fit([], 10) == []
    # The fuller row wins: 2 would also fit after the 5.
    assert best_fit([5, 6, 4, 2], 8) == [[1, 3], [0], [2]]


@given(st.lists(st.integers(1, 50), max_size=200))
def test_each_is_in_one_row_and_no_row_is_too_long(lengths: list[int]) -> None:
    rows = best_fit(lengths, 50)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 50 for row in rows)
    # Any two rows together are longer than one row, or they would be one.
    totals = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(totals) < 2 or totals[0] + totals[1] > 50


def test_an_example_longer_than_a_row_is_refused() -> None:
    with pytest.raises(InputError, match="at most 8 tokens, found one of 9; cut it"):
        best_fit([3, 9], 8)


def test_a_batch_by_hand() -> None:
    closed = TokenExample(np.array([5, 6, 7], np.int32), 2, 1.0)
    open_answer = TokenExample(np.array([8, 9, 10, 11], np.int32), 2, 2.5, prompt_weight=0.5)
    batch = lay_out([[closed, open_answer], [closed]], 8, pad_id=99)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 10, 11, 99], [5, 6, 7, 99, 99, 99, 99, 99]]
    # The first token of an example is predicted from another example or from nothing: it weighs 0.
    assert batch.weights.tolist() == [[0, 0, 1, 0, 0.5, 2.5, 2.5, 0], [0, 0, 1, 0, 0, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 2, 0, 0, 0, 0, 0]]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 0, 0, 0, 0, 0]]
    assert (batch.n_examples, batch.n_tokens) == (3, 10)
    assert lay_out([[TokenExample(np.array([1, 2], np.int32), 0, 1.0)]], 2).weights.tolist() == [[0, 1]]


def test_positions_beyond_the_usual_lengths() -> None:
    batch = lay_out([[example(20_000)]], 20_000)
    assert batch.position_ids[0].tolist() == list(range(20_000))


@given(st.lists(st.integers(1, 64), max_size=120), st.booleans())
def test_nothing_is_lost_or_twice(lengths: list[int], finish: bool) -> None:
    rows, waiting = pack([example(n, first=1000 * i) for i, n in enumerate(lengths)], 64, finish=finish)
    done = [int(found.input_ids[0]) // 1000 for row in rows for found in row]
    waits = [int(found.input_ids[0]) // 1000 for found in waiting]
    assert waits == sorted(waits)
    assert sorted([*done, *waits]) == list(range(len(lengths)))
    assert all(sum(map(len, row)) <= 64 for row in rows)
    assert not (finish and waiting)


def test_waiting_examples_are_those_of_the_emptiest_rows() -> None:
    rows, waiting = pack([example(length) for length in (100, 100, 99, 60, 100, 100, 100)], 100, finish=False)
    assert [sum(map(len, row)) for row in rows] == [100, 100, 100, 100, 100, 99]
    assert [len(found) for found in waiting] == [60]


def test_packing_wastes_little() -> None:
    lengths = np.random.default_rng(0).integers(60, 420, size=1000)
    rows, _ = pack([example(int(length)) for length in lengths], 2048)
    assert 1 - lengths.sum() / (2048 * len(rows)) < 0.02


def test_buckets_hold_neighbors_in_length() -> None:
    lengths = [5, 1, 9, 2, 8, 3, 7]
    assert bucket(lengths, batch_size=3) == [[1, 3], [5, 0], [6, 4, 2]]  # 7 in batches of at most 3: sizes 2, 2, 3
    assert bucket(lengths, batch_tokens=10) == [[1, 3, 5], [0], [6], [4], [2]]  # 3 × 3, then 2 × 7 is too much
    assert bucket([], batch_size=3) == bucket([], batch_tokens=3) == []
    assert bucket([7], batch_tokens=3) == [[0]]
