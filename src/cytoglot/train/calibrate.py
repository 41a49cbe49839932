"""Temperature and threshold of a closed-set annotator, fitted on validation cells.

Axes: n cells, k labels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from cytoglot.cell_model.spec import Calibration

KEPT_SHARE = 0.95  # the threshold keeps this share of the rightly annotated validation cells


def calibrate(scores_nk: NDArray[np.float64], truth_n: NDArray[np.integer]) -> Calibration:
    """Fit the temperature by likelihood, then the threshold that 95 % of the right answers pass.

    Parameters
    ----------
    scores_nk
        Log-likelihood of each label, nats, shape (n, k).
    truth_n
        Index of the true label; -1 for a label that training did not have (left out).

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

    def loss(log_temperature: float) -> float:
        log_p = log_softmax(scores_nk / np.exp(log_temperature), axis=1)
        return -float(log_p[np.arange(len(truth_n)), truth_n].mean())

    best = minimize_scalar(loss, bounds=(np.log(0.1), np.log(10)), method="bounded")
    temperature = float(np.exp(best.x))
    probability_nk = np.exp(log_softmax(scores_nk / temperature, axis=1))
    right = probability_nk.argmax(axis=1) == truth_n
    confidence = probability_nk.max(axis=1)[right]
    threshold = float(np.quantile(confidence, 1 - KEPT_SHARE)) if len(confidence) else 0.0
    return Calibration(
        temperature=temperature, threshold=threshold, n_validation=len(truth_n), validation_loss=float(best.fun)
    )
