"""A stand-in for vLLM: checks the calls that we make, and plays answers that obey the grammars it is given.

Its interface is that of `vllm.LLM`, `SamplingParams`, `StructuredOutputsParams` and the V1 logits processors.
"""

from __future__ import annotations

import enum
import re
import sys
import types
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass
class StructuredOutputsParams:
    json: Any = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.json, self.regex, self.choice, self.grammar)) != 1:
            raise ValueError("exactly one kind of constraint")


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    structured_outputs: StructuredOutputsParams | None = None
    extra_args: dict[str, Any] | None = None


@dataclass
class Logprob:
    logprob: float


@dataclass
class CompletionOutput:
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str


@dataclass
class RequestOutput:
    outputs: list[CompletionOutput]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None


class MoveDirectionality(enum.Enum):
    UNIDIRECTIONAL = enum.auto()
    SWAP = enum.auto()


@dataclass
class BatchUpdate:
    batch_size: int
    removed: list[int] = field(default_factory=list)
    added: list[tuple[int, SamplingParams, list[int], list[int]]] = field(default_factory=list)
    moved: list[tuple[int, int, MoveDirectionality]] = field(default_factory=list)


class LogitsProcessor:
    pass


def play(held: StructuredOutputsParams, rng: np.random.Generator) -> str:
    """Return a random text of a grammar, of the few shapes that we write."""
    if held.choice is not None:
        return str(rng.choice(held.choice))
    if held.regex is not None:
        for _ in range(1000):
            text = f" {'-' * int(rng.integers(2))}{rng.integers(3)}{rng.choice(['', '.5', '.25'])}."
            if re.fullmatch(held.regex, text):
                return text
        raise AssertionError(held.regex)
    root, rule = held.grammar.strip().split("\n")
    few, many = map(int, re.fullmatch(r'root ::= \(" " word\)\{(\d+),(\d+)\} "\."', root).groups())
    words = re.findall(r'"((?:[^"\\]|\\.)*)"', rule.removeprefix("word ::= "))
    return "".join(f" {word}" for word in rng.choice(words, size=rng.integers(few, many + 1))) + "."


