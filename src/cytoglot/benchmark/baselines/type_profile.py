"""Cells written from the mean profile of a type: what a generator has to beat, and what fools an overlap score.

Axes: n sentences, g genes, l labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from cytoglot.errors import InputError, UnknownNameError
from cytoglot.sentence.cell_sentence import CellSentences

Words = list[NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class TypeProfile:
    """The mean profile of each type among training cells; make it with `TypeProfile.fit`."""

    labels: tuple[str, ...]
    mean_lg: NDArray[np.float64]
    """mean over the type's cells of 1 / rank (0 for a gene that is not in the sentence), shape (l, g)"""
    detected_lg: NDArray[np.float64]
    """share of the type's cells whose sentence holds the gene, shape (l, g)"""

    @classmethod
    def fit(cls, train: CellSentences, labels: ArrayLike) -> TypeProfile:
        """Average the sentences of each label.

        Expression falls about as 1 / rank, so the mean of 1 / rank stands for the mean expression and needs nothing
        but the sentences that the model learned from too. Cells whose label is None are left out.

        Raises
        ------
        InputError
            There is not one label per sentence, or no label at all.
        """
        labels_n = np.asarray(labels, dtype=object)
        if labels_n.shape != (len(train),):
            raise InputError(f"need one label per sentence, found {labels_n.shape} labels for {len(train)} sentences")
        names = tuple(sorted({label for label in labels_n if label is not None}))
        if not names:
            raise InputError("a type profile needs labelled training cells, found none")
        shape = (len(train), len(train.vocabulary))
        ids = train.gene_ids.astype(np.int64)
        inverse_rank_ng = csr_matrix((1.0 / train.ranks(), ids, train.offsets), shape=shape)
        detected_ng = csr_matrix((np.ones(len(ids)), ids, train.offsets), shape=shape)
        return cls(
            labels=names,
            mean_lg=np.vstack([_mean(inverse_rank_ng, labels_n == name) for name in names]),
            detected_lg=np.vstack([_mean(detected_ng, labels_n == name) for name in names]),
        )

    def draw(self, label: str, lengths: Sequence[int] | NDArray[np.integer], rng: np.random.Generator) -> Words:
        """Draw sentences: genes without replacement, each with a chance proportional to its mean in the type.

        The first drawn is the highest. Genes are independent given the type, so this has the type's average genes and
        nothing of what makes its cells differ together.

        Parameters
        ----------
        lengths
            Number of genes of each sentence; it is shorter only if the type has fewer genes with a mean above 0.
        """
        mean_g = self.mean_lg[self._row(label)]
        known = np.flatnonzero(mean_g > 0)
        log_mean = np.log(mean_g[known])
        # The order of log weights with Gumbel noise is that of successive draws without replacement.
        return [known[np.argsort(-(log_mean + rng.gumbel(size=len(known))))[:length]] for length in lengths]

    def top(self, label: str, lengths: Sequence[int] | NDArray[np.integer]) -> Words:
        """Return the same most typical genes for every sentence, cut to its length.

        These are the genes found in most sentences of the type, which no other choice beats in expected overlap; they
        are written in the order of their mean.
        """
        row = self._row(label)
        mean_g, detected_g = self.mean_lg[row], self.detected_lg[row]
        typical = np.lexsort((-mean_g, -detected_g))[: int((detected_g > 0).sum())]
        return [chosen[np.argsort(-mean_g[chosen], kind="stable")] for chosen in (typical[:n] for n in lengths)]

    def _row(self, label: str) -> int:
        if label not in self.labels:
            raise UnknownNameError("cell type", label, self.labels)
        return self.labels.index(label)


def _mean(matrix_ng: csr_matrix, chosen_n: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.asarray(matrix_ng[chosen_n].mean(axis=0), dtype=np.float64).ravel()
