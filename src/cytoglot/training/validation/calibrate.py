"""What is fitted on validation cells, temperature and threshold of the annotator, and checked: the generated cells.

Axes: n cells, k labels.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from cytoglot.cell_model.load import CellModel
from cytoglot.cell_model.spec import Calibration, HybridCalibration
from cytoglot.lm.model.tokenizer import encode_prompts
from cytoglot.metrics.generation import pairwise_diversity
from cytoglot.sentence.cell_sentence import CellSentences
from cytoglot.training.cells import CellSample

logger = logging.getLogger(__name__)

KEPT_SHARE = 0.95  # the threshold keeps this share of the rightly annotated validation cells
_HEAD_WEIGHTS = tuple(tenth / 10 for tenth in range(1, 10))
_LEAST_TO_DIVIDE = 200  # validation cells; fewer fit everything together
_LEAST_SCORED, _SHARE_OF_TRAINING = 64, 0.25
"""validation cells that are scored in any case, and how much of what training cost the scoring of more may cost"""
_COST_OF_LEARNING = 3
"""of a token, in forward passes: a backward pass costs two"""


def calibrate(scores_nk: NDArray[np.float64], truth_n: NDArray[np.integer]) -> Calibration:
    """Fit the temperature by likelihood, then the threshold that 95 % of the right answers pass.

    Parameters
    ----------
    scores_nk
        Log-likelihood of each label, nats, shape (n, k).
    truth_n
        Index of the true label; -1 for a label that training did not have (left out). Of more than 200 cells the first
        half fits the temperature and the second the threshold, which would be flattered by the cells of the first.

    Returns
    -------
    Calibration
        Temperature between 0.1 and 10 (Guo et al. 2017). Temperature 1 and threshold 0 where fewer than 2 cells are
        left or none is right.
    """
    known = truth_n >= 0
    scores_nk, truth_n = scores_nk[known], truth_n[known]
    if len(truth_n) < 2:
        return Calibration(n_validation=len(truth_n))
    half = len(truth_n) // 2 if len(truth_n) > _LEAST_TO_DIVIDE else None
    first, second = slice(None, half), slice(half, None)

    def loss(log_temperature: float) -> float:
        log_p = log_softmax(scores_nk[first] / np.exp(log_temperature), axis=1)
        return -float(log_p[np.arange(len(log_p)), truth_n[first]].mean())

    best = minimize_scalar(loss, bounds=(np.log(0.1), np.log(10)), method="bounded")
    temperature = float(np.exp(best.x))
    probability_nk = np.exp(log_softmax(scores_nk[second] / temperature, axis=1))
    right = probability_nk.argmax(axis=1) == truth_n[second]
    confidence = probability_nk.max(axis=1)[right]
    threshold = float(np.quantile(confidence, 1 - KEPT_SHARE)) if len(confidence) else 0.0
    return Calibration(
        temperature=temperature, threshold=threshold, n_validation=len(truth_n), validation_loss=float(best.fun)
    )


def calibrate_hybrid(
    scored_nk: NDArray[np.float64], head_nk: NDArray[np.float64], truth_n: NDArray[np.integer]
) -> HybridCalibration:
    """Choose the weight of the sentence head by the loss on validation cells, then temperature and threshold.

    Parameters
    ----------
    scored_nk, head_nk
        Log-probabilities of the language model, calibrated, and of the head, shape (n, k).
    truth_n
        As in `calibrate`.
    """
    mixed = {weight: calibrate((1 - weight) * scored_nk + weight * head_nk, truth_n) for weight in _HEAD_WEIGHTS}
    weight = min(mixed, key=lambda one: mixed[one].validation_loss)
    best = mixed[weight]
    return HybridCalibration(
        head_weight=weight,
        temperature=best.temperature,
        threshold=best.threshold,
        validation_loss=best.validation_loss,
        validation_accuracy=_accuracy((1 - weight) * scored_nk + weight * head_nk, truth_n),
    )


def _accuracy(scores_nk: NDArray[np.float64], truth_n: NDArray[np.integer]) -> float | None:
    known = truth_n >= 0
    return float((scores_nk.argmax(axis=1) == truth_n)[known].mean()) if known.any() else None


def calibrate_model(
    model: CellModel, cells: CellSample | None, *, generation: bool, seed: int, n_learned: int | None = None
) -> CellModel:
    """Choose between one view and the spec's number by the validation loss, then keep temperature and threshold.

    These cells have also ended the training, so with few donors the confidence on others is a little too high: dividing
    them once more would leave too few to stop by.

    Parameters
    ----------
    cells
        Validation cells; without any, or without labels, the model comes back as it is.
    generation
        Compare generated cells with these, if the model writes any.
    n_learned
        Tokens that the model was trained on. Where scoring all cells would cost more than a quarter of that, fewer are
        scored, at random, but 64 at least: a large base takes seconds for a cell. None scores all.
    """
    if cells is None or not model.spec.labels:
        return model
    known = np.flatnonzero([label is not None for label in cells.labels])
    if len(known) == 0:
        return model
    known = np.random.default_rng([seed, 10]).permutation(known)  # halves are of all donors
    scored = known if n_learned is None else known[: _affordable(model, cells.sentences[known], n_learned)]
    if len(scored) < len(known):
        logger.info(
            "%d of %d validation cells are scored: more would cost over %.0f %% of what the training did",
            len(scored),
            len(known),
            100 * _SHARE_OF_TRAINING,
        )
    place = {label: i for i, label in enumerate(model.spec.labels)}
    truth = np.array([place.get(label, -1) for label in cells.labels[scored]], dtype=np.int64)
    sentences = cells.sentences[scored]
    fitted, scores_of = {}, {}
    for views in sorted({1, model.spec.views}):
        scores_of[views] = model.label_scores(sentences, views=views)
        fitted[views] = calibrate(scores_of[views], truth)
        logger.info("%d views: validation loss %.4f at its best temperature", views, fitted[views].validation_loss)
    best = min(fitted, key=lambda views: fitted[views].validation_loss)
    hybrid = None
    if model.head is not None:
        scored_nk = log_softmax(scores_of[best] / fitted[best].temperature, axis=1)
        hybrid = calibrate_hybrid(scored_nk, model.head.log_probabilities(sentences), truth)
        logger.info(
            "hybrid with a weight of %.1f on the sentence head: validation loss %.4f",
            hybrid.head_weight,
            hybrid.validation_loss,
        )
    before, diversity = model.spec.calibration, None
    if generation and "cell_generation" in model.spec.tasks:
        written = model.truncate(cells.with_random_ties(seed)[known])
        diversity = generation_diversity(model, written, cells.labels[known], seed=seed)
    if diversity is not None and not _USUAL_DIVERSITY[0] <= diversity <= _USUAL_DIVERSITY[1]:
        logger.warning(
            "generated cells are %.2f times as diverse as real cells of their type: the model has not learned to write "
            "cells; train it longer, or give cell_generation a larger share of the examples",
            diversity,
        )
    calibration = replace(
        fitted[best],
        generation_temperature=before.generation_temperature,
        generation_diversity=diversity,
        hybrid=hybrid,
        n_not_scored=len(known) - len(scored),
    )
    if "cell_type_annotation" in model.spec.tasks:
        majority_nk = np.tile(model.spec.label_counts, (len(truth), 1))
        calibration = replace(
            calibration,
            validation_accuracy=_accuracy(scores_of[best], truth),
            majority_accuracy=_accuracy(majority_nk, truth),
        )
        if calibration.warning is not None:
            logger.warning("%s", calibration.warning)
    return replace(model, spec=replace(model.spec, views=best, calibration=calibration))


def _affordable(model: CellModel, sentences: CellSentences, n_learned: int) -> int:
    """Return how many cells can be scored; by tokens and not by the clock, so that a repeated run finds the same."""
    prompts = model.cell_prompts(sentences[:_LEAST_SCORED])
    n_tokens = sum(map(len, encode_prompts(model.lm.tokenizer, [prompt.text for prompt in prompts]))) / len(prompts)
    n_views = sum({1, model.spec.views})
    return max(_LEAST_SCORED, int(_SHARE_OF_TRAINING * _COST_OF_LEARNING * n_learned / (n_tokens * n_views)))


_MAX_TYPES, _MAX_CELLS, _MIN_CELLS = 4, 10, 4
_USUAL_DIVERSITY = 0.8, 1.25


def generation_diversity(
    model: CellModel, sentences: CellSentences, labels: NDArray[np.object_], *, seed: int
) -> float | None:
    """Return how diverse generated cells are beside real ones of their types: 1 is the same.

    Diversity is `pairwise_diversity`, a mean over the four most frequent types with at least four of these cells, of at
    most ten cells each, compared at equal numbers and lengths and at the model's own temperature.

    Returns
    -------
    float or None
        None where no type has enough cells, or real cells do not differ.
    """
    rng = np.random.default_rng([seed, 9])
    real: dict[str, list[NDArray[np.int64]]] = {}
    for name in model.spec.labels:  # most frequent first
        rows = np.flatnonzero((labels == name) & (sentences.lengths > 0))
        if len(rows) >= _MIN_CELLS and len(real) < _MAX_TYPES:
            real[name] = [sentences.ids(int(i)).astype(np.int64) for i in rng.permutation(rows)[:_MAX_CELLS]]
    expected = float(np.mean([pairwise_diversity(words) for words in real.values()])) if real else 0.0
    if expected == 0:
        return None
    temperature = model.spec.calibration.generation_temperature
    written = (
        model.generate_ids(name, np.array([len(words) for words in some]), temperature=temperature, seed=seed)
        for name, some in real.items()
    )
    return float(np.mean([pairwise_diversity(cells) for cells in written])) / expected
