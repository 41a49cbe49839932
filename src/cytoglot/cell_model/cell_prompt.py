"""A question about a cell that knows where in its text the cell sentence stands."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cytoglot.errors import InputError
from cytoglot.tasks.record import CellRecord
from cytoglot.tasks.segments import Segments


@dataclass(frozen=True, kw_only=True)
class CellPrompt:
    """A prompt in segments, and the cell that it asks about."""

    segments: Segments
    record: CellRecord

    @cached_property
    def text(self) -> str:
        """The prompt as a model reads it."""
        return self.segments.text

    @cached_property
    def gene_spans(self) -> NDArray[np.int64]:
        """Characters (first, after the last) of each gene of the sentence, in its order, shape (n_genes, 2).

        Raises
        ------
        InputError
            The prompt does not show every gene of the record once.
        """
        spans, at = [], 0
        for piece in self.segments:
            if isinstance(piece, str):
                at += len(piece)
                continue
            for gene in piece:
                spans.append((at, at + len(gene)))
                at += len(gene) + 1
            at -= 1
        if len(spans) != sum(self.record.lengths()):
            raise InputError(
                f"expected a prompt with the {sum(self.record.lengths())} genes of {self.record}, found {len(spans)} "
                f"in {self.text[:60]!r}; use a template with {{cell_sentence}}"
            )
        return np.array(spans, dtype=np.int64).reshape(-1, 2)

    @property
    def sentence_span(self) -> tuple[int, int]:
        """Characters (first, after the last) of the cell sentence; equal where it is empty."""
        spans = self.gene_spans
        return (int(spans[0, 0]), int(spans[-1, 1])) if len(spans) else (0, 0)
