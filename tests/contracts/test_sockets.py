"""One contract per socket, run over everything that fills it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cytoglot.answer_format import AnswerFormat, DistinctWords, FreeText, Number, OneOf
from cytoglot.lm.backends.causal_lm import CausalLm
from cytoglot.lm.load import LanguageModel
from cytoglot.lm.tokenizer import build_tokenizer
from cytoglot.protocols import AnswerScorer, TextGenerator

GENES = ("ACTB", "B2M", "CD3D", "CD3E", "HLA-DRA", "MS4A1", "NKG7")
LABELS = ("B cell", "NK cell", "NK", "T cell")
PROMPTS = ("Genes: ACTB B2M. Type:", "Write 3 genes of a T cell:", "Cell?")


def tiny_causal_lm() -> CausalLm:
    tokenizer = build_tokenizer(GENES, [*PROMPTS, *LABELS], n_subwords=300)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=128,
            initializer_range=0.2,
        )
        model = LlamaForCausalLM(config).eval()
    return CausalLm(lm=LanguageModel(model=model, tokenizer=tokenizer))


GENERATORS: dict[str, Callable[[], TextGenerator]] = {"CausalLm": tiny_causal_lm}
SCORERS: dict[str, Callable[[], AnswerScorer]] = {"CausalLm": tiny_causal_lm}


def is_valid(text: str, answer_format: AnswerFormat) -> bool:
    match answer_format:
        case OneOf(options=options):
            return text in options
        case DistinctWords(words=words, min_words=few, max_words=many):
            chosen = text.split(" ")
            return few <= len(chosen) == len(set(chosen)) <= many and set(chosen) <= set(words)
        case Number(low=low, high=high):
            return low <= float(text) <= high
        case FreeText():
            return True


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize(
    "answer_format",
    [
        OneOf(options=LABELS),
        DistinctWords(words=GENES, min_words=2, max_words=5),
        Number(low=-1, high=1),
        FreeText(max_tokens=5),
    ],
    ids=lambda one: type(one).__name__,
)
def test_generators_give_valid_answers_that_the_seed_decides(name: str, answer_format: AnswerFormat) -> None:
    generator = GENERATORS[name]()
    assert isinstance(generator, TextGenerator)
    prompts = list(PROMPTS)
    answers = generator.generate(prompts, answer_format, n_samples=4, seed=1)
    assert prompts == list(PROMPTS)
    assert [len(samples) for samples in answers] == [4] * len(PROMPTS)
    assert all(is_valid(text, answer_format) for samples in answers for text in samples)
    assert generator.generate(prompts, answer_format, n_samples=4, seed=1) == answers
    assert generator.generate(prompts, answer_format, n_samples=4, seed=2) != answers


@pytest.mark.parametrize("name", SCORERS)
def test_scorers_give_log_likelihoods_of_each_prompt_and_answer(name: str) -> None:
    scorer = SCORERS[name]()
    assert isinstance(scorer, AnswerScorer)
    prompts, answers = list(PROMPTS), list(LABELS)
    scores = scorer.log_likelihood(prompts, answers)
    assert (prompts, answers) == (list(PROMPTS), list(LABELS))
    assert scores.shape == (len(PROMPTS), len(LABELS))
    assert scores.dtype == np.float64
    assert (scores < 0).all()
    np.testing.assert_allclose(scorer.log_likelihood(prompts[::-1], answers)[::-1], scores, atol=1e-4)
    np.testing.assert_allclose(scorer.log_likelihood(prompts, answers[::-1])[:, ::-1], scores, atol=1e-4)
    alone = scorer.log_likelihood(prompts[1:2], answers[2:3])
    np.testing.assert_allclose(alone, scores[1:2, 2:3], atol=1e-4)
