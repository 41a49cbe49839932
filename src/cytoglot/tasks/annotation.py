"""Which type is this cell? Genes in, one label out."""

from __future__ import annotations

from collections.abc import Mapping

from cytoglot.tasks.answers import LabelAnswer
from cytoglot.tasks.answers import parse_label as parse_label  # where it was before other tasks read labels too
from cytoglot.tasks.record import CellRecord
from cytoglot.tasks.segments import Field
from cytoglot.tasks.task import NO_GENES, register_task


@register_task
class CellTypeAnnotation(LabelAnswer[CellRecord]):
    """The ranked genes of a cell → its cell type."""

    name, field = "cell_type_annotation", "cell_type"
    required_metadata = ("cell_type",)

    def has_content(self, record: CellRecord) -> bool:
        """Any cell can be asked about, an empty one too."""
        return True

    def prompt_fields(self, record: CellRecord) -> Mapping[str, Field]:
        """Return the number of genes, the genes ("none" for an empty cell) and the description."""
        genes = record.genes if len(record.genes) else NO_GENES
        return self.common_fields(record) | {"num_genes": str(len(record.genes)), "cell_sentence": genes}
