"""Sampling: the right distribution, the same sample in any batch, nothing invalid."""

from __future__ import annotations

import copy
import inspect
import math
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    TopPLogitsWarper,
)

from cytoglot.answer_format import AnswerFormat, DistinctWords, FreeText, Number, OneOf
from cytoglot.errors import InputError, ResourceError
from cytoglot.lm.constraint.constrain import constrain
from cytoglot.lm.generation import generate
from cytoglot.lm.generation.generate import generate_answers, sample_answers
from cytoglot.lm.generation.sampling import Sampling, TokenSampler, keep_top_p
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.tokenizer import build_tokenizer, encode_prompts
from cytoglot.lm.runtime import prefix_cache
from cytoglot.lm.scoring.score import score_answers_naive

FAMILIES = ("llama", "neox", "gpt2", "gemma2", "gemma3", "mistral", "bloom", "mamba")


def genes(words: tuple[str, ...], few: int = 3, many: int = 8) -> DistinctWords:
    return DistinctWords(words=words, min_words=few, max_words=many)


@pytest.fixture
def lm(scratch_lm: LanguageModel) -> LanguageModel:
    return scratch_lm


@pytest.mark.parametrize("which", ["scratch_lm", "hub_like_lm"])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_no_word_is_invalid_or_repeated_however_wild_the_sampling(which, temperature, words, prompts, request):
    lm = request.getfixturevalue(which)
    answers = generate_answers(lm, prompts, genes(words, 4, len(words)), seed=0, n_samples=20, temperature=temperature)
    assert [len(samples) for samples in answers] == [20] * len(prompts)
    for text in (text for samples in answers for text in samples):
        chosen = text.split(" ")
        assert set(chosen) <= set(words)
        assert len(set(chosen)) == len(chosen) >= 4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sample_is_the_same_in_any_batch(family, make_lm, word_tokenizer, words, prompts):
    lm = make_lm(family, word_tokenizer)
    many = [prompts[i % len(prompts)] for i in range(13)]
    options = {"seed": 3, "n_samples": 5}
    alone = generate_answers(lm, many, genes(words), batch_size=1, **options)
    assert len({text for samples in alone for text in samples}) > 40
    for batch_size in (7, 64):
        assert generate_answers(lm, many, genes(words), batch_size=batch_size, **options) == alone


def test_a_sample_depends_on_seed_key_and_number_alone(lm, words, prompts):
    options = {"seed": 3, "n_samples": 4}
    keys = [f"cell {i}" for i in range(len(prompts))]
    answers = generate_answers(lm, prompts, genes(words), keys=keys, **options)
    backwards = generate_answers(lm, prompts[::-1], genes(words), keys=keys[::-1], **options)
    assert backwards[::-1] == answers
    assert generate_answers(lm, prompts[2:3], genes(words), keys=keys[2:3], **options) == answers[2:3]
    assert generate_answers(lm, prompts, genes(words), keys=keys, seed=3, n_samples=2) == [a[:2] for a in answers]
    assert generate_answers(lm, prompts, genes(words), keys=keys, seed=4, n_samples=4) != answers
    same_prompt = generate_answers(lm, [prompts[0]] * 2, genes(words), **options)
    assert same_prompt[0] != same_prompt[1], "by default each place in the list has noise of its own"


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_of_transformers(family, make_lm, word_tokenizer, words, prompts):
    lm = make_lm(family, word_tokenizer)
    for answer_format in (genes(words), OneOf(options=("B cell", "NK cell", "NK")), FreeText(max_tokens=9)):
        constraint = constrain(answer_format, lm.tokenizer)
        ours = generate_answers(lm, prompts, answer_format, seed=0, temperature=0)
        for prompt, answers in zip(prompts, ours, strict=True):
            inputs = lm.tokenizer([prompt], return_tensors="pt")
            n_prompt = inputs["input_ids"].shape[1]
            ids = lm.model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                do_sample=False,
                max_new_tokens=constraint.max_tokens(),
                pad_token_id=lm.pad_id,
                logits_processor=LogitsProcessorList([constraint.processor(prompt_length=n_prompt)]),
            )
            assert constraint.read(ids[:, n_prompt:]) == answers


