"""What tasks share whose answer is of one kind, genes, a label or a text: a valid answer, and how one is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from cytoglot.answer_format import DistinctWords, FreeText, OneOf
from cytoglot.errors import InputError
from cytoglot.sentence.parse import ParsedSentence, parse_genes
from cytoglot.tasks.record import Record
from cytoglot.tasks.segments import Field
from cytoglot.tasks.task import AnswerSpace, R, Task, require_metadata
from cytoglot.tasks.template import TERMINATOR
from cytoglot.texts import storable

if TYPE_CHECKING:
    from cytoglot.data.genes.vocabulary import GeneVocabulary


class GeneAnswer(Task[R, ParsedSentence]):
    """A task that is answered by distinct genes, as many as the prompt says."""

    answer_field: ClassVar[str]
    """name of the genes in the answer of the TOML file"""
    answer_kind = "genes"
    metrics: ClassVar[tuple[str, ...]] = ("gene_overlap", "gene_jaccard", "kendall_tau_b", "duplicate_share")

    def answer_genes(self, record: R) -> Sequence[str]:
        """Return the genes of the true answer."""
        raise NotImplementedError

    def answer_fields(self, record: R) -> Mapping[str, Field]:
        """Return the genes; an InputError if there is none to learn."""
        genes = self.answer_genes(record) if self.has_content(record) else ()
        if not len(genes):
            raise InputError(
                f"task {self.name!r} cannot learn from {record.key!r}: it holds no genes to answer with; leave it out"
            )
        return {self.answer_field: genes}

    def answer_format(self, space: AnswerSpace) -> DistinctWords:
        """Return exactly `n_genes` distinct genes of the vocabulary.

        Raises
        ------
        InputError
            `space` lacks the vocabulary or the length, or asks for more genes than the vocabulary has.
        """
        vocabulary = vocabulary_of(space, task=self.name)
        if space.n_genes is None or not 1 <= space.n_genes <= len(vocabulary):
            raise InputError(
                f"task {self.name!r} needs a number of genes from 1 to {len(vocabulary)} (all genes of the "
                f"vocabulary), found {space.n_genes}"
            )
        n, words = space.n_genes, self.words(vocabulary)
        return DistinctWords(words=words, min_words=n, max_words=n, weights=space.weights)

    def words(self, vocabulary: GeneVocabulary) -> tuple[str, ...]:
        """Return the genes of a vocabulary as the wordings of the task write them."""
        style = self.templates.style
        return vocabulary.symbols if style.is_ours else tuple(dict.fromkeys(map(style.spelled, vocabulary.symbols)))

    def parse(self, answer: str, space: AnswerSpace) -> ParsedSentence:
        """Read the genes of an answer, with a report of what was unknown, repeated or mended."""
        return parse_genes(answer, vocabulary_of(space, task=self.name))


def vocabulary_of(space: AnswerSpace, *, task: str) -> GeneVocabulary:
    """Return the vocabulary of `space`; an InputError if there is none."""
    if space.vocabulary is None:
        raise InputError(f"task {task!r} needs the gene vocabulary that its answers are made of, found none")
    return space.vocabulary


def record_rng(task: str, record: Record) -> np.random.Generator:
    """Return the random numbers of a record's variant: a hash of task, key and variant, and of nothing else."""
    text = "\0".join((task, record.key, str(record.variant))).encode()
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))


@dataclass(frozen=True, kw_only=True)
class ParsedLabel:
    """What an answer says."""

    label: str | None
    """a label of the set; None if the answer is none of them"""
    text: str
    """the answer's first line without white space around it and without the terminator, as files can hold it"""
    match: Literal["exact", "case", "none"]
    """how the label was found: letter for letter, but for case and spacing, or not at all"""


class LabelAnswer(Task[R, ParsedLabel]):
    """A task that is answered by one of a closed set of labels: the values of one field of the metadata."""

    # `field` is the name of the metadata and of the field in the answer of the TOML file.
    answer_kind = "label"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1", "balanced_accuracy", "nll", "ece", "brier")

    def answer_fields(self, record: R) -> Mapping[str, Field]:
        """Return the value of the field; an InputError if it is not known."""
        return {self.field: require_metadata(record, self.field, task=self.name)}

    def label_completions(self, labels: Iterable[str]) -> list[str]:
        """Return the completion of each label, as trained on: what an `AnswerScorer` is to score."""
        return [self.templates.completion({self.field: label}).text for label in labels]

    def answer_format(self, space: AnswerSpace) -> OneOf:
        """Return the closed set of labels; an InputError if `space` holds none."""
        if not space.labels:
            raise InputError(f"task {self.name!r} needs a list of labels to choose from, found none")
        return OneOf(options=space.labels)

    def parse(self, answer: str, space: AnswerSpace) -> ParsedLabel:
        """Return `parse_label` of the answer."""
        return parse_label(answer, space.labels)


def parse_label(answer: str, labels: tuple[str, ...]) -> ParsedLabel:
    """Read a label: letter for letter, else regardless of case and spacing if that leaves one label.

    Tried in turn: the first line, the line without its terminator, the line up to its first terminator. So a label that
    itself holds a full stop is found. Without `labels` the text itself is the label.
    """
    lines = answer.strip().splitlines()
    line = lines[0].strip() if lines else ""
    candidates = line, line.removesuffix(TERMINATOR).strip(), line.partition(TERMINATOR)[0].strip()
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


def _fold(text: str) -> str:
    return " ".join(text.split()).casefold()


@lru_cache(maxsize=64)
def _folded_labels(labels: tuple[str, ...]) -> dict[str, str | None]:
    folded: dict[str, str | None] = {}
    for label in labels:
        key = _fold(label)
        folded[key] = None if key in folded else label  # two labels that differ in case only: neither is meant
    return folded


class NameAnswer(Task[R, str]):
    """A task that is answered by words of a person, in one line."""

    answer_field: ClassVar[str]
    """name of the text in the answer of the TOML file"""
    record_field: ClassVar[str]
    """name of the text in the record"""
    max_tokens: ClassVar[int] = 64
    """of an answer; a name has ten at most, the rest is for tokenizers of few merges"""
    answer_kind = "text"
    metrics: ClassVar[tuple[str, ...]] = ("exact_match", "token_f1")

    def answer_text(self, record: R) -> str:
        """Return the true answer."""
        return getattr(record, self.record_field)

    def answer_fields(self, record: R) -> Mapping[str, Field]:
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
