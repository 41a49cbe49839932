"""What tasks share whose answer is a short text: a name or a definition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypeVar

from cytoglot.answer_format import FreeText
from cytoglot.tasks.record import CellGroup, CellRecord, CellTypeTerm, GeneSet
from cytoglot.tasks.task import AnswerSpace, Task
from cytoglot.tasks.template import TERMINATOR

R = TypeVar("R", CellRecord, CellGroup, GeneSet, CellTypeTerm)


class NameAnswer(Task[R, str]):
    """A task that is answered by words of a person, in one line."""

    answer_field: ClassVar[str]
    """name of the text in the answer of the TOML file"""
    max_tokens: ClassVar[int] = 64
    """of an answer; a name has ten at most, the rest is for tokenizers of few merges"""
    metrics = ("exact_match", "token_f1")

    def answer_text(self, record: R) -> str:
        """Return the true answer."""
        raise NotImplementedError

    def answer_fields(self, record: R) -> Mapping[str, str]:
        """Return the true answer in one line, without the full stop that the template adds."""
        return {self.answer_field: one_line(self.answer_text(record))}

    def answer_format(self, space: AnswerSpace) -> FreeText:
        """Return any text of `max_tokens` tokens."""
        return FreeText(max_tokens=self.max_tokens)

    def parse(self, answer: str, space: AnswerSpace) -> str:
        """Return the first line that says something, without the full stop at its end."""
        lines = [line for line in answer.splitlines() if line.strip()]
        return one_line(lines[0]) if lines else ""


def one_line(text: str) -> str:
    """Return a text with single spaces, and without full stops at its end."""
    return " ".join(text.split()).rstrip(f"{TERMINATOR} ")
