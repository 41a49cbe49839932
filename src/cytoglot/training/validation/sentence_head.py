"""Fits the linear head on cell sentences: on training cells, its strength chosen on validation cells."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from cytoglot.cell_model.sentence_head import SentenceHead, rank_features
from cytoglot.training.cells import CellSample

logger = logging.getLogger(__name__)

_STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_ROUNDS = 200


def fit_sentence_head(train: CellSample, validation: CellSample, labels: Sequence[str]) -> SentenceHead | None:
    """Fit softmax regression on the ranks of all genes of each cell.

    Parameters
    ----------
    train
        Cells with whole sentences; those without a label are left out.
    validation
        Cells that choose the strength of the penalty, by their mean log-likelihood.
    labels
        The model's labels, in its order.

    Returns
    -------
    SentenceHead or None
        None where fewer than two labels have training cells, not all of them have, or no validation cell has one.
    """
    place = {label: k for k, label in enumerate(labels)}
    truth_n, query_truth_n = (np.array([place.get(label, -1) for label in c.labels]) for c in (train, validation))
    rows, query_rows = np.flatnonzero(truth_n >= 0), np.flatnonzero(query_truth_n >= 0)
    if len(labels) < 2 or len(np.unique(truth_n[rows])) < len(labels) or not len(query_rows):
        return None
    x_ng, query_ng = rank_features(train.sentences)[rows], rank_features(validation.sentences)[query_rows]
    # From the strongest penalty to the weakest, each from where the last one ended: several times faster.
    model = LogisticRegression(max_iter=_ROUNDS, warm_start=True)
    best_loss = np.inf
    for strength in _STRENGTHS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a start that is near enough is as good a choice
            model.set_params(C=strength).fit(x_ng, truth_n[rows])
        log_p_nk = model.predict_log_proba(query_ng)
        loss = -float(log_p_nk[np.arange(len(query_rows)), query_truth_n[query_rows]].mean())
        if loss < best_loss:
            best_loss, chosen = loss, strength
            coefficients, intercept = model.coef_.copy(), model.intercept_.copy()
    logger.info("sentence head: validation loss %.4f with C = %g", best_loss, chosen)
    if len(labels) == 2:  # one row, of the second label against the first
        coefficients, intercept = np.vstack([0 * coefficients, coefficients]), np.append(0.0, intercept)
    return SentenceHead(
        coefficients_kg=coefficients.astype(np.float32), intercept_k=np.asarray(intercept, dtype=np.float32)
    )