def test_samples_have_the_probabilities_of_the_model(lm, prompts, labels):
    options = tuple(label.strip().removesuffix(".") for label in labels)
    scores = score_answers_naive(lm, prompts[:1], [f" {option}." for option in options])[0]
    n_samples = 4000
    # Masking renormalizes token by token, so compare with sampling that does the same by hand.
    answers = sample_answers(
        lm, prompts[:1], OneOf(options=options), sampling=Sampling(seed=1), n_samples=n_samples, batch_size=n_samples
    )[0]
    expected = {answer.text: math.exp(sum(answer.token_log_probs)) for answer in answers}
    seen = Counter(answer.text for answer in answers)
    assert sum(expected.values()) > 0.95
    for text, probability in expected.items():
        spread = math.sqrt(probability * (1 - probability) / n_samples)
        assert abs(seen[text] / n_samples - probability) < 4.5 * spread + 1e-9
    # What the mask gives is at least what the model gives, since it only takes other tokens away.
    for text, probability in expected.items():
        assert math.log(probability) >= scores[options.index(text)] - 1e-4


def test_log_probs_of_free_text_are_those_of_the_model(lm, prompts):
    answer = sample_answers(lm, prompts[:1], FreeText(max_tokens=6), sampling=Sampling(seed=2, temperature=2.0))[0][0]
    inputs = lm.tokenizer([prompts[0]], return_tensors="pt")["input_ids"]
    sampler = TokenSampler(Sampling(seed=2, temperature=2.0), ["0\0" + "0"])
    n_tokens = len(lm.tokenizer)
    for log_prob in answer.token_log_probs:
        with torch.inference_mode():
            logits = lm.model(input_ids=inputs).logits[:, -1]
        token = sampler.choose(logits, torch.ones((1, n_tokens), dtype=torch.bool))
        assert logits.log_softmax(dim=1)[0, token] == pytest.approx(log_prob, abs=1e-4)
        inputs = torch.cat([inputs, token[:, None]], dim=1)


@pytest.mark.parametrize("which", ["scratch_lm", "hub_like_lm"])
def test_log_probs_of_words_add_up(which, words, prompts, request):
    lm = request.getfixturevalue(which)
    samples = sample_answers(lm, prompts, genes(words, 2, 6), sampling=Sampling(seed=5), n_samples=3)
    for answer in (answer for of_prompt in samples for answer in of_prompt):
        assert len(answer.word_log_probs) == len(answer.text.split(" "))
        assert sum(answer.word_log_probs) >= sum(answer.token_log_probs) - 1e-6, "the closing costs the rest"
        assert max(answer.token_log_probs) <= 0
    text_only = generate_answers(lm, prompts, genes(words, 2, 6), seed=5, n_samples=3)
    assert text_only == [[answer.text for answer in of_prompt] for of_prompt in samples]


def test_each_prompt_may_have_its_own_format(lm, words, prompts):
    formats: list[AnswerFormat] = [
        genes(words, 2, 2),
        OneOf(options=("B cell", "NK cell")),
        genes(words, 7, 7),
        Number(low=0, high=9),
        genes(words, 1, 12),
    ]
    answers = generate_answers(lm, prompts, formats, seed=6, n_samples=3)
    apart = [
        generate_answers(lm, [prompt], one, seed=6, n_samples=3, keys=[str(i)])[0]
        for i, (prompt, one) in enumerate(zip(prompts, formats, strict=True))
    ]
    assert answers == apart
    assert {len(text.split(" ")) for text in answers[0]} == {2}
    assert {len(text.split(" ")) for text in answers[2]} == {7}
    assert set(answers[1]) <= {"B cell", "NK cell"}
    assert all(0 <= float(text) <= 9 for text in answers[3])


def test_a_prompt_is_read_once_for_all_its_samples(lm, words, prompts, monkeypatch):
    read = []
    original = generate._read_prompts

    def count(lm, batch, prompts=None):
        chosen = range(len(batch.prompt_ids)) if prompts is None else prompts
        read.extend(batch.prompt_ids[prompt].tobytes() for prompt in chosen)
        return original(lm, batch, prompts)

    monkeypatch.setattr(generate, "_read_prompts", count)
    generate_answers(lm, [*prompts, *prompts], genes(words), seed=0, n_samples=5, batch_size=4)
    assert len(read) == len(set(read)) == len(prompts)


