"""What else can be read off a cell: disease, sex, stage of development, assay, organism, condition."""

from __future__ import annotations

from collections.abc import Mapping

from cytoglot.tasks.answers import LabelAnswer
from cytoglot.tasks.record import CellRecord
from cytoglot.tasks.segments import Field
from cytoglot.tasks.task import register_task


class MetadataAnnotation(LabelAnswer[CellRecord]):
    """The ranked genes of a cell → one field of its metadata; the prompt tells the others, unless one gives it away.

    What is known may still narrow the answer down: a prostate is male, a disease may be of children.
    """

    def prompt_fields(self, record: CellRecord) -> Mapping[str, Field]:
        """Return the number of genes, the genes and the description."""
        return self.common_fields(record) | {"num_genes": str(len(record.genes)), "cell_sentence": record.genes}


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
