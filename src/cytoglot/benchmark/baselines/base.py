"""What an annotation baseline is: fitted on training cells, its choices made on validation cells, then asked.

Axes: n cells, g genes, l labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from cytoglot.data.normalize import MatrixState, log_normalize, matrix_state
from cytoglot.errors import InputError, VocabularyMismatchError
from cytoglot.metrics.classification import accuracy, macro_f1, nll
from cytoglot.registry import Registry

if TYPE_CHECKING:
    from anndata import AnnData

Probabilities = NDArray[np.float64]
Labels = NDArray[np.object_]
Choice = float | int | bool | str
Candidate = TypeVar("Candidate")


class Baseline(Protocol):
    """A method to beat. Made with a seed, then fitted, then asked."""

    labels: tuple[str, ...]
    """labels of the training cells, sorted: the columns of the probabilities"""
    chosen: Mapping[str, Choice]
    """what was chosen on the validation cells"""

    def __init__(self, *, seed: int = 0) -> None: ...

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


BASELINES: Registry[type[Baseline]] = Registry(
    "baseline",
    tuple(f"cytoglot.benchmark.baselines.{m}" for m in ("majority", "logistic_regression", "nearest_neighbors")),
)


@dataclass(frozen=True, kw_only=True)
class LabelledMatrix:
    """Log-normalized cells with the label of each."""

    matrix_ng: csr_matrix
    labels_n: Labels

    def __len__(self) -> int:
        return len(self.labels_n)

    def take(self, index: NDArray[np.integer]) -> LabelledMatrix:
        """Return the cells at these positions."""
        return LabelledMatrix(matrix_ng=self.matrix_ng[index], labels_n=self.labels_n[index])


@dataclass(frozen=True, kw_only=True)
class GeneInput:
    """How cells become the matrix of a baseline: ln(1 + counts per 10,000) of the training genes."""

    genes: pd.Index
    state: MatrixState

    @classmethod
    def of(cls, train: AnnData) -> GeneInput:
        """Take the genes and the state of the matrix (counts or log) from the training cells."""
        return cls(genes=train.var_names, state=matrix_state(train.X))

    def matrix(self, adata: AnnData) -> csr_matrix:
        """Return the cells in the order of the training genes, shape (n, g), float32.

        Raises
        ------
        VocabularyMismatchError
            The cells lack a training gene.
        """
        if adata.n_obs == 0:
            return csr_matrix(np.zeros((0, len(self.genes)), dtype=np.float32))
        matrix_ng = log_normalize(adata.X, self.state, base=math.e)
        if adata.var_names.equals(self.genes):
            return matrix_ng
        columns = adata.var_names.get_indexer(self.genes)
        if (columns < 0).any():
            raise VocabularyMismatchError(
                f"{int((columns < 0).sum())} of the {len(self.genes)} genes of the training cells are not in these "
                f"cells, such as {self.genes[columns < 0][0]!r}; read both with the same options"
            )
        return matrix_ng[:, columns]

    def labelled(self, adata: AnnData, labels: ArrayLike) -> LabelledMatrix:
        """Return cells with their labels, checked."""
        return LabelledMatrix(matrix_ng=self.matrix(adata), labels_n=checked_labels(adata, labels))


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


def label_set(labels_n: Labels) -> tuple[str, ...]:
    """Return the distinct labels, sorted; an InputError without cells."""
    if not len(labels_n):
        raise InputError("a baseline needs labelled training cells, found none")
    return tuple(sorted(set(labels_n)))


def validation_part(
    train: LabelledMatrix, validation: LabelledMatrix, seed: int
) -> tuple[LabelledMatrix, LabelledMatrix]:
    """Return (cells to fit on while choosing, cells to choose on); a fifth of `train` where `validation` is empty."""
    if len(validation):
        return train, validation
    order = np.random.default_rng(seed).permutation(len(train))
    n_chosen_on = len(train) // 5
    fitted_on, chosen_on = np.sort(order[n_chosen_on:]), np.sort(order[:n_chosen_on])
    if set(train.labels_n[fitted_on]) != set(train.labels_n):  # a label would never be seen
        return train, train.take(np.arange(0))
    return train.take(fitted_on), train.take(chosen_on)


def choose(
    candidates: Sequence[Candidate],
    predict: Callable[[Candidate], Probabilities],
    truth_n: Labels,
    labels: Sequence[str],
) -> Candidate:
    """Return the candidate whose predictions have the best mean of accuracy and macro-F1, ties by likelihood.

    Without cells to choose on it is the first candidate.
    """
    if not len(truth_n):
        return candidates[0]
    scores = []
    for candidate in candidates:
        probabilities_nl = predict(candidate)
        predicted_n = np.asarray(labels, dtype=object)[probabilities_nl.argmax(axis=1)]
        merit = (accuracy(truth_n, predicted_n) + macro_f1(truth_n, predicted_n)) / 2
        scores.append((round(merit, 9), -nll(truth_n, probabilities_nl, labels)))
    return candidates[max(range(len(candidates)), key=scores.__getitem__)]
