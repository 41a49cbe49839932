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
        self.top = lru_cache(maxsize=4096)(self._top)
        self._shares = lru_cache(maxsize=None)(self._count)

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
        shares, inverse = self._shares(cell_type)
        typical = sorted(shares, key=lambda gene: (-shares[gene], -inverse[gene], gene))[:n]
        return tuple(sorted(typical, key=lambda gene: (-inverse[gene], gene)))

    def _count(self, cell_type: str) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """Return gene → share of the type's sentences that hold it, and mean of 1 / rank, an absent gene counting 0."""
        sentences = self.cells(cell_type)
        counts: defaultdict[str, float] = defaultdict(float)
        inverse: defaultdict[str, float] = defaultdict(float)
        for sentence in sentences:
            for rank, gene in enumerate(dict.fromkeys(sentence), start=1):
                counts[gene] += 1
                inverse[gene] += 1 / rank
        n = max(len(sentences), 1)
        return {g: c / n for g, c in counts.items()}, {g: v / n for g, v in inverse.items()}
