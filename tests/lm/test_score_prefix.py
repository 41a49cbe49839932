"""Scoring of prompts that begin alike, under little memory, and of labels that are hard to write."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from cytoglot.errors import ResourceError
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.lora import add_lora
from cytoglot.lm.model.tokenizer import encode_completions, encode_prompts
from cytoglot.lm.runtime import prefix_cache
from cytoglot.lm.scoring import score
from cytoglot.lm.scoring.score import score_answers, score_answers_naive, score_pairs
from cytoglot.lm.scoring.tree_attention import last_queries_masked

FAMILIES = ("llama", "neox", "gpt2", "gemma2", "gemma3", "mistral", "bloom", "mamba")
CELL = "Genes of a cell: " + "ACTB B2M CD3D CD8A GNLY LYZ S100A8 " * 7 + "end."
QUESTIONS = [
    CELL + tail for tail in (" Its type:", " Which type? It is", "", " And the tissue, the donor or the type is:")
]


def count_tokens(lm):
    """Return a list that grows by the tokens of each forward pass, padding included, and the hook to remove."""
    read = []
    vectors = lm.model.get_input_embeddings()
    return read, vectors.register_forward_hook(lambda _module, _inputs, out: read.append(out.shape[0] * out.shape[1]))


@pytest.fixture
def unshared(monkeypatch):
    """Return a function that scores without looking for shared prefixes."""

    def run(function, *arguments):
        with monkeypatch.context() as patched:
            patched.setattr(prefix_cache, "shared_prefixes", lambda rows: [prefix_cache.ungrouped(rows)])
            return function(*arguments)

    return run


@pytest.fixture(scope="module")
def long_lm(word_tokenizer):
    """Llama of one layer that reads 1,024 tokens."""
    config = LlamaConfig(
        vocab_size=len(word_tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=1024,
        initializer_range=0.3,
        eos_token_id=word_tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LanguageModel(model=AutoModelForCausalLM.from_config(config).eval(), tokenizer=word_tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_that_begin_alike_are_scored_as_each_on_its_own(family, make_lm, word_tokenizer, labels):
    lm = make_lm(family, word_tokenizer)
    prompts = [*QUESTIONS, "Cell?", QUESTIONS[0]]
    expected = score_answers_naive(lm, prompts, labels)
    np.testing.assert_allclose(score_answers(lm, prompts, labels), expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(score_answers(lm, prompts, labels, batch_tokens=70), expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(score_pairs(lm, prompts, labels[:6]), np.diag(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("family", "is_shared"), [("llama", True), ("bloom", True), ("mistral", False), ("mamba", False)]
)
def test_families_that_cannot_share_read_each_prompt_from_its_start(
    family, is_shared, make_lm, word_tokenizer, unshared, labels
):
    lm = make_lm(family, word_tokenizer)
    score_answers(lm, QUESTIONS, labels)  # with the trials of a new model
    read, hook = count_tokens(lm)
    score_answers(lm, QUESTIONS, labels)
    n_found = sum(read)
    read.clear()
    unshared(score_answers, lm, QUESTIONS, labels)
    hook.remove()
    assert (n_found < sum(read) - 100) is is_shared
    assert is_shared or n_found == sum(read)


def test_many_questions_about_one_cell_need_eight_times_fewer_tokens(long_lm, unshared):
    draw = np.random.default_rng(0)
    genes = ["ACTB", "B2M", "CD3D", "GNLY", "LYZ", "NKG7"]
    cell = "A cell: " + " ".join(draw.choice(genes, size=776))
    prompts = [f"{cell}? {' '.join(draw.choice(genes, size=draw.integers(1, 80)))}. Is it so:" for _ in range(200)]
    sizes = [len(ids) for ids in encode_prompts(long_lm.tokenizer, prompts)]
    n_cell = len(encode_prompts(long_lm.tokenizer, [cell])[0])
    assert 775 <= n_cell <= 785
    assert 80 <= max(sizes) - n_cell <= 90
    answers = [" B", " NK"]  # one node: what is counted is prompts
    score_answers(long_lm, prompts[:2], answers)
    read, hook = count_tokens(long_lm)
    found = score_answers(long_lm, prompts, answers, terminator=False)
    n_shared = sum(read)
    read.clear()
    expected = unshared(score_answers, long_lm, prompts, answers)
    hook.remove()
    assert sum(read) >= sum(sizes)
    assert 8 * n_shared <= sum(sizes)
    some = slice(None, None, 40)
    naive = score_answers_naive(long_lm, prompts[some], answers, terminator=False)
    np.testing.assert_allclose(found[some], naive, atol=1e-4, rtol=0)
    np.testing.assert_allclose(score_answers(long_lm, prompts, answers), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["word_tokenizer", "byte_tokenizer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_labels_that_are_hard_to_write_are_scored_as_any(family, kind, make_lm, request):
    lm = make_lm(family, request.getfixturevalue(kind))
    n_words = 200 // len(encode_completions(lm.tokenizer, [" cell,"])[0])
    long = " cell," * n_words
    hard = [
        " T cell, CD4+",
        " T cell, CD4+, naive",
        " NK/T cell",
        " γδ T cell",
        " 細胞",
        " T cell",
        " T",
        long[:-2],
        long,
    ]
    assert max(len(ids) for ids in encode_completions(lm.tokenizer, hard)) >= 200
    prompts = ["Genes: GNLY. Type:", "Cell?"]
    for terminator in (True, False, "."):
        found = score_answers(lm, prompts, hard, terminator=terminator)
        expected = score_answers_naive(lm, prompts, hard, terminator=terminator)
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-6)


def test_every_option_at_once_equals_arithmetic_on_the_naive_scores(scratch_lm, prompts, labels):
    empty = ["A cell. Type:", "Nothing is known."]
    found = score_answers(scratch_lm, prompts, labels, terminator=".", normalize="mean", prior_prompts=empty)
    naive, prior = (score_answers_naive(scratch_lm, texts, labels, terminator=".") for texts in (prompts, empty))
    sizes = [len(ids) for ids in encode_completions(scratch_lm.tokenizer, [label + "." for label in labels])]
    np.testing.assert_allclose(found, (naive - np.log(np.exp(prior).mean(axis=0))) / sizes, atol=1e-4)


def test_an_adapted_model_keeps_prompts_from_the_output_layer(make_lm, word_tokenizer, prompts, labels):
    made = make_lm("llama", word_tokenizer)
    lm = add_lora(LanguageModel(model=copy.deepcopy(made.model), tokenizer=word_tokenizer), rank=2)
    expected = score_answers(made, prompts, labels)
    np.testing.assert_allclose(score_answers(lm, prompts, labels), expected, atol=1e-4)
    rows = []
    head = lm.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _module, _inputs, out: rows.append(out.shape[1]))
    score_answers(lm, prompts, labels)
    hook.remove()
    assert max(rows) <= sum(len(ids) for ids in encode_completions(lm.tokenizer, labels, eos=True))


class TestLittleMemory:
    """The model's forward pass fails for batches of more than two rows."""

    @pytest.fixture
    def small(self, make_lm, word_tokenizer, monkeypatch):
        def make(family, max_rows=2):
            lm = make_lm(family, word_tokenizer)
            forward = lm.model.forward

            def limited(*, input_ids, **options):
                if len(input_ids) > max_rows:
                    raise torch.OutOfMemoryError("no memory for so many rows")
                return forward(input_ids=input_ids, **options)

            monkeypatch.setattr(lm.model, "forward", limited)
            monkeypatch.setattr(
                "cytoglot.lm.runtime.halve_on_oom.release_memory", lambda: None
            )  # collecting garbage takes long
            monkeypatch.setattr(score, "_chosen_strategies", type(score._chosen_strategies)())
            return lm

        return make

    @pytest.mark.parametrize("family", ["llama", "gemma2", "bloom", "mamba"])
    def test_a_batch_is_halved_and_scores_stay_the_same(self, family, small, caplog, prompts, labels):
        lm = small(family)
        with caplog.at_level(logging.WARNING, logger="cytoglot.lm.runtime.halve_on_oom"):
            found = score_answers(lm, [*prompts, *QUESTIONS], labels)
        assert "out of memory with" in caplog.text
        np.testing.assert_allclose(found, score_answers_naive(lm, [*prompts, *QUESTIONS], labels), atol=1e-4)

    def test_pairs_are_halved_too(self, small, caplog, prompts, labels):
        lm = small("llama")
        with caplog.at_level(logging.WARNING, logger="cytoglot.lm.runtime.halve_on_oom"):
            found = score_pairs(lm, prompts, labels[:5])
        assert "out of memory with 5 x text in a batch; going on with 3" in caplog.text
        np.testing.assert_allclose(found, np.diag(score_answers_naive(lm, prompts, labels[:5])), atol=1e-4)

    def test_a_single_prompt_that_does_not_fit_is_an_error(self, small, prompts, labels):
        with pytest.raises(torch.OutOfMemoryError, match="no memory") as raised:
            score_answers(small("llama", max_rows=0), prompts, labels)
        assert any("does not fit the memory" in note for note in raised.value.__notes__)


