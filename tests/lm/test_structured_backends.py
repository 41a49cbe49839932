"""Backends that are asked and checked: vLLM by a stand-in, servers by one in this process."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytoglot.answer_format import DistinctWords, FreeText, Number, OneOf
from cytoglot.errors import InputError, MissingExtraError
from cytoglot.lm.backends.openai import OpenAiServer
from cytoglot.lm.backends.structured import Completion, grammar_of, read_answer, read_words
from cytoglot.lm.backends.vllm import load_vllm, read_format, write_format

LABELS = OneOf(options=("NK", "NK cell", "T cell, naive"))


def load_fake() -> Any:
    spec = importlib.util.spec_from_file_location("fake_vllm", Path(__file__).with_name("fake_vllm.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_vllm"] = module
    spec.loader.exec_module(module)
    return module


fake_vllm = load_fake()


@pytest.fixture
def genes(words) -> DistinctWords:
    return DistinctWords(words=words, min_words=5, max_words=9)


def test_grammars_by_hand():
    assert grammar_of(LABELS, terminator=".") == {"choice": [" NK.", " NK cell.", " T cell, naive."]}
    two = DistinctWords(words=("A1", 'B"2'), min_words=1, max_words=2)
    assert grammar_of(two, terminator=".") == {"grammar": 'root ::= (" " word){1,2} "."\nword ::= "A1" | "B\\"2"\n'}
    assert grammar_of(two, terminator="")["grammar"].startswith('root ::= (" " word){1,2}\n')
    assert grammar_of(FreeText(), terminator=".") is None
    number = grammar_of(Number(low=-1, high=25), terminator=".")["regex"]
    for text, fits in ((" 3.", 1), (" -0.5.", 1), (" 25.123456.", 1), (" 100.", 0), ("3.", 0), (" 03.", 0), (" 3", 0)):
        assert bool(re.fullmatch(number, text)) == fits, text
    assert not re.fullmatch(grammar_of(Number(low=0, high=1), terminator=".")["regex"], " -1.")


def test_reading_by_hand():
    for text, expected in (
        (" NK cell.", "NK cell"),
        (" NK.", "NK"),
        ("NK cells", "NK"),
        (" NKT", None),
        ("T cell, naive and so on", "T cell, naive"),
        ("", None),
    ):
        assert read_answer(text, LABELS, terminator=".") == expected, text
    number = Number(low=0, high=2)
    texts = (" 1.5.", "1.", " 2 or so", "3.", "x", "1.5x")
    assert [read_answer(text, number, terminator=".") for text in texts] == ["1.5", "1", "2", None, None, None]
    words = ("AC1", "AC1.3", "LYZ")
    assert read_words(" AC1 LYZ AC1.3.", words, terminator=".") == (["AC1", "LYZ", "AC1.3"], "terminator")
    assert read_words(" AC1. And", words, terminator=".") == (["AC1"], "terminator")
    assert read_words(" LYZ LYZ AC1", words, terminator=".") == (["LYZ", "LYZ", "AC1"], "open")
    assert read_words(" LYZ AC1.4 AC1", words, terminator=".") == (["LYZ"], "other")


@pytest.fixture
def engine(monkeypatch, scratch_lm) -> Any:
    fake_vllm.install(monkeypatch, tokenizer=scratch_lm.tokenizer, model=scratch_lm.model)
    return load_vllm("some/model", temperature=0.7, top_p=0.9, dtype="bfloat16")


def test_vllm_is_called_as_documented(engine, genes, prompts):
    assert engine.llm.made[-1]["generation_config"] == "vllm", "not the checkpoint's own sampling"
    answers = engine.generate(prompts, genes, n_samples=3, seed=4)
    for text in (text for samples in answers for text in samples):
        chosen = text.split(" ")
        assert 5 <= len(set(chosen)) == len(chosen) <= 9
        assert set(chosen) <= set(genes.words)
    first, *later = engine.llm.calls
    assert (first.temperature, first.top_p, first.n, first.logprobs) == (0.7, 0.9, 1, 0)
    assert first.structured_outputs.grammar == grammar_of(genes, terminator=".")["grammar"]
    assert len({params.seed for params in engine.llm.calls}) == len(engine.llm.calls), "each request has its own seed"
    rest = [params.structured_outputs.grammar for params in later[14:]]
    assert rest, "twelve words with repeats mostly leave some to ask for again"
    assert all(len(re.findall(r"\|", one)) < 11 for one in rest), "words that are there are not asked for again"
    assert engine.generate(prompts, genes, n_samples=3, seed=4) == answers
    keys = [f"cell {i}" for i in range(len(prompts))]
    keyed = engine.sample(prompts, genes, 2, 4, keys=keys)
    assert engine.sample(prompts[::-1], genes, 2, 4, keys=keys[::-1]) == keyed[::-1]


def test_vllm_log_probabilities(engine, prompts, genes):
    one = engine.sample(prompts[:1], LABELS, 1, 0)[0][0]
    assert one.text in LABELS.options
    assert set(one.token_log_probs) == {-0.5}
    together = [answer for samples in engine.sample(prompts, genes, 4, 0) for answer in samples]
    assert {answer.token_log_probs == () for answer in together} == {True, False}, "put together from several: none"


def test_vllm_scores_as_scoring_does(engine, scratch_lm, prompts):
    answers = ["NK cell", "NK", "T cell"]
    expected = scratch_lm.log_likelihood(prompts, answers)
    np.testing.assert_allclose(engine.log_likelihood(prompts, answers), expected, atol=1e-4)
    assert engine.log_likelihood([], answers).shape == (0, 3)


def test_our_constraint_inside_of_vllm(monkeypatch, scratch_lm, words, prompts):
    fake_vllm.install(monkeypatch, tokenizer=scratch_lm.tokenizer, model=scratch_lm.model)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: scratch_lm.tokenizer)
    engine = load_vllm("some/model", exact=True)
    assert engine.llm.made[-1]["logits_processors"] == ["cytoglot.lm.backends.vllm_constraint:AnswerLogitsProcessor"]
    for answer_format in (DistinctWords(words=words, min_words=4, max_words=len(words)), LABELS, Number(low=0, high=9)):
        answers = engine.sample(list(prompts), answer_format, 2, 1)
        for text in (answer.text for samples in answers for answer in samples):
            if isinstance(answer_format, DistinctWords):
                chosen = text.split(" ")
                assert 4 <= len(set(chosen)) == len(chosen)
                assert set(chosen) <= set(words)
            elif isinstance(answer_format, OneOf):
                assert text in LABELS.options
            else:
                assert 0 <= float(text) <= 9
        assert all(answer.token_log_probs for samples in answers for answer in samples)
        assert all(params.structured_outputs is None for params in engine.llm.calls)


def test_formats_go_to_the_engine_by_a_file(tmp_path, genes):
    for one in (genes, LABELS, Number(low=0, high=1.5), FreeText(max_tokens=3)):
        assert read_format(str(write_format(tmp_path / "format.json", one, terminator=";"))) == (one, ";")
    with pytest.raises(ValueError, match="cytoglot_format must name a file written by write_format, found 'absent'"):
        read_format("absent")


def test_vllm_faults(monkeypatch, scratch_lm):
    with pytest.raises(MissingExtraError, match=r"pip install 'cytoglot\[vllm\]'"):
        load_vllm("some/model")
    fake_vllm.install(monkeypatch, tokenizer=scratch_lm.tokenizer, model=scratch_lm.model)
    with pytest.raises(InputError, match="vLLM cannot load broken: No supported config format found"):
        load_vllm("broken")


class Server:
    """An OpenAI-compatible server that plays answers; `plan` are replies to give first: codes, or texts."""

    def __init__(self, version: str | None) -> None:
        self.version, self.plan, self.bodies, self.headers = version, [], [], []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                if self.headers.get("Authorization") == "Bearer wrong":
                    self.reply(401, {"error": {"message": "Incorrect API key"}})
                elif self.path == "/v1/models":
                    self.reply(200, {"data": [{"id": "tiny"}]})
                elif self.path == "/version" and server.version:
                    self.reply(200, {"version": server.version})
                else:
                    self.reply(404, {"detail": "Not Found"})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.under_way += 1
                    server.most_under_way = max(server.most_under_way, server.under_way)
                    server.bodies.append(body)
                    server.headers.append(dict(self.headers))
                    planned = server.plan.pop(0) if server.plan else None
                is_code = isinstance(planned, int)
                reply = {"error": {"message": "try later"}} if is_code else server.completion(body, planned)
                with server.lock:
                    server.under_way -= 1
                self.reply(planned if is_code else 200, reply)

            def reply(self, code: int, value: object) -> None:
                content = json.dumps(value).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None  # a client that gave up
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def completion(self, body: dict[str, Any], planned: str | None) -> dict[str, Any]:
        if body.get("echo"):
            # One token per word with its space; log-probability minus its length.
            tokens = re.findall(r"\s*\S+", body["prompt"])
            offsets = np.cumsum([0, *map(len, tokens)])[:-1].tolist()
            told = {"text_offset": offsets, "token_logprobs": [None, *(-float(len(t)) for t in tokens[1:])]}
            return {"choices": [{"text": body["prompt"], "logprobs": told, "finish_reason": "length"}]}
        rng = np.random.default_rng(body["seed"])
        held = body.get("structured_outputs") or {
            name.removeprefix("guided_"): value for name, value in body.items() if name.startswith("guided_")
        }
        if planned is not None:
            text = planned
        elif held:
            text = fake_vllm.play(fake_vllm.StructuredOutputsParams(**held), rng)
        else:
            text = str(rng.choice([" NK cell. And more", " none of these", " T cell, naive.\n", " NK"]))
        return {"choices": [{"text": text, "finish_reason": "stop", "logprobs": {"token_logprobs": [-0.25, -0.5]}}]}

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server("0.23.1")
    yield server
    server.close()


@pytest.fixture
def plain_server() -> Iterator[Server]:
    server = Server(None)
    yield server
    server.close()


def backend(server: Server, **options: Any) -> OpenAiServer:
    return OpenAiServer(url=server.url, model="tiny", pause_s=0.01, **options)


def test_a_vllm_server_is_given_grammars(server, genes, prompts, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    answers = backend(server, temperature=0.5).generate(prompts, genes, n_samples=2, seed=1)
    for text in (text for samples in answers for text in samples):
        assert 5 <= len(set(text.split(" "))) == len(text.split(" ")) <= 9
    body = next(body for body in server.bodies if body["prompt"] == prompts[0])
    assert body["structured_outputs"] == grammar_of(genes, terminator=".")
    assert (body["model"], body["temperature"], body["logprobs"]) == ("tiny", 0.5, 1)
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert backend(server, temperature=0.5, concurrency=1).generate(prompts, genes, n_samples=2, seed=1) == answers
    assert backend(server).generate(prompts, genes, n_samples=2, seed=2) != answers


def test_an_older_vllm_server_is_given_guided_fields(prompts):
    server = Server("0.10.2")
    try:
        assert backend(server).generate(prompts[:1], LABELS)[0][0] in LABELS.options
        assert server.bodies[0]["guided_choice"] == [" NK.", " NK cell.", " T cell, naive."]
    finally:
        server.close()


def test_another_server_is_checked_and_asked_again(plain_server, words, prompts):
    answers = backend(plain_server).generate(prompts, LABELS, n_samples=6, seed=0)
    assert {text for samples in answers for text in samples} == set(LABELS.options)
    assert len(plain_server.bodies) > 30, "some answers were not valid"
    assert "structured_outputs" not in plain_server.bodies[0]
    # Repeats dropped, an unknown word ends what is taken, and the rest is asked for after it.
    plain_server.bodies.clear()
    plain_server.plan = [" ACTB B2M ACTB FOO CD3D", " CD3D CD8", " CD8A."]
    one = backend(plain_server, concurrency=1).sample(
        ["Genes:"], DistinctWords(words=words, min_words=4, max_words=6), 1, 0
    )
    assert (one[0][0].text, one[0][0].token_log_probs) == ("ACTB B2M CD3D CD8A", ())
    assert [body["prompt"] for body in plain_server.bodies] == [
        "Genes:",
        "Genes: ACTB B2M",
        "Genes: ACTB B2M CD3D",
    ]
    assert plain_server.bodies[1]["seed"] != plain_server.bodies[0]["seed"]
    plain_server.plan = ["nonsense"] * 50
    with pytest.raises(InputError, match="no valid answer to prompt 0 when asked 8 times, at last 'nonsense'"):
        backend(plain_server).generate(["Cell?"], LABELS)
    with pytest.raises(InputError, match="when asked 1 times"):
        backend(plain_server, temperature=0).generate(["Cell?"], LABELS)


def test_at_most_so_many_requests_are_under_way(server, prompts):
    backend(server, concurrency=2).generate(list(prompts) * 6, LABELS)
    assert server.most_under_way <= 2


def test_an_overloaded_server_is_tried_again(server, prompts, caplog):
    server.plan = [429, 503, 500]
    with caplog.at_level("WARNING"):
        assert backend(server, concurrency=1).generate(prompts[:1], LABELS)[0][0] in LABELS.options
    assert len(server.bodies) == 4
    assert "refused completions with 429 Too Many Requests: try later; trying again in" in caplog.text
    server.plan = [503] * 9
    with pytest.raises(InputError, match="refused completions with 503 Service Unavailable: try later"):
        backend(server, retries=2).generate(prompts[:1], LABELS)
    server.plan = [400]
    server.bodies.clear()
    with pytest.raises(InputError, match="refused completions with 400 Bad Request"):
        backend(server).generate(prompts[:1], LABELS)
    assert len(server.bodies) == 1, "a faulty request is not sent again"
    server.plan = [400] * 60
    server.bodies.clear()
    with pytest.raises(InputError, match="refused completions with 400 Bad Request"):
        backend(server, concurrency=2).generate(list(prompts) * 10, LABELS)
    assert len(server.bodies) < 25, "what was not begun is not sent"


def test_faults_of_servers_are_named(server, prompts, monkeypatch):
    with pytest.raises(InputError, match=r"has no model 'large', it serves tiny"):
        replace(backend(server), model="large").generate(prompts, LABELS)
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with pytest.raises(InputError, match="401 Unauthorized: Incorrect API key; set OPENAI_API_KEY to a valid key"):
        backend(server).generate(prompts, LABELS)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match=r"no connection to the server at http://127.0.0.1:9/v1 .*is it running"):
        OpenAiServer(url="http://127.0.0.1:9/v1", model="tiny").generate(prompts, LABELS)
    with pytest.raises(InputError, match=r"refused models with 404 .*mostly ends in /v1"):
        OpenAiServer(url=server.url[:-3], model="tiny").generate(prompts, LABELS)
    with pytest.raises(InputError, match="starts with http:// or https://, found 'localhost'"):
        OpenAiServer(url="localhost", model="tiny")
    with pytest.raises(InputError, match=r"temperature >= 0 and 0 < top_p <= 1, found 1.0 and 0"):
        backend(server, top_p=0)
    with pytest.raises(InputError, match="prompt 0 is empty"):
        backend(server).generate([""], LABELS)
    server.plan = [""] * 9
    with pytest.raises(InputError, match="no valid answer"):
        backend(server).generate(["x"], LABELS)


def test_a_slow_server_is_given_up(server, prompts, monkeypatch):
    monkeypatch.setattr(server, "completion", lambda *_: threading.Event().wait(0.5) or {"choices": []})
    with pytest.raises(InputError, match=r"did not answer within 0.1 s; raise timeout_s"):
        backend(server, timeout_s=0.1, retries=0, grammar="none").generate(prompts[:1], LABELS)


def test_servers_score_by_echo(server):
    scores = backend(server).log_likelihood(["Cell? It is", "What"], ["NK cell", "B"])
    # " NK" is 3 characters long, " cell." 6, " B." 3.
    assert scores.tolist() == [[-9, -3], [-9, -3]]


def test_free_text_is_taken_as_it_is(plain_server):
    plain_server.plan = ["  a\nfree text. "]
    answer = backend(plain_server).sample(["x"], FreeText(max_tokens=7))[0][0]
    assert answer.text == "a\nfree text."
    assert plain_server.bodies[0]["max_tokens"] == 7
    assert answer.token_log_probs == (-0.25, -0.5)
    assert Completion(text="", ended=True).token_log_probs == ()
