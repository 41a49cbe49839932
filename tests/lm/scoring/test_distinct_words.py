"""The probability of distinct words: against enumeration, against the sampler, and in rows of several answers."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cytoglot.answer_format import DistinctWords, WordWeights
from cytoglot.lm.generation.generate import sample_answers
from cytoglot.lm.generation.sampling import Sampling
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.tokenizer import build_tokenizer, encode_pairs
from cytoglot.lm.scoring.distinct_words import AnswerWords

WORDS = ("AA", "AB", "B", "ABC")


def language_model(words: tuple[str, ...]) -> LanguageModel:
    tokenizer = build_tokenizer(words, ["Write 2 genes:"] * 3, context_length=64)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(40)  # far from uniform
    return LanguageModel(model=model, tokenizer=tokenizer, device=torch.device("cpu"))


def nats(lm: LanguageModel, words: AnswerWords, texts: list[str], *, whole: bool, condition: int = 0) -> list[float]:
    """Return −log p of each answer, all of them in one batch; `whole` counts what closes them too."""
    pairs = encode_pairs(lm.tokenizer, ["Write 2 genes:"] * len(texts), [f" {text}." for text in texts])
    ids_bt = torch.zeros((len(pairs), max(len(ids) for ids, _ in pairs)), dtype=torch.int64)
    n_words_bt = torch.zeros_like(ids_bt)
    for row, (ids, n_prompt) in enumerate(pairs):
        ids_bt[row, : len(ids)] = torch.from_numpy(ids)
        n = len(texts[row].split())
        n_words_bt[row, n_prompt : len(ids) if whole else n_prompt + n] = n
    with torch.no_grad():
        logits_btv = lm.model(input_ids=ids_bt).logits
    predicts_bt = n_words_bt > 0
    loss_n = words.losses(
        logits_btv[:, :-1][predicts_bt[:, 1:]], predicts_bt, ids_bt, n_words_bt, torch.full_like(ids_bt, condition)
    )
    rows = predicts_bt.nonzero(as_tuple=True)[0].numpy()
    return np.bincount(rows, weights=loss_n.double().numpy()).tolist()


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_answers_of_a_length_have_a_probability_of_one_together(single, length):
    lm = language_model(WORDS if single else ("A",))  # else the words are spelled in pieces
    words = AnswerWords.of(lm.tokenizer, WORDS)
    assert (words.token_ids_w is not None) == single
    texts = [" ".join(order) for order in permutations(WORDS, length)]
    assert np.exp(-np.array(nats(lm, words, texts, whole=not single))).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("single", [True, False])
def test_it_is_the_probability_that_sampling_gives(single):
    lm = language_model(WORDS if single else ("A",))
    form = DistinctWords(words=WORDS, min_words=3, max_words=3)
    (answers,) = sample_answers(lm, ["Write 2 genes:"], form, sampling=Sampling(seed=1), n_samples=8)
    found = nats(lm, AnswerWords.of(lm.tokenizer, WORDS), [one.text for one in answers], whole=not single)
    assert found == pytest.approx([-one.log_prob for one in answers], abs=1e-4)


def test_weights_are_in_both_and_the_right_condition_is_taken():
    lm = language_model(WORDS)
    weights_cw = np.array([[0, 0, 0, 0], [2, -1, 0.5, -3]], dtype=np.float32)
    words = AnswerWords.of(lm.tokenizer, WORDS, log_weights_cw=weights_cw)
    form = DistinctWords(words=WORDS, min_words=2, max_words=2, weights=WordWeights(weights_cw[1]))
    (answers,) = sample_answers(lm, ["Write 2 genes:"], form, sampling=Sampling(seed=1), n_samples=8)
    texts = [one.text for one in answers]
    assert nats(lm, words, texts, whole=False, condition=1) == pytest.approx(
        [-one.log_prob for one in answers], abs=1e-4
    )
    plain = nats(lm, AnswerWords.of(lm.tokenizer, WORDS), texts, whole=False)
    assert nats(lm, words, texts, whole=False, condition=0) == pytest.approx(plain, abs=1e-5)
    assert nats(lm, words, texts, whole=False, condition=1) != pytest.approx(plain, abs=1e-2)


@pytest.mark.parametrize("single", [True, False])
def test_answers_that_share_a_row_do_not_see_what_the_others_wrote(single):
    lm = language_model(WORDS if single else ("A",))
    words = AnswerWords.of(lm.tokenizer, WORDS)
    texts = ["AA B", "B AA", "ABC AA"]
    pairs = encode_pairs(lm.tokenizer, ["Write 2 genes:"] * 3, [f" {text}." for text in texts])
    ids_t = torch.from_numpy(np.concatenate([ids for ids, _ in pairs]))[None]
    n_words_t, segments_t = torch.zeros_like(ids_t), torch.zeros_like(ids_t)
    positions_t, at = torch.zeros_like(ids_t), 0
    for number, (ids, n_prompt) in enumerate(pairs, start=1):
        n_words_t[0, at + n_prompt : at + (n_prompt + 2 if single else len(ids))] = 2
        segments_t[0, at : at + len(ids)] = number
        positions_t[0, at : at + len(ids)] = torch.arange(len(ids))
        at += len(ids)
    with torch.no_grad():
        logits_tv = lm.model(input_ids=ids_t, position_ids=positions_t, use_cache=False).logits
    predicts_t = n_words_t > 0
    loss_n = words.losses(
        logits_tv[:, :-1][predicts_t[:, 1:]], predicts_t, ids_t, n_words_t, torch.zeros_like(ids_t), segments_t
    )
    found = np.bincount(segments_t[predicts_t].numpy() - 1, weights=loss_n.double().numpy())
    assert found == pytest.approx(nats(lm, words, texts, whole=not single), abs=1e-4)


def test_weights_of_words_in_several_tokens_are_refused():
    lm = language_model(("A",))
    with pytest.raises(ValueError, match="each word is one token"):
        AnswerWords.of(lm.tokenizer, WORDS, log_weights_cw=np.zeros((1, 4)))
