from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytoglot.errors import InputError, ResourceError
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.tokenizer import encode_completions, encode_prompts
from cytoglot.lm.runtime.batches import length_batches
from cytoglot.lm.scoring import score
from cytoglot.lm.scoring import strategies as answer_passes
from cytoglot.lm.scoring.answer_tree import AnswerTree, split_answers
from cytoglot.lm.scoring.score import score_answers, score_answers_naive, score_pairs

WAYS = {
    "llama": "single_pass_tree",
    "neox": "single_pass_tree",
    "gpt2": "single_pass_tree",
    "gemma2": "cached_tree",
    "gemma3": "single_pass_tree",
    "mistral": "cached_batch",
    "bloom": "cached_batch",
    "mamba": "full_forward",
}


def way_of(lm):
    return next(iter(score._chosen_strategies[lm.model].values()))


@pytest.mark.parametrize("kind", ["word_tokenizer", "byte_tokenizer"])
@pytest.mark.parametrize("family", WAYS)
def test_every_family_gives_the_likelihoods_of_plain_forward_passes(family, kind, make_lm, prompts, labels, request):
    lm = make_lm(family, request.getfixturevalue(kind))
    found = score_answers(lm, prompts, labels)
    expected = score_answers_naive(lm, prompts, labels)
    assert found.shape == (len(prompts), len(labels))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    assert expected.std(axis=0).min() > 0.1  # the example can tell prompts and answers apart
    assert way_of(lm) == WAYS[family]


def test_the_labels_of_the_examples_share_beginnings_and_one_begins_another(scratch_lm, labels):
    ids = encode_completions(scratch_lm.tokenizer, labels, eos=True)
    tree = AnswerTree.build(ids)
    assert tree.n_nodes < sum(len(answer) for answer in ids)
    bare = encode_completions(scratch_lm.tokenizer, labels)
    assert any(a is not b and a.tolist() == b[: len(a)].tolist() for a in bare for b in bare)


def test_the_reference_adds_up_the_steps_of_a_chain_by_hand(scratch_lm):
    tokenizer, model = scratch_lm.tokenizer, scratch_lm.model
    ids = tokenizer("Cell?")["input_ids"]
    total = 0.0
    for token in [*tokenizer(" B cell.", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]:
        with torch.no_grad():
            probabilities = model(torch.tensor([ids])).logits[0, -1].double().softmax(0)
        total += math.log(probabilities[token])
        ids.append(token)
    assert score_answers_naive(scratch_lm, ["Cell?"], [" B cell."])[0, 0] == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("terminator", [True, False, "!", " (sure)"])
def test_terminators_are_scored_as_asked(scratch_lm, prompts, labels, terminator):
    found = score_answers(scratch_lm, prompts, labels, terminator=terminator)
    np.testing.assert_allclose(
        found, score_answers_naive(scratch_lm, prompts, labels, terminator=terminator), atol=1e-4
    )
    if isinstance(terminator, str):
        spelled = score_answers(scratch_lm, prompts, [label + terminator for label in labels], terminator=False)
        np.testing.assert_allclose(found, spelled, atol=1e-5)


def test_a_label_that_begins_another_always_wins_without_terminator_only(make_lm, word_tokenizer, prompts):
    answers = [" NK cell.", " NK cell. Or NKT."]
    lm = make_lm("gpt2", word_tokenizer)
    bare = score_answers(lm, prompts, answers, terminator=False)
    assert (bare[:, 0] > bare[:, 1]).all()
    # With the end scored, all texts that begin alike share the probability of their beginning.
    ended = score_answers(lm, prompts, answers)
    assert (np.logaddexp(*ended.T) < bare[:, 0]).all()


def test_all_single_token_answers_add_up_to_probability_one(scratch_lm):
    every_token = [np.array([token]) for token in range(scratch_lm.n_vocabulary)]
    prompts = encode_prompts(scratch_lm.tokenizer, ["Genes: ACTB. Type:", "Cell?"])
    likelihood = score._score(scratch_lm, prompts, every_token, 4096)
    np.testing.assert_allclose(np.exp(likelihood).sum(axis=1), 1, atol=1e-6)


def test_results_do_not_depend_on_batch_order_or_company(scratch_lm, hub_like_lm, prompts, labels):
    for lm in (scratch_lm, hub_like_lm):
        whole = score_answers(lm, prompts, labels)
        for tokens in (1, 60, 150, 100_000):
            np.testing.assert_allclose(score_answers(lm, prompts, labels, batch_tokens=tokens), whole, atol=1e-5)
        order = [3, 0, 4, 2, 1]
        np.testing.assert_allclose(score_answers(lm, [prompts[i] for i in order], labels), whole[order], atol=1e-5)
        np.testing.assert_allclose(score_answers(lm, [prompts[2]], labels)[0], whole[2], atol=1e-5)
        np.testing.assert_allclose(score_answers(lm, prompts, labels[::-1])[:, ::-1], whole, atol=1e-5)
        np.testing.assert_allclose(score_answers(lm, prompts, labels[2:3])[:, 0], whole[:, 2], atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "bloom", "mamba"])
