"""A task: how a cell becomes a prompt and a completion, what a valid answer is, and how an answer is read.

Written once and used for training, for the application and for the benchmark, so their prompts cannot drift apart.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeVar

from cytoglot.answer_format import AnswerFormat, WordWeights
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.registry import Registry
from cytoglot.tasks.record import Record
from cytoglot.tasks.record_source import modules_of_tasks
from cytoglot.tasks.segments import Field, Segments
from cytoglot.tasks.template import Template, TemplateSet, check_name, check_same_fields, load_templates

if TYPE_CHECKING:
    from cytoglot.data.genes.vocabulary import GeneVocabulary

R = TypeVar("R", bound=Record)
Value = TypeVar("Value")
AnswerKind = Literal["label", "labels", "genes", "cells", "text"]
"""one of a closed set, a label for each cell, genes, genes of several cells, prose"""
TERSE_DESCRIBED = "terse_described"
"""The name, in every task, of the terse wording with a description of the cell."""
NO_GENES = "none"
"""Stands where the genes of an empty cell would."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training text: `prompt + completion`, as they are, without a separator."""

    task: str
    prompt: str
    completion: str
    key: str
    """of the record: a cell's id, a group's, …"""
    template: str
    is_ours: bool = True
    """in a wording of our style, which the rule for the seam binds"""

    def __post_init__(self) -> None:
        if self.is_ours and (
            self.prompt != self.prompt.rstrip() or self.completion[:1] != " " or self.completion[1:2] in {"", " "}
        ):
            raise ValueError(
                f"a prompt must not end in white space and a completion must start with one space and a word, "
                f"found {self.prompt[-20:]!r} and {self.completion[:20]!r}"
            )


@dataclass(frozen=True, kw_only=True)
class AnswerSpace:
    """What answers are made of: the labels of an annotation, the genes and the length of a generated cell."""

    labels: tuple[str, ...] = ()
    vocabulary: GeneVocabulary | None = None
    n_genes: int | None = None
    weights: WordWeights | None = None
    """of the genes of the vocabulary, from the model's profile"""


