"""A question about a cell that knows where in its text the cell sentence stands."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytoglot.errors import InputError
from cytoglot.tasks.record import CellRecord
from cytoglot.tasks.task import Task

_NO_GENE = "\ue000"
"""stands for a gene in a trial prompt: a character of private use, which is in no symbol and in no template"""


@dataclass(frozen=True, kw_only=True)
class CellPrompt:
    """A prompt, and what it was made of."""

    text: str
    record: CellRecord
    task: Task[Any, Any]
    template: int | str | None = None

    @cached_property
    def sentence_span(self) -> tuple[int, int]:
        """Characters (first, behind the last) of the cell sentence; equal where it is empty.

        Found by rendering the same template with other genes, so that no wording can be taken for a gene.
        """
        n_genes = len(self.record.genes)
        if n_genes == 0:
            return 0, 0
        blank = replace(self.record, genes=(_NO_GENE,) * n_genes, ortholog_genes=())
        trial = self.task.prompt(blank, template=self.template)
        first = _n_equal(self.text, trial)
        n_behind = _n_equal(self.text[first:][::-1], trial[first:][::-1])
        return first, len(self.text) - n_behind

    @property
    def gene_spans(self) -> NDArray[np.int64]:
        """Characters (first, behind the last) of each gene of the sentence, in its order, shape (n_genes, 2).

        Raises
        ------
        InputError
            The template does not write the genes one after the other, with white space between them.
        """
        first, behind = self.sentence_span
        found = [match.span() for match in re.finditer(r"\S+", self.text[first:behind])]
        if len(found) != len(self.record.genes):
            raise InputError(
                f"expected a prompt with {len(self.record.genes)} genes in a row, found {len(found)} words where "
                f"template {self.template!r} of {self.task.name} writes them; use a template with {{cell_sentence}}"
            )
        return np.array(found, dtype=np.int64).reshape(-1, 2) + first


def _n_equal(a: str, b: str) -> int:
    """Return how many characters the two have in common at their beginnings."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