@pytest.fixture
def questions(words) -> list[str]:
    """One cell, then questions of unlike length about it; another cell with three; and a prompt of its own."""
    cell = "Genes of a cell: " + " ".join(words * 4) + "."
    asked = ["Type?", "Is it a B cell?", "Which genes are next? Name them all, the highest first.", "Sex?"]
    other = "Genes of a cell: " + " ".join(words[::-1] * 4) + "."
    return [f"{cell} {one}" for one in asked * 2] + [f"{other} {one}" for one in asked[:3]] + ["Cell?"]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_prompts_share_is_read_once_and_changes_nothing(
    family, make_lm, word_tokenizer, words, questions, monkeypatch
):
    lm = make_lm(family, word_tokenizer)
    read: list[int] = []
    original = generate.read_prefix
    monkeypatch.setattr(generate, "read_prefix", lambda lm, ids: read.append(len(ids)) or original(lm, ids))
    options = {"seed": 3, "n_samples": 3, "batch_size": 8}
    keys = [str(i) for i in range(len(questions))]
    shared = generate_answers(lm, questions, genes(words), keys=keys, **options)
    shares = family not in {"mistral", "mamba"}  # a window shorter than the prompts, and no keys and values
    assert len(read) == (2 if shares else 0)
    assert all(n >= 48 for n in read)
    with monkeypatch.context() as patched:
        patched.setattr(prefix_cache, "can_share", lambda *_: False)
        assert shared == generate_answers(lm, questions, genes(words), keys=keys, **options)
    order = np.random.default_rng(0).permutation(len(questions)).tolist()
    shuffled = generate_answers(
        lm, [questions[i] for i in order], genes(words), keys=[keys[i] for i in order], **(options | {"batch_size": 5})
    )
    assert shuffled == [shared[i] for i in order]


def test_a_shared_cell_saves_eight_of_nine_prefill_tokens(lm, words, monkeypatch):
    """One cell of many tokens, then many short questions after it."""
    cell = " ".join(words * 15)
    questions = [f"{cell} {' '.join(np.roll(words, i)[:3])}?" for i in range(12)]
    n_tokens = []
    original = generate._forward

    def count(lm, ids, cache, *more):
        if cache is None or ids.shape[1] > 1:
            n_tokens.append(ids.numel())
        return original(lm, ids, cache, *more)

    read_prefix = generate.read_prefix
    monkeypatch.setattr(generate, "_forward", count)
    monkeypatch.setattr(generate, "read_prefix", lambda lm, ids: n_tokens.append(len(ids)) or read_prefix(lm, ids))
    ours = generate_answers(lm, questions, genes(words), seed=0)
    n_shared = sum(n_tokens)
    monkeypatch.setattr(prefix_cache, "can_share", lambda *_: False)
    n_tokens.clear()
    assert generate_answers(lm, questions, genes(words), seed=0) == ours
    assert sum(n_tokens) >= 8 * n_shared