def test_many_answers_are_scored_in_parts_with_the_same_result(
    family, make_lm, word_tokenizer, prompts, labels, monkeypatch
):
    lm = make_lm(family, word_tokenizer)
    whole = score_answers(lm, prompts, labels)
    monkeypatch.setattr(answer_passes, "MAX_LOGITS", 5 * lm.n_vocabulary)
    np.testing.assert_allclose(score_answers(lm, prompts, labels), whole, atol=1e-5)
    monkeypatch.setattr(score, "MAX_NODES", 12)
    monkeypatch.setattr(answer_passes, "MAX_LOGITS", 2**26)
    np.testing.assert_allclose(score_answers(lm, prompts, labels), whole, atol=1e-5)


def test_a_prompt_is_read_once_for_all_answers(scratch_lm, prompts, labels, monkeypatch):
    read = []
    hook = scratch_lm.model.model.embed_tokens.register_forward_hook(lambda _m, _i, out: read.append(out.shape[:2]))
    score_answers(scratch_lm, prompts, labels)  # with the self-check, if it is the first
    read.clear()
    score_answers(scratch_lm, prompts, labels)
    hook.remove()
    n_nodes = AnswerTree.build(encode_completions(scratch_lm.tokenizer, labels, eos=True)).n_nodes
    n_prefix = max(len(ids) for ids in encode_prompts(scratch_lm.tokenizer, prompts)) - 1
    assert [tuple(shape) for shape in read] == [(5, n_prefix + n_nodes)]


def test_prompt_tokens_never_reach_the_output_layer(scratch_lm, prompts, labels):
    rows = []
    hook = scratch_lm.model.lm_head.register_forward_hook(lambda _m, _i, out: rows.append(out.shape[1]))
    score_answers(scratch_lm, prompts, labels)
    rows.clear()
    score_answers(scratch_lm, prompts, labels)
    score_pairs(scratch_lm, prompts[2:3], labels[:1])
    hook.remove()
    ids = encode_completions(scratch_lm.tokenizer, labels, eos=True)
    assert rows == [AnswerTree.build(ids).n_nodes, len(ids[0])]


def test_a_family_that_ignores_the_mask_is_found_out(make_lm, word_tokenizer, prompts, labels, monkeypatch):
    made = make_lm("neox", word_tokenizer)
    lm = LanguageModel(model=made.model, tokenizer=made.tokenizer)
    forward = lm.model.forward

    def deaf(*, attention_mask=None, **arguments):
        return forward(**arguments)

    monkeypatch.setattr(lm.model, "forward", deaf)
    monkeypatch.setattr(score, "_chosen_strategies", type(score._chosen_strategies)())
    np.testing.assert_allclose(score_answers(lm, prompts, labels), score_answers_naive(lm, prompts, labels), atol=1e-4)
    assert way_of(lm) == "cached_batch"


