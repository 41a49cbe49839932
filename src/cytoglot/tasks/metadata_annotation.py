"""What else can be read off a cell: disease, sex, stage of development, assay, organism, condition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from cytoglot.answer_format import OneOf
from cytoglot.tasks.annotation import ParsedLabel, label_format, parse_label
from cytoglot.tasks.record import CellRecord
from cytoglot.tasks.task import AnswerSpace, Task, register_task, require_metadata


class MetadataAnnotation(Task[CellRecord, ParsedLabel]):
    """The ranked genes of a cell → one field of its metadata; the prompt tells the others, unless one gives it away.

    What is known may still narrow the answer down: a prostate is male, a disease may be of children.
    """

    field: ClassVar[str]
    """canonical name of the metadata that is asked for"""
    closed_answer = True
    metrics = ("accuracy", "macro_f1", "balanced_accuracy")

    def prompt_fields(self, record: CellRecord) -> Mapping[str, str]:
        """Return the number of genes, the genes and the description."""
        genes = {"num_genes": str(len(record.genes)), "cell_sentence": " ".join(record.genes)}
        return self.common_fields(record) | genes

    def answer_fields(self, record: CellRecord) -> Mapping[str, str]:
        """Return the value of the field; an InputError if it is not known."""
        return {self.field: require_metadata(record, self.field, task=self.name)}

    def label_completions(self, labels: Iterable[str]) -> list[str]:
        """Return the completion of each label, as trained on: what an `AnswerScorer` is to score."""
        return [self.templates.completion({self.field: label}) for label in labels]

    def answer_format(self, space: AnswerSpace) -> OneOf:
        """Return the closed set of labels; an InputError if `space` holds none."""
        return label_format(space, task=self.name)

    def parse(self, answer: str, space: AnswerSpace) -> ParsedLabel:
        """Return `parse_label` of the answer."""
        return parse_label(answer, space.labels)


@register_task
class DiseaseAnnotation(MetadataAnnotation):
    """The ranked genes of a cell → the disease of its donor, or "normal"; a condition often says the same."""

    name, field = "disease_annotation", "disease"
    required_metadata = ("disease",)
    hidden_metadata = ("disease", "condition")


@register_task
class SexAnnotation(MetadataAnnotation):
    """The ranked genes of a cell → the sex of its donor; a handful of genes of the sex chromosomes decides."""

    name, field = "sex_annotation", "sex"
    required_metadata = hidden_metadata = ("sex",)


@register_task
class DevelopmentStageAnnotation(MetadataAnnotation):
    """The ranked genes of a cell → the stage of development, or the age, of its donor, in the words of the data set."""

    name, field = "development_stage_annotation", "development_stage"
    required_metadata = hidden_metadata = ("development_stage",)


@register_task
class AssayAnnotation(MetadataAnnotation):
    """The ranked genes of a cell → the protocol that sequenced it: what a batch effect looks like, asked for openly."""

    name, field = "assay_annotation", "assay"
    required_metadata = hidden_metadata = ("assay",)


@register_task
class OrganismAnnotation(MetadataAnnotation):
    """The ranked genes of a cell → its species.

    Trivial wherever the species differ in how their genes are written (human `ACTB`, mouse `Actb`): a spelling test
    then. It measures biology only where the genes of all species are mapped to the symbols of one. The stage of
    development is hidden too: its words are a species' own ("33-year-old stage", "8-week-old stage").
    """

    name, field = "organism_annotation", "organism"
    required_metadata = ("organism",)
    hidden_metadata = ("organism", "development_stage")


@register_task
class ConditionAnnotation(MetadataAnnotation):
    """The ranked genes of a cell → the condition of its donor or culture: "stimulated", "control".

    A disease is hidden too: studies of patients write it in either column.
    """

    name, field = "condition_annotation", "condition"
    required_metadata = ("condition",)
    hidden_metadata = ("condition", "disease")
