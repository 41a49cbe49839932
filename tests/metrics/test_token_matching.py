from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytoglot.metrics import match_tokens


def test_a_case_by_hand() -> None:
    # text (1,0), (.6,.8), (−1,0) against (1,0), (0,1): best cosines 1, .8, 0 → P = .6; 1, .8 → R = .9; F1 = .72
    match = match_tokens([(1, 0), (0.6, 0.8), (-1, 0)], [(1, 0), (0, 1)])
    assert (match.precision, match.recall, match.f1) == pytest.approx((0.6, 0.9, 0.72))


def test_weights_count_in_their_own_mean_and_a_weight_of_0_may_still_be_matched() -> None:
    match = match_tokens([(1, 0), (0, 1)], [(1, 0), (0.6, 0.8)], text_weights=[3, 1], reference_weights=[1, 0])
    assert match.precision == pytest.approx((3 * 1 + 0.8) / 4)  # (0,1) finds the token that does not count itself
    assert match.recall == pytest.approx(1)


def test_rescaling_puts_the_baseline_at_0_and_keeps_1() -> None:
    match = match_tokens([(1, 0)], [(0.6, 0.8)])
    assert match.rescaled(0.6).f1 == pytest.approx(0)
    assert match_tokens([(2, 0)], [(1, 0)]).rescaled(0.6).f1 == pytest.approx(1)


@pytest.mark.parametrize(("text", "reference"), [([], [(1, 0)]), ([(1, 0)], []), ([], []), ([(0, 0)], [(1, 0)])])
def test_nothing_matches_nothing(text: list[tuple[int, int]], reference: list[tuple[int, int]]) -> None:
    assert match_tokens(text, reference).f1 == 0
    assert match_tokens([(1, 0)], [(1, 0)], text_weights=[0]).precision == 0


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_bounded_swaps_precision_and_recall_and_perfect_on_itself(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    text, reference = rng.normal(size=(n, 4)), rng.normal(size=(m, 4))
    there, back = match_tokens(text, reference), match_tokens(reference, text)
    assert (there.precision, there.recall) == pytest.approx((back.recall, back.precision))
    assert -1 - 1e-9 <= there.precision <= 1 + 1e-9
    assert match_tokens(text, text).f1 == pytest.approx(1)
