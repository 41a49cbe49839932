"""A linear support vector machine on principal components: the strong baseline of the label-transfer benchmarks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from cytoglot.benchmark.classifiers.base import CLASSIFIERS, Candidates, PipelineClassifier
from cytoglot.errors import InputError
from cytoglot.protocols import CellEmbedder


class MarginSVC(LinearSVC):
    """A linear SVM whose softmax of margins stands for probabilities: their order is right, their size is not."""

    def predict_proba(self, x_nd: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return shape (n, l), rows summing to 1."""
        margins = np.asarray(self.decision_function(x_nd), dtype=np.float64)
        if margins.ndim == 1:
            right_n = expit(margins)
            return np.stack([1 - right_n, right_n], axis=1)
        return np.asarray(softmax(margins, axis=1))


@CLASSIFIERS.register("linear_svm")
class LinearSvm(PipelineClassifier):
    """One-against-rest linear SVM on standardized principal components, or on a standardized embedding.

    Parameters
    ----------
    seed, embedder
        See `PipelineClassifier`.
    n_components
        At most; on all genes a linear SVM costs 80 times more and gains nothing.
    strengths
        Values of C to try.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        embedder: CellEmbedder | None = None,
        n_components: int = 50,
        strengths: tuple[float, ...] = (0.01, 0.1, 1.0),
    ) -> None:
        super().__init__(seed=seed, embedder=embedder)
        self.n_components, self.strengths = n_components, strengths

    def candidates(self, n_cells: int, n_genes: int) -> Candidates:
        """Return the components and the strengths; an InputError with fewer than two labels."""
        if len(self.labels) < 2:
            raise InputError(f"a linear SVM needs at least two labels, found only {self.labels[0]!r}")
        scaled = StandardScaler()
        if self.embedder is None:
            pca = PCA(min(self.n_components, n_cells - 1, n_genes - 1), svd_solver="arpack", random_state=self.seed)
            scaled = make_pipeline(pca, scaled)
        return [scaled], MarginSVC(random_state=self.seed, dual=False), {"C": self.strengths}
