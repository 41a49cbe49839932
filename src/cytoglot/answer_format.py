"""What a valid answer of a language model is, and a sampled one. Tasks speak it, `lm.constraint` enforces it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class OneOf:
    """Exactly one of a closed set of texts."""

    options: tuple[str, ...]
    """a list is taken too"""

    def __post_init__(self) -> None:
        given: object = self.options
        if isinstance(given, str):
            raise ValueError(f"options must be a list of texts, found the text {given!r}")
        object.__setattr__(self, "options", tuple(self.options))
        if not self.options or len(set(self.options)) != len(self.options):
            n, n_distinct = len(self.options), len(set(self.options))
            raise ValueError(f"options must be non-empty and distinct, found {n} options, {n_distinct} distinct")


@dataclass(frozen=True, eq=False)
class WordWeights:
    """What is added to the logit of each word before one is chosen; it is equal to itself alone."""

    log_weights: NDArray[np.float32]
    """(w,) natural logarithms of any scale, finite; they count relative to each other"""


@dataclass(frozen=True)
class DistinctWords:
    """Between `min_words` and `max_words` words of `words`, separated by one space, none twice."""

    words: tuple[str, ...]
    """a list is taken too"""
    min_words: int
    max_words: int
    weights: WordWeights | None = None
    """of each word, where the model was trained with some (see `cytoglot.sentence.profile`); words must then be single
    tokens"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.words))
        if not 1 <= self.min_words <= self.max_words <= len(self.words):
            found = f"{self.min_words}, {self.max_words}, {len(self.words)}"
            raise ValueError(f"need 1 <= min_words <= max_words <= number of words, found {found}")
        if len(set(self.words)) != len(self.words) or any(not w or w != w.strip() or " " in w for w in self.words):
            raise ValueError("words must be distinct, non-empty and free of spaces")
        if self.weights is not None and self.weights.log_weights.shape != (len(self.words),):
            raise ValueError(
                f"need one weight for each of the {len(self.words)} words, found {self.weights.log_weights.shape}"
            )


@dataclass(frozen=True)
class Number:
    """A decimal number between `low` and `high`."""

    low: float
    high: float


@dataclass(frozen=True)
class FreeText:
    """Any text of at most `max_tokens` tokens."""

    max_tokens: int = 256


AnswerFormat = OneOf | DistinctWords | Number | FreeText


@dataclass(frozen=True, kw_only=True)
class GeneratedAnswer:
    """A sampled answer and how likely the model found it among what the format allowed."""

    text: str
    """The answer without its frame: exactly the words, option or number chosen."""
    token_log_probs: tuple[float, ...] = ()
    """Log-probability of each token in nats, end of text included, over the allowed tokens, before temperature and
    top_p."""
    word_log_probs: tuple[float, ...] = ()
    """The same summed over the tokens of each word, by rank; empty for formats without words."""

    @property
    def log_prob(self) -> float | None:
        """Log-probability of the whole answer in nats; None where those of its tokens are not known."""
        return math.fsum(self.token_log_probs) if self.token_log_probs else None
