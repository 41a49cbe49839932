"""Multinomial logistic regression on log-normalized genes: the baseline that is hard to beat."""

from __future__ import annotations

from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from cytoglot.benchmark.classifiers.base import CLASSIFIERS, Candidates, PipelineClassifier
from cytoglot.errors import InputError
from cytoglot.protocols import CellEmbedder


@CLASSIFIERS.register("logistic_regression")
class LogisticRegressionClassifier(PipelineClassifier):
    """L2-penalized softmax regression on ln(1 + counts per 10,000) of all genes, or on an embedding.

    Parameters
    ----------
    seed, embedder
        See `PipelineClassifier`.
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
        embedder: CellEmbedder | None = None,
        strengths: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0),
        max_iter: int = 200,
    ) -> None:
        super().__init__(seed=seed, embedder=embedder)
        self.strengths, self.max_iter = tuple(sorted(strengths)), max_iter

    def candidates(self, n_cells: int, n_genes: int) -> Candidates:
        """Return genes as they are and scaled, and the strengths; an InputError with fewer than two labels."""
        if len(self.labels) < 2:
            raise InputError(f"logistic regression needs at least two labels, found only {self.labels[0]!r}")
        # From the strongest penalty to the weakest, each from where the last one ended: several times faster.
        model = LogisticRegression(max_iter=self.max_iter, warm_start=True)
        return [FunctionTransformer(), StandardScaler(with_mean=False)], model, {"C": self.strengths}