class Task(ABC, Generic[R, Value]):
    """Base of all tasks; a new one names its fields in a TOML file and implements five small methods.

    Parameters
    ----------
    templates
        Own wordings; by default those that ship with the task.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = "cell"
    """what one example is about: the unit of a registered `RecordSource`"""
    noun: ClassVar[str] = "cell"
    """what a description calls it"""
    answer_kind: ClassVar[AnswerKind]
    """what an answer is made of, which decides how a model is made to answer"""
    field: ClassVar[str] = ""
    """canonical name of the metadata that a label is the value of"""
    metrics: ClassVar[tuple[str, ...]]
    """registered names of the metrics that judge the task's answers on held-out records"""
    required_metadata: tuple[str, ...] = ()
    """what must be known of a record to make an example of it"""
    hidden_metadata: ClassVar[tuple[str, ...]] = ()
    """what a prompt must not tell because it is the answer, or gives it away"""
    tells: ClassVar[tuple[str, ...]] = ()
    """metadata that every prompt tells, beside the optional ones of the description"""
    identifies_record: ClassVar[bool] = True
    """whether the prompt tells which record is meant, else the true answer is one draw among many"""
    writes_cells: ClassVar[bool] = False
    """whether the answer is whole cells, of which the prompt shows no gene: what is learned are then the cells
    themselves, never a random view of them"""
    is_ordered: ClassVar[bool] = True
    """whether the parts of an answer of several cells have an order, that of the prompt"""
    reverse: ClassVar[str | None] = None
    """the task that asks the other way round, where there is one"""

    def __init__(self, templates: TemplateSet | None = None) -> None:
        self._given_templates = templates
        if templates is not None:
            needed = templates.style.required_metadata(templates)
            self.required_metadata += tuple(key for key in needed if key not in self.required_metadata)

    @property
    def closed_answer(self) -> bool:
        """Whether the answer is one of a closed set of labels."""
        return self.answer_kind == "label"

    def with_templates(self, templates: TemplateSet) -> Self:
        """Return the same task in other wordings, which may require more metadata; this one stays as it is.

        Raises
        ------
        InputError
            The templates are of another task, or name fields that the task does not fill.
        """
        where = f"templates of {templates.name}"
        if templates.style.is_ours:
            check_same_fields(templates, load_templates(self.name), where=where)
        else:
            check_name(templates, self.name, where=where)
        return type(self)(templates)

    @cached_property
    def templates(self) -> TemplateSet:
        """The task's wordings, read at first use."""
        return self._given_templates or load_templates(self.name)

    def can_ask(self, record: R) -> bool:
        """Tell whether an example can be made of the record: it has the metadata and the content that are needed."""
        return all(name in record.metadata for name in self.required_metadata) and self.has_content(record)

    def has_content(self, record: R) -> bool:
        """Tell whether the record holds what the question and its answer are made of, beside the metadata."""
        return record.longest > 0

    def prompt(self, record: R, *, template: int | str | None = None) -> str:
        """Return the question about a cell; no label is needed.

        Parameters
        ----------
        template
            Position among the training templates or a template's name; by default the `short_template` of the record.
        """
        return self.prompt_segments(record, template=template).text

    def prompt_segments(self, record: R, *, template: int | str | None = None) -> Segments:
        """Return `prompt` in segments."""
        return self._render(self.templates.get(self.short_template(record) if template is None else template), record)

    def short_template(self, record: R) -> int | str:
        """Return the shortest wording that states what else is known of the record: organism, tissue, …."""
        described = self.describe(record) != self.noun
        return TERSE_DESCRIBED if described and TERSE_DESCRIBED in self.templates.names else 0

    def describe(self, record: R) -> str:
        """Return `describe_cell` of the metadata that the prompt may tell."""
        return describe_cell(self.told(record), noun=self.noun)

    def told(self, record: R) -> dict[str, str]:
        """Return the metadata that the description may tell."""
        return {key: value for key, value in record.metadata.items() if key not in self.hidden_metadata}

    def common_fields(self, record: R) -> dict[str, Field]:
        """Return the fields that every task can fill: the description of the cell, with and without an article."""
        description = self.describe(record)
        return {"description": description, "a_description": with_article(description)}

    def example(
        self,
        record: R,
        *,
        template: int | str | None = None,
        seed: int = 0,
        epoch: int = 0,
        held_out: bool = False,
    ) -> Example:
        """Return the question and its true answer.

        Parameters
        ----------
        template
            As in `prompt`; None chooses by a hash of (seed, task, cell id, epoch).
        held_out
            Choose among the held-out templates.

        Raises
        ------
        InputError
            The record lacks what the prompt or the answer needs, such as the label of an annotation.
        """
        chosen = self._chosen(record, template, seed=seed, epoch=epoch, held_out=held_out)
        return Example(
            task=self.name,
            prompt=self._render(chosen, record).text,
            completion=self.completion(record),
            key=record.key,
            template=chosen.name,
            is_ours=self.templates.style.is_ours,
        )

    def segments(
        self, record: R, *, template: int | str | None, seed: int = 0, epoch: int = 0, held_out: bool = False
    ) -> tuple[Segments, Segments]:
        """Return prompt and completion of `example` in segments."""
        chosen = self._chosen(record, template, seed=seed, epoch=epoch, held_out=held_out)
        return self._render(chosen, record), self.completion_segments(record)

    def completion(self, record: R) -> str:
        """Return the true answer with its leading space and its terminator, such as `" CD4 T."`."""
        return self.completion_segments(record).text

    def completion_segments(self, record: R) -> Segments:
        """Return `completion` in segments."""
        return self.templates.completion(self._styled(self.answer_fields(record), record))

    def _chosen(self, record: R, template: int | str | None, *, seed: int, epoch: int, held_out: bool) -> Template:
        if template is not None:
            return self.templates.get(template)
        return self.templates.choose(record.key, seed=seed, epoch=epoch, held_out=held_out)

    def _render(self, template: Template, record: R) -> Segments:
        try:
            return template.render(self._styled(self.prompt_fields(record), record))
        except KeyError as error:  # a wording of another style names what is not known
            known = ", ".join(sorted(record.metadata)) or "nothing"
            raise InputError(
                f"template {template.name!r} of task {self.name!r} needs the {error.args[0]} of {record.key!r}; "
                f"known of it: {known}"
            ) from error

    def _styled(self, fields: Mapping[str, Field], record: R) -> Mapping[str, Field]:
        style = self.templates.style
        return fields if style.is_ours else {**fields, **style.fields_of(record)}

    @abstractmethod
    def prompt_fields(self, record: R) -> Mapping[str, Field]:
        """Return the values of the prompt's fields: texts, and genes as they stand in the record or as a list."""

    @abstractmethod
    def answer_fields(self, record: R) -> Mapping[str, Field]:
        """Return the values of the answer's fields, as in `prompt_fields`."""

    @abstractmethod
    def answer_format(self, space: AnswerSpace) -> AnswerFormat:
        """Return what a valid answer is: bare words, without the leading space and the terminator of a completion."""

    @abstractmethod
    def parse(self, answer: str, space: AnswerSpace) -> Value:
        """Read a model's answer, whatever it wrote; never raises on any text."""


