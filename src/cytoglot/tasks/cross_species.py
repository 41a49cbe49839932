"""What are a cell's genes called in another species? Genes in, their orthologs out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cytoglot.tasks.answers import GeneAnswer
from cytoglot.tasks.record import CellRecord
from cytoglot.tasks.segments import Field
from cytoglot.tasks.task import describe_cell, register_task

_OTHER = {"human": "mouse", "mouse": "human"}


@register_task
class OrthologTranslation(GeneAnswer[CellRecord]):
    """The genes of a cell → their one-to-one orthologs in the other species, in the same order.

    Symbols are translated rank by rank; this is no prediction of how a cell of the other species would express them.
    The orthologs are the record's, which the reader of a corpus takes from its table. Genes without one are shown and
    have no word in the answer. The prompt names the other species where the cell is from human or mouse.
    """

    name = "ortholog_translation"
    answer_field = "orthologs"

    def has_content(self, record: CellRecord) -> bool:
        """At least one gene must have an ortholog."""
        return any(record.ortholog_genes)

    def prompt_fields(self, record: CellRecord) -> Mapping[str, Field]:
        """Return the genes, the numbers of genes and of orthologs, and the other species where it is known."""
        organism = describe_cell({"organism": record.metadata["organism"]}) if "organism" in record.metadata else ""
        other = _OTHER.get(organism.removesuffix(" cell"), "another species")
        numbers = {"num_genes": str(len(record.genes)), "num_orthologs": str(len(self.answer_genes(record)))}
        sentence = {"cell_sentence": record.genes, "other_species": other}
        return self.common_fields(record) | numbers | sentence

    def answer_genes(self, record: CellRecord) -> Sequence[str]:
        """Return the orthologs that there are."""
        return [symbol for symbol in record.ortholog_genes if symbol]
