"""vLLM's engine in this process (`vllm.LLM`), written against the interface of versions 0.22 to 0.31.

By default its structured outputs hold the grammar and repeated words are dropped and asked for again (`structured`).
With `exact` our own constraint runs inside of the engine instead (`vllm_constraint`): no word twice, by the same mask
as in this package's own sampling, made row by row on the CPU. Prompts are given as token ids, by the one place that
decides about special tokens.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cytoglot.answer_format import AnswerFormat, DistinctWords, FreeText, Number, OneOf
from cytoglot.errors import InputError
from cytoglot.extras import require
from cytoglot.lm.backends.structured import AskedModel, Completion, Question, grammar_of
from cytoglot.lm.constraint.answer_constraint import AnswerConstraint
from cytoglot.lm.constraint.constrain import constrain
from cytoglot.lm.model.tokenizer import encode_pairs, encode_prompts

CONSTRAINT_CLASS = "cytoglot.lm.backends.vllm_constraint:AnswerLogitsProcessor"


@dataclass(frozen=True, kw_only=True, eq=False)
class VllmEngine(AskedModel):
    """A `vllm.LLM` as `TextGenerator`, `AnswerSampler` and `AnswerScorer`; made by `load_vllm`.

    Requests carry seeds of their own, so a run can be repeated; that batches do not change a sample is not promised on
    an accelerator.
    """

    llm: Any
    """`vllm.LLM`"""
    exact: bool = False
    """whether the engine was made with our constraint, which answers are then asked under"""

    def ask(self, questions: Sequence[Question]) -> list[Completion]:
        """Give all questions to the engine at once, which batches them itself."""
        structured_outputs, params = _vllm().sampling_params.StructuredOutputsParams, []
        held: dict[str, Any]
        constraints: dict[AnswerFormat, tuple[AnswerConstraint, Path]] = {}
        with tempfile.TemporaryDirectory(prefix="cytoglot-") as folder:
            for question in questions:
                answer_format, held = question.answer_format, {"max_tokens": question.max_tokens}
                if self.exact and not isinstance(answer_format, FreeText):
                    if answer_format not in constraints:
                        # 36,000 genes would be sent to the engine with each request; the name of a file is short.
                        path = Path(folder) / f"{len(constraints)}.json"
                        constraints[answer_format] = (
                            constrain(answer_format, self.llm.get_tokenizer(), terminator=self.terminator),
                            write_format(path, answer_format, terminator=self.terminator),
                        )
                    own, path = constraints[answer_format]
                    held = {"max_tokens": own.max_tokens(), "extra_args": {"cytoglot_format": str(path)}}
                elif (grammar := grammar_of(answer_format, terminator=self.terminator)) is not None:
                    held["structured_outputs"] = structured_outputs(**grammar)
                params.append(self._params(seed=question.seed, **held))
            rows = encode_prompts(self.llm.get_tokenizer(), [question.prompt for question in questions])
            outputs = self.llm.generate([{"prompt_token_ids": ids.tolist()} for ids in rows], params, use_tqdm=False)
        completions = []
        for question, written in zip(questions, (output.outputs[0] for output in outputs), strict=True):
            text = written.text
            if question.answer_format in constraints:
                own, _ = constraints[question.answer_format]
                # Whether the engine hands out end of text makes no difference.
                text = own.read(torch.tensor([[*written.token_ids, own.eos_id]]))[0]
                if text is None:
                    raise InputError(
                        f"the engine broke the constraint at prompt {question.key} with {written.text[:60]!r}; was it "
                        "made by load_vllm(..., exact=True), and is its context long enough?"
                    )
                text += self.terminator
            told = [] if written.logprobs is None else zip(written.token_ids, written.logprobs, strict=True)
            log_probs = tuple(float(of_token[token].logprob) for token, of_token in told)
            ended = written.finish_reason != "length"
            completions.append(Completion(text=text, ended=ended, token_log_probs=log_probs))
        return completions

    def log_likelihood(self, prompts: Sequence[str], answers: Sequence[str]) -> NDArray[np.float64]:
        """Return log p(answer with terminator and end of text | prompt) in nats, shape (n_prompts, n_answers).

        The engine reads prompt and answer as one prompt and states the log-probabilities of its tokens.
        """
        if not prompts or not answers:
            return np.zeros((len(prompts), len(answers)))
        framed = [f"{answer if answer[:1].isspace() else ' ' + answer}{self.terminator}" for answer in answers]
        pairs = encode_pairs(
            self.llm.get_tokenizer(),
            [prompt for prompt in prompts for _ in framed],
            [answer for _ in prompts for answer in framed],
        )
        params = _vllm().SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        outputs = self.llm.generate(
            [{"prompt_token_ids": ids.tolist()} for ids, _ in pairs], [params] * len(pairs), use_tqdm=False
        )
        scores = [
            math.fsum(
                told[token].logprob
                for token, told in list(zip(ids.tolist(), output.prompt_logprobs, strict=True))[n_prompt:]
            )
            for (ids, n_prompt), output in zip(pairs, outputs, strict=True)
        ]
        return np.array(scores, dtype=np.float64).reshape(len(prompts), len(answers))

    def _params(self, **fields: Any) -> Any:
        return _vllm().SamplingParams(n=1, temperature=self.temperature, top_p=self.top_p, logprobs=0, **fields)


def load_vllm(
    model: str | Path,
    *,
    dtype: str = "auto",
    revision: str | None = None,
    exact: bool = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    terminator: str = ".",
    options: Mapping[str, Any] | None = None,
) -> VllmEngine:
    """Make an engine for a model folder or hub name, with prefix caching.

    Parameters
    ----------
    exact
        Put our own constraint into the engine, which then takes the place of its structured outputs.
    options
        More arguments of `vllm.LLM`, such as `tensor_parallel_size` or `gpu_memory_utilization`.

    Raises
    ------
    MissingExtraError
        vLLM is not installed.
    InputError
        The engine cannot be made (the message holds its reason).
    """
    vllm = _vllm()
    arguments: dict[str, Any] = {
        "model": str(model),
        "dtype": dtype,
        "revision": revision,
        "enable_prefix_caching": True,
        "trust_remote_code": False,
        # Defaults of sampling that a checkpoint brings would change what is asked for.
        "generation_config": "vllm",
        **(options or {}),
    }
    if exact:
        arguments["logits_processors"] = [*arguments.get("logits_processors", ()), CONSTRAINT_CLASS]
    try:
        llm = vllm.LLM(**arguments)
    except (ValueError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"vLLM cannot load {model}: {reason}; `cytoglot doctor` tells what is installed") from error
    return VllmEngine(llm=llm, exact=exact, temperature=temperature, top_p=top_p, terminator=terminator)


def _vllm() -> Any:
    return require("vllm", extra="vllm", purpose="the backend 'vllm'")


def write_format(path: Path, answer_format: AnswerFormat, *, terminator: str) -> Path:
    """Write an answer format to a file and return its path, for `read_format` in the engine's process."""
    fields = {"kind": type(answer_format).__name__, "terminator": terminator, **asdict(answer_format)}
    path.write_text(json.dumps(fields), encoding="utf-8")
    return path


def read_format(path: str) -> tuple[AnswerFormat, str]:
    """Return an answer format and the terminator.

    Raises
    ------
    ValueError
        The file is missing or is no format; the engine hands the message to who sent the request.
    """
    try:
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
        kind, terminator = fields.pop("kind"), fields.pop("terminator")
        of_kind: Any = {one.__name__: one for one in (OneOf, DistinctWords, Number, FreeText)}[kind]
        lists = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        return of_kind(**lists), terminator
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"cytoglot_format must name a file written by write_format, found {path!r}: {error}"
        ) from error