tasks: Registry[Task[Any, Any]] = Registry("task", modules_of_tasks())

T = TypeVar("T", bound=Task[Any, Any])


def register_task(task: type[T]) -> type[T]:
    """File one instance of the class, with the packaged templates, under its name."""
    tasks.register(task.name)(task())
    return task


def require_metadata(record: Record, key: str, *, task: str) -> str:
    """Return a metadata value that a task cannot do without."""
    value = record.metadata.get(key)
    if value is None:
        known = ", ".join(sorted(record.metadata)) or "nothing"
        raise InputError(f"task {task!r} needs the {key} of {record.key!r}; known of it: {known}")
    return value


_ORGANISMS = {"homo sapiens": "human", "mus musculus": "mouse", "rattus norvegicus": "rat", "danio rerio": "zebrafish"}
_REMARKS = ("disease", "condition", "dose", "time", "development_stage", "sex", "assay")


DESCRIBED = ("organism", "tissue", *_REMARKS)
"""metadata that a prompt can tell"""


def check_context(context: Mapping[str, str] | None) -> None:
    """Refuse metadata for prompts under a name that no prompt tells, and values that are no text.

    Raises
    ------
    UnknownNameError, InputError
        Such a name (the nearest ones are listed), or such a value.
    """
    for name, value in (context or {}).items():
        if name not in DESCRIBED:
            raise UnknownNameError("field of the context", str(name), DESCRIBED)
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"expected a text for {name} of the context, found {value!r}; leave it out if unknown")


def describe_cell(metadata: Mapping[str, str], *, noun: str = "cell") -> str:
    """Return what is known of a cell as a noun, without an article: "human pancreas cell (disease: normal)" or "cell".

    Never tells the cell type, the donor or the batch: the first is an answer, the others would teach nothing that
    holds for another data set. With `noun="cells"` it speaks of several.
    """
    organism = metadata.get("organism", "")
    noun = " ".join(w for w in (_ORGANISMS.get(organism.lower(), organism), metadata.get("tissue", ""), noun) if w)
    remarks = [f"{key.replace('_', ' ')}: {metadata[key]}" for key in _REMARKS if key in metadata]
    return f"{noun} ({', '.join(remarks)})" if remarks else noun


def with_article(noun: str) -> str:
    """Put "a" or "an" before a noun, by its first letter."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"
