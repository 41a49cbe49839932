"""One contract per socket, run over everything that fills it."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cytoglot.answer_format import AnswerFormat, DistinctWords, FreeText, Number, OneOf
from cytoglot.lm.backends.openai import OpenAiServer
from cytoglot.lm.backends.vllm import load_vllm
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.tokenizer import build_tokenizer
from cytoglot.protocols import AnswerSampler, AnswerScorer, TextGenerator

GENES = ("ACTB", "B2M", "CD3D", "CD3E", "HLA-DRA", "MS4A1", "NKG7")
LABELS = ("B cell", "NK cell", "NK", "T cell")
PROMPTS = ("Genes: ACTB B2M. Type:", "Write 3 genes of a T cell:", "Cell?")


@cache
def tiny_causal_lm() -> LanguageModel:
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
    return LanguageModel(model=model, tokenizer=tokenizer)


@cache
def fake_vllm() -> ModuleType:
    path = Path(__file__).parents[1] / "lm" / "fake_vllm.py"
    spec = importlib.util.spec_from_file_location("fake_vllm", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_vllm"] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def in_this_process() -> Iterator[LanguageModel]:
    yield tiny_causal_lm()


@contextmanager
def vllm_engine(*, exact: bool = False) -> Iterator[TextGenerator]:
    lm = tiny_causal_lm()
    with pytest.MonkeyPatch.context() as patched:
        fake_vllm().install(patched, tokenizer=lm.tokenizer, model=lm.model)
        patched.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: lm.tokenizer)
        yield load_vllm("tiny", exact=exact)


@contextmanager
def exact_vllm_engine() -> Iterator[TextGenerator]:
    with vllm_engine(exact=True) as engine:
        yield engine


class VllmServer(BaseHTTPRequestHandler):
    """Plays a server of vLLM: answers by grammar, and scores what it echoes with the tiny model."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.reply({"data": [{"id": "tiny"}]} if self.path.endswith("models") else {"version": "0.31.0"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body.get("echo"):
            self.reply({"choices": [{"text": body["prompt"], "logprobs": self.scored(body["prompt"])}]})
            return
        rng = np.random.default_rng(body["seed"])
        held = body.get("structured_outputs")
        fake = fake_vllm()
        text = fake.play(fake.StructuredOutputsParams(**held), rng) if held else f"free text {rng.integers(1000)}"
        self.reply({"choices": [{"text": text, "finish_reason": "stop"}]})

    def scored(self, text: str) -> dict[str, list]:
        lm = tiny_causal_lm()
        encoded = lm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        with torch.inference_mode():
            ids = torch.tensor([encoded["input_ids"]])
            log_probs = lm.model(input_ids=ids).logits[0].log_softmax(dim=1)
        told = [float(log_probs[i, token]) for i, token in enumerate(encoded["input_ids"][1:])]
        return {"text_offset": [start for start, _ in encoded["offset_mapping"]], "token_logprobs": [None, *told]}

    def reply(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def openai_server() -> Iterator[TextGenerator]:
    with ThreadingHTTPServer(("127.0.0.1", 0), VllmServer) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield OpenAiServer(url=f"http://127.0.0.1:{http.server_port}/v1", model="tiny")
        finally:
            http.shutdown()
            thread.join()


MAKERS: dict[str, Callable] = {
    "LanguageModel": in_this_process,
    "VllmEngine": vllm_engine,
    "VllmEngine, exact": exact_vllm_engine,
    "OpenAiServer": openai_server,
}


@pytest.fixture
def filled(request: pytest.FixtureRequest) -> Iterator[object]:
    with ExitStack() as stack:
        yield stack.enter_context(MAKERS[request.param]())


of_all = pytest.mark.parametrize("filled", MAKERS, indirect=True)


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


@of_all
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
def test_generators_give_valid_answers_that_the_seed_decides(filled: object, answer_format: AnswerFormat) -> None:
    generator = filled
    assert isinstance(generator, TextGenerator)
    prompts = list(PROMPTS)
    answers = generator.generate(prompts, answer_format, n_samples=4, seed=1)
    assert prompts == list(PROMPTS)
    assert [len(samples) for samples in answers] == [4] * len(PROMPTS)
    assert all(is_valid(text, answer_format) for samples in answers for text in samples)
    assert generator.generate(prompts, answer_format, n_samples=4, seed=1) == answers
    assert generator.generate(prompts, answer_format, n_samples=4, seed=2) != answers


@of_all
def test_samplers_give_each_key_its_own_answers(filled: object) -> None:
    sampler = filled
    assert isinstance(sampler, AnswerSampler)
    keys = ["a", "b", "c"]
    genes = DistinctWords(words=GENES, min_words=2, max_words=5)
    answers = sampler.sample(list(PROMPTS), genes, 3, 1, keys=keys)
    assert all(is_valid(answer.text, genes) for samples in answers for answer in samples)
    assert all(answer.log_prob is None or answer.log_prob < 0 for samples in answers for answer in samples)
    backwards = sampler.sample(list(PROMPTS[::-1]), genes, 3, 1, keys=keys[::-1])
    texts = [[answer.text for answer in samples] for samples in answers]
    assert [[answer.text for answer in samples] for samples in backwards[::-1]] == texts
    alone = sampler.sample(PROMPTS[1:2], genes, 3, 1, keys=keys[1:2])
    assert [[answer.text for answer in samples] for samples in alone] == texts[1:2]
    assert [[answer.text for answer in samples] for samples in sampler.sample(list(PROMPTS), genes, 3, 1)] != texts
    with pytest.raises(ValueError, match=r"one key for each prompt, found 3 prompts"):
        sampler.sample(list(PROMPTS), genes, 3, 1, keys=keys[:2])
    assert sampler.sample([], genes, 3, 1) == []


@of_all
def test_scorers_give_log_likelihoods_of_each_prompt_and_answer(filled: object) -> None:
    scorer = filled
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