def test_a_model_without_a_cache_reads_all_again_at_each_step(word_tokenizer, words, prompts):
    config = OpenAIGPTConfig(
        vocab_size=len(word_tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=256, initializer_range=0.3
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm = LanguageModel(model=OpenAIGPTLMHeadModel(config).eval(), tokenizer=word_tokenizer)
    together = generate_answers(lm, prompts, genes(words), seed=0, n_samples=3)
    apart = [
        generate_answers(lm, [text], genes(words), seed=0, n_samples=3, keys=[str(i)], batch_size=1)[0]
        for i, text in enumerate(prompts)
    ]
    assert together == apart
    prompt_ids = torch.tensor([encode_prompts(word_tokenizer, prompts[:1])[0].tolist()])
    greedy = generate_answers(lm, prompts[:1], FreeText(max_tokens=1), seed=0, temperature=0)[0][0]
    with torch.inference_mode():
        best = lm.model(input_ids=prompt_ids).logits[0, -1, : len(word_tokenizer)].argmax()
    assert greedy == word_tokenizer.decode([int(best)], skip_special_tokens=True).strip()


@pytest.mark.parametrize("most", [5, 1])
def test_out_of_memory_halves_the_batch_and_changes_nothing(lm, words, questions, most, monkeypatch, caplog):
    expected = generate_answers(lm, questions, genes(words), seed=2, n_samples=4)
    forward = lm.model.forward
    rows_seen = []

    def small_memory(**inputs):
        rows_seen.append(len(inputs["input_ids"]))
        if rows_seen[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        return forward(**inputs)

    small_memory.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(lm.model, "forward", small_memory)
    with caplog.at_level("WARNING"):
        assert generate_answers(lm, questions, genes(words), seed=2, n_samples=4) == expected
    assert "out of memory with 32 answers at a time; going on with 16" in caplog.text
    assert sum(n > most for n in rows_seen) <= 5, "later batches start at the size that fitted"


def test_an_answer_that_does_not_fit_alone_says_so(lm, words, monkeypatch):
    def no_memory(**inputs):
        raise torch.OutOfMemoryError("CUDA out of memory (injected)")

    no_memory.__signature__ = inspect.signature(lm.model.forward)
    monkeypatch.setattr(lm.model, "forward", no_memory)
    with pytest.raises(torch.OutOfMemoryError, match="injected") as caught:
        generate_answers(lm, ["Cell?"], genes(words), seed=0)
    assert "a single answer does not fit the memory" in "".join(caught.value.__notes__)


def test_answers_end_before_the_context_is_full(lm, words):
    prompt = " B2M" * 247  # 248 tokens with <bos>, 8 fewer than the context
    answers = generate_answers(lm, [prompt], genes(words, 2, 12), seed=0, n_samples=30)[0]
    assert max(len(text.split(" ")) for text in answers) == 6, "room for the terminator and end of text"
    with pytest.raises(InputError, match=r"prompt 0 has 248 tokens and its answer may need 9 for 7 words, together"):
        generate_answers(lm, [prompt], genes(words, 7, 12), seed=0)


def test_long_answers_over_a_real_size_of_vocabulary_are_valid(make_lm, byte_tokenizer, prompts):
    """A wild model, 400 names that begin each other or hold the terminator, a quarter of them asked for."""
    names = tuple(
        f"{stem}{number}{end}" for stem in ("CD", "AC0", "HLA-D") for number in range(67) for end in ("", ".1")
    )
    whole = build_tokenizer(names, prompts, n_subwords=300)
    for lm in (make_lm("neox", byte_tokenizer), make_lm("llama", whole)):
        answers = generate_answers(lm, ["Cell?", "Genes:"], genes(names, 20, 100), seed=1, n_samples=4, temperature=5.0)
        for text in (text for samples in answers for text in samples):
            chosen = text.split(" ")
            assert set(chosen) <= set(names)
            assert 20 <= len(set(chosen)) == len(chosen) <= 100


@pytest.mark.gpu
def test_a_gpu_gives_valid_answers(words, prompts, scratch_lm):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    on_gpu = LanguageModel(
        model=copy.deepcopy(scratch_lm.model).to("cuda"), tokenizer=scratch_lm.tokenizer, device=torch.device("cuda")
    )
    for answer_format in (
        genes(words),
        OneOf(options=("B cell", "NK cell")),
        Number(low=0, high=9),
        FreeText(max_tokens=5),
    ):
        samples = sample_answers(on_gpu, prompts, answer_format, sampling=Sampling(seed=0), n_samples=8)
        if isinstance(answer_format, DistinctWords):
            assert all(set(answer.text.split(" ")) <= set(words) for of_prompt in samples for answer in of_prompt)


def test_top_p_keeps_what_transformers_keeps():
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (20, 50)).astype(np.float32))
    for top_p in (0.01, 0.3, 0.9, 0.999):
        expected = TopPLogitsWarper(top_p)(torch.zeros((20, 1), dtype=torch.int64), logits)
        assert torch.equal(keep_top_p(logits, top_p), expected)


def test_noise_draws_by_probability():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05, 0.0]])).repeat(500, 1)
    allowed = torch.tensor([True, False, True, True, True])[None].repeat(500, 1)
    sampler = TokenSampler(Sampling(seed=1), [str(i) for i in range(500)])
    drawn = np.bincount(np.concatenate([sampler.choose(logits, allowed).numpy() for _ in range(40)]), minlength=5)
    expected = np.array([0.5, 0, 0.15, 0.05, 0]) / 0.7
    assert drawn / 20_000 == pytest.approx(expected, abs=4.5 * math.sqrt(0.25 / 20_000))
    assert drawn[1] == drawn[4] == 0


def test_lower_temperature_and_top_p_are_tamer(lm, words, prompts):
    def diversity(**options: float) -> int:
        samples = generate_answers(lm, prompts[:1], genes(words, 3, 3), seed=0, n_samples=100, **options)[0]
        return len(set(samples))

    assert diversity(temperature=5.0) > diversity() > diversity(temperature=0.3) > diversity(temperature=0) == 1
    assert diversity(top_p=0.5) < diversity()
    assert diversity(top_p=1e-9) == 1