def test_a_family_that_goes_wrong_only_at_long_prompts_is_found_out(
    make_lm, word_tokenizer, prompts, labels, monkeypatch
):
    made = make_lm("neox", word_tokenizer)
    lm = LanguageModel(model=made.model, tokenizer=made.tokenizer)
    forward = lm.model.forward

    def deaf_beyond_a_block(*, attention_mask=None, **arguments):
        too_long = attention_mask is not None and attention_mask.shape[-1] > 64
        return forward(attention_mask=None if too_long else attention_mask, **arguments)

    monkeypatch.setattr(lm.model, "forward", deaf_beyond_a_block)
    monkeypatch.setattr(score, "_chosen_strategies", type(score._chosen_strategies)())
    score_answers(lm, prompts, labels)
    assert way_of(lm) == "single_pass_tree"
    long = [" ".join(prompts * 9)[:n] for n in (330, 400, 500)]
    assert min(len(ids) for ids in encode_prompts(lm.tokenizer, long)) > 64
    np.testing.assert_allclose(score_answers(lm, long, labels), score_answers_naive(lm, long, labels), atol=1e-4)
    assert list(score._chosen_strategies[lm.model].values()) == ["single_pass_tree", "cached_batch"]


def test_a_prompt_at_the_end_of_the_context_is_scored(scratch_lm, labels, monkeypatch):
    monkeypatch.setattr(score, "_chosen_strategies", type(score._chosen_strategies)())
    answers = encode_completions(scratch_lm.tokenizer, labels, eos=True)
    words = "B2M " * (scratch_lm.context_length - max(map(len, answers)) - 4)
    n = len(encode_prompts(scratch_lm.tokenizer, [words])[0])
    assert scratch_lm.context_length - 8 < n + max(map(len, answers)) <= scratch_lm.context_length
    np.testing.assert_allclose(
        score_answers(scratch_lm, [words], labels), score_answers_naive(scratch_lm, [words], labels), atol=1e-4
    )


def test_prompts_beyond_a_sliding_window_are_scored_right(make_lm, byte_tokenizer, labels):
    for family in ("gemma3", "gemma2"):
        lm = make_lm(family, byte_tokenizer)
        long = ["Genes of a cell: " + "GNLY B2M ACTB " * 30 + "type:", "Type:"]
        assert len(encode_prompts(lm.tokenizer, long)[0]) > lm.attention_window
        np.testing.assert_allclose(score_answers(lm, long, labels), score_answers_naive(lm, long, labels), atol=1e-4)


def test_half_precision_agrees_with_full_within_its_rounding(make_lm, word_tokenizer, prompts, labels):
    full = make_lm("llama", word_tokenizer)
    half = LanguageModel(model=copy.deepcopy(full.model).to(torch.bfloat16), tokenizer=word_tokenizer)
    np.testing.assert_allclose(score_answers(half, prompts, labels), score_answers(full, prompts, labels), atol=0.6)
    assert way_of(half) == "single_pass_tree"


def test_pairs_equal_the_diagonal_of_all_answers(scratch_lm, hub_like_lm, make_lm, word_tokenizer, prompts, labels):
    for lm in (scratch_lm, hub_like_lm, make_lm("mamba", word_tokenizer)):
        expected = np.diag(score_answers_naive(lm, prompts, labels[: len(prompts)]))
        for tokens in (None, 40):
            found = score_pairs(lm, prompts, labels[: len(prompts)], batch_tokens=tokens)
            np.testing.assert_allclose(found, expected, atol=1e-4)
    assert score_pairs(scratch_lm, [], []).shape == (0,)
    np.testing.assert_allclose(*score_pairs(scratch_lm, [prompts[0]] * 2, [labels[0]] * 2))


def test_the_mean_divides_by_the_tokens_scored(scratch_lm, prompts, labels):
    sizes = [len(ids) + 1 for ids in encode_completions(scratch_lm.tokenizer, labels)]
    total = score_answers(scratch_lm, prompts, labels)
    np.testing.assert_allclose(score_answers(scratch_lm, prompts, labels, normalize="mean") * sizes, total)


