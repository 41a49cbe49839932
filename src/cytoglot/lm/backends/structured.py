"""What backends share that cannot take our own constraint: a grammar for each format, checks, and asking again.

Such a backend is asked in rounds. Its grammar (if it has one) gives words of the list in any number of repetitions;
repeated words are dropped, and the rest is asked for after those that were kept, among the words not used yet. So
every answer is valid, but lists of words are not distributed exactly as under our own constraint.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cytoglot.answer_format import AnswerFormat, DistinctWords, FreeText, GeneratedAnswer, Number, OneOf
from cytoglot.errors import InputError
from cytoglot.lm.constraint.number import DECIMALS
from cytoglot.progress import progress_bar

logger = logging.getLogger(__name__)

_TOKENS_OF_A_WORD = 12
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?")


@dataclass(frozen=True, kw_only=True)
class Question:
    """One request to the backend."""

    prompt: str
    """with the words of the answer that are settled already"""
    answer_format: AnswerFormat
    """of what is still to be written"""
    seed: int
    key: str
    """of the prompt, for messages"""

    @property
    def max_tokens(self) -> int:
        """Return a number of tokens that is enough for any answer of usual words."""
        match self.answer_format:
            case OneOf(options=options):
                return max(len(option.encode()) for option in options) + 8
            case DistinctWords(max_words=many):
                return _TOKENS_OF_A_WORD * many + 8
            case Number(low=low, high=high):
                return len(str(int(max(abs(low), abs(high))))) + DECIMALS + 8
            case FreeText(max_tokens=most):
                return most


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What the backend wrote."""

    text: str
    ended: bool
    """whether it came to an end of its own, rather than to the limit of tokens"""
    token_log_probs: tuple[float, ...] = ()


def grammar_of(answer_format: AnswerFormat, *, terminator: str) -> dict[str, Any] | None:
    """Return the grammar of answers in their frame (space, answer, terminator); None for free text.

    It is in the words of structured outputs: `choice` of these texts, or a `regex` or a `grammar` that a text matches.
    """
    match answer_format:
        case OneOf(options=options):
            return {"choice": [f" {option}{terminator}" for option in options]}
        case DistinctWords(words=words, min_words=few, max_words=many):
            rules = " | ".join(_quoted(word) for word in words)
            end = f" {_quoted(terminator)}" if terminator else ""
            return {"grammar": f'root ::= (" " word){{{few},{many}}}{end}\nword ::= {rules}\n'}
        case Number(low=low, high=high):
            sign = "-?" if low < 0 <= high else "-" if high < 0 else ""
            digits = len(str(int(max(abs(low), abs(high))))) - 1
            whole = f"(0|[1-9][0-9]{{0,{digits}}})"
            return {"regex": f" {sign}{whole}(\\.[0-9]{{1,{DECIMALS}}})?{re.escape(terminator)}"}
        case FreeText():
            return None


