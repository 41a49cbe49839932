"""Methods that give cells labels, each one file: fitted on training cells, their choices made on validation cells.

Most are a scikit-learn pipeline (`base.PipelineClassifier`) on expression or on the vectors of an embedder.
"""

from cytoglot.benchmark.classifiers.base import CLASSIFIERS, Classifier

__all__ = ["CLASSIFIERS", "Classifier"]
