"""The mean profile of each cell type among training sentences: what a lazy generator writes for every cell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache

Sentence = tuple[str, ...]


class TypeProfiles:
    """Typical genes of every type.

    Parameters
    ----------
    reference
        Cell type → sentences of its training cells.
    """

    def __init__(self, reference: Mapping[str, Sequence[Sentence]]) -> None:
        self._reference = reference
        # Of the instance, so that what is remembered goes with it.
        self.top = lru_cache(maxsize=4096)(self._top)
        self._ranked = lru_cache(maxsize=None)(self._rank)

    def cells(self, cell_type: str) -> Sequence[Sentence]:
        """Return the training sentences of a type, of all types for an empty name; none for an unknown one."""
        if cell_type:
            return self._reference.get(cell_type, ())
        return [sentence for sentences in self._reference.values() for sentence in sentences]

    def _top(self, cell_type: str, n: int) -> Sentence:
        """Return the `n` genes that most of the type's sentences hold, in the order of their mean inverse rank.

        No other choice of genes overlaps more with the type's cells on average. Ties go by the mean inverse rank, then
        by name. Fewer than `n` if the type has fewer genes.
        """
        typical, inverse = self._ranked(cell_type)
        return tuple(sorted(typical[:n], key=lambda gene: (-inverse[gene], gene)))

    def _rank(self, cell_type: str) -> tuple[list[str], Mapping[str, float]]:
        """Return the genes of the type, those of most sentences first, and gene → sum of 1 / rank."""
        counts: defaultdict[str, int] = defaultdict(int)
        inverse: defaultdict[str, float] = defaultdict(float)
        for sentence in self.cells(cell_type):
            for rank, gene in enumerate(dict.fromkeys(sentence), start=1):
                counts[gene] += 1
                inverse[gene] += 1 / rank
        return sorted(counts, key=lambda gene: (-counts[gene], -inverse[gene], gene)), inverse
