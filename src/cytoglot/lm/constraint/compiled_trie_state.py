"""How far each row of a batch has come in a trie of words, in compiled loops: for CPUs.

`trie_state` says what a state means and does the same on accelerators.

Axes: b rows of the batch, s symbols, r slots in which rows live.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytoglot.lm.constraint import trie_kernels as kernels
from cytoglot.lm.constraint.answer_constraint import AllowedSymbols, AnswerState
from cytoglot.lm.constraint.trie_kernels import Slots
from cytoglot.lm.constraint.word_trie import WordTrie


class CompiledTrieState(AnswerState):
    """Where each row of a batch stands: the node in its word, the words it has used, how far it has closed.

    Parameters
    ----------
    min_words_b, max_words_b
        Bounds of the number of words of each row.
    budget_b
        Most tokens that each row may take, closing included; see `TrieState`.
    """

    def __init__(
        self,
        trie: WordTrie,
        *,
        min_words_b: NDArray[np.int64],
        max_words_b: NDArray[np.int64],
        budget_b: NDArray[np.int64],
    ) -> None:
        self.trie = trie
        self._slots = _new_slots(trie, len(budget_b), int(max_words_b.max(initial=1)))
        at = self._slots.at
        at[:, kernels.MIN_WORDS], at[:, kernels.MAX_WORDS] = min_words_b, max_words_b
        at[:, kernels.BUDGET] = np.minimum(budget_b, np.iinfo(np.int32).max)
        self._slot_b = np.arange(len(budget_b))
        kernels.say_next(trie.arrays, self._slots)

    @property
    def is_finished_b(self) -> Tensor:
        """Rows whose answer is complete, end of text included."""
        return torch.from_numpy(self._slots.at[self._slot_b, kernels.N_CLOSED] >= len(self.trie.arrays.closing_c))

    def allowed(self) -> Tensor:
        """Return the symbols that each row may take next, bool (b, s); a finished row may repeat end of text."""
        allowed_bs = np.empty((len(self._slot_b), self.trie.n_symbols), dtype=np.bool_)
        kernels.fill_mask(self._slots, self._slot_b, allowed_bs)
        return torch.from_numpy(allowed_bs)

    def allowed_symbols(self) -> AllowedSymbols:
        """Return the same without spreading it over all symbols; good until the state changes."""
        slots = self._slots
        return AllowedSymbols(
            slot_b=self._slot_b,
            open_rs=slots.open_rs,
            shows_open_r=slots.shows_open_r,
            few_rc=slots.few_rc,
            n_few_r=slots.n_few_r,
        )

    def advance(self, symbol_b: Tensor) -> None:
        """Take one more symbol for each row, int64 (b,); -1 stands for a token that no answer uses."""
        kernels.advance_rows(self.trie.arrays, self._slots, self._slot_b, symbol_b.contiguous().numpy())

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or drop rows, in the order given; what rows have in common is not copied."""
        n_more = len(rows) - len(self._slots.at)
        if n_more > 0:
            more = _new_slots(self.trie, n_more, self._slots.words_rw.shape[1])
            self._slots = Slots(*(np.concatenate(both) for both in zip(self._slots, more, strict=True)))
        slot_b = np.empty(len(rows), dtype=np.int64)
        kernels.move_rows(self.trie.arrays, self._slots, self._slot_b, rows.contiguous().numpy(), slot_b)
        self._slot_b = slot_b

    def texts(self) -> list[str | None]:
        """Return the words of each row, joined by spaces; None for a row that is not finished."""
        words = self.trie.words
        return [None if row is None else " ".join(words[w] for w in row) for row in self._word_indices()]

    def word_tokens(self) -> list[tuple[int, ...]]:
        """Return how many tokens each word of each row took, in order."""
        return [tuple(self.trie.word_lengths_w[row or []].tolist()) for row in self._word_indices()]

    def _word_indices(self) -> list[list[int] | None]:
        slots = self._slots
        return [
            slots.words_rw[r, : slots.at[r, kernels.N_WORDS]].tolist() if is_finished else None
            for r, is_finished in zip(self._slot_b.tolist(), self.is_finished_b.tolist(), strict=True)
        ]


def _new_slots(trie: WordTrie, n_slots: int, most_words: int) -> Slots:
    at = np.zeros((n_slots, kernels.N_COLUMNS), dtype=np.int32)
    at[:, [kernels.LAST_WORD, kernels.HIDDEN]] = -1
    at[:, kernels.N_OPEN] = trie.arrays.n_first
    return Slots(
        at=at,
        unused_rk=np.tile(trie.n_words_below_k, (n_slots, 1)),
        is_used_rw=np.zeros((n_slots, len(trie.words)), dtype=np.bool_),
        words_rw=np.full((n_slots, most_words), -1, dtype=np.int32),
        open_rs=np.ones((n_slots, trie.arrays.n_first), dtype=np.bool_),
        shows_open_r=np.zeros(n_slots, dtype=np.bool_),
        # The children of a node, the next of the closing, and its first.
        few_rc=np.empty((n_slots, trie.widest + 2), dtype=np.int32),
        n_few_r=np.zeros(n_slots, dtype=np.int32),
    )
