"""The words of an answer as a trie of tokens, and how far each row of a batch has come in it.

Everything here speaks *symbols*: the tokens that an answer can use, renumbered 0, 1, 2, ... with the tokens that can
begin a word first. A mask over symbols is a fraction of one over the tokenizer's vocabulary, and the part of it that
begins words is a plain slice of the counts of unused words.

Axes: b rows of the batch, s symbols, k nodes of the trie, w words, c tokens of the closing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytoglot.errors import InputError


@dataclass(frozen=True, eq=False, kw_only=True)
class WordTrie:
    """A token trie in CSR form; nodes are numbered level by level, the children of a node side by side.

    Node 0 is the root, nodes 1 to `n_first` are its children and belong to symbols 0 to `n_first - 1`. The last node
    is a sink without children, where rows go that are in no word.
    """

    words: tuple[str, ...]
    symbol_tokens_s: Tensor
    """Token id of each symbol, int64."""
    closing_c: Tensor
    """Symbols that follow the last word: the terminator's, then end of text. int64."""
    n_first: int
    """Number of symbols that can begin a word."""
    parent_k: Tensor
    word_k: Tensor
    """Index of the word that ends at a node, else -1."""
    end_w: Tensor
    """Node at which each word ends."""
    n_words_below_k: Tensor
    """Number of words that end at a node or below it, int32."""
    first_child_k: Tensor
    n_children_k: Tensor
    edges: Tensor
    """`parent * n_symbols + symbol` of nodes 1, 2, ...; ascending because of the numbering."""
    word_lengths_w: NDArray[np.int64]
    """Tokens of each word."""

    @property
    def n_symbols(self) -> int:
        """Number of tokens that an answer can use."""
        return len(self.symbol_tokens_s)

    @property
    def depth(self) -> int:
        """Tokens of the longest word."""
        return int(self.word_lengths_w.max())

    @property
    def sink(self) -> int:
        """The node of rows that are in no word."""
        return len(self.parent_k) - 1

    @property
    def widest(self) -> int:
        """Most children of a node below the root."""
        return int(self.n_children_k[1:].max())

    def to(self, device: torch.device) -> WordTrie:
        """Return the trie with its arrays on `device`."""
        arrays: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **arrays)


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
    lengths_w = np.array([len(tokens) for tokens in word_tokens], dtype=np.int64)
    tokens_wt = np.full((len(words), max(1, lengths_w.max())), -1, dtype=np.int64)
    for row, tokens in zip(tokens_wt, word_tokens, strict=True):
        row[: len(tokens)] = tokens
    _check_tokens(words, (lengths_w == 0) | np.isin(tokens_wt, refused).any(axis=1))
    first = np.unique(tokens_wt[:, 0])
    later = np.setdiff1d(np.concatenate([tokens_wt[tokens_wt >= 0], closing]), first)
    symbol_tokens_s = np.concatenate([first, later])
    symbol_of = np.full(symbol_tokens_s.max() + 1, -1, dtype=np.int64)
    symbol_of[symbol_tokens_s] = np.arange(len(symbol_tokens_s))

    edges, end_w = _number_nodes(symbol_of[tokens_wt], lengths_w, n_symbols=len(symbol_tokens_s))
    _check_distinct(words, word_tokens, end_w)
    n_nodes = len(edges) + 1
    parent_k = np.concatenate([[0], edges // len(symbol_tokens_s), [0]])
    word_k = np.full(n_nodes + 1, -1, dtype=np.int64)
    word_k[end_w] = np.arange(len(words))
    first_child_k = 1 + np.searchsorted(edges, np.arange(n_nodes + 1) * len(symbol_tokens_s))
    n_children_k = np.append(np.diff(first_child_k), 0)
    return WordTrie(
        words=tuple(words),
        symbol_tokens_s=torch.from_numpy(symbol_tokens_s),
        closing_c=torch.from_numpy(symbol_of[closing]),
        n_first=len(first),
        parent_k=torch.from_numpy(parent_k),
        word_k=torch.from_numpy(word_k),
        end_w=torch.from_numpy(end_w),
        n_words_below_k=torch.from_numpy(_words_below(parent_k, end_w, lengths_w)),
        first_child_k=torch.from_numpy(first_child_k),
        n_children_k=torch.from_numpy(n_children_k),
        edges=torch.from_numpy(edges),
        word_lengths_w=lengths_w,
    )


def _number_nodes(
    symbols_wt: NDArray[np.int64], lengths_w: NDArray[np.int64], *, n_symbols: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the edges into nodes 1, 2, ... and the node at which each word ends."""
    node_w = np.zeros(len(lengths_w), dtype=np.int64)
    levels: list[NDArray[np.int64]] = []
    n_nodes = 1
    for depth in range(symbols_wt.shape[1]):
        live = lengths_w > depth
        edges, which = np.unique(node_w[live] * n_symbols + symbols_wt[live, depth], return_inverse=True)
        node_w[live] = n_nodes + which
        n_nodes += len(edges)
        levels.append(edges)
    return np.concatenate(levels), node_w


def _words_below(
    parent_k: NDArray[np.int64], end_w: NDArray[np.int64], lengths_w: NDArray[np.int64]
) -> NDArray[np.int32]:
    n_below_k = np.zeros(len(parent_k), dtype=np.int32)
    node_w = end_w.copy()
    for _ in range(int(lengths_w.max()) + 1):
        np.add.at(n_below_k, node_w, 1)
        node_w = parent_k[node_w[node_w > 0]]
    return n_below_k


def _check_tokens(words: Sequence[str], is_faulty_w: NDArray[np.bool_]) -> None:
    if is_faulty_w.any():
        raise InputError(
            f"expected every word to have tokens of its own, found {is_faulty_w.sum()} of {len(words)} that the "
            f"tokenizer drops or does not know, such as {words[int(is_faulty_w.argmax())]!r}; leave them out or use "
            "another tokenizer"
        )


def _check_distinct(words: Sequence[str], word_tokens: Sequence[NDArray[np.int64]], end_w: NDArray[np.int64]) -> None:
    nodes, first_at, n_words = np.unique(end_w, return_index=True, return_counts=True)
    shared = np.flatnonzero(n_words > 1)
    if len(shared):
        one = int(first_at[shared[0]])
        other = int(np.flatnonzero(end_w == nodes[shared[0]])[1])
        raise InputError(
            f"the tokenizer cannot tell {words[one]!r} from {words[other]!r}: both are tokens "
            f"{word_tokens[one].tolist()}; leave one of them out or use another tokenizer"
        )


class TrieState:
    """Where each row of a batch stands: the node in its word, the words it has used, how far it has closed.

    A row can be in a word and in the closing at once: with the words `TBCE` and `TBCE.1`, a full stop after `TBCE`
    may end the answer or lead on, and only the next token tells. Should a token both continue a word and begin
    another one (possible only with tokenizers that lose spaces), it continues.

    Parameters
    ----------
    trie
        On the device that the tokens will be on.
    min_words_b, max_words_b
        Bounds of the number of words of each row, int64 on the same device.
    budget_b
        Most tokens that each row may take, closing included. Where the rest becomes too small for one more word of
        any length, the row must close, provided that it has its `min_words`.
    """

    def __init__(self, trie: WordTrie, *, min_words_b: Tensor, max_words_b: Tensor, budget_b: Tensor) -> None:
        device, n_rows = trie.parent_k.device, len(min_words_b)
        self.trie = trie
        self.min_words_b, self.max_words_b = min_words_b, max_words_b
        self.budget_b, self.n_steps = budget_b, 0
        zeros = torch.zeros(n_rows, dtype=torch.int64, device=device)
        self.node_b = zeros
        self.first_node_b = zeros.clone()
        self.n_closed_b = zeros.clone()
        self.last_word_b = zeros - 1
        self.n_words_b = zeros.clone()
        self.words_bw = torch.full((n_rows, int(max_words_b.max())), -1, dtype=torch.int64, device=device)
        self.is_used_bw = torch.zeros((n_rows, len(trie.words)), dtype=torch.bool, device=device)
        self.unused_bk = trie.n_words_below_k.repeat(n_rows, 1)
        self._rows_b = torch.arange(n_rows, device=device)
        # Copies of what a GPU would have to be asked for at every step.
        self._depth, self._widest, self._sink = trie.depth, trie.widest, trie.sink
        self._last = len(trie.closing_c) - 1

    @property
    def is_finished_b(self) -> Tensor:
        """Rows whose answer is complete, end of text included."""
        return self.n_closed_b > self._last

    def allowed(self) -> Tensor:
        """Return the symbols that each row may take next, bool (b, s); a finished row may repeat end of text.

        No allowed symbol leads into a dead end: a node is entered only while an unused word ends there or below.
        """
        trie, rows_b = self.trie, self._rows_b
        ends_b, may_close_b, may_go_on_b = self._choices()
        # One column more than there are symbols takes the writes of child slots that a node does not have.
        allowed_bs = torch.zeros((len(rows_b), trie.n_symbols + 1), dtype=torch.bool, device=rows_b.device)
        begins_b = (self.node_b == 0) | may_go_on_b
        torch.logical_and(
            self.unused_bk[:, 1 : trie.n_first + 1] > 0, begins_b[:, None], out=allowed_bs[:, : trie.n_first]
        )
        # The word that would end here is not yet counted as used, but must not begin again.
        own_b = (self.first_node_b - 1).clamp(min=0)
        others_left_b = self.unused_bk[rows_b, self.first_node_b] > 1
        allowed_bs[rows_b, own_b] &= ~ends_b | others_left_b
        if self._depth > 1:
            self._allow_children(allowed_bs)
        closing_b = trie.closing_c[self.n_closed_b.clamp(max=self._last)]
        allowed_bs[rows_b, closing_b] |= self.n_closed_b > 0
        allowed_bs[:, trie.closing_c[0]] |= may_close_b
        # Only tokens that were forbidden lead to a row without a choice; let it end.
        allowed_bs[:, trie.closing_c[-1]] |= ~allowed_bs.any(dim=1)
        return allowed_bs[:, :-1]

    def advance(self, symbol_b: Tensor) -> None:
        """Take one more symbol for each row, int64 (b,); -1 stands for a token that no answer uses."""
        _ends_b, may_close_b, may_go_on_b = self._choices()
        active_b, word_b = ~self.is_finished_b, self.trie.word_k[self.node_b]

        expected_b = self.trie.closing_c[self.n_closed_b.clamp(max=self._last)]
        closes_on_b = (self.n_closed_b > 0) & (symbol_b == expected_b)
        opens_closing_b = ~closes_on_b & may_close_b & (symbol_b == self.trie.closing_c[0])
        n_closed_b = torch.where(closes_on_b, self.n_closed_b + 1, opens_closing_b.long())
        self.n_closed_b = torch.where(active_b, n_closed_b, self.n_closed_b)
        self.last_word_b = torch.where(opens_closing_b, word_b, self.last_word_b)

        child_b = self._child(self.node_b, symbol_b)
        next_first_b = self._child(torch.zeros_like(symbol_b), symbol_b)
        begins_b = active_b & may_go_on_b & ~opens_closing_b & (child_b == self._sink) & (next_first_b != self._sink)
        completes_b = active_b & self.is_finished_b
        self._use(begins_b | completes_b, torch.where(completes_b, self.last_word_b, word_b))

        is_first_b = begins_b | (self.node_b == 0)
        self.node_b = torch.where(begins_b, next_first_b, child_b)
        self.node_b = torch.where(self.is_finished_b, self._sink, self.node_b)
        self.first_node_b = torch.where(is_first_b, self.node_b, self.first_node_b)
        self.n_steps += 1

    def select(self, rows: Tensor) -> None:
        """Keep only some rows, in the order given."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and name != "_rows_b":
                setattr(self, name, value[rows])
        self._rows_b = torch.arange(len(rows), device=self._rows_b.device)

    def texts(self) -> list[str | None]:
        """Return the words of each row, joined by spaces; None for a row that is not finished."""
        return [None if row is None else " ".join(self.trie.words[w] for w in row) for row in self._word_indices()]

    def word_tokens(self) -> list[tuple[int, ...]]:
        """Return how many tokens each word of each row took, in order."""
        return [tuple(self.trie.word_lengths_w[row or []].tolist()) for row in self._word_indices()]

    def _word_indices(self) -> list[list[int] | None]:
        counts, finished = self.n_words_b.tolist(), self.is_finished_b.tolist()
        rows = zip(self.words_bw.tolist(), counts, finished, strict=True)
        return [row[:n_words] if is_finished else None for row, n_words, is_finished in rows]

    def _choices(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return whether an unused word ends at a row's node, and whether it may be the last or be followed."""
        word_b = self.trie.word_k[self.node_b]
        used_b = self.is_used_bw[self._rows_b, word_b.clamp(min=0)]
        ends_b = (word_b >= 0) & ~used_b
        n_words_b = self.n_words_b + 1
        enough_b = n_words_b >= self.min_words_b
        fits_b = self.budget_b - self.n_steps >= self._depth + self._last + 1
        more_b = (n_words_b < self.max_words_b) & (fits_b | ~enough_b)
        return ends_b, ends_b & enough_b, ends_b & more_b

    def _allow_children(self, allowed_bs: Tensor) -> None:
        trie = self.trie
        slot = torch.arange(self._widest, device=allowed_bs.device)
        inside_b = (self.node_b > 0)[:, None]
        there_bc = inside_b & (slot < trie.n_children_k[self.node_b][:, None])
        child_bc = torch.where(there_bc, trie.first_child_k[self.node_b][:, None] + slot, self._sink)
        symbol_bc = trie.edges[(child_bc - 1).clamp(max=len(trie.edges) - 1)] % trie.n_symbols
        symbol_bc = torch.where(there_bc, symbol_bc, trie.n_symbols)
        open_bc = there_bc & (self.unused_bk.gather(1, child_bc) > 0)
        allowed_bs.scatter_(1, symbol_bc, open_bc | allowed_bs.gather(1, symbol_bc))

    def _child(self, node_b: Tensor, symbol_b: Tensor) -> Tensor:
        """Return the node that a symbol leads to, the sink where there is none."""
        edge_b = torch.where(symbol_b >= 0, node_b * self.trie.n_symbols + symbol_b, -1)
        place_b = torch.searchsorted(self.trie.edges, edge_b)
        found_b = self.trie.edges[place_b.clamp(max=len(self.trie.edges) - 1)] == edge_b
        return torch.where(found_b, place_b + 1, self._sink)

    def _use(self, uses_b: Tensor, word_b: Tensor) -> None:
        """Mark the word that ends at each row's node (or ended before its closing) as used."""
        rows_b, uses = self._rows_b, uses_b
        column_b = self.n_words_b.clamp(max=self.words_bw.shape[1] - 1)
        self.words_bw[rows_b, column_b] = torch.where(uses, word_b, self.words_bw[rows_b, column_b])
        self.is_used_bw[rows_b, word_b.clamp(min=0)] |= uses
        self.n_words_b = self.n_words_b + uses
        node_b = self.trie.end_w[word_b.clamp(min=0)]
        for _ in range(self._depth):
            self.unused_bk[rows_b, node_b] -= (uses & (node_b > 0)).int()
            node_b = self.trie.parent_k[node_b]
