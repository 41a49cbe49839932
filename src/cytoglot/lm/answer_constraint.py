"""What every answer format gives to sampling: which tokens may follow, and what was written.

An `AnswerConstraint` belongs to a format and a tokenizer and starts an `AnswerState` for a batch, which says what each
row may take next and is told what it took. Both speak *symbols*: the tokens that an answer can use, renumbered.

Axes: b rows of the batch, t tokens, v vocabulary of the tokenizer, s symbols.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase


class AnswerState(Protocol):
    """How far each row of a batch has come with its answer."""

    @property
    def is_finished_b(self) -> Tensor:
        """Rows whose answer is complete, bool."""

    def allowed(self) -> Tensor:
        """Return the symbols that each row may take next, bool (b, s); at least one in each row."""

    def advance(self, symbol_b: Tensor) -> None:
        """Take one more symbol for each row, -1 for a token without one; finished rows ignore it."""

    def select(self, rows: Tensor) -> None:
        """Keep only some rows, in the order given."""

    def texts(self) -> list[str | None]:
        """Return each row's answer without its frame, None where it is not complete."""

    def word_tokens(self) -> list[tuple[int, ...]]:
        """Return how many tokens each word of each row took; empty for formats without words."""


class AnswerConstraint(ABC):
    """One answer format for one tokenizer; holds no state of any batch, so it can be kept and shared.

    Parameters
    ----------
    tokens_s
        Token ids that an answer can use, distinct; their places are their symbols.
    eos_id
        The end-of-text token, one of `tokens_s`.
    """

    def __init__(self, tokens_s: Tensor, eos_id: int) -> None:
        self.tokens_s, self.eos_id = tokens_s, eos_id
        self.eos_symbol = int((tokens_s == eos_id).nonzero()[0, 0])
        self._sorted_tokens_s, self._symbols_s = torch.sort(tokens_s)

    @abstractmethod
    def start(self, budget_b: Tensor, *, bounds_b2: Tensor | None = None) -> AnswerState:
        """Return the state of a new batch.

        Parameters
        ----------
        budget_b
            Most tokens that each row may take, int64 on the device of the logits.
        bounds_b2
            Fewest and most words of each row, if other than those of the format; only words have such bounds.
        """

    @abstractmethod
    def max_tokens(self, n_words: int | None = None) -> int:
        """Return a budget of tokens, end of text included, that forbids no answer.

        `n_words` counts for `DistinctWords` only; None is its `max_words`.
        """

    def enough_tokens(self, n_words: int | None = None) -> int:
        """Return the least budget in which every answer ends well.

        `n_words` counts for `DistinctWords` only, the fewest words that an answer must have; None is its `min_words`.
        """
        return self.max_tokens(n_words)

    def processor(self, *, prompt_length: int, max_new_tokens: int | None = None) -> ConstraintProcessor:
        """Return a logits processor for `model.generate(..., logits_processor=LogitsProcessorList([it]))`.

        `prompt_length` is the width of the (padded) prompts. Pass the same `max_new_tokens` as to `generate`, None
        for `max_tokens()`, which always suffices.
        """
        return ConstraintProcessor(self, prompt_length, self.max_tokens() if max_new_tokens is None else max_new_tokens)

    def symbols_of(self, token_ids: Tensor) -> Tensor:
        """Return the symbols of token ids, -1 for tokens that no answer uses; same shape and device."""
        if self._symbols_s.device != token_ids.device:
            self._symbols_s = self._symbols_s.to(token_ids.device)
            self._sorted_tokens_s = self._sorted_tokens_s.to(token_ids.device)
        place = torch.searchsorted(self._sorted_tokens_s, token_ids.contiguous()).clamp(max=len(self._symbols_s) - 1)
        return torch.where(self._sorted_tokens_s[place] == token_ids, self._symbols_s[place], -1)

    def read(self, token_ids_bt: Tensor) -> list[str | None]:
        """Return the answers that generated token ids spell, None where they are not a complete answer.

        Tokens behind end of text are ignored.
        """
        budget_b = torch.full((len(token_ids_bt),), self.max_tokens(), device=token_ids_bt.device)
        state = self.start(budget_b)
        for symbol_b in self.symbols_of(token_ids_bt).unbind(dim=1):
            state.advance(symbol_b)
        return state.texts()


class ConstraintProcessor(LogitsProcessor):
    """Masks logits so that only answers of the format can be generated.

    What each row has written is read from `input_ids`, step by step; where the rows changed places (beam search) or a
    new generation began, it is read anew from the prompt's end.
    """

    def __init__(self, constraint: AnswerConstraint, prompt_length: int, max_new_tokens: int) -> None:
        self.constraint, self.prompt_length, self.max_new_tokens = constraint, prompt_length, max_new_tokens
        self._state: AnswerState | None = None
        self._seen_bt = torch.empty((0, 0), dtype=torch.int64)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (b, v) with minus infinity for what is not allowed; `scores` is not changed."""
        state = self._follow(input_ids[:, self.prompt_length :])
        tokens_s = self.constraint.tokens_s.to(scores.device)
        allowed = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        allowed[:, tokens_s] = state.allowed()
        return scores.masked_fill(~allowed, -torch.inf)

    def _follow(self, written_bt: Tensor) -> AnswerState:
        n_seen = self._seen_bt.shape[1]
        state = self._state
        # Another batch size or device makes another generation; so do other tokens where we have been.
        same = (
            state is not None
            and written_bt.shape[1] >= n_seen
            and len(written_bt) == len(self._seen_bt)
            and written_bt.device == self._seen_bt.device
            and (n_seen > 0 and torch.equal(written_bt[:, :n_seen], self._seen_bt))
        )
        if state is None or not same:
            n_seen = 0
            budget_b = torch.full((len(written_bt),), self.max_new_tokens, dtype=torch.int64, device=written_bt.device)
            state = self.constraint.start(budget_b)
        for symbol_b in self.constraint.symbols_of(written_bt[:, n_seen:]).unbind(dim=1):
            state.advance(symbol_b)
        self._state, self._seen_bt = state, written_bt.clone()
        return state


def decode_tokens(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Return the text of tokens without special ones; white space stays as the tokens spell it."""
    text: str = tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