def test_a_model_that_gives_nan_behind_a_prefix_is_refused(make_lm, word_tokenizer, labels):
    lm = LanguageModel(model=copy.deepcopy(make_lm("llama", word_tokenizer).model), tokenizer=word_tokenizer)
    with torch.no_grad():
        lm.model.lm_head.weight[3] = float("nan")
    with pytest.raises(ResourceError, match="NaN for 28 of 28 likelihoods; its weights are damaged"):
        score_answers(lm, QUESTIONS, labels)
    with pytest.raises(ResourceError, match="NaN for 4 of 4 likelihoods"):
        score_pairs(lm, QUESTIONS, labels[:4])


def test_the_attention_of_trees_is_put_back_and_other_kinds_are_left_alone(make_lm, word_tokenizer, prompts, labels):
    lm = LanguageModel(model=copy.deepcopy(make_lm("llama", word_tokenizer).model), tokenizer=word_tokenizer)
    with last_queries_masked(lm):
        assert lm.model.config._attn_implementation != "sdpa"
    assert lm.model.config._attn_implementation == "sdpa"
    expected = score_answers(lm, prompts, labels)
    lm.model.set_attn_implementation("eager")
    with pytest.raises(NotImplementedError, match="sdpa attention only, found eager"), last_queries_masked(lm):
        pass
    np.testing.assert_allclose(score_answers(lm, prompts, labels), expected, atol=1e-4)
