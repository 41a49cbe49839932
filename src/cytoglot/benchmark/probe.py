"""A linear classifier on frozen embeddings: what the representation holds, whatever the model would answer.

Axes: n cells, d embedding dimensions, k labels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

PENALTIES = (0.001, 0.01, 0.1, 1.0)
"""candidates for the inverse strength C, chosen on validation cells"""


def linear_probe(
    embedding_nd: NDArray[np.floating],
    labels: NDArray[np.object_],
    *,
    train: NDArray[np.int64],
    validation: NDArray[np.int64],
    test: NDArray[np.int64],
    seed: int,
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Return the labels and p(label | embedding) of the test cells, shape (n_test, k).

    Standardized logistic regression fitted on training cells; its strength is the one with the highest validation
    accuracy (the stronger of equals; 0.1 without validation cells).
    """
    scaler = StandardScaler().fit(embedding_nd[train])
    x_nd = scaler.transform(embedding_nd)
    best, best_score = None, -1.0
    for penalty in PENALTIES if len(validation) else (0.1,):
        model = LogisticRegression(C=penalty, max_iter=1000, random_state=seed).fit(
            x_nd[train], labels[train].astype(str)
        )
        score = model.score(x_nd[validation], labels[validation].astype(str)) if len(validation) else 0.0
        if score > best_score:
            best, best_score = model, score
    assert best is not None
    return tuple(str(name) for name in best.classes_), np.asarray(best.predict_proba(x_nd[test]), dtype=np.float64)
