"""Which genes are missing? A cell sentence with gaps in, the genes of the gaps out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cytoglot.tasks.answers import GeneAnswer, record_rng
from cytoglot.tasks.record import CellRecord
from cytoglot.tasks.segments import Field
from cytoglot.tasks.task import register_task

MASK = "_"
"""Stands for a hidden gene. No gene is called so; prose does not use it as it uses "?"; and a reader of answers takes
it for punctuation, so that a model which repeats it has named no unknown gene. Behind a space tokenizers cut it off as
a piece of its own unless other punctuation follows at once, so in a prompt a space or a line break does."""
_MASKED_SHARE = 0.15


@register_task
class GeneMasking(GeneAnswer[CellRecord]):
    """A cell sentence in which 15 % of the genes, one at least, are hidden → those genes, in the order of their ranks.

    Which ones is a hash of the record's key and variant.
    """

    name = "gene_masking"
    answer_field = "masked"

    def has_content(self, record: CellRecord) -> bool:
        """A sentence of one gene would be nothing but a gap."""
        return len(record.genes) >= 2

    def prompt_fields(self, record: CellRecord) -> Mapping[str, Field]:
        """Return the sentence with the mask word in its gaps, and the numbers of places and of gaps."""
        words, hidden = list(record.genes), self.hidden_places(record)
        for place in hidden:
            words[place] = MASK
        numbers = {"num_genes": str(len(words)), "num_masked": str(len(hidden)), "mask": MASK}
        return self.common_fields(record) | numbers | {"cell_sentence": words}

    def answer_genes(self, record: CellRecord) -> Sequence[str]:
        """Return the hidden genes, highest first."""
        return [record.genes[place] for place in self.hidden_places(record)]

    def hidden_places(self, record: CellRecord) -> NDArray[np.intp]:
        """Return the places of the hidden genes in the sentence, rising; none in a sentence without content."""
        if not self.has_content(record):
            return np.empty(0, np.intp)
        n_hidden = max(1, round(_MASKED_SHARE * len(record.genes)))
        return np.sort(record_rng(self.name, record).permutation(len(record.genes))[:n_hidden])
