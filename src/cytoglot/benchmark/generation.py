"""Generated cells beside real ones, and beside the baselines that make overlap look easy.

For every type: cells of the model, as many cells drawn gene by gene from two profiles of the type, and real training
cells in their place (real against real), each compared with the type's held-out cells, which are judged too wherever
that is not a comparison with themselves. Axes: n sentences, g genes, d dimensions, t types.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD

from cytoglot.benchmark.generation_summary import (
    HELD_OUT,
    PLACKETT_LUCE,
    REAL,
    GeneratedAndReal,
    Verdict,
    Words,
    difference_rows,
    markers,
    mean_rows,
    pooled_rows,
    verdict,
)
from cytoglot.benchmark.results import OURS, ResultRow
from cytoglot.benchmark.type_profile import TypeProfile
from cytoglot.cell_model.load import CellModel
from cytoglot.hashing import content_hashes
from cytoglot.metrics.cell_sets import (
    c2st_auc_by_type,
    coverage,
    energy_distance,
    nats_per_word,
    nearest_distances,
    rank_weights,
    share_below,
)
from cytoglot.metrics.generation import (
    duplicate_share,
    knn_type_agreement,
    mean_overlap,
    pairwise_diversity,
    pairwise_overlap,
    validity,
)
from cytoglot.sentence.cell_sentence import CellSentences
from cytoglot.sentence.plackett_luce import plackett_luce_draw, plackett_luce_nats
from cytoglot.sentence.profile import fit_profile

logger = logging.getLogger(__name__)

_N_COMPONENTS = 30
_MAX_TRAINING_CELLS = 2000
"""training cells of a type that co-expression and the first component are taken from"""
_MAX_OWN_DISTANCES = 500
"""training cells of a type whose nearest other one is looked up, among all of the type"""
MIN_CELLS = 5
"""training and held-out cells of a type that is evaluated, at least"""


@dataclass(frozen=True, kw_only=True)
class GenerationEvaluation:
    """The rows, the values of each type behind them, markers, a map of generated and real cells, and what it shows."""

    rows: list[ResultRow]
    per_type: list[dict[str, Any]]
    points: list[dict[str, Any]]
    markers: list[dict[str, Any]]
    verdict: Verdict | None


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

    Parameters
    ----------
    model
        The model that writes.
    train, test
        Sentences of training and test cells, at the length that the model writes, with the genes of equal expression in
        random order.
    train_labels, test_labels
        Their cell types; None is none.
    max_cells
        Cells of each type and method at most.
    seed
        Of all draws.
    """
    cells = _cells(model, train, train_labels, test, test_labels, max_cells=max_cells, seed=seed)
    if not cells.names:
        logger.info("generation is not evaluated: no type has %d training and held-out cells", MIN_CELLS)
        return GenerationEvaluation(rows=[], per_type=[], points=[], markers=[], verdict=None)
    n_genes = len(model.spec.vocabulary)
    space = _Space(train, train_labels, n_genes, seed=seed)
    nats = _nats(model, cells, test)
    per_type = _per_type(cells, space, nats, n_genes, seed=seed)
    rows = mean_rows(per_type, seed) + pooled_rows(cells, n_genes, seed) + difference_rows(per_type, seed)
    methods = list(cells.sets)
    return GenerationEvaluation(
        rows=sorted(rows, key=lambda row: methods.index(row.method) if row.method in methods else len(methods)),
        per_type=[{key: None if value != value else value for key, value in entry.items()} for entry in per_type],
        points=space.points(cells),
        markers=markers(cells, model.spec.vocabulary.symbols),
        verdict=verdict(rows),
    )


def _cells(
    model: CellModel,
    train: CellSentences,
    train_labels: NDArray[np.object_],
    test: CellSentences,
    test_labels: NDArray[np.object_],
    *,
    max_cells: int,
    seed: int,
) -> GeneratedAndReal:
    rng = np.random.default_rng([seed, 6])
    profile = TypeProfile.fit(train, train_labels)
    weights = fit_profile(train, {"cell_type": train_labels})
    methods = (HELD_OUT, REAL, OURS, PLACKETT_LUCE, "type_profile_draw", "type_profile_top")
    found = GeneratedAndReal(
        names=[], sets={method: {} for method in methods}, training={}, others={}, test_rows={}, weights={}
    )
    for name in sorted(set(test_labels) & set(model.spec.labels)):
        filled, held_out_filled = (
            (train_labels == name) & (train.lengths > 0),
            (test_labels == name) & (test.lengths > 0),
        )
        if min(held_out_filled.sum(), filled.sum()) < MIN_CELLS:
            continue
        chosen = rng.permutation(np.flatnonzero(held_out_filled))[:max_cells]
        held_out = _words(test, chosen)
        lengths = np.array([len(words) for words in held_out])
        # A training cell of the very sentence of a held-out one says nothing of real against real.
        is_copy = np.isin(content_hashes(train.offsets, train.gene_ids, min_genes=0), _contents(held_out))
        others = rng.permutation(np.flatnonzero(filled & ~is_copy))
        found.names.append(name)
        found.test_rows[name] = chosen
        found.training[name] = _words(train, np.flatnonzero(filled))
        found.others[name] = _words(train, others[len(held_out) :][:_MAX_TRAINING_CELLS])
        weights_g = found.weights[name] = np.exp(weights.weights({"cell_type": name}).log_weights)
        temperature = model.spec.calibration.generation_temperature
        found.sets[HELD_OUT][name] = held_out
        found.sets[REAL][name] = _words(train, others[: len(held_out)])
        found.sets[OURS][name] = model.generate_ids(name, lengths, temperature=temperature, seed=seed)
        found.sets[PLACKETT_LUCE][name] = [plackett_luce_draw(weights_g, int(length), rng) for length in lengths]
        found.sets["type_profile_draw"][name] = profile.draw(name, lengths, rng)
        found.sets["type_profile_top"][name] = profile.top(name, lengths)
    return found


