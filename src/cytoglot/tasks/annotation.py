"""Which type is this cell? Genes in, one label out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from cytoglot.answer_format import OneOf
from cytoglot.errors import InputError
from cytoglot.tasks.record import CellRecord
from cytoglot.tasks.task import (
    NO_GENES,
    AnswerSpace,
    Task,
    register_task,
    require_metadata,
)
from cytoglot.tasks.template import TERMINATOR
from cytoglot.texts import storable


@dataclass(frozen=True, kw_only=True)
class ParsedLabel:
    """What an answer says."""

    label: str | None
    """a label of the set; None if the answer is none of them"""
    text: str
    """the answer's first line without white space around it and without the terminator, as files can hold it"""
    match: Literal["exact", "case", "none"]
    """how the label was found: letter for letter, but for case and spacing, or not at all"""


@register_task
class CellTypeAnnotation(Task[CellRecord, ParsedLabel]):
    """The ranked genes of a cell → its cell type."""

    name = "cell_type_annotation"
    required_metadata = ("cell_type",)
    closed_answer = True
    metrics = ("accuracy", "macro_f1", "balanced_accuracy", "ece", "brier")

    def has_content(self, record: CellRecord) -> bool:
        """Any cell can be asked about, an empty one too."""
        return True

    def prompt_fields(self, record: CellRecord) -> Mapping[str, str]:
        """Return the number of genes, the genes ("none" for an empty cell) and the description."""
        genes = " ".join(record.genes) or NO_GENES
        return self.common_fields(record) | {"num_genes": str(len(record.genes)), "cell_sentence": genes}

    def answer_fields(self, record: CellRecord) -> Mapping[str, str]:
        """Return the cell type; an InputError if the record has none."""
        return {"cell_type": require_metadata(record, "cell_type", task=self.name)}

    def label_completions(self, labels: Iterable[str]) -> list[str]:
        """Return the completion of each label, as trained on: what an `AnswerScorer` is to score."""
        return [self.templates.completion({"cell_type": label}) for label in labels]

    def answer_format(self, space: AnswerSpace) -> OneOf:
        """Return the closed set of labels; an InputError if `space` holds none."""
        return label_format(space, task=self.name)

    def parse(self, answer: str, space: AnswerSpace) -> ParsedLabel:
        """Return `parse_label` of the answer."""
        return parse_label(answer, space.labels)


def label_format(space: AnswerSpace, *, task: str) -> OneOf:
    """Return the closed set of labels of `space`, of which there must be one at least."""
    if not space.labels:
        raise InputError(f"task {task!r} needs a list of labels to choose from, found none")
    return OneOf(options=space.labels)


def parse_label(answer: str, labels: tuple[str, ...]) -> ParsedLabel:
    """Read a label: letter for letter, else regardless of case and spacing if that leaves one label.

    Tried in turn: the first line, the line without its terminator, the line up to its first terminator. So a label that
    itself holds a full stop is found. Without `labels` the text itself is the label.
    """
    candidates = _candidates(answer)
    text = storable(candidates[1])
    if not labels:
        return ParsedLabel(label=text or None, text=text, match="exact" if text else "none")
    exact = next((c for c in candidates if c in labels), None)
    if exact is not None:
        return ParsedLabel(label=exact, text=text, match="exact")
    folded = _folded_labels(labels)
    for candidate in candidates:
        if (label := folded.get(_fold(candidate))) is not None:
            return ParsedLabel(label=label, text=text, match="case")
    return ParsedLabel(label=None, text=text, match="none")


def _candidates(answer: str) -> tuple[str, str, str]:
    lines = answer.strip().splitlines()
    line = lines[0].strip() if lines else ""
    return line, line.removesuffix(TERMINATOR).strip(), line.partition(TERMINATOR)[0].strip()


def _fold(text: str) -> str:
    return " ".join(text.split()).casefold()


@lru_cache(maxsize=64)
def _folded_labels(labels: tuple[str, ...]) -> dict[str, str | None]:
    folded: dict[str, str | None] = {}
    for label in labels:
        key = _fold(label)
        folded[key] = None if key in folded else label  # two labels that differ in case only: neither is meant
    return folded
