"""CellTypist's training, written from its documentation: one-against-rest logistic regression on scaled genes.

The package itself (1.7.1) does not run beside scikit-learn 1.8 or newer, which took away an argument that it passes.
Genes are log-normalized to 10,000, standardized and cut at 10; C = 1; probabilities are the logistic of each margin,
here divided by their sum. Its choice of genes and its majority voting over clusters are left out.
Axes: n cells, g genes, l labels, r the rank of the training matrix.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from cytoglot.benchmark.classifiers.base import CLASSIFIERS, Candidates, PipelineClassifier
from cytoglot.errors import InputError

_CUT = 10.0


class ScaledGenes(TransformerMixin, BaseEstimator):
    """Genes standardized and cut at 10, then turned into the span of the training cells, without loss.

    A penalty of squared weights never leaves that span, so the solution is the same and the matrix n × n, not n × g.
    """

    def fit(self, matrix_ng: Any, y: Any = None) -> Self:
        """Find means, deviations and the span."""
        dense = _dense(matrix_ng)
        self._mean_g, deviation_g = dense.mean(axis=0), dense.std(axis=0)
        self._expressed_g = deviation_g > 0
        self._deviation_g = np.where(self._expressed_g, deviation_g, 1)
        scaled = self._scaled(dense)
        self._center_g = scaled.mean(axis=0)  # the intercept is not penalized, so that centring changes nothing
        scaled -= self._center_g
        values_r, vectors_nr = np.linalg.eigh(scaled @ scaled.T)
        kept = values_r > values_r[-1] * 1e-7
        self._axes_gr = scaled.T @ (vectors_nr[:, kept] / np.sqrt(values_r[kept]))
        return self

    def transform(self, matrix_ng: Any) -> NDArray[np.float32]:
        """Return shape (n, r)."""
        return np.asarray((self._scaled(_dense(matrix_ng)) - self._center_g) @ self._axes_gr, dtype=np.float32)

    def _scaled(self, dense_ng: NDArray[np.float32]) -> NDArray[np.float32]:
        scaled = ((dense_ng - self._mean_g) / self._deviation_g)[:, self._expressed_g]
        return np.minimum(scaled, np.float32(_CUT), out=scaled)


class MarginRegression(OneVsRestClassifier):
    """One regression for each label; probabilities are their logistic margins divided by the sum."""

    def predict_proba(self, x_nr: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return shape (n, l), rows summing to 1."""
        margins = np.asarray(self.decision_function(x_nr), dtype=np.float64)
        found = expit(np.stack([-margins, margins], axis=1) if margins.ndim == 1 else margins)
        return np.asarray(found / found.sum(axis=1, keepdims=True))


@CLASSIFIERS.register("celltypist")
class CellTypist(PipelineClassifier):
    """CellTypist trained on the training cells; with an embedder, on its vectors.

    Parameters
    ----------
    seed, embedder
        See `PipelineClassifier`.
    """

    def candidates(self, n_cells: int, n_genes: int) -> Candidates:
        """Return the one way; an InputError with fewer than two labels."""
        if len(self.labels) < 2:
            raise InputError(f"CellTypist needs at least two labels, found only {self.labels[0]!r}")
        return [ScaledGenes()], MarginRegression(LogisticRegression(C=1.0, max_iter=200)), {}


def _dense(matrix_ng: Any) -> NDArray[np.float32]:
    return np.asarray(matrix_ng.toarray() if hasattr(matrix_ng, "toarray") else matrix_ng, dtype=np.float32)
