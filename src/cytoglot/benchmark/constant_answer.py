"""The one answer that does best if it is given to every question of a task: what a model has to beat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cytoglot.cell_model.task_scores import EvalRecord, gene_ids_of
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.metrics.text import token_f1
from cytoglot.tasks.multicell import cell_lines
from cytoglot.tasks.task import AnswerKind

_COMPARED_TEXTS = 200
"""training answers among which the most typical text is sought, and to which each is compared"""


@dataclass(frozen=True, kw_only=True)
class ConstantAnswer:
    """An answer that takes no notice of what is asked but for the number of genes and cells."""

    kind: AnswerKind
    text: str = ""
    """the label, or the text"""
    ranked_genes: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """number of genes → the genes to list"""

    def answer(self, asked: EvalRecord) -> str:
        """Return the answer, with as many genes and cells as the truth has."""
        if self.kind in {"label", "text"}:
            return self.text
        if self.kind == "labels":
            return cell_lines([self.text] * len(asked.parts)).text
        genes = " ".join(self.ranked_genes[asked.n_genes])
        return genes if self.kind == "genes" else cell_lines([genes] * len(asked.parts)).text


def fit_constant_answer(
    kind: AnswerKind,
    training: Sequence[EvalRecord],
    *,
    lengths: Sequence[int],
    vocabulary: GeneVocabulary,
    labels: Sequence[str] = (),
    seed: int,
) -> ConstantAnswer:
    """Choose the answer on training records.

    A label is the most frequent one, of several cells the most frequent one for each. A text is the training answer
    with the highest mean token F1 to a sample of the others. A list of n genes holds those that are most often among
    the first n of a training answer, which is the best that any one list can do in overlap, in the order of their mean
    reciprocal rank.

    Parameters
    ----------
    lengths
        Numbers of genes that will be asked for.
    labels
        Of a closed task, the most frequent in training first.
    """
    if kind == "label":
        return ConstantAnswer(kind=kind, text=labels[0])
    if kind == "labels":
        counts = Counter(part for asked in training for part in asked.parts)
        return ConstantAnswer(kind=kind, text=max(sorted(counts), key=lambda name: counts[name]))
    if kind == "text":
        texts = [asked.parts[0] for asked in training]
        if len(texts) > _COMPARED_TEXTS:
            texts = np.random.default_rng(seed).choice(texts, _COMPARED_TEXTS, replace=False).tolist()
        counts = Counter(texts)  # many cells share an abstract: each is compared once
        names = sorted(counts)
        total_f1 = [sum(n * token_f1(name, other) for other, n in counts.items()) for name in names]
        return ConstantAnswer(kind=kind, text=names[int(np.argmax(total_f1))])
    lists = [gene_ids_of(part) for asked in training for part in asked.parts]
    gene, rank = np.concatenate(lists), np.concatenate([np.arange(len(one)) for one in lists])
    reciprocal_g = np.bincount(gene, weights=1 / (rank + 1), minlength=len(vocabulary))
    chosen = {}
    for length in sorted(set(lengths)):
        times_g = np.bincount(gene[rank < length], minlength=len(vocabulary))
        best = np.lexsort((-reciprocal_g, -times_g))[:length]
        best = best[np.argsort(-reciprocal_g[best], kind="stable")]
        chosen[length] = tuple(vocabulary.symbols[i] for i in best)
    return ConstantAnswer(kind=kind, ranked_genes=chosen)