def test_the_prior_is_the_log_of_the_mean_probability_of_the_empty_prompts(scratch_lm, prompts, labels):
    empty = ["A cell. Type:", "Nothing is known."]
    prior = np.log(np.exp(score_answers(scratch_lm, empty, labels)).mean(axis=0))
    found = score_answers(scratch_lm, prompts, labels, prior_prompts=empty)
    np.testing.assert_allclose(found, score_answers(scratch_lm, prompts, labels) - prior, atol=1e-9)
    same = score_answers(scratch_lm, empty[:1], labels, prior_prompts=empty[:1])
    np.testing.assert_allclose(same, 0, atol=1e-5)


def test_scoring_leaves_the_model_as_it_was_and_drops_nothing_out(make_lm, word_tokenizer, prompts, labels):
    lm = make_lm("gpt2", word_tokenizer)  # its configuration has dropout
    lm.model.train()
    try:
        first = score_answers(lm, prompts, labels)
        assert lm.model.training
        np.testing.assert_array_equal(first, score_answers(lm, prompts, labels))
    finally:
        lm.model.eval()
    assert all(p.requires_grad and p.grad is None for p in lm.model.parameters())


def test_no_prompts_give_no_rows(scratch_lm, labels):
    assert score_answers(scratch_lm, [], labels).shape == (0, len(labels))


def test_a_prompt_may_be_the_opening_token_alone(scratch_lm, labels, prompts):
    mixed = ["", prompts[0]]
    np.testing.assert_allclose(
        score_answers(scratch_lm, mixed, labels), score_answers_naive(scratch_lm, mixed, labels), atol=1e-4
    )
    np.testing.assert_allclose(
        score_answers(scratch_lm, [""], labels), score_answers_naive(scratch_lm, [""], labels), atol=1e-4
    )


def test_faulty_input_is_named(scratch_lm, hub_like_lm, labels):
    with pytest.raises(InputError, match="at least one answer to score, found none"):
        score_answers(scratch_lm, ["Cell?"], [])
    with pytest.raises(InputError, match="distinct, found 1 repeated of 3"):
        score_answers(scratch_lm, ["Cell?"], [" B", " T", " B"])
    with pytest.raises(InputError, match="at least one token long, found ''"):
        score_answers(scratch_lm, ["Cell?"], ["", " B"], terminator=False)
    with pytest.raises(InputError, match="prompt 1 is empty"):
        score_answers(hub_like_lm, ["Cell?", ""], labels)
    with pytest.raises(InputError, match="batch_tokens must be at least 1, found 0"):
        score_answers(scratch_lm, ["Cell?"], labels, batch_tokens=0)
    with pytest.raises(InputError, match="prior_prompts is empty"):
        score_answers(scratch_lm, ["Cell?"], labels, prior_prompts=[])
    with pytest.raises(InputError, match="one completion per prompt, found 1 and 2"):
        score_pairs(scratch_lm, ["Cell?"], [" B", " T"])


def test_prompts_beyond_the_context_are_counted_and_the_limit_is_exact(scratch_lm):
    answer_size = len(encode_completions(scratch_lm.tokenizer, [" B cell."], eos=True)[0])
    fits = "Cell" + " ACTB" * (256 - answer_size + 1 - len(encode_prompts(scratch_lm.tokenizer, ["Cell"])[0]))
    assert np.isfinite(score_answers(scratch_lm, [fits], [" B cell."])).all()
    with pytest.raises(InputError, match=r"1 of 2 do not fit .* 256 tokens: prompt with its longest answer 1 has 257"):
        score_answers(scratch_lm, ["Cell?", fits + " ACTB"], [" B cell."])
    with pytest.raises(InputError, match=r"prompt 0 has 30\d; use fewer words"):
        score_answers(scratch_lm, ["Cell" + " ACTB" * 300], [" B cell."])