def _words(sentences: CellSentences, rows: NDArray[np.int64]) -> Words:
    return [sentences.ids(int(i)).astype(np.int64) for i in rows]


def _nats(model: CellModel, cells: GeneratedAndReal, test: CellSentences) -> dict[str, dict[str, float]]:
    """Return method → type → nats a word of the held-out cells given their type, for the methods that have a p."""
    found: dict[str, dict[str, float]] = {PLACKETT_LUCE: {}, OURS: {}}
    for name, rows in cells.test_rows.items():
        held_out = cells.sets[HELD_OUT][name]
        words_n = [len(words) for words in held_out]
        profile_n = [plackett_luce_nats(cells.weights[name], words) for words in held_out]
        found[PLACKETT_LUCE][name] = nats_per_word(profile_n, words_n)
        found[OURS][name] = float(model.sentence_nats(test[rows], [name] * len(rows)).mean())
    return found


def _per_type(
    cells: GeneratedAndReal, space: _Space, nats: Mapping[str, Mapping[str, float]], n_genes: int, *, seed: int
) -> list[dict[str, Any]]:
    known = set(range(n_genes))
    aucs = {
        method: c2st_auc_by_type(sets, cells.sets[HELD_OUT], n_genes, seed=seed)
        for method, sets in cells.sets.items()
        if method != HELD_OUT
    }
    rng = np.random.default_rng([seed, 7])
    found = []
    for name in cells.names:
        held_out = cells.sets[HELD_OUT][name]
        held_out_nd, real_diversity = space.vectors(held_out), max(pairwise_diversity(held_out), 1e-12)
        training_ng = rank_weights(cells.training[name], n_genes)
        sample = rng.permutation(training_ng.shape[0])[:_MAX_OWN_DISTANCES]
        own_n = nearest_distances(training_ng[sample], training_ng, are_references=True)
        for method, sets in cells.sets.items():
            words, is_held_out = sets[name], method == HELD_OUT
            if not words:  # every training cell of the type is a copy of a held-out one
                continue
            words_nd = space.vectors(words)
            nearest_n = nearest_distances(rank_weights(words, n_genes), training_ng, are_references=method == REAL)
            found.append(
                {
                    "cell_type": name,
                    "method": method,
                    "n": len(words),
                    "mean_overlap": pairwise_overlap(words) if is_held_out else mean_overlap(words, held_out),
                    "knn_type_agreement": space.agreement(words, name, are_training_cells=method == REAL),
                    "validity": float(np.mean([validity(w, known) for w in words])),
                    "duplicate_share": float(np.mean([duplicate_share(w) for w in words])),
                    "pairwise_diversity": pairwise_diversity(words),
                    "diversity_ratio_to_real": pairwise_diversity(words) / real_diversity,
                    "c2st_auc": math.nan if is_held_out else aucs[method][name],
                    "energy_distance": math.nan if is_held_out else energy_distance(words_nd, held_out_nd),
                    "coverage": math.nan if is_held_out else coverage(words_nd, held_out_nd),
                    "memorized_share": share_below(nearest_n, own_n),
                    "nats_per_word": nats.get(method, {}).get(name, math.nan),
                }
            )
    return found


class _Space:
    """Where cells are compared: presence of genes weighted by rank, reduced by an SVD fitted on training cells."""

    def __init__(self, train: CellSentences, labels: NDArray[np.object_], n_genes: int, *, seed: int) -> None:
        self._n_genes, self._labels = n_genes, labels
        words = [train.ids(i) for i in range(len(train))]
        weights_ng = rank_weights(words, n_genes)
        n_components = max(2, min(_N_COMPONENTS, min(weights_ng.shape) - 1))
        self._svd = TruncatedSVD(n_components=n_components, random_state=seed).fit(weights_ng)
        self._train = self._svd.transform(weights_ng)
        self._contents = _contents(words)

    def vectors(self, words: Words) -> NDArray[np.float64]:
        """Return the components of sentences, (n, d)."""
        return np.asarray(self._svd.transform(rank_weights(words, self._n_genes)), dtype=np.float64)

    def agreement(self, words: Words, name: str, *, are_training_cells: bool = False) -> float:
        """Return the share of sentences whose nearest training cells are mostly of the type.

        A training cell is looked up among the others: neither itself nor a cell of the same sentence is its neighbor.
        """
        return knn_type_agreement(
            self._train,
            self._labels,
            self.vectors(words),
            [name] * len(words),
            identities=(self._contents, _contents(words)) if are_training_cells else None,
        )

    def points(self, cells: GeneratedAndReal) -> list[dict[str, Any]]:
        """Return held-out and generated cells in the first two components."""
        return [
            {"cell_type": name, "method": method, "x": float(x), "y": float(y)}
            for name in cells.names
            for method in (HELD_OUT, OURS)
            for x, y in self.vectors(cells.sets[method][name])[:, :2]
        ]


def _flat(words: Sequence[NDArray[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where each sentence begins, and all ids behind each other."""
    ids = np.concatenate([np.asarray(w, dtype=np.int64) for w in words] or [np.empty(0, dtype=np.int64)])
    return np.cumsum([0, *map(len, words)]), ids


def _contents(words: Sequence[NDArray[Any]]) -> NDArray[np.uint64]:
    """Return a hash of each sentence, the same for equal sentences."""
    return content_hashes(*_flat(words), min_genes=0)
