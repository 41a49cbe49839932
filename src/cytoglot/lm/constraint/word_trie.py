"""The words of an answer as a trie of tokens.

Everything here speaks *symbols*: the tokens that an answer can use, renumbered 0, 1, 2, ... with the tokens that can
begin a word first. A mask over symbols is a fraction of one over the tokenizer's vocabulary, and the part of it that
begins words is a plain slice.

Axes: s symbols, k nodes of the trie, w words, t tokens of a word, c tokens of the closing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytoglot.errors import InputError
from cytoglot.lm.constraint.trie_kernels import TrieArrays


@dataclass(frozen=True, eq=False, kw_only=True)
class WordTrie:
    """A token trie in CSR form; nodes are numbered level by level, the children of a node side by side.

    Node 0 is the root, nodes 1 to `n_first` are its children and belong to symbols 0 to `n_first - 1`. The last node
    is a sink without children, where rows go that are in no word.
    """

    words: tuple[str, ...]
    symbol_tokens_s: Tensor
    """Token id of each symbol, int64."""
    arrays: TrieArrays
    n_words_below_k: NDArray[np.int32]
    """Number of words that end at a node or below it."""
    word_lengths_w: NDArray[np.int64]
    """Tokens of each word."""

    @property
    def n_symbols(self) -> int:
        """Number of tokens that an answer can use."""
        return len(self.symbol_tokens_s)

    @property
    def sink(self) -> int:
        """The node of rows that are in no word."""
        return len(self.arrays.parent_k) - 1

    @cached_property
    def widest(self) -> int:
        """Most children of a node below the root."""
        return int(self.arrays.n_children_k[1:].max())


def build_trie(
    words: Sequence[str],
    word_tokens: Sequence[NDArray[np.int64]],
    *,
    closing: NDArray[np.int64],
    refused: Sequence[int] = (),
) -> WordTrie:
    """Return the trie of words given as token ids; `closing` is what follows the last word, end of text included.

    Raises
    ------
    InputError
        A word has no token, or one of the `refused` ones (end of text, unknown), or two words have the same tokens.
    """
    lengths_w = np.fromiter(map(len, word_tokens), dtype=np.int64, count=len(words))
    tokens_wt = np.full((len(words), max(1, lengths_w.max())), -1, dtype=np.int64)
    # Boolean places are taken row by row, as the tokens come.
    tokens_wt[np.arange(tokens_wt.shape[1]) < lengths_w[:, None]] = np.concatenate(word_tokens)
    is_faulty_w = (lengths_w == 0) | np.isin(tokens_wt, refused).any(axis=1)
    if is_faulty_w.any():
        raise InputError(
            f"expected every word to have tokens of its own, found {is_faulty_w.sum()} of {len(words)} that the "
            f"tokenizer drops or does not know, such as {words[int(is_faulty_w.argmax())]!r}; leave them out or use "
            "another tokenizer"
        )
    first = np.unique(tokens_wt[:, 0])
    later = np.setdiff1d(np.concatenate([tokens_wt[tokens_wt >= 0], closing]), first)
    symbol_tokens_s = np.concatenate([first, later])
    n_symbols = len(symbol_tokens_s)
    symbol_of = np.full(symbol_tokens_s.max() + 1, -1, dtype=np.int64)
    symbol_of[symbol_tokens_s] = np.arange(n_symbols)

    # The edges into nodes 1, 2, ..., level by level, and the node at which each word ends.
    end_w, n_nodes = np.zeros(len(words), dtype=np.int64), 1
    levels: list[NDArray[np.int64]] = []
    for depth in range(tokens_wt.shape[1]):
        live = lengths_w > depth
        steps = end_w[live] * n_symbols + symbol_of[tokens_wt[live, depth]]
        level, which = np.unique(steps, return_inverse=True)
        end_w[live] = n_nodes + which
        n_nodes += len(level)
        levels.append(level)
    edges = np.concatenate(levels)
    nodes, first_at, n_words = np.unique(end_w, return_index=True, return_counts=True)
    shared = np.flatnonzero(n_words > 1)
    if len(shared):
        one = int(first_at[shared[0]])
        other = int(np.flatnonzero(end_w == nodes[shared[0]])[1])
        raise InputError(
            f"the tokenizer cannot tell {words[one]!r} from {words[other]!r}: both are tokens "
            f"{word_tokens[one].tolist()}; leave one of them out or use another tokenizer"
        )
    parent_k = np.concatenate([[0], edges // n_symbols, [0]])
    word_k = np.full(n_nodes + 1, -1, dtype=np.int32)
    word_k[end_w] = np.arange(len(words))
    first_child_k = 1 + np.searchsorted(edges, np.arange(n_nodes + 1) * n_symbols)
    # Every word is counted at its end, then a step nearer to the root, until all have come there.
    n_words_below_k, node_w = np.zeros(n_nodes + 1, dtype=np.int32), end_w
    for _ in range(int(lengths_w.max()) + 1):
        np.add.at(n_words_below_k, node_w, 1)
        node_w = parent_k[node_w[node_w > 0]]
    return WordTrie(
        words=tuple(words),
        symbol_tokens_s=torch.from_numpy(symbol_tokens_s),
        arrays=TrieArrays(
            parent_k=parent_k.astype(np.int32),
            word_k=word_k,
            first_child_k=first_child_k.astype(np.int32),
            n_children_k=np.append(np.diff(first_child_k), 0).astype(np.int32),
            symbol_k=np.concatenate([[-1], edges % n_symbols, [-1]]).astype(np.int32),
            end_w=end_w.astype(np.int32),
            closing_c=symbol_of[closing].astype(np.int32),
            n_first=len(first),
            depth=int(lengths_w.max()),
        ),
        n_words_below_k=n_words_below_k,
        word_lengths_w=lengths_w,
    )
