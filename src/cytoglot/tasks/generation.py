"""Write a cell: of a given type, or of any."""

from __future__ import annotations

from collections.abc import Mapping

from cytoglot.answer_format import DistinctWords
from cytoglot.errors import InputError
from cytoglot.sentence.parse import ParsedSentence, parse_genes
from cytoglot.tasks.gene_answer import gene_list_format, vocabulary_of
from cytoglot.tasks.record import CellRecord
from cytoglot.tasks.task import AnswerSpace, Task, register_task, require_metadata

_METRICS = ("gene_overlap", "gene_jaccard", "kendall_tau_b", "validity", "duplicate_share", "pairwise_diversity")


class _Generation(Task[CellRecord, ParsedSentence]):
    """What conditional and unconditional generation share: the answer is a cell sentence of a stated length."""

    metrics = _METRICS

    def prompt_fields(self, record: CellRecord) -> Mapping[str, str]:
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

    def answer_fields(self, record: CellRecord) -> Mapping[str, str]:
        """Return the cell sentence; an InputError if the cell is empty."""
        if not record.genes:
            raise InputError(
                f"task {self.name!r} cannot learn from cell {record.cell_id!r}: it has no expressed genes; "
                "leave out empty cells"
            )
        return {"cell_sentence": " ".join(record.genes)}

    def answer_format(self, space: AnswerSpace) -> DistinctWords:
        """Return exactly `n_genes` distinct genes of the vocabulary; an InputError without either."""
        return gene_list_format(space, task=self.name)

    def parse(self, answer: str, space: AnswerSpace) -> ParsedSentence:
        """Read the genes of an answer, with a report of what was unknown, repeated or mended."""
        return parse_genes(answer, vocabulary_of(space, task=self.name))


@register_task
class CellGeneration(_Generation):
    """A cell type → the ranked genes of such a cell."""

    name = "cell_generation"
    required_metadata = ("cell_type",)

    def prompt_fields(self, record: CellRecord) -> Mapping[str, str]:
        """Add the cell type, which must be known."""
        cell_type = require_metadata(record, "cell_type", task=self.name)
        return {**super().prompt_fields(record), "cell_type": cell_type}


@register_task
class UnconditionalGeneration(_Generation):
    """Nothing but what is known of the sample → the ranked genes of a cell."""

    name = "unconditional_generation"
