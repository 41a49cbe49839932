"""How does this cell go on? The first genes of a sentence in, the rest out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cytoglot.tasks.answers import GeneAnswer, record_rng
from cytoglot.tasks.record import CellRecord
from cytoglot.tasks.segments import Field
from cytoglot.tasks.task import register_task

_LEAST, _MOST = 0.2, 0.8  # share of the sentence that is shown; beyond it question or answer is next to nothing


@register_task
class CellCompletion(GeneAnswer[CellRecord]):
    """The first part of a cell sentence → the rest.

    Shown is half of the sentence by variant 0 of a record, and from 20 % to 80 % by the others, by a hash; one gene at
    least is shown and one is left.
    """

    name = "cell_completion"
    answer_field = "rest"

    def has_content(self, record: CellRecord) -> bool:
        """A sentence needs two genes to be cut in two."""
        return len(record.genes) >= 2

    def prompt_fields(self, record: CellRecord) -> Mapping[str, Field]:
        """Return the first genes and the numbers of genes shown, missing and in all."""
        n_shown, n_genes = self.n_shown(record), len(record.genes)
        numbers = {"num_genes": str(n_genes), "num_shown": str(n_shown), "num_missing": str(n_genes - n_shown)}
        return self.common_fields(record) | numbers | {"cell_sentence": record.genes[:n_shown]}

    def answer_genes(self, record: CellRecord) -> Sequence[str]:
        """Return the genes that are not shown."""
        return record.genes[self.n_shown(record) :]

    def n_shown(self, record: CellRecord) -> int:
        """Return how many genes of the record the prompt shows."""
        share = 0.5 if record.variant == 0 else record_rng(self.name, record).uniform(_LEAST, _MOST)
        return min(max(1, int(share * len(record.genes))), max(1, len(record.genes) - 1))
