"""Cells written from the mean profile of a type: what a generator has to beat, and what fools an overlap score.

Axes: n sentences, g genes, l labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from cytoglot.errors import InputError, UnknownNameError
from cytoglot.metrics.generation import pairwise_diversity
from cytoglot.sentence.cell_sentence import CellSentences

Words = list[NDArray[np.int64]]
_SHARPNESS = (1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0)
_MAX_CELLS = 40


@dataclass(frozen=True, kw_only=True)
class TypeProfile:
    """The mean profile of each type among training cells; make it with `TypeProfile.fit`."""

    labels: tuple[str, ...]
    mean_lg: NDArray[np.float64]
    """mean over the type's cells of 1 / rank (0 for a gene that is not in the sentence), shape (l, g)"""
    detected_lg: NDArray[np.float64]
    """share of the type's cells whose sentence holds the gene, shape (l, g)"""
    sharpness_l: NDArray[np.float64]
    """power of the mean that makes draws as diverse as the type's training cells, shape (l,)"""

    @classmethod
    def fit(cls, train: CellSentences, labels: ArrayLike, *, seed: int = 0) -> TypeProfile:
        """Average the sentences of each label.

        Expression falls about as 1 / rank, so the mean of 1 / rank stands for the mean expression and needs nothing
        but the sentences that the model learned from too. Cells whose label is None are left out.

        Draws in proportion to the mean itself vary more than real cells, which are counts of thousands of molecules
        each, and so overlap less: an easy opponent. So the mean is raised to that power, of eight from 1 to 2, which
        brings the diversity of draws nearest to that of up to 40 training cells of the type.

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
        profile = cls(
            labels=names,
            mean_lg=np.vstack([_mean(inverse_rank_ng, labels_n == name) for name in names]),
            detected_lg=np.vstack([_mean(detected_ng, labels_n == name) for name in names]),
            sharpness_l=np.ones(len(names)),
        )
        rng = np.random.default_rng(seed)
        filled = [np.flatnonzero((labels_n == name) & (train.lengths > 0)) for name in names]
        samples = [
            [train.ids(int(cell)).astype(np.int64) for cell in rng.permutation(rows)[:_MAX_CELLS]] for rows in filled
        ]
        sharpness_l = np.ones(len(names))
        for row, cells in enumerate(samples):
            if len(cells) >= 2:
                real, lengths = pairwise_diversity(cells), [len(words) for words in cells]
                sharpened = [replace(profile, sharpness_l=np.full(len(names), power)) for power in _SHARPNESS]
                gaps = [abs(pairwise_diversity(p.draw(names[row], lengths, rng)) - real) for p in sharpened]
                sharpness_l[row] = _SHARPNESS[int(np.argmin(gaps))]
        return replace(profile, sharpness_l=sharpness_l)

    def draw(self, label: str, lengths: Sequence[int] | NDArray[np.integer], rng: np.random.Generator) -> Words:
        """Draw sentences: distinct genes, each with a chance proportional to a power of its mean in the type.

        The first drawn is the highest. Genes are independent given the type, so this has the type's average genes and
        nothing of what makes its cells differ together.

        Parameters
        ----------
        lengths
            Number of genes of each sentence; it is shorter only if the type has fewer genes with a mean above 0.
        """
        row = self._row(label)
        known = np.flatnonzero(self.mean_lg[row] > 0)
        log_weight = self.sharpness_l[row] * np.log(self.mean_lg[row, known])
        # The order of log weights with Gumbel noise is that of successive draws without replacement.
        return [known[np.argsort(-(log_weight + rng.gumbel(size=len(known))))[:length]] for length in lengths]

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