@dataclass
class _Pending:
    """An answer that is being asked for."""

    prompt: str
    answer_format: AnswerFormat
    key: str
    sample: int
    words: list[str] = field(default_factory=list)
    n_asked: int = 0
    n_failed: int = 0
    answer: GeneratedAnswer | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class AskedModel(ABC):
    """Generator and sampler for a backend that is asked and may give what is not valid."""

    temperature: float = 1.0
    top_p: float = 1.0
    terminator: str = "."
    """Text between an answer and end of text in the training texts."""
    max_failures: int = 8
    """Times that a prompt is asked again in a row without anything valid."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise InputError(f"need temperature >= 0 and 0 < top_p <= 1, found {self.temperature} and {self.top_p}")

    @abstractmethod
    def ask(self, questions: Sequence[Question]) -> list[Completion]:
        """Return one completion for each question."""

    def generate(
        self, prompts: Sequence[str], answer_format: AnswerFormat, n_samples: int = 1, seed: int = 0
    ) -> list[list[str]]:
        """Return `n_samples` answers for each prompt, without space in front and terminator."""
        return [[answer.text for answer in samples] for samples in self.sample(prompts, answer_format, n_samples, seed)]

    def sample(
        self,
        prompts: Sequence[str],
        answer_format: AnswerFormat,
        n_samples: int = 1,
        seed: int = 0,
        *,
        keys: Sequence[str] | None = None,
    ) -> list[list[GeneratedAnswer]]:
        """Return `n_samples` answers for each prompt.

        The seed of a request is made of `seed`, the key of its prompt (by default its place), the number of its sample
        and of its attempt. Log-probabilities are those that the backend states for its own text; an answer that was put
        together from several texts has none.

        Raises
        ------
        InputError
            A prompt is empty, keys are not as many as prompts, or the model gives nothing valid for a prompt.
        """
        pending = self._pending(prompts, answer_format, n_samples, keys)
        with progress_bar(total=len(pending), description="generating", unit="answer") as bar:
            while still := [one for one in pending if one.answer is None]:
                for one, completion in zip(still, self.ask([self._question(one, seed) for one in still]), strict=True):
                    self._take(one, completion)
                    bar.update(one.answer is not None)
        answers = [one.answer for one in pending if one.answer is not None]
        return [answers[start : start + n_samples] for start in range(0, len(answers), n_samples)]

    def _pending(
        self, prompts: Sequence[str], answer_format: AnswerFormat, n_samples: int, keys: Sequence[str] | None
    ) -> list[_Pending]:
        if isinstance(prompts, str):
            raise InputError(f"expected a list of prompts, found one text of {len(prompts)} characters; pass [text]")
        if n_samples < 1:
            raise InputError(f"n_samples must be at least 1, found {n_samples}")
        if isinstance(answer_format, DistinctWords) and answer_format.weights is not None:
            raise InputError(
                "this model writes cells with a profile, whose weights a server cannot add; generate with the model "
                "itself (cytoglot generate), or train it with model.profile: false"
            )
        keys = [str(place) for place in range(len(prompts))] if keys is None else keys
        if len(keys) != len(prompts):
            raise InputError(f"need one key for each prompt, found {len(prompts)} prompts and {len(keys)} keys")
        empty = next((key for key, prompt in zip(keys, prompts, strict=True) if not prompt), None)
        if empty is not None:
            raise InputError(f"prompt {empty} is empty; give at least one word")
        return [
            _Pending(prompt=prompt, answer_format=answer_format, key=key, sample=sample)
            for prompt, key in zip(prompts, keys, strict=True)
            for sample in range(n_samples)
        ]

    def _question(self, one: _Pending, seed: int) -> Question:
        prompt, answer_format = one.prompt, one.answer_format
        if isinstance(answer_format, DistinctWords) and one.words:
            used = set(one.words)
            prompt = " ".join([prompt, *one.words])
            answer_format = DistinctWords(
                words=tuple(word for word in answer_format.words if word not in used),
                min_words=max(1, answer_format.min_words - len(used)),
                max_words=answer_format.max_words - len(used),
            )
        name = f"{seed}\0{one.key}\0{one.sample}\0{one.n_asked}"
        number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "little") >> 1
        one.n_asked += 1
        return Question(prompt=prompt, answer_format=answer_format, seed=number, key=one.key)

    def _take(self, one: _Pending, completion: Completion) -> None:
        """Settle what is valid of a completion."""
        answer_format, n_before = one.answer_format, len(one.words)
        if isinstance(answer_format, DistinctWords):
            new, end = read_words(completion.text, answer_format.words, terminator=self.terminator)
            if end == "open" and not completion.ended and not completion.text[-1:].isspace():
                new = new[:-1]  # perhaps cut off by the limit of tokens
            one.words += [word for word in dict.fromkeys(new) if word not in one.words]
            del one.words[answer_format.max_words :]
            is_complete = end == "terminator" or (end == "open" and completion.ended)
            enough = answer_format.min_words if is_complete else answer_format.max_words
            text = " ".join(one.words) if len(one.words) >= enough else None
        else:
            text = read_answer(completion.text, answer_format, terminator=self.terminator)
        if text is not None:
            plain = one.n_asked == 1 and completion.text.strip() in (text, text + self.terminator)
            one.answer = GeneratedAnswer(text=text, token_log_probs=completion.token_log_probs if plain else ())
            return
        one.n_failed = 0 if len(one.words) > n_before else one.n_failed + 1
        # The most likely answer is the same each time.
        if one.n_failed >= (1 if self.temperature == 0 else self.max_failures):
            raise InputError(
                f"the model gave no valid answer to prompt {one.key} when asked {one.n_failed} times, at last "
                f"{completion.text[:60]!r}; use a server with structured outputs (vLLM), another model or format"
            )


def read_answer(text: str, answer_format: AnswerFormat, *, terminator: str) -> str | None:
    """Return the option, number or free text that a completion begins with, None where it begins with none."""
    stripped = text.strip()
    match answer_format:
        case FreeText():
            return stripped
        case OneOf(options=options):
            begun = [o for o in options if stripped.startswith(o) and _ends(stripped[len(o) :], terminator)]
            return max(begun, key=len, default=None)
        case Number(low=low, high=high):
            found = _NUMBER.match(stripped)
            if found is None or not _ends(stripped[found.end() :], terminator) or not low <= float(found[0]) <= high:
                return None
            return found[0]
        case DistinctWords():
            raise AssertionError("words are read by read_words")


def read_words(
    text: str, words: Sequence[str], *, terminator: str
) -> tuple[list[str], Literal["terminator", "open", "other"]]:
    """Return the words that a completion begins with, repeats and all, and what stands after the last of them.

    That is the terminator, nothing ("open"), or something that is no word ("other").
    """
    known = set(words)
    found: list[str] = []
    for piece in text.split():
        if piece not in known:
            bare = piece.removesuffix(terminator)
            return ([*found, bare], "terminator") if bare in known else (found, "other")
        found.append(piece)
    return found, "open"


def _ends(rest: str, terminator: str) -> bool:
    """Return whether an answer can end where `rest` goes on."""
    return not rest or rest[0].isspace() or (bool(terminator) and rest.startswith(terminator))


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
