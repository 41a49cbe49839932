"""Write a cell: of a given type, or of any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cytoglot.errors import InputError
from cytoglot.tasks.answers import GeneAnswer
from cytoglot.tasks.record import CellRecord
from cytoglot.tasks.segments import Field
from cytoglot.tasks.task import register_task, require_metadata


class CellWriting(GeneAnswer[CellRecord]):
    """What conditional and unconditional generation share: the answer is a cell sentence of a stated length."""

    answer_field = "cell_sentence"
    identifies_record = False
    writes_cells = True

    def prompt_fields(self, record: CellRecord) -> Mapping[str, Field]:
        """Return the number of genes to write and the description.

        The number is that of the record's genes, or its `num_genes` where a cell is still to be written.
        """
        num_genes = len(record.genes) or record.num_genes
        if not num_genes:
            raise InputError(
                f"task {self.name!r} needs the number of genes to write for cell {record.cell_id!r}, found an empty "
                "cell; pass num_genes, or leave out cells without expressed genes"
            )
        return self.common_fields(record) | {"num_genes": str(num_genes)}

    def answer_genes(self, record: CellRecord) -> Sequence[str]:
        """Return the genes of the cell."""
        return record.genes


@register_task
class CellGeneration(CellWriting):
    """A cell type → the ranked genes of such a cell."""

    name = "cell_generation"
    required_metadata = tells = ("cell_type",)

    def prompt_fields(self, record: CellRecord) -> Mapping[str, Field]:
        """Add the cell type, which must be known."""
        cell_type = require_metadata(record, "cell_type", task=self.name)
        return {**super().prompt_fields(record), "cell_type": cell_type}


@register_task
class UnconditionalGeneration(CellWriting):
    """Nothing but what is known of the sample → the ranked genes of a cell."""

    name = "unconditional_generation"
