"""Multinomial logistic regression on log-normalized genes: the baseline that is hard to beat.

Axes: n cells, g genes, l labels.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from cytoglot.benchmark.baselines.base import (
    BASELINES,
    Choice,
    GeneInput,
    LabelledMatrix,
    Probabilities,
    choose,
    label_set,
    validation_part,
)
from cytoglot.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """One setting to try."""

    strength: float
    """scikit-learn's C: larger is weaker"""
    standardized: bool


@BASELINES.register("logistic_regression")
class LogisticRegressionBaseline:
    """L2-penalized softmax regression on ln(1 + counts per 10,000) of all genes.

    Parameters
    ----------
    strengths
        Values of C to try, each with genes as they are and with genes divided by their standard deviation among
        training cells (not centred, so the matrix stays sparse). Chosen by the mean of accuracy and macro-F1.
    max_iter
        Bound of the solver's steps; reaching it is logged and no error.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        strengths: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0),
        max_iter: int = 200,
    ) -> None:
        self.seed = seed
        self.strengths = tuple(sorted(strengths))
        self.max_iter = max_iter
        self.labels: tuple[str, ...] = ()
        self.chosen: Mapping[str, Choice] = {}

    def fit(
        self,
        train: AnnData,
        train_labels: ArrayLike,
        validation: AnnData | None = None,
        validation_labels: ArrayLike = (),
    ) -> Self:
        """Fit every setting on the training cells and keep the one that is best on the validation cells.

        Raises
        ------
        InputError
            The training cells have fewer than two labels.
        """
        self._genes = GeneInput.of(train)
        cells = self._genes.labelled(train, train_labels)
        self.labels = label_set(cells.labels_n)
        if len(self.labels) < 2:
            raise InputError(f"logistic regression needs at least two labels, found only {self.labels[0]!r}")
        validation = train[:0] if validation is None else validation
        fitted_on, chosen_on = validation_part(cells, self._genes.labelled(validation, validation_labels), self.seed)
        candidates = {
            Penalty(strength=c, standardized=standardized): fitted
            for standardized in (False, True)
            for c, fitted in zip(self.strengths, self._path(fitted_on, standardized, self.strengths), strict=True)
        }

        def predict(penalty: Penalty) -> Probabilities:
            return np.asarray(candidates[penalty].predict_proba(chosen_on.matrix_ng), dtype=np.float64)

        best = choose(list(candidates), predict, chosen_on.labels_n, self.labels)
        refit = len(fitted_on) < len(cells)
        self._fitted = self._path(cells, best.standardized, (best.strength,))[0] if refit else candidates[best]
        self.chosen = {"C": best.strength, "standardized": best.standardized}
        return self

    def predict_proba(self, adata: AnnData) -> Probabilities:
        """Return softmax probabilities, shape (n, l)."""
        if adata.n_obs == 0:
            return np.zeros((0, len(self.labels)))
        return np.asarray(self._fitted.predict_proba(self._genes.matrix(adata)), dtype=np.float64)

    def _path(
        self,
        cells: LabelledMatrix,
        standardized: bool,  # noqa: FBT001 - one of the two things a setting says
        strengths: tuple[float, ...],
    ) -> list[Pipeline]:
        """Fit from the strongest penalty to the weakest, each from where the last one ended: several times faster.

        That is why the choice is no GridSearchCV, which fits every candidate from nothing, and the chosen one on the
        validation cells as well.
        """
        scaler = StandardScaler(with_mean=False) if standardized else FunctionTransformer()
        matrix_ng = scaler.fit_transform(cells.matrix_ng)
        model = LogisticRegression(max_iter=self.max_iter, warm_start=True)
        fitted = []
        for strength in strengths:
            model.set_params(C=strength)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(matrix_ng, cells.labels_n.astype(str))
            if model.n_iter_.max() >= self.max_iter:
                logger.info("logistic regression stopped after %d steps for C=%g", self.max_iter, strength)
            fitted.append(make_pipeline(scaler, copy.deepcopy(model)))
        return fitted