def test_a_damaged_model_is_not_scored_as_if_it_were_well(make_lm, word_tokenizer, labels):
    lm = LanguageModel(model=copy.deepcopy(make_lm("llama", word_tokenizer).model), tokenizer=word_tokenizer)
    with torch.no_grad():
        lm.model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(ResourceError, match="NaN for 7 of 7 likelihoods"):
        score_answers(lm, ["Cell?"], labels)


def test_log_probabilities_are_exact_for_large_logits_and_in_chunks(monkeypatch):
    logits = torch.tensor([[[1000.0, 1000.0, -1000.0], [0.0, 0.0, 0.0]], [[-5.0, 3.0, 2.0], [1.0, -np.inf, 1.0]]])
    third = 3 - math.log(math.exp(-5) + math.exp(3) + math.exp(2))
    tokens = [np.array([1, 0]), np.array([1])]
    tree = AnswerTree.build([np.array([1, 0]), np.array([2])])
    for chunk in (2**24, 3, 1):
        monkeypatch.setattr(answer_passes, "_CHUNK", chunk)
        found = answer_passes._path_log_p(logits, [0, 0], tokens)
        np.testing.assert_allclose(found, [-math.log(2) - math.log(3), third], rtol=1e-6)
        of_tree = answer_passes._answer_log_p(logits, tree)
        expected = [[-math.log(2) - math.log(3), -2000 - math.log(2)], [third - math.log(2), third - 1]]
        np.testing.assert_allclose(of_tree, expected, rtol=1e-6)


def test_the_window_is_the_shortest_that_is_in_use():
    def window(**fields):
        config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(**fields))
        return LanguageModel(model=SimpleNamespace(config=config), tokenizer=None).attention_window

    assert window() is None
    assert window(sliding_window=None) is None
    assert window(sliding_window=64) == 64
    assert window(sliding_window=64, use_sliding_window=False) is None
    assert window(sliding_window=64, attention_chunk_size=32) == 32


paths = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5).map(np.array), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(paths)
def test_each_branch_of_a_tree_reads_its_answer(answers):
    tree = AnswerTree.build(answers)
    for answer, edges in zip(answers, tree.answer_edges, strict=True):
        assert tree.edge_token[edges].tolist() == answer.tolist()
        last = tree.edge_node[edges[-1]]
        branch = np.flatnonzero(tree.sees[last])
        branch = branch[np.argsort(tree.depth[branch])]
        assert tree.depth[branch].tolist() == list(range(len(answer)))
        assert tree.token[branch][1:].tolist() == answer[:-1].tolist()
    distinct = {tuple(a[:k].tolist()) for a in answers for k in range(len(a))}
    assert tree.n_nodes == len(distinct)
    assert set(tree.edge_node.tolist()) == set(range(tree.n_nodes))


@settings(max_examples=200, deadline=None)
@given(paths, st.integers(1, 12))
def test_groups_hold_every_answer_once_and_keep_the_limit(answers, max_nodes):
    groups = split_answers(answers, max_nodes)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(answers)))
    for group in groups:
        assert len(group) == 1 or AnswerTree.build([answers[i] for i in group]).n_nodes <= max_nodes


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 200), st.integers(0, 20), st.integers(1, 8))
def test_batches_hold_every_row_once_and_keep_their_bounds(lengths, max_tokens, extra, max_rows):
    lengths = np.array(lengths, dtype=np.int64)
    batches = length_batches(lengths, max_tokens=max_tokens, extra=extra, max_rows=max_rows)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= max_rows
        assert len(batch) == 1 or len(batch) * (lengths[batch].max() + extra) <= max_tokens


def test_one_text_or_an_empty_one_is_no_list_of_answers(scratch_lm):
    scorer = scratch_lm
    with pytest.raises(InputError, match=r"found one text of 6 characters; pass \[text\]"):
        scorer.log_likelihood(["Cell?"], "B cell")
    with pytest.raises(InputError, match="answers to score must not be empty"):
        scorer.log_likelihood(["Cell?"], ["B cell", ""])
