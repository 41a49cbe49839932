"""Vectors of words: from the table of input vectors, or the mean of a word's hidden states wherever it occurs.

Axes: w words, s words of a text, d embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from cytoglot.errors import InputError
from cytoglot.lm.embedding.embed import EmbedTally, n_dimensions, pooled_states, token_ranges
from cytoglot.lm.model.tokenizer import encode_completions, encode_prompts_with_offsets

if TYPE_CHECKING:
    from cytoglot.lm.model.language_model import LanguageModel


def static_word_vectors(lm: LanguageModel, words: Sequence[str]) -> NDArray[np.float32]:
    """Return the input vector of each word as it stands after a space, float32 of shape (w, d).

    A word of several tokens has the mean of their vectors, whatever their order.

    Raises
    ------
    InputError
        A word is empty: it has no token.
    """
    rows = encode_completions(lm.tokenizer, [f" {word}" for word in words])
    empty = [word for word, row in zip(words, rows, strict=True) if len(row) == 0 or not word]
    if empty:
        raise InputError(f"expected words of at least one token, found {len(empty)} without, such as {empty[0]!r}")
    table_vd = lm.model.get_input_embeddings().weight
    vector_wd = np.empty((len(words), int(table_vd.shape[1])), dtype=np.float32)
    with torch.inference_mode():
        for i, row in enumerate(rows):
            vector_wd[i] = table_vd[torch.from_numpy(row).to(table_vd.device)].float().mean(dim=0).cpu().numpy()
    return vector_wd


@dataclass(eq=False)
class WordVectorMeans:
    """Running means of the hidden states of w words over all texts that were added.

    An occurrence is the mean over the word's tokens there; every occurrence counts once. Sums are kept in float64, so
    that the order and the batches of the texts do not matter.
    """

    lm: LanguageModel
    n_words: int
    layer: int = -1
    """which hidden state, as in `cytoglot.lm.embedding.embed.embed_texts`"""
    batch_tokens: int | None = None
    counts_w: NDArray[np.int64] = field(init=False)
    """occurrences of each word"""
    tally: EmbedTally = field(default_factory=EmbedTally)
    """what was computed so far"""

    def __post_init__(self) -> None:
        self.counts_w = np.zeros(self.n_words, dtype=np.int64)
        self._sum_wd = np.zeros((self.n_words, n_dimensions(self.lm)), dtype=np.float64)

    def add(
        self, texts: Sequence[str], words: Sequence[NDArray[np.integer]], spans: Sequence[NDArray[np.int64]]
    ) -> None:
        """Add every occurrence in some texts.

        Parameters
        ----------
        words
            For each text the numbers of its words, shape (s,).
        spans
            For each text the characters (first, after the last) of those words, shape (s, 2).

        Raises
        ------
        InputError
            A text is longer than the context, or a word has no token of its own.
        """
        rows, offsets = encode_prompts_with_offsets(self.lm.tokenizer, texts)
        ranges = [token_ranges(o, s) for o, s in zip(offsets, spans, strict=True)]
        for i, range_s2 in enumerate(ranges):
            without = np.flatnonzero(range_s2[:, 0] == range_s2[:, 1])
            if len(without):
                first, after = spans[i][without[0]]
                raise InputError(f"expected a token for every word, found none for {texts[i][first:after]!r}")
        options: dict[str, Any] = {"layer": self.layer, "batch_tokens": self.batch_tokens, "tally": self.tally}
        for i, vector_sd in pooled_states(self.lm, rows, ranges, **options):
            np.add.at(self._sum_wd, words[i], vector_sd.astype(np.float64))
            np.add.at(self.counts_w, words[i], 1)

    def means(self) -> NDArray[np.float32]:
        """Return the mean of each word, float32 of shape (w, d); NaN for words that did not occur."""
        mean_wd = np.full(self._sum_wd.shape, np.nan, dtype=np.float32)
        seen = self.counts_w > 0
        mean_wd[seen] = self._sum_wd[seen] / self.counts_w[seen, None]
        return mean_wd
