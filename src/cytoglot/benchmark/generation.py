"""Generated cells beside real ones, and beside the baselines that make overlap look easy.

For every type: cells of the model, as many cells drawn from the type's mean profile, and real training cells in their
place (real against real), each compared with the type's held-out cells, and looked up among training cells, real ones
among the others. Axes: n sentences, g genes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD

from cytoglot.benchmark.baselines import TypeProfile
from cytoglot.benchmark.results import OURS, ResultRow
from cytoglot.cell_model.load import CellModel
from cytoglot.hashing import content_hashes
from cytoglot.metrics.generation import (
    duplicate_share,
    knn_type_agreement,
    mean_overlap,
    pairwise_diversity,
    validity,
)
from cytoglot.metrics.uncertainty import bootstrap_function
from cytoglot.sentence.cell_sentence import CellSentences

logger = logging.getLogger(__name__)

Words = list[NDArray[np.int64]]
MIN_CELLS = 5
REAL = "real_training_cells"
"""the method that is real against real: what a perfect generator would score"""
_N_COMPONENTS = 30


@dataclass(frozen=True, kw_only=True)
class TypeSets:
    """Sentences of one type, as gene ids, equally many in each set and of equal lengths."""

    cell_type: str
    held_out: Words
    sets: dict[str, Words]
    """method → its sentences"""


@dataclass(frozen=True, kw_only=True)
class GenerationEvaluation:
    """The rows, the values of each type behind them, and a map of generated and real cells."""

    rows: list[ResultRow]
    per_type: list[dict[str, Any]]
    points: list[dict[str, Any]]


def evaluate_generation(
    model: CellModel,
    train: CellSentences,
    train_labels: NDArray[np.object_],
    test: CellSentences,
    test_labels: NDArray[np.object_],
    *,
    max_cells: int = 20,
    seed: int = 0,
) -> GenerationEvaluation:
    """Compare up to `max_cells` generated cells of every type that has at least five held-out cells.

    Lengths of generated sentences are those of the held-out cells that they are compared with, so that no method gains
    by writing more. These true lengths are known to no generator in use, so overlap is that of an oracle's length: fair
    between methods, and above what a model reaches that must choose its own. Intervals are bootstrapped over cell
    types.
    """
    rng = np.random.default_rng([seed, 6])
    profile = TypeProfile.fit(train, train_labels)
    groups = []
    for name in sorted(set(test_labels) & set(model.spec.labels)):
        if min((test_labels == name).sum(), (train_labels == name).sum()) < MIN_CELLS:
            continue
        held_out = _draw(test, np.flatnonzero((test_labels == name) & (test.lengths > 0)), max_cells, rng)
        lengths = np.array([len(words) for words in held_out])
        # A training cell of the very sentence of a held-out one says nothing of real against real.
        is_copy = np.isin(content_hashes(train.offsets, train.gene_ids, min_genes=0), _contents(held_out))
        others = np.flatnonzero((train_labels == name) & (train.lengths > 0) & ~is_copy)
        real = _draw(train, others, len(held_out), rng)
        temperature = model.spec.calibration.generation_temperature
        sets = {
            OURS: model.generate_ids(name, lengths, temperature=temperature, seed=seed),
            "type_profile_draw": profile.draw(name, lengths, rng),
            "type_profile_top": profile.top(name, lengths),
            REAL: real,
        }
        groups.append(TypeSets(cell_type=name, held_out=held_out, sets=sets))
    if not groups:
        logger.info("generation is not evaluated: no type has %d training and held-out cells", MIN_CELLS)
        return GenerationEvaluation(rows=[], per_type=[], points=[])
    space = _Space(train, train_labels, len(model.spec.vocabulary), seed=seed)
    known = set(range(len(model.spec.vocabulary)))
    per_type = [
        {
            "cell_type": group.cell_type,
            "method": method,
            "n": len(words),
            "mean_overlap": mean_overlap(words, group.held_out),
            "knn_type_agreement": space.agreement(words, group.cell_type, are_training_cells=method == REAL),
            "validity": float(np.mean([validity(w, known) for w in words])),
            "duplicate_share": float(np.mean([duplicate_share(w) for w in words])),
            "pairwise_diversity": pairwise_diversity(words),
            "diversity_ratio_to_real": pairwise_diversity(words) / max(pairwise_diversity(group.held_out), 1e-12),
        }
        for group in groups
        for method, words in group.sets.items()
    ]
    return GenerationEvaluation(rows=_rows(per_type, seed), per_type=per_type, points=space.points(groups))


def _draw(sentences: CellSentences, rows: NDArray[np.int64], n: int, rng: np.random.Generator) -> Words:
    chosen = rng.permutation(rows)[:n]
    return [sentences.ids(int(i)).astype(np.int64) for i in chosen]


class _Space:
    """Where cells are compared: presence of genes weighted by rank, reduced by an SVD fitted on training cells."""

    def __init__(self, train: CellSentences, labels: NDArray[np.object_], n_genes: int, *, seed: int) -> None:
        self._n_genes, self._labels = n_genes, labels
        words = [train.ids(i) for i in range(len(train))]
        weights_ng = self._weights(words)
        n_components = max(2, min(_N_COMPONENTS, min(weights_ng.shape) - 1))
        self._svd = TruncatedSVD(n_components=n_components, random_state=seed).fit(weights_ng)
        self._train = self._svd.transform(weights_ng)
        self._contents = _contents(words)

    def _weights(self, words: Sequence[NDArray[Any]]) -> csr_matrix:
        offsets, ids = _flat(words)
        values = np.concatenate([1 / np.log2(np.arange(len(w)) + 2.0) for w in words] or [np.empty(0)])
        return csr_matrix((values, ids, offsets), shape=(len(words), self._n_genes))

    def agreement(self, words: Words, name: str, *, are_training_cells: bool = False) -> float:
        """Return the share of sentences whose nearest training cells are mostly of the type.

        A training cell is looked up among the others: neither itself nor a cell of the same sentence is its neighbor.
        """
        return knn_type_agreement(
            self._train,
            self._labels,
            self._svd.transform(self._weights(words)),
            [name] * len(words),
            identities=(self._contents, _contents(words)) if are_training_cells else None,
        )

    def points(self, groups: list[TypeSets]) -> list[dict[str, Any]]:
        """Return held-out and generated cells in the first two components."""
        return [
            {"cell_type": group.cell_type, "method": method, "x": float(x), "y": float(y)}
            for group in groups
            for method, words in {"held_out_cells": group.held_out, OURS: group.sets[OURS]}.items()
            for x, y in self._svd.transform(self._weights(words))[:, :2]
        ]


def _flat(words: Sequence[NDArray[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where each sentence begins, and all ids behind each other."""
    ids = np.concatenate([np.asarray(w, dtype=np.int64) for w in words] or [np.empty(0, dtype=np.int64)])
    return np.cumsum([0, *map(len, words)]), ids


def _contents(words: Sequence[NDArray[Any]]) -> NDArray[np.uint64]:
    """Return a hash of each sentence, the same for equal sentences."""
    return content_hashes(*_flat(words), min_genes=0)


def _rows(per_type: list[dict[str, Any]], seed: int) -> list[ResultRow]:
    rows = []
    methods = list(dict.fromkeys(entry["method"] for entry in per_type))
    for method in methods:
        entries = [entry for entry in per_type if entry["method"] == method]
        for metric in [key for key in entries[0] if key not in {"cell_type", "method", "n"}]:
            values = np.array([entry[metric] for entry in entries], dtype=float)

            def mean(chosen: NDArray[np.int64], values: NDArray[np.float64] = values) -> float:
                return math.nan if np.isnan(values[chosen]).all() else float(np.nanmean(values[chosen]))

            interval = bootstrap_function(mean, len(values), unit="cell_type", seed=seed)
            rows.append(ResultRow.of("generation", method, metric, interval))
    return rows
