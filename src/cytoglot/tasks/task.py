"""A task: how a cell becomes a prompt and a completion, what a valid answer is, and how an answer is read.

Written once and used for training, for the application and for the benchmark, so their prompts cannot drift apart.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from cytoglot.answer_format import AnswerFormat
from cytoglot.errors import InputError
from cytoglot.registry import Registry
from cytoglot.tasks.template import Template, TemplateSet, load_templates

if TYPE_CHECKING:
    from cytoglot.data.genes import GeneVocabulary

Value = TypeVar("Value")
TERSE_DESCRIBED = "terse_described"
"""The name, in every task, of the terse wording with a description of the cell."""
NO_GENES = "none"
"""Stands where the genes of an empty cell would."""


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """What a task may know of a cell: its genes, highest first, and its metadata under canonical names."""

    genes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """`cell_type`, `organism`, `tissue`, `disease`, …; what is not known is absent"""
    cell_id: str = ""
    num_genes: int | None = None
    """length of the sentence to write, for a record without genes; else the number of `genes`"""

    def __post_init__(self) -> None:
        blank = [key for key, value in self.metadata.items() if not isinstance(value, str) or not value.strip()]
        if blank:
            raise ValueError(f"cell {self.cell_id!r}: metadata must be non-empty texts, leave out {blank} if unknown")
        if self.genes and self.num_genes not in (None, len(self.genes)):
            raise ValueError(f"cell {self.cell_id!r}: {len(self.genes)} genes, but num_genes says {self.num_genes}")


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training text: `prompt + completion`, as they are, without a separator."""

    task: str
    prompt: str
    completion: str
    cell_id: str
    template: str

    def __post_init__(self) -> None:
        if self.prompt != self.prompt.rstrip() or self.completion[:1] != " " or self.completion[1:2] in {"", " "}:
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


class Task(ABC, Generic[Value]):
    """Base of all tasks; a new one names its fields in a TOML file and implements five small methods.

    Parameters
    ----------
    templates
        Own wordings; by default those that ship with the task.
    """

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    """registered names of the metrics that judge the task's answers"""
    required_metadata: ClassVar[tuple[str, ...]] = ()
    """what must be known of a cell to make an example of it"""
    closed_answer: ClassVar[bool] = False
    """whether the answer is one of a closed set of labels"""

    def __init__(self, templates: TemplateSet | None = None) -> None:
        self._given_templates = templates

    @cached_property
    def templates(self) -> TemplateSet:
        """The task's wordings, read at first use."""
        return self._given_templates or load_templates(self.name)

    def prompt(self, record: CellRecord, *, template: int | str | None = None) -> str:
        """Return the question about a cell; no label is needed.

        Parameters
        ----------
        template
            Position among the training templates or a template's name; by default the `short_template` of the record.
        """
        return self._render(self.templates.get(self.short_template(record) if template is None else template), record)

    def short_template(self, record: CellRecord) -> int | str:
        """Return the shortest wording that states what is known of the cell beside its type: organism, tissue, …."""
        return TERSE_DESCRIBED if describe_cell(record.metadata) != describe_cell({}) else 0

    def example(
        self,
        record: CellRecord,
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
        if template is None:
            chosen = self.templates.choose(record.cell_id, seed=seed, epoch=epoch, held_out=held_out)
        else:
            chosen = self.templates.get(template)
        return Example(
            task=self.name,
            prompt=self._render(chosen, record),
            completion=self.completion(record),
            cell_id=record.cell_id,
            template=chosen.name,
        )

    def completion(self, record: CellRecord) -> str:
        """Return the true answer with its leading space and its terminator, such as `" CD4 T."`."""
        return " " + self.templates.answer.format_map(self.answer_fields(record))

    def _render(self, template: Template, record: CellRecord) -> str:
        return template.render(self.prompt_fields(record))

    @abstractmethod
    def prompt_fields(self, record: CellRecord) -> Mapping[str, str]:
        """Return the values of the prompt's fields."""

    @abstractmethod
    def answer_fields(self, record: CellRecord) -> Mapping[str, str]:
        """Return the values of the answer's fields."""

    @abstractmethod
    def answer_format(self, space: AnswerSpace) -> AnswerFormat:
        """Return what a valid answer is: bare words, without the leading space and the terminator of a completion."""

    @abstractmethod
    def parse(self, answer: str, space: AnswerSpace) -> Value:
        """Read a model's answer, whatever it wrote; never raises on any text."""


tasks: Registry[Task] = Registry("task", ("cytoglot.tasks.annotation", "cytoglot.tasks.generation"))

T = TypeVar("T", bound=Task)


def register_task(task: type[T]) -> type[T]:
    """File one instance of the class, with the packaged templates, under its name."""
    tasks.register(task.name)(task())
    return task


def require_metadata(record: CellRecord, key: str, *, task: str) -> str:
    """Return a metadata value that a task cannot do without."""
    value = record.metadata.get(key)
    if value is None:
        known = ", ".join(sorted(record.metadata)) or "nothing"
        raise InputError(f"task {task!r} needs the {key} of cell {record.cell_id!r}; known of this cell: {known}")
    return value


_ORGANISMS = {"homo sapiens": "human", "mus musculus": "mouse", "rattus norvegicus": "rat", "danio rerio": "zebrafish"}
_REMARKS = ("disease", "condition", "development_stage", "sex", "assay")


def describe_cell(metadata: Mapping[str, str]) -> str:
    """Return what is known of a cell as a noun, without an article: "human pancreas cell (disease: normal)" or "cell".

    Never tells the cell type, the donor or the batch: the first is an answer, the others would teach nothing that
    holds for another data set.
    """
    organism = metadata.get("organism", "")
    noun = " ".join(w for w in (_ORGANISMS.get(organism.lower(), organism), metadata.get("tissue", ""), "cell") if w)
    remarks = [f"{key.replace('_', ' ')}: {metadata[key]}" for key in _REMARKS if key in metadata]
    return f"{noun} ({', '.join(remarks)})" if remarks else noun


def with_article(noun: str) -> str:
    """Put "a" or "an" before a noun, by its first letter."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def common_fields(record: CellRecord) -> dict[str, str]:
    """Return the fields that every task can fill: the description of the cell, with and without an article."""
    description = describe_cell(record.metadata)
    return {"description": description, "a_description": with_article(description)}
