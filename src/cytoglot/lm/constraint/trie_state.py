"""How far each row of a batch has come in a trie of words, as torch kernels: for accelerators.

No step waits for the device: nothing here asks it for a value. `compiled_trie_state` does the same on a CPU.

Axes: b rows of the batch, s symbols, k nodes of the trie, w words, t tokens of a word, c children of a node.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cytoglot.lm.constraint.answer_constraint import AnswerState
from cytoglot.lm.constraint.word_trie import WordTrie


@dataclass(frozen=True, eq=False, kw_only=True)
class TrieTensors:
    """The arrays of a `WordTrie` on a device, int64 where they are places."""

    trie: WordTrie
    closing_c: Tensor
    word_k: Tensor
    first_child_k: Tensor
    n_children_k: Tensor
    symbol_k: Tensor
    n_words_below_k: Tensor
    """int32."""
    edges: Tensor
    """`parent * n_symbols + symbol` of nodes 1, 2, ...; ascending because of the numbering."""
    path_wt: Tensor
    """Nodes on the way to the end of each word, filled up with the sink."""

    @classmethod
    def on(cls, device: torch.device, trie: WordTrie) -> TrieTensors:
        """Return the arrays of a trie on `device`."""

        def put(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array.astype(np.int64)).to(device)

        arrays, inner = trie.arrays, slice(1, trie.sink)
        path_wt, node_w = np.full((len(trie.words), arrays.depth), trie.sink), arrays.end_w
        for step in range(arrays.depth):
            path_wt[:, step] = np.where(node_w > 0, node_w, trie.sink)
            node_w = np.where(node_w > 0, arrays.parent_k[node_w], 0)
        return cls(
            trie=trie,
            closing_c=put(arrays.closing_c),
            word_k=put(arrays.word_k),
            first_child_k=put(arrays.first_child_k),
            n_children_k=put(arrays.n_children_k),
            symbol_k=put(arrays.symbol_k),
            n_words_below_k=torch.from_numpy(trie.n_words_below_k).to(device),
            edges=put(arrays.parent_k[inner].astype(np.int64) * trie.n_symbols + arrays.symbol_k[inner]),
            path_wt=put(path_wt),
        )


class TrieState(AnswerState):
    """Where each row of a batch stands: the node in its word, the words it has used, how far it has closed.

    A row can be in a word and in the closing at once: with the words `TBCE` and `TBCE.1`, a full stop after `TBCE`
    may end the answer or lead on, and only the next token tells. Should a token both continue a word and begin
    another one (possible only with tokenizers that lose spaces), it continues; and rather than begin a word it closes.

    Parameters
    ----------
    arrays
        On the device that the tokens will be on.
    min_words_b, max_words_b
        Bounds of the number of words of each row, int64 on the same device.
    most_words
        The largest of `max_words_b`.
    budget_b
        Most tokens that each row may take, closing included. Where the rest becomes too small for one more word of
        any length, the row must close, provided that it has its `min_words`.
    """

    def __init__(
        self, arrays: TrieTensors, *, min_words_b: Tensor, max_words_b: Tensor, most_words: int, budget_b: Tensor
    ) -> None:
        device, n_rows = budget_b.device, len(budget_b)
        self.arrays = arrays
        self.min_words_b, self.max_words_b = min_words_b, max_words_b
        self.budget_b, self.n_steps = budget_b, 0
        zeros = torch.zeros(n_rows, dtype=torch.int64, device=device)
        self.node_b = zeros
        self.first_node_b = zeros.clone()
        self.n_closed_b = zeros.clone()
        self.last_word_b = zeros - 1
        self.n_words_b = zeros.clone()
        self.words_bw = torch.full((n_rows, most_words), -1, dtype=torch.int64, device=device)
        self.is_used_bw = torch.zeros((n_rows, len(arrays.trie.words)), dtype=torch.bool, device=device)
        self.unused_bk = arrays.n_words_below_k.repeat(n_rows, 1)
        self._rows_b = torch.arange(n_rows, device=device)
        trie = arrays.trie
        self._n_first, self._n_symbols, self._sink = trie.arrays.n_first, trie.n_symbols, trie.sink
        self._depth, self._widest, self._last = trie.arrays.depth, trie.widest, len(trie.arrays.closing_c) - 1
        # A place that lies on the device would be waited for.
        self._opens_closing, self._ends = int(trie.arrays.closing_c[0]), int(trie.arrays.closing_c[-1])

    @property
    def is_finished_b(self) -> Tensor:
        """Rows whose answer is complete, end of text included."""
        return self.n_closed_b > self._last

    def allowed(self) -> Tensor:
        """Return the symbols that each row may take next, bool (b, s); a finished row may repeat end of text.

        No allowed symbol leads into a dead end: a node is entered only while an unused word ends there or below.
        """
        arrays, rows_b = self.arrays, self._rows_b
        ends_b, may_close_b, may_go_on_b = self._choices()
        # One column more than there are symbols takes the writes of child slots that a node does not have.
        allowed_bs = torch.zeros((len(rows_b), self._n_symbols + 1), dtype=torch.bool, device=rows_b.device)
        begins_b = (self.node_b == 0) | may_go_on_b
        torch.logical_and(
            self.unused_bk[:, 1 : self._n_first + 1] > 0, begins_b[:, None], out=allowed_bs[:, : self._n_first]
        )
        # The word that would end here is not yet counted as used, but must not begin again.
        own_b = (self.first_node_b - 1).clamp(min=0, max=self._n_first - 1)
        others_left_b = self.unused_bk[rows_b, self.first_node_b] > 1
        allowed_bs[rows_b, own_b] &= ~ends_b | others_left_b
        if self._depth > 1:
            slot = torch.arange(self._widest, device=allowed_bs.device)
            there_bc = (self.node_b > 0)[:, None] & (slot < arrays.n_children_k[self.node_b][:, None])
            child_bc = torch.where(there_bc, arrays.first_child_k[self.node_b][:, None] + slot, self._sink)
            symbol_bc = torch.where(there_bc, arrays.symbol_k[child_bc], self._n_symbols)
            open_bc = there_bc & (self.unused_bk.gather(1, child_bc) > 0)
            allowed_bs.scatter_(1, symbol_bc, open_bc | allowed_bs.gather(1, symbol_bc))
        closing_b = arrays.closing_c[self.n_closed_b.clamp(max=self._last)]
        allowed_bs[rows_b, closing_b] |= self.n_closed_b > 0
        allowed_bs[:, self._opens_closing] |= may_close_b
        # Only tokens that were forbidden lead to a row without a choice; let it end.
        allowed_bs[:, self._ends] |= ~allowed_bs.any(dim=1)
        return allowed_bs[:, :-1]

    def advance(self, symbol_b: Tensor) -> None:
        """Take one more symbol for each row, int64 (b,); -1 stands for a token that no answer uses."""
        arrays = self.arrays
        _ends_b, may_close_b, may_go_on_b = self._choices()
        active_b, word_b = ~self.is_finished_b, arrays.word_k[self.node_b]

        expected_b = arrays.closing_c[self.n_closed_b.clamp(max=self._last)]
        closes_on_b = (self.n_closed_b > 0) & (symbol_b == expected_b)
        opens_closing_b = ~closes_on_b & may_close_b & (symbol_b == self._opens_closing)
        n_closed_b = torch.where(closes_on_b, self.n_closed_b + 1, opens_closing_b.long())
        self.n_closed_b = torch.where(active_b, n_closed_b, self.n_closed_b)
        self.last_word_b = torch.where(opens_closing_b, word_b, self.last_word_b)

        # The node that a symbol leads to, the sink where there is none.
        edge_b = torch.where(symbol_b >= 0, self.node_b * self._n_symbols + symbol_b, -1)
        place_b = torch.searchsorted(arrays.edges, edge_b)
        found_b = arrays.edges[place_b.clamp(max=len(arrays.edges) - 1)] == edge_b
        child_b = torch.where(found_b, place_b + 1, self._sink)
        may_begin_b = active_b & may_go_on_b & ~opens_closing_b & ~closes_on_b
        is_first_b = (symbol_b >= 0) & (symbol_b < self._n_first)
        begins_b = may_begin_b & (child_b == self._sink) & is_first_b
        completes_b = active_b & self.is_finished_b
        # The word that ends at each row's node, or ended before its closing, counts as used from now on.
        uses_b, used_b = begins_b | completes_b, torch.where(completes_b, self.last_word_b, word_b)
        column_b1 = self.n_words_b.clamp(max=self.words_bw.shape[1] - 1)[:, None]
        written_b1 = torch.where(uses_b[:, None], used_b[:, None], self.words_bw.gather(1, column_b1))
        self.words_bw.scatter_(1, column_b1, written_b1)
        self.n_words_b = self.n_words_b + uses_b
        used_b = used_b.clamp(min=0)
        self.is_used_bw[self._rows_b, used_b] |= uses_b
        # Places in a row may repeat at the sink only, whose count is of no use.
        path_bt = self.arrays.path_wt[used_b]
        self.unused_bk.scatter_add_(1, path_bt, -uses_b.int()[:, None].expand_as(path_bt))

        from_root_b = begins_b | (self.node_b == 0)
        self.node_b = torch.where(begins_b, symbol_b + 1, child_b)
        self.node_b = torch.where(self.is_finished_b, self._sink, self.node_b)
        self.first_node_b = torch.where(from_root_b, self.node_b, self.first_node_b)
        self.n_steps += 1

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or drop rows, in the order given."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and name != "_rows_b":
                setattr(self, name, value[rows])
        self._rows_b = torch.arange(len(rows), device=self._rows_b.device)

    def texts(self) -> list[str | None]:
        """Return the words of each row, joined by spaces; None for a row that is not finished."""
        words = self.arrays.trie.words
        return [None if row is None else " ".join(words[w] for w in row) for row in self._word_indices()]

    def word_tokens(self) -> list[tuple[int, ...]]:
        """Return how many tokens each word of each row took, in order."""
        lengths_w = self.arrays.trie.word_lengths_w
        return [tuple(lengths_w[row or []].tolist()) for row in self._word_indices()]

    def _word_indices(self) -> list[list[int] | None]:
        counts, finished = self.n_words_b.tolist(), self.is_finished_b.tolist()
        rows = zip(self.words_bw.tolist(), counts, finished, strict=True)
        return [row[:n_words] if is_finished else None for row, n_words, is_finished in rows]

    def _choices(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return whether an unused word ends at a row's node, and whether it may be the last or be followed."""
        word_b = self.arrays.word_k[self.node_b]
        used_b = self.is_used_bw[self._rows_b, word_b.clamp(min=0)]
        ends_b = (word_b >= 0) & ~used_b
        n_words_b = self.n_words_b + 1
        enough_b = n_words_b >= self.min_words_b
        fits_b = self.budget_b - self.n_steps >= self._depth + self._last + 1
        more_b = (n_words_b < self.max_words_b) & (fits_b | ~enough_b)
        return ends_b, ends_b & enough_b, ends_b & more_b
