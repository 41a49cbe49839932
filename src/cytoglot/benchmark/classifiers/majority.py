"""Always the most frequent label: the floor of accuracy."""

from __future__ import annotations

from sklearn.dummy import DummyClassifier
from sklearn.preprocessing import FunctionTransformer

from cytoglot.benchmark.classifiers.base import CLASSIFIERS, Candidates, PipelineClassifier


@CLASSIFIERS.register("majority")
class Majority(PipelineClassifier):
    """The label frequencies of the training cells for every cell; of equally frequent labels the first is predicted."""

    def candidates(self, n_cells: int, n_genes: int) -> Candidates:
        """Return the one way to count labels."""
        return [FunctionTransformer()], DummyClassifier(strategy="prior"), {}
