"""Ranks of words: against the exact expectation over every answer that a tiny model can give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cytoglot.answer_format import DistinctWords
from cytoglot.errors import InputError
from cytoglot.lm.constraint.constrain import constrain
from cytoglot.lm.generation.generate import sample_answers
from cytoglot.lm.generation.rank_expectation import AnswerRanks, answer_ranks, next_probabilities
from cytoglot.lm.generation.sampling import Sampling
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.tokenizer import encode_completions, encode_prompts

FEW = ("CD3D", "GNLY", "HLA-DRA", "LYZ")


@pytest.fixture
def lm(scratch_lm: LanguageModel) -> LanguageModel:
    return scratch_lm


def every_answer(
    lm: LanguageModel, prompt: str, one: DistinctWords, temperature: float
) -> dict[tuple[int, ...], float]:
    """Return the probability of each answer, as a tuple of word numbers, worked out with plain passes of the model."""
    words = [int(ids[0]) for ids in encode_completions(lm.tokenizer, [f" {word}" for word in one.words])]
    bare, closed = encode_completions(lm.tokenizer, [f" {one.words[0]}", f" {one.words[0]}."])
    full_stop = int(closed[len(bare)])
    start = encode_prompts(lm.tokenizer, [prompt])[0].tolist()
    answers: dict[tuple[int, ...], float] = {}

    def go_on(chosen: tuple[int, ...], probability: float) -> None:
        ids = torch.tensor([[*start, *(words[word] for word in chosen)]])
        with torch.inference_mode():
            logits = lm.model(input_ids=ids).logits[0, -1]
        left = [w for w in range(len(words)) if w not in chosen] if len(chosen) < one.max_words else []
        may_close = [full_stop] if len(chosen) >= one.min_words else []
        shares = (logits[[*(words[w] for w in left), *may_close]] / temperature).softmax(dim=0).tolist()
        if may_close:
            answers[chosen] = probability * shares[-1]
        for word, share in zip(left, shares, strict=False):
            go_on((*chosen, word), probability * share)

    go_on((), 1.0)
    assert sum(answers.values()) == pytest.approx(1, abs=1e-5)
    return answers


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_estimates_lie_around_the_exact_expectation(lm, prompts, temperature):
    asked = [prompts[0], prompts[1]]
    formats = [DistinctWords(words=FEW, min_words=1, max_words=3), DistinctWords(words=FEW, min_words=2, max_words=2)]
    values = np.random.default_rng(0).uniform(0, 3, (2, 3, len(FEW))).astype(np.float32)
    exact = np.zeros((2, 3, len(FEW)))
    for prompt, (text, one) in enumerate(zip(asked, formats, strict=True)):
        for answer, probability in every_answer(lm, text, one, temperature).items():
            exact[prompt, range(len(answer)), answer] += probability
    sampling = Sampling(seed=3, temperature=temperature)
    found = answer_ranks(lm, asked, formats, sampling=sampling, n_samples=300, values_prw=values, batch_size=130)
    present = exact.sum(axis=1).mean(axis=0)
    assert (found.present_error_w < 0.03).all()
    assert (np.abs(found.present_w - present) <= 4 * found.present_error_w + 1e-6).all()
    rank = (exact * np.arange(1, 4)[:, None]).sum(axis=1).mean(axis=0) / present
    assert (np.abs(found.rank_w - rank) <= 4 * found.rank_error_w + 1e-6).all()
    value = (exact * values).sum(axis=1).mean(axis=0)
    assert (np.abs(found.value_w - value) <= 4 * found.value_error_w + 1e-6).all()
    np.testing.assert_allclose(found.probability_prw, exact, atol=0.05)
    assert (found.probability_prw[1, 2] == 0).all(), "every answer of the second prompt has two words"


def test_errors_say_how_far_estimates_scatter(lm, prompts):
    one = DistinctWords(words=FEW, min_words=1, max_words=3)
    runs = [answer_ranks(lm, prompts[:1], one, sampling=Sampling(seed=s), n_samples=12) for s in range(60)]
    for name in ("present", "rank"):
        scatter = np.std([getattr(run, f"{name}_w") for run in runs], axis=0)
        stated = np.mean([getattr(run, f"{name}_error_w") for run in runs], axis=0)
        assert (stated / scatter > 0.6).all(), name
        assert (stated / scatter < 1.6).all(), name


def test_next_word_probabilities_err_less_than_counts(lm, hub_like_lm, words, prompts):
    one = DistinctWords(words=FEW, min_words=2, max_words=4)
    by_probability = answer_ranks(lm, prompts[:1], one, sampling=Sampling(seed=1), n_samples=50)
    samples = sample_answers(lm, prompts[:1], one, sampling=Sampling(seed=1), n_samples=50)[0]
    counts = np.array([[word in answer.text.split(" ") for word in FEW] for answer in samples])
    assert (by_probability.present_error_w < 1.02 * counts.std(axis=0) / 50**0.5).all()
    rare = DistinctWords(words=words, min_words=2, max_words=2)
    found = answer_ranks(lm, prompts[:1], rare, sampling=Sampling(seed=1), n_samples=50)
    counted_error = np.sqrt(found.present_w * (1 - found.present_w) / 49)
    assert (found.present_error_w < 0.8 * counted_error).all()
    assert (found.present_w > 0).all(), "words that no sample has are there too"
    counted = answer_ranks(hub_like_lm, prompts[:1], one, sampling=Sampling(seed=1), n_samples=50)
    texts = sample_answers(hub_like_lm, prompts[:1], one, sampling=Sampling(seed=1), n_samples=50)[0]
    first = np.array([sum(answer.text.split(" ")[0] == word for answer in texts) for word in FEW]) / 50
    np.testing.assert_allclose(counted.probability_prw[0, 0], first, atol=1e-6)
    present = np.array([sum(word in answer.text.split(" ") for answer in texts) for word in FEW]) / 50
    np.testing.assert_allclose(counted.present_w, present, atol=1e-6)
    np.testing.assert_allclose(counted.present_error_w, np.sqrt(present * (1 - present) / 49), atol=1e-6)


def test_the_most_likely_answer_alone_has_ranks_without_spread(lm, prompts):
    one = DistinctWords(words=FEW, min_words=3, max_words=3)
    found = answer_ranks(lm, prompts[:1], one, sampling=Sampling(temperature=0), n_samples=2)
    text = sample_answers(lm, prompts[:1], one, sampling=Sampling(temperature=0))[0][0].text.split(" ")
    for rank, word in enumerate(text, start=1):
        w = FEW.index(word)
        assert (found.present_w[w], found.rank_w[w]) == (1, rank)
        assert [edge[w] for edge in found.rank_interval()] == [rank, rank]
    absent = FEW.index((set(FEW) - set(text)).pop())
    assert found.present_w[absent] == 0
    assert np.isnan(found.rank_w[absent])
    assert np.isnan(found.rank_interval()[0][absent])
    assert found.present_error_w.max() == 0


def test_what_runs_out_of_memory_is_not_counted_twice(lm, prompts, monkeypatch):
    one = DistinctWords(words=FEW, min_words=1, max_words=3)
    options = {"sampling": Sampling(seed=2), "n_samples": 20}
    expected = answer_ranks(lm, prompts[:2], one, **options)
    forward, n_calls = lm.model.forward, []

    def now_and_then(
        input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None, logits_to_keep=0
    ):
        n_calls.append(len(input_ids))
        if len(n_calls) == 3:  # in the middle of a batch
            raise torch.OutOfMemoryError("injected")
        return forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
        )

    monkeypatch.setattr(lm.model, "forward", now_and_then)
    found = answer_ranks(lm, prompts[:2], one, **options)
    assert min(n_calls) < max(n_calls)
    np.testing.assert_allclose(found.probability_prw, expected.probability_prw, atol=1e-5)
    np.testing.assert_allclose(found.rank_w, expected.rank_w, atol=1e-4)


def made(probability_prw: list) -> AnswerRanks:
    none = np.zeros(0)
    return AnswerRanks(
        words=("A", "B"),
        probability_prw=np.array(probability_prw, dtype=np.float32),
        n_samples=2,
        present_w=none,
        present_error_w=none,
        rank_w=none,
        rank_error_w=none,
        value_w=None,
        value_error_w=None,
    )


def test_intervals_by_hand():
    # A: rank 1 in half of the answers, rank 4 in a quarter, else absent. B: only ever at rank 2 of the second prompt.
    ranks = made([[[0.5, 0], [0, 0], [0, 0], [0.25, 0]], [[0.5, 0], [0, 0.1], [0, 0], [0.25, 0]]])
    assert [edge.tolist() for edge in ranks.rank_interval(0.9)] == [[1, 2], [4, 2]]
    assert [edge.tolist() for edge in ranks.rank_interval(0.2)] == [[1, 2], [1, 2]]
    values = np.array([[[3, 0], [2, 0], [1.5, 0], [1, 0]], [[4, 0], [2, 9], [1.5, 0], [1, 0]]])
    low, high = ranks.value_interval(values, 0.88)
    assert (low.tolist(), high.tolist()) == ([0, 0], [4, 0]), "a quarter of the answers lack A, 95 % lack B"
    low, high = ranks.value_interval(values, 0.92)
    assert (low.tolist(), high.tolist()) == ([0, 0], [4, 9])
    low, high = ranks.value_interval(values, 0.4)
    assert (low.tolist(), high.tolist()) == ([1, 0], [3, 0])


def test_next_probabilities_are_those_of_sampling():
    logits = torch.tensor([[2.0, 1.0, 0.0, 5.0]])
    allowed = torch.tensor([[True, True, True, False]])
    e = np.exp([1.0, 0.5, 0.0])
    np.testing.assert_allclose(
        next_probabilities(logits, allowed, Sampling(temperature=2))[0, :3], e / e.sum(), rtol=1e-6
    )
    top = next_probabilities(logits, allowed, Sampling(temperature=2, top_p=0.6))[0]
    np.testing.assert_allclose(top, [*(e[:2] / e[:2].sum()), 0, 0], rtol=1e-6)
    assert next_probabilities(logits, allowed, Sampling(temperature=0)).tolist() == [[1, 0, 0, 0]]


def test_faults_are_named(lm, prompts):
    one = DistinctWords(words=FEW, min_words=1, max_words=3)
    with pytest.raises(InputError, match="at least 2 samples of each prompt, to know their error, found 1"):
        answer_ranks(lm, prompts[:1], one, sampling=Sampling(), n_samples=1)
    with pytest.raises(InputError, match="need at least one prompt and one format for each, found 0 and 0"):
        answer_ranks(lm, [], one, sampling=Sampling())
    other = DistinctWords(words=FEW[::-1], min_words=1, max_words=3)
    with pytest.raises(InputError, match="the formats have different words"):
        answer_ranks(lm, prompts[:2], [one, other], sampling=Sampling())
    with pytest.raises(InputError, match=r"= \(1, 3, 4\), found \(3, 4\)"):
        answer_ranks(lm, prompts[:1], one, sampling=Sampling(), values_prw=np.zeros((3, 4)))
    with pytest.raises(InputError, match="between 0 and 1, found 90"):
        made([[[1.0, 0.0]]]).rank_interval(90)
    assert constrain(one, lm.tokenizer).bounds == (1, 3)
