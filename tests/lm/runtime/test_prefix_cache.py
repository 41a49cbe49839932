from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytoglot.lm.runtime import prefix_cache as prefix
from cytoglot.lm.runtime.prefix_cache import can_share, expand, read_prefix, shared_prefixes

SHARING = {
    "llama": True,
    "neox": True,
    "gpt2": True,
    "gemma2": True,
    "gemma3": True,
    "mistral": True,
    "bloom": True,
    "mamba": False,
}


def rows_of(*rows):
    return [np.array(row, dtype=np.int64) for row in rows]


def groups_of(rows, min_tokens=1):
    return [(g.prefix.tolist(), g.members.tolist()) for g in shared_prefixes(rows, min_tokens=min_tokens)]


def cost(rows, groups):
    """Tokens as the module counts them."""
    total = 0.0
    for group in groups:
        n, d = len(group.members), len(group.prefix)
        n_tokens = sum(len(rows[i]) for i in group.members)
        total += d + prefix.COST_AFTER_PREFIX * (n_tokens - n * d) if d else n_tokens
    return total


def test_rows_that_begin_alike_are_grouped_and_others_left_alone():
    rows = rows_of([1, 2, 3, 4, 5], [7, 7], [1, 2, 3, 4, 6], [1, 2, 3, 4, 7, 8])
    assert groups_of(rows) == [([1, 2, 3, 4], [0, 2, 3]), ([], [1])]
    assert groups_of(rows, min_tokens=5) == [([], [0, 1, 2, 3])]


def test_the_last_token_of_a_row_is_never_shared():
    assert groups_of(rows_of([1, 2, 3, 4, 5, 6])) == [([], [0])]
    assert groups_of(rows_of(*[[1, 2, 3, 4, 5, 6]] * 3)) == [([1, 2, 3, 4, 5], [0, 1, 2])]
    assert groups_of(rows_of([1, 2, 3, 4, 5], [1, 2, 3, 4])) == [([1, 2, 3], [0, 1])]


def test_a_short_instruction_before_long_cells_is_not_shared_and_a_cell_before_questions_is():
    draw = np.random.default_rng(0)
    instruction, cell = np.arange(40), draw.integers(100, 900, size=780)
    cells = [np.concatenate([instruction, draw.integers(100, 900, size=700)]) for _ in range(20)]
    assert [len(group.prefix) for group in shared_prefixes(cells)] == [0]
    questions = [np.concatenate([cell, [1000 + i], draw.integers(100, 900, size=i % 90)]) for i in range(50)]
    (group,) = shared_prefixes(questions)
    np.testing.assert_array_equal(group.prefix, cell)
    assert group.members.tolist() == list(range(50))


def test_two_cells_with_questions_after_one_instruction_are_two_groups():
    one, other = [9] * 10 + [1] * 50, [9] * 10 + [2] * 50
    rows = rows_of([*one, 3, 4], [*other, 3, 4], [*one, 4], [*other, 5, 5], [*one, 5])
    assert groups_of(rows) == [(one, [0, 2, 4]), (other, [1, 3])]


def test_nothing_to_group():
    assert shared_prefixes([]) == []
    assert groups_of(rows_of([], [1], [1])) == [([], [0, 1, 2])]


rows_strategy = st.lists(
    st.lists(st.integers(0, 2), max_size=7).map(lambda row: np.array(row, dtype=np.int64)), max_size=12
)


@settings(max_examples=300, deadline=None)
@given(rows_strategy, st.integers(1, 4))
def test_every_row_is_in_one_group_begins_with_its_prefix_and_costs_no_more(rows, min_tokens):
    groups = shared_prefixes(rows, min_tokens=min_tokens)
    assert sorted(i for group in groups for i in group.members.tolist()) == list(range(len(rows)))
    for group in groups:
        assert len(group.prefix) == 0 or len(group.prefix) >= min_tokens
        for i in group.members:
            assert rows[i][: len(group.prefix)].tolist() == group.prefix.tolist()
            assert len(group.prefix) == 0 or len(rows[i]) > len(group.prefix)
    assert cost(rows, groups) <= sum(map(len, rows))


@settings(max_examples=200, deadline=None)
@given(rows_strategy)
def test_no_single_shared_prefix_would_cost_less(rows):
    found = cost(rows, shared_prefixes(rows, min_tokens=1))
    for first in rows:
        for depth in range(1, len(first)):
            members = [i for i, row in enumerate(rows) if len(row) > depth and (row[:depth] == first[:depth]).all()]
            n_members = sum(len(rows[i]) for i in members)
            shared = depth + prefix.COST_AFTER_PREFIX * (n_members - depth * len(members))
            assert found <= shared + sum(map(len, rows)) - n_members + 1e-9


@pytest.mark.parametrize("family", SHARING)
def test_reading_behind_a_prefix_equals_reading_from_the_start_where_a_family_can(family, make_lm, word_tokenizer):
    lm = make_lm(family, word_tokenizer)
    assert can_share(lm, 12) is SHARING[family]
    if not SHARING[family]:
        return
    ids = np.random.default_rng(1).integers(20, 60, size=9)
    rest = torch.tensor([[30, 31, 32], [40, 41, 42], [50, 51, 52]])
    with lm.inference():
        cache = read_prefix(lm, ids)
        found = [lm.model(input_ids=rest, past_key_values=expand(cache, 3)).logits for _ in range(2)]
        whole = torch.cat([torch.from_numpy(ids).expand(3, -1), rest], dim=1)
        expected = lm.model(input_ids=whole, use_cache=False).logits[:, 9:]
    assert cache.get_seq_length() == 9  # the prefix itself is not appended to
    for logits in found:
        np.testing.assert_allclose(logits.numpy(), expected.numpy(), atol=1e-4)


def test_no_sharing_beyond_a_sliding_window(make_lm, word_tokenizer):
    lm = make_lm("gemma3", word_tokenizer)
    assert can_share(lm, lm.attention_window)
    assert not can_share(lm, lm.attention_window + 1)


def test_a_family_that_forgets_its_prefix_is_found_out(make_lm, word_tokenizer, monkeypatch):
    lm = make_lm("neox", word_tokenizer)
    forward = lm.model.forward

    def forgetful(*, past_key_values=None, **arguments):
        return forward(**arguments)

    monkeypatch.setattr(prefix, "_sharing", type(prefix._sharing)())
    monkeypatch.setattr(lm.model, "forward", forgetful)
    assert not can_share(lm, 12)


def test_an_empty_prefix_is_an_empty_cache(scratch_lm):
    with scratch_lm.inference():
        empty = expand(read_prefix(scratch_lm, np.empty(0, dtype=np.int64)), 2)
        ids = torch.tensor([[30, 31], [40, 41]])
        found = scratch_lm.model(input_ids=ids, past_key_values=empty).logits
        torch.testing.assert_close(found, scratch_lm.model(input_ids=ids).logits)
