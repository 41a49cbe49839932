"""The nearest type by three similarities that must agree, else no type: the rule of scmap-cluster (Kiselev 2018).

We differ in the genes: those that vary most among training cells stand for scmap's dropout-based choice.
Axes: n cells, g genes, l labels.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.preprocessing import FunctionTransformer

from cytoglot.benchmark.classifiers.base import CLASSIFIERS, Candidates, PipelineClassifier
from cytoglot.protocols import CellEmbedder

THRESHOLD = 0.7
"""below this similarity, or where fewer than two of three agree, scmap says "unassigned\""""


class CentroidClassifier(ClassifierMixin, BaseEstimator):
    """Median profile of each label; cosine, Pearson and Spearman vote.

    Parameters
    ----------
    n_top
        Features with the largest variance among training cells that are compared.
    """

    def __init__(self, n_top: int = 500) -> None:
        self.n_top = n_top

    def fit(self, x_nd: Any, y: ArrayLike) -> Self:
        """Keep the telling features, and the median of each label."""
        dense = _dense(x_nd)
        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        order = np.argsort(-dense.var(axis=0), kind="stable")[: self.n_top]
        self._features = np.sort(order)
        self._centroids = np.stack([np.median(dense[codes == k], axis=0) for k in range(len(self.classes_))])[
            :, self._features
        ]
        return self

    def similarities(self, x_nd: Any) -> NDArray[np.float64]:
        """Return cosine, Pearson and Spearman similarity to each label, shape (3, n, l); 0 for a constant cell."""
        cells, centroids = _dense(x_nd)[:, self._features], self._centroids
        forms = (
            (cells, centroids),
            tuple(part - part.mean(axis=1, keepdims=True) for part in (cells, centroids)),
            tuple((r := rankdata(part, axis=1)) - r.mean(axis=1, keepdims=True) for part in (cells, centroids)),
        )
        return np.stack([_unit(a) @ _unit(b).T for a, b in forms])

    def predict_proba(self, x_nd: Any) -> NDArray[np.float64]:
        """Return votes of the three similarities, the mean similarity deciding between equals; rows sum to 1."""
        similarity_3nl = self.similarities(x_nd)
        votes_nl = np.zeros(similarity_3nl.shape[1:])
        for found in similarity_3nl:
            votes_nl[np.arange(len(votes_nl)), found.argmax(axis=1)] += 1
        scores_nl = votes_nl + 0.5 * (1 + similarity_3nl.mean(axis=0)) / len(self.classes_)
        return np.asarray(scores_nl / scores_nl.sum(axis=1, keepdims=True), dtype=np.float64)


@CLASSIFIERS.register("nearest_centroid")
class NearestCentroid(PipelineClassifier):
    """scmap-cluster: the label on which two of cosine, Pearson and Spearman agree; see `assigned` for its rejection.

    Parameters
    ----------
    seed, embedder
        See `PipelineClassifier`.
    n_top
        Features that are compared.
    threshold
        Least similarity of an assigned cell.
    """

    def __init__(
        self, *, seed: int = 0, embedder: CellEmbedder | None = None, n_top: int = 500, threshold: float = THRESHOLD
    ) -> None:
        super().__init__(seed=seed, embedder=embedder)
        self.n_top, self.threshold = n_top, threshold

    def candidates(self, n_cells: int, n_genes: int) -> Candidates:
        """Return the one way."""
        return [FunctionTransformer()], CentroidClassifier(self.n_top), {}

    def known(self, adata: Any) -> NDArray[np.float64]:
        """Return how surely each cell is of a known label: the largest similarity where two votes agree, else -1."""
        similarity_3nl = self.pipeline[-1].similarities(self._matrix(adata))
        votes_3n = similarity_3nl.argmax(axis=2)
        agree_n = (votes_3n[0] == votes_3n[1]) | (votes_3n[0] == votes_3n[2]) | (votes_3n[1] == votes_3n[2])
        return np.where(agree_n, similarity_3nl.max(axis=(0, 2)), -1.0)

    def assigned(self, adata: Any) -> NDArray[np.bool_]:
        """Return which cells get a label by scmap's rule: two votes agree, and the similarity reaches `threshold`."""
        return self.known(adata) >= self.threshold


def _dense(x_nd: Any) -> NDArray[np.float64]:
    return np.asarray(x_nd.toarray() if hasattr(x_nd, "toarray") else x_nd, dtype=np.float64)


def _unit(x_nd: NDArray[np.float64]) -> NDArray[np.float64]:
    norm_n = np.linalg.norm(x_nd, axis=1, keepdims=True)
    return np.divide(x_nd, norm_n, out=np.zeros_like(x_nd), where=norm_n > 0)
