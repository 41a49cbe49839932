"""Any server that speaks the completions interface of OpenAI: vLLM, llama.cpp, TGI, a company's gateway.

A server of vLLM is recognized by its `/version` and given a grammar for each format (`structured_outputs` since 0.12,
`guided_*` before; read from the documentation of 0.22 to 0.31). What other servers write is checked here, and asked for
again with another seed where it is not valid.
"""

from __future__ import annotations

import http.client
import json
import logging
import math
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from cytoglot.errors import InputError
from cytoglot.lm.backends.structured import AskedModel, Completion, Question, grammar_of

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenAiServer(AskedModel):
    """A model behind `URL/completions`, as `TextGenerator`, `AnswerSampler` and `AnswerScorer`.

    With the seeds that it sends, a server that keeps its promise gives the same answers again; whatever else is in its
    batches may still change them.
    """

    url: str
    """such as http://localhost:8000/v1"""
    model: str
    """name that the server knows the model by"""
    key_variable: str = "OPENAI_API_KEY"
    """environment variable with the key, sent as a bearer token if it is set"""
    grammar: Literal["auto", "structured_outputs", "guided", "none"] = "auto"
    """how the server takes grammars"""
    concurrency: int = 8
    """requests under way at a time"""
    timeout_s: float = 300.0
    retries: int = 5
    """times that a request is sent again after an overload, a fault of the server or a broken connection"""
    pause_s: float = 0.5
    """before the first of them; then twice as long each time, up to 30 s"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"the address of a server starts with http:// or https://, found {self.url!r}")
        if self.concurrency < 1:
            raise InputError(f"concurrency must be at least 1, found {self.concurrency}")

    def settings(self) -> dict[str, Any]:
        """Return JSON values of all that decides the answers, as far as a server lets it be known: the model's name."""
        neutral = {"key_variable", "concurrency", "timeout_s", "retries", "pause_s"}
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in neutral}

    def ask(self, questions: Sequence[Question]) -> list[Completion]:
        """Send the questions, several at a time."""
        kind = self._grammar_kind

        def completed(question: Question) -> Completion:
            body: dict[str, Any] = {
                "model": self.model,
                "prompt": question.prompt,
                "max_tokens": question.max_tokens,
                "temperature": self.temperature,
                "top_p": self.top_p,
                "seed": question.seed,
                "logprobs": 1,
            }
            grammar = grammar_of(question.answer_format, terminator=self.terminator)
            if grammar is not None and kind == "structured_outputs":
                body["structured_outputs"] = grammar
            elif grammar is not None and kind == "guided":
                body |= {f"guided_{name}": value for name, value in grammar.items()}
            reply = self._call("completions", body)
            try:
                choice = reply["choices"][0]
                text = str(choice["text"])
            except (KeyError, IndexError, TypeError) as error:
                raise InputError(f"the server's reply has no completion: {json.dumps(reply)[:120]}") from error
            log_probs = ((choice.get("logprobs") or {}).get("token_logprobs")) or ()
            return Completion(
                text=text,
                ended=choice.get("finish_reason") != "length",
                token_log_probs=tuple(float(one) for one in log_probs if one is not None),
            )

        return self._all(completed, questions)

    def log_likelihood(self, prompts: Sequence[str], answers: Sequence[str]) -> NDArray[np.float64]:
        """Return log p(answer with terminator | prompt) in nats, shape (n_prompts, n_answers).

        The server must be able to `echo` a prompt with log-probabilities (vLLM can). End of text after the terminator
        is not scored, since no text spells it.

        Raises
        ------
        InputError
            The server does not echo, or its tokenizer joins the end of a prompt with the answer.
        """
        _ = self._grammar_kind  # says hello

        def echoed(pair: tuple[str, str]) -> float:
            prompt, answer = pair
            body = {"model": self.model, "prompt": prompt + answer, "max_tokens": 1, "echo": True, "logprobs": 1}
            choice = self._call("completions", {**body, "temperature": 0})["choices"][0]
            told = choice.get("logprobs") or {}
            offsets, log_probs = told.get("text_offset") or [], told.get("token_logprobs") or []
            first, last = len(prompt), len(prompt) + len(answer)
            if not str(choice.get("text", "")).startswith(prompt) or first not in offsets:
                raise InputError(
                    f"the server at {self.url} gives no log-probabilities of a prompt (echo), or its tokenizer joins "
                    f"the prompt with {answer[:20]!r}; score with the backend transformers or vllm"
                )
            return math.fsum(p for offset, p in zip(offsets, log_probs, strict=True) if first <= offset < last)

        scores = self._all(echoed, [(p, f" {a.strip()}{self.terminator}") for p in prompts for a in answers])
        return np.array(scores, dtype=np.float64).reshape(len(prompts), len(answers))

    def _all(self, send: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Return `send(item)` of every item, several at a time; after a fault no further one is begun."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            try:
                return list(pool.map(send, items))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    @cached_property
    def _grammar_kind(self) -> str:
        """Ask the server for its models, refuse a wrong one, and find out how grammars are passed."""
        listed = self._call("models", None, retries=0)
        names = [str(one.get("id")) for one in listed.get("data") or [] if isinstance(one, dict)]
        if names and self.model not in names:
            raise InputError(f"the server at {self.url} has no model {self.model!r}, it serves {', '.join(names[:10])}")
        if self.grammar != "auto":
            return self.grammar
        try:
            version = self._call("../version", None, retries=0).get("version", "")
            major, minor = (int(part) for part in str(version).split(".")[:2])
        except (InputError, ValueError, AttributeError):
            logger.info("%s takes no grammars; answers are checked and asked for again", self.url)
            return "none"
        return "structured_outputs" if (major, minor) >= (0, 12) else "guided"

    def _call(self, path: str, body: Mapping[str, Any] | None, *, retries: int | None = None) -> dict[str, Any]:
        left = self.retries if retries is None else retries
        pause_s = self.pause_s
        while True:
            try:
                return self._send(path, body)
            except (OSError, http.client.HTTPException) as error:
                why = self._why(path, error)
                told = error if isinstance(error, urllib.error.HTTPError) else None
                if left == 0 or (told is not None and told.code not in _PASSING):
                    raise InputError(why) from error
                asked = told.headers.get("Retry-After") if told is not None else None
                wait_s = float(asked) if asked is not None and asked.isdigit() else pause_s * random.uniform(0.8, 1.2)
                logger.warning("%s; trying again in %.1f s", why, wait_s)
                time.sleep(min(wait_s, _LONGEST_PAUSE_S))
                left, pause_s = left - 1, min(2 * pause_s, _LONGEST_PAUSE_S)

    def _send(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        base = self.url.rstrip("/")
        address = f"{base.rsplit('/', 1)[0]}/{path[3:]}" if path.startswith("../") else f"{base}/{path}"
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(address, data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:
            content = reply.read()
        try:
            parsed = json.loads(content)
        except ValueError as error:
            raise InputError(
                f"{address} answered {content[:60]!r}, which is not JSON; is it an OpenAI server?"
            ) from error
        if not isinstance(parsed, dict):
            raise InputError(f"{address} answered a {type(parsed).__name__}, expected a JSON object")
        return parsed

    def _why(self, path: str, error: Exception) -> str:
        if isinstance(error, urllib.error.HTTPError):
            try:
                content = error.read().decode(errors="replace")
                told = json.loads(content)
                told = told.get("error", told)
                content = told.get("message", content) if isinstance(told, dict) else str(told)
            except OSError:
                content = ""
            except (ValueError, AttributeError):  # a text of another kind is told as it is
                pass
            short = " ".join(str(content).split())[:200]
            said = f": {short}" if short else ""
            hint = {
                401: f"; set {self.key_variable} to a valid key",
                403: f"; set {self.key_variable} to a key that may use the model",
                404: "; is the address right (it mostly ends in /v1), and the model served?",
            }.get(error.code, "")
            return f"the server at {self.url} refused {path} with {error.code} {error.reason}{said}{hint}"
        if isinstance(error, TimeoutError) or "timed out" in str(error):
            return (
                f"the server at {self.url} did not answer within {self.timeout_s:g} s; raise timeout_s or ask for less"
            )
        reason = getattr(error, "reason", error)
        return f"no connection to the server at {self.url} ({reason}); is it running, and the address right?"
