"""BERTScore: how well the token vectors of two texts match, each token with its nearest in the other text.

Axes: t tokens of a text, d dimensions. Where the vectors come from is the caller's choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, kw_only=True)
class TokenMatch:
    """Of one text against a reference; each between −1 and 1, and 0 if either text has no token that counts."""

    precision: float
    """weighted mean over the tokens of the text of their best cosine with a token of the reference"""
    recall: float
    """the same over the tokens of the reference"""
    f1: float
    """harmonic mean of the two; 0 where their sum is 0"""

    def rescaled(self, baseline: float) -> TokenMatch:
        """Return (x − baseline) / (1 − baseline) of each: the baseline is what unrelated texts get, and becomes 0."""
        values = {name: (getattr(self, name) - baseline) / (1 - baseline) for name in ("precision", "recall", "f1")}
        return TokenMatch(**values)


def match_tokens(
    text_td: ArrayLike,
    reference_td: ArrayLike,
    *,
    text_weights: ArrayLike | None = None,
    reference_weights: ArrayLike | None = None,
) -> TokenMatch:
    """Return the greedy matching of two texts' token vectors :cite:p:`zhang2020bertscore`.

    Parameters
    ----------
    text_td, reference_td
        One vector per token, of any length; zero vectors match nothing (cosine 0).
    text_weights, reference_weights
        Weight of each token in the means, such as its inverse document frequency; 0 for a token that may be matched
        but does not count itself. By default all count alike.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.match_tokens([[1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]])
    TokenMatch(precision=1.0, recall=0.5, f1=0.6666666666666666)
    """
    text, reference = _unit(text_td), _unit(reference_td)
    if not len(text) or not len(reference):
        return TokenMatch(precision=0.0, recall=0.0, f1=0.0)
    cosine_tt = text @ reference.T
    precision = _weighted_mean(cosine_tt.max(axis=1), text_weights)
    recall = _weighted_mean(cosine_tt.max(axis=0), reference_weights)
    total = precision + recall
    return TokenMatch(precision=precision, recall=recall, f1=2 * precision * recall / total if total else 0.0)


def _unit(vectors_td: ArrayLike) -> NDArray[np.float64]:
    vectors = np.asarray(vectors_td, dtype=np.float64)
    if not vectors.size:
        return np.empty((0, 1))
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1.0)


def _weighted_mean(best_t: NDArray[np.float64], weights: ArrayLike | None) -> float:
    weight_t = np.ones(len(best_t)) if weights is None else np.asarray(weights, dtype=np.float64)
    total = float(weight_t.sum())
    return float(weight_t @ best_t) / total if total > 0 else 0.0
