"""What an annotation baseline is: fitted on training cells, its choices made on validation cells, then asked.

Axes: n cells, g genes, l labels.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import make_pipeline

from cytoglot.benchmark.embedders.base import checked_vectors, fit_embedder
from cytoglot.benchmark.embedders.expression import LogExpression
from cytoglot.errors import InputError
from cytoglot.metrics.classification import accuracy, macro_f1, nll
from cytoglot.protocols import CellEmbedder
from cytoglot.registry import Registry

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

Probabilities = NDArray[np.float64]
Labels = NDArray[np.object_]
Candidates = tuple[Sequence[BaseEstimator], BaseEstimator, Mapping[str, Sequence[Any]]]
"""transformers of the matrix, the classifier behind one of them, and its settings; the first of each where there is
nothing to choose on"""


class Classifier(Protocol):
    """A method to beat. Made with a seed, then fitted, then asked."""

    labels: tuple[str, ...]
    """labels of the training cells, sorted: the columns of the probabilities"""
    chosen: Mapping[str, Any]
    """what was chosen on the validation cells"""

    def __init__(self, *, seed: int = 0, embedder: CellEmbedder | None = None) -> None: ...

    def fit(
        self,
        train: AnnData,
        train_labels: ArrayLike,
        validation: AnnData | None = None,
        validation_labels: ArrayLike = (),
    ) -> Self:
        """Fit on the training cells alone and choose settings on the validation cells.

        Without validation cells the choice is made on a seeded fifth of the training cells, and then all are fitted.
        """
        ...

    def predict_proba(self, adata: AnnData) -> Probabilities:
        """Return the probability of each label, shape (n, l), rows summing to 1; `adata` is not changed."""
        ...


CLASSIFIERS: Registry[Callable[..., Classifier]] = Registry(
    "classifier",
    tuple(
        f"cytoglot.benchmark.classifiers.{module}"
        for module in (
            "majority",
            "logistic_regression",
            "nearest_neighbors",
            "linear_svm",
            "nearest_centroid",
            "mlp",
            "celltypist",
            "given",
            "cell_model",
        )
    ),
)


class PipelineClassifier:
    """A scikit-learn pipeline on the expression of cells or on their embedding; a baseline adds its `candidates`.

    Parameters
    ----------
    seed
        Of every choice by chance.
    embedder
        What turns cells into what the classifier sees, fitted on the training cells where it can be; None:
        ln(1 + counts per 10,000) of the training genes.
    """

    def __init__(self, *, seed: int = 0, embedder: CellEmbedder | None = None) -> None:
        self.seed, self.embedder = seed, embedder
        self.labels: tuple[str, ...] = ()
        self.chosen: Mapping[str, Any] = {}

    def candidates(self, n_cells: int, n_genes: int) -> Candidates:
        """Return what to choose among, not fitted, for a training matrix of this shape; `labels` are known by then."""
        raise NotImplementedError

    def fit(
        self,
        train: AnnData,
        train_labels: ArrayLike,
        validation: AnnData | None = None,
        validation_labels: ArrayLike = (),
    ) -> Self:
        """Fit every candidate on the training cells and keep the one that is best on the validation cells.

        The best has the highest mean of accuracy and macro-F1, of equals the highest likelihood, then the first place.

        Raises
        ------
        InputError
            There are no cells, not one label for each, or too little for the method.
        """
        truth_n = checked_labels(train, train_labels)
        if not len(truth_n):
            raise InputError("a baseline needs labelled training cells, found none")
        self.labels = tuple(sorted(set(truth_n)))
        if self.embedder is None:
            self._expression = LogExpression().fit(train)
        else:
            self.embedder = fit_embedder(self.embedder, train)
        matrix_ng = self._matrix(train)
        fitted_on = np.arange(len(truth_n))
        if validation is not None and validation.n_obs:
            query_ng, query_truth_n = self._matrix(validation), checked_labels(validation, validation_labels)
        else:
            fitted_on, chosen_on = validation_rows(truth_n, self.seed)
            query_ng, query_truth_n = matrix_ng[chosen_on], truth_n[chosen_on]
        # Not GridSearchCV: it fits each candidate from nothing, its transformer too, and the best one on the validation
        # cells as well, which must never vote.
        transforms, classifier, grid = self.candidates(len(fitted_on), matrix_ng.shape[1])
        tries = list(ParameterGrid(dict(grid)))
        if not len(query_truth_n):
            transforms, tries = transforms[:1], tries[:1]
        best_score = None
        for number, transform in enumerate(transforms):
            x_nd = transform.fit_transform(matrix_ng[fitted_on])
            query_nd = transform.transform(query_ng) if len(query_truth_n) else None
            model = clone(classifier)
            for settings in tries:
                self._fit_model(model.set_params(**settings), x_nd, truth_n[fitted_on])
                score = (0.0, 0.0)
                if query_nd is not None:
                    probabilities_nl = np.asarray(model.predict_proba(query_nd), dtype=np.float64)
                    score = merit(query_truth_n, probabilities_nl, self.labels)
                if best_score is None or score > best_score:
                    best_score, best, chosen = score, (transform, copy.deepcopy(model)), (number, settings)
        number, settings = chosen
        if len(fitted_on) < len(truth_n):
            transforms, classifier, _ = self.candidates(*matrix_ng.shape)
            best = transforms[number], clone(classifier).set_params(**settings)
            self._fit_model(best[1], best[0].fit_transform(matrix_ng), truth_n)
        self.pipeline = make_pipeline(*best)
        self.chosen = settings if len(transforms) == 1 else {**settings, "transform": str(best[0])}
        return self

    def predict_proba(self, adata: AnnData) -> Probabilities:
        """Return the probabilities of the pipeline, shape (n, l).

        Raises
        ------
        VocabularyMismatchError
            The cells lack a training gene.
        """
        if adata.n_obs == 0:
            return np.zeros((0, len(self.labels)))
        return np.asarray(self.pipeline.predict_proba(self._matrix(adata)), dtype=np.float64)

    def _fit_model(self, model: Any, x_nd: Any, truth_n: Labels) -> None:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")  # such as a solver that was stopped before its end: no error here
            model.fit(x_nd, truth_n.astype(str))
        for warning in told:
            logger.debug("%s: %s", model, str(warning.message).partition("\n")[0])

    def _matrix(self, adata: AnnData) -> Any:
        """Return what the classifier sees of cells: log expression, or the vectors of the embedder."""
        if self.embedder is None:
            return self._expression.matrix(adata)
        return checked_vectors(self.embedder.embed(adata), adata.n_obs, name=type(self.embedder).__name__)


def checked_labels(adata: AnnData, labels: ArrayLike) -> Labels:
    """Return the labels as an array of texts, one per cell.

    Raises
    ------
    InputError
        Their number is not that of the cells, or one is missing.
    """
    labels_n = np.asarray(labels, dtype=object)
    if labels_n.shape != (adata.n_obs,):
        raise InputError(f"need one label per cell, found {len(labels_n)} labels for {adata.n_obs} cells")
    missing = sum(not isinstance(label, str) or not label for label in labels_n)
    if missing:
        raise InputError(f"{missing} of {len(labels_n)} cells have no label; leave them out")
    return labels_n


def validation_rows(labels_n: Labels, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return training cells to fit on while choosing, and a fifth to choose on; none if a label would never be seen."""
    order = np.random.default_rng(seed).permutation(len(labels_n))
    n_chosen_on = len(labels_n) // 5
    fitted_on, chosen_on = np.sort(order[n_chosen_on:]), np.sort(order[:n_chosen_on])
    if set(labels_n[fitted_on]) != set(labels_n):
        return np.arange(len(labels_n)), chosen_on[:0]
    return fitted_on, chosen_on


def merit(truth_n: Labels, probabilities_nl: Probabilities, labels: Sequence[str]) -> tuple[float, float]:
    """Return the mean of accuracy and macro-F1, and the mean log-likelihood that decides between equals."""
    predicted_n = np.asarray(labels, dtype=object)[probabilities_nl.argmax(axis=1)]
    right = (accuracy(truth_n, predicted_n) + macro_f1(truth_n, predicted_n)) / 2
    return round(right, 9), -nll(truth_n, probabilities_nl, labels)