class LLM:
    """Answers by the grammar of each request; without one, by greedy steps of a real tiny model under processors."""

    made: list[dict[str, Any]] = []
    tokenizer: Any = None
    model: Any = None

    def __init__(self, **arguments: Any) -> None:
        known = {"model", "dtype", "revision", "enable_prefix_caching", "trust_remote_code", "generation_config"}
        assert set(arguments) <= known | {"logits_processors", "max_model_len"}, arguments
        assert arguments["enable_prefix_caching"] is True
        assert arguments["trust_remote_code"] is False
        if arguments["model"] == "broken":
            raise ValueError("No supported config format found")
        self.made.append(arguments)
        self.arguments = arguments
        self.calls: list[SamplingParams] = []

    def get_tokenizer(self) -> Any:
        return self.tokenizer

    def generate(
        self, prompts: list[dict[str, list[int]]], sampling_params: list[SamplingParams], *, use_tqdm: bool
    ) -> list[RequestOutput]:
        assert use_tqdm is False
        assert len(prompts) == len(sampling_params)
        assert all(set(prompt) == {"prompt_token_ids"} for prompt in prompts)
        self.calls += sampling_params
        if any(params.extra_args for params in sampling_params):
            return self._under_processor([prompt["prompt_token_ids"] for prompt in prompts], sampling_params)
        return [
            self._one(prompt["prompt_token_ids"], params)
            for prompt, params in zip(prompts, sampling_params, strict=True)
        ]

    def _one(self, ids: list[int], params: SamplingParams) -> RequestOutput:
        if params.prompt_logprobs is not None:
            return RequestOutput(outputs=[], prompt_logprobs=self._scored(ids))
        rng = np.random.default_rng([params.seed, *ids])
        if params.structured_outputs is None:
            text = " ".join(rng.choice(["some", "free", "text"], size=3))
        else:
            text = play(params.structured_outputs, rng)
        tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        told = None if params.logprobs is None else [{token: Logprob(-0.5)} for token in tokens]
        return RequestOutput(outputs=[CompletionOutput(text, tokens, told, "stop")])

    def _scored(self, ids: list[int]) -> list[dict[int, Logprob] | None]:
        with torch.inference_mode():
            log_probs = self.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(dim=1)
        told = [{token: Logprob(float(log_probs[i, token]))} for i, token in enumerate(ids[1:])]
        return [None, *told]

    def _under_processor(self, rows: list[list[int]], params: list[SamplingParams]) -> list[RequestOutput]:
        """Step a batch whose rows come late, move and leave, as vLLM's do."""
        import importlib

        module, name = self.arguments["logits_processors"][0].split(":")
        cls = getattr(importlib.import_module(module), name)
        for one in params:
            cls.validate_params(one)
        config = types.SimpleNamespace(tokenizer="fake", tokenizer_revision=None, max_model_len=128)
        processor = cls(types.SimpleNamespace(model_config=config), torch.device("cpu"), False)
        assert not processor.is_argmax_invariant()
        written: list[list[int]] = [[] for _ in rows]
        generators = [torch.Generator().manual_seed(one.seed) for one in params]
        waiting, batch, removed = list(range(len(rows))), [], []
        while waiting or batch:
            update = BatchUpdate(batch_size=0, removed=removed)
            if waiting and len(batch) < 3:
                request = waiting.pop(0)
                batch.append(request)
                update.added.append((len(batch) - 1, params[request], rows[request], written[request]))
            if len(batch) > 1:
                batch[0], batch[-1] = batch[-1], batch[0]
                update.moved.append((0, len(batch) - 1, MoveDirectionality.SWAP))
            processor.update_state(update if update.added or update.moved or removed else None)
            with torch.inference_mode():
                ids = [torch.tensor([rows[r] + written[r]]) for r in batch]
                logits = processor.apply(torch.stack([self.model(input_ids=one).logits[0, -1] for one in ids]))
            for row, request in enumerate(batch):
                token = torch.multinomial(logits[row].softmax(dim=0), 1, generator=generators[request])
                written[request].append(int(token))
            ended = [row for row, r in enumerate(batch) if written[r][-1] == self.tokenizer.eos_token_id]
            removed = []
            for row in sorted(ended, reverse=True):
                batch.pop(row)
                removed.append(row)
                # vLLM fills the gap with the last row.
                for after in range(row, len(batch)):
                    update.moved.append((after + 1, after, MoveDirectionality.UNIDIRECTIONAL))
            if removed:
                moves = [(b + 1, b, MoveDirectionality.UNIDIRECTIONAL) for row in removed for b in range(row, 9)]
                processor.update_state(BatchUpdate(batch_size=len(batch), removed=removed, moved=moves))
                removed = []
        return [
            RequestOutput(
                [CompletionOutput(self.tokenizer.decode(ids), ids, [{t: Logprob(-1.0)} for t in ids], "stop")]
            )
            for ids in written
        ]


def install(monkeypatch: Any, *, tokenizer: Any, model: Any) -> type[LLM]:
    """Put the stand-in where `import vllm` finds it."""
    top, params = types.ModuleType("vllm"), types.ModuleType("vllm.sampling_params")
    v1, sample = types.ModuleType("vllm.v1"), types.ModuleType("vllm.v1.sample")
    processors = types.ModuleType("vllm.v1.sample.logits_processor")
    llm = type("LLM", (LLM,), {"tokenizer": tokenizer, "model": model, "made": []})
    top.LLM, top.SamplingParams, top.sampling_params = llm, SamplingParams, params
    params.StructuredOutputsParams, params.SamplingParams = StructuredOutputsParams, SamplingParams
    processors.LogitsProcessor, processors.MoveDirectionality = LogitsProcessor, MoveDirectionality
    for module in (top, params, v1, sample, processors):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "cytoglot.lm.backends.vllm_constraint", raising=False)
    return llm