def test_the_model_is_left_as_it_was(lm, words, prompts):
    lm.model.train()
    try:
        generate_answers(lm, prompts[:1], genes(words), seed=0)
        assert lm.model.training
    finally:
        lm.model.eval()


def test_no_prompts_give_no_answers(lm, words):
    assert generate_answers(lm, [], genes(words), seed=0) == []


def test_bad_input_is_refused(lm, hub_like_lm, words, prompts):
    for options, message in (
        ({"temperature": -1}, r"temperature must be 0 .* found -1"),
        ({"temperature": float("nan")}, r"found nan"),
        ({"top_p": 0}, r"top_p must be above 0 and at most 1, found 0"),
        ({"n_samples": 0}, r"n_samples and batch_size must be at least 1, found 0 and 64"),
        ({"batch_size": 0}, r"found 1 and 0"),
        ({"keys": ["a"]}, r"one key for each prompt, found 5 prompts, 5 formats and 1 keys"),
    ):
        with pytest.raises(InputError, match=message):
            generate_answers(lm, prompts, genes(words), seed=0, **options)
    with pytest.raises(InputError, match="found 5 prompts, 2 formats and 5 keys"):
        generate_answers(lm, prompts, [genes(words)] * 2, seed=0)
    with pytest.raises(InputError, match="prompt 0 is empty and the tokenizer puts no opening token"):
        generate_answers(hub_like_lm, [""], genes(words), seed=0)
    with pytest.raises(InputError, match=r"has 302 tokens and its answer may need 5 .*context of 256"):
        generate_answers(lm, [" B2M" * 301], genes(words), seed=0)
    with pytest.raises(InputError, match=r"found one text of 5 characters; pass \[text\]"):
        generate_answers(lm, "Cell?", genes(words), seed=0)


def test_a_broken_model_is_named(lm, words, prompts):
    weight = lm.model.lm_head.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[0, 0] = float("nan")
        with pytest.raises(ResourceError, match="logits that are not finite"):
            generate_answers(lm, prompts, genes(words), seed=0)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


@settings(max_examples=12, deadline=None)
@given(
    batch_size=st.integers(1, 40),
    order=st.permutations(range(9)),
    n_left_out=st.integers(0, 7),
    shares=st.booleans(),
)
def test_no_batch_order_or_company_changes_a_sample(batch_size, order, n_left_out, shares):
    lm, words, expected, asked = drawn_once()
    chosen = order[n_left_out:]
    with pytest.MonkeyPatch.context() as patched:
        if not shares:
            patched.setattr(prefix_cache, "can_share", lambda *_: False)
        found = generate_answers(
            lm,
            [asked[i] for i in chosen],
            genes(words),
            keys=[str(i) for i in chosen],
            seed=9,
            n_samples=3,
            batch_size=batch_size,
        )
    assert found == [expected[i] for i in chosen]


@cache
def drawn_once() -> tuple[LanguageModel, tuple[str, ...], list[list[str]], list[str]]:
    """A model, and the answers to nine prompts of which some share a cell and two are the same."""
    words = tuple(f"GENE{i}" for i in range(20))
    cell = "Genes: " + " ".join(words * 2)
    asked = [f"{cell}. {one}" for one in ("Type?", "Is it a B cell?", "Next?", "Type?", "Sex and age?", "Why?")]
    asked += ["Cell?", f"Genes: {words[3]}", " ".join(words)]
    tokenizer = build_tokenizer(words, asked, n_subwords=300)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm = LanguageModel(model=LlamaForCausalLM(config).eval(), tokenizer=tokenizer)
    keys = [str(i) for i in range(9)]
    expected = generate_answers(lm, asked, genes(words), keys=keys, seed=9, n_samples=3, batch_size=1)
    assert len({text for samples in expected for text in samples}) == 27
    return lm, words, expected, asked


@pytest.mark.parametrize("faulty", ["B cell", None, ["B cell"], OneOf])
def test_what_is_no_answer_format_is_named(scratch_lm, faulty):
    with pytest.raises(InputError, match=r"expected OneOf, DistinctWords, Number or FreeText .*, found"):
        generate_answers(scratch_lm, ["Cell?"], faulty, seed=0)
