"""Free text as an answer: any tokens, up to a number.

Axes: b rows of the batch, t tokens, s symbols (here: every token of the tokenizer).
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cytoglot.answer_format import FreeText
from cytoglot.errors import InputError
from cytoglot.lm.constraint.answer_constraint import AllowedSymbols, AnswerConstraint, AnswerState, decode_tokens


class FreeTextConstraint(AnswerConstraint):
    """Any tokens, but no more than the format's `max_tokens`, end of text included."""

    def __init__(self, answer_format: FreeText, tokenizer: PreTrainedTokenizerBase) -> None:
        if answer_format.max_tokens < 1:
            raise InputError(f"max_tokens must be at least 1, found {answer_format.max_tokens}")
        ids = sorted(tokenizer.get_vocab().values())
        super().__init__(torch.tensor(ids), int(tokenizer.eos_token_id))
        self.answer_format, self.tokenizer = answer_format, tokenizer
        #: What a row may take next, bool (2, s): any symbol, or end of text if it is finished.
        self.going_on_or_ended = torch.ones((2, len(ids)), dtype=torch.bool)
        self.going_on_or_ended[1] = torch.arange(len(ids)) == self.eos_symbol

    def start(self, budget_b: Tensor, *, bounds_b2: Tensor | None = None) -> FreeTextState:
        """Return the state of a new batch."""
        return FreeTextState(self, budget_b=budget_b.clamp(max=self.answer_format.max_tokens))

    def max_tokens(self, n_words: int | None = None) -> int:
        """Return the format's `max_tokens`."""
        return self.answer_format.max_tokens


class FreeTextState(AnswerState):
    """The tokens that each row has written; a row is finished at end of text or when its budget is spent."""

    def __init__(self, constraint: FreeTextConstraint, *, budget_b: Tensor) -> None:
        self._constraint = constraint
        self._budget_b = budget_b
        self._ended_b = torch.zeros(len(budget_b), dtype=torch.bool, device=budget_b.device)
        self._symbols_bt = torch.empty((len(budget_b), 0), dtype=torch.int64, device=budget_b.device)

    @property
    def is_finished_b(self) -> Tensor:
        """Rows whose answer is complete."""
        return self._ended_b | (self._symbols_bt.shape[1] >= self._budget_b)

    def allowed(self) -> Tensor:
        """Return every symbol for rows that go on, end of text for the others, bool (b, s)."""
        allowed_bs = (~self.is_finished_b)[:, None].repeat(1, len(self._constraint.tokens_s))
        allowed_bs[:, self._constraint.eos_symbol] = True
        return allowed_bs

    def allowed_symbols(self) -> AllowedSymbols:
        """Return the same for compiled loops, of a state on the CPU."""
        return AllowedSymbols.of_mask(self._constraint.going_on_or_ended, self.is_finished_b.long())

    def advance(self, symbol_b: Tensor) -> None:
        """Take one more symbol for each row."""
        symbol_b = torch.where(self.is_finished_b, self._constraint.eos_symbol, symbol_b)
        self._symbols_bt = torch.cat([self._symbols_bt, symbol_b[:, None]], dim=1)
        self._ended_b = self._ended_b | (symbol_b == self._constraint.eos_symbol)

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or drop rows, in the order given."""
        self._budget_b, self._ended_b = self._budget_b[rows], self._ended_b[rows]
        self._symbols_bt = self._symbols_bt[rows]

    def texts(self) -> list[str | None]:
        """Return the decoded text of each row without white space around it, None where a row is not finished."""
        texts: list[str | None] = []
        rows = zip(self._symbols_bt.tolist(), self.is_finished_b.tolist(), strict=True)
        for symbols, is_finished in rows:
            tokens = self._constraint.tokens_s[torch.tensor([s for s in symbols if s >= 0], dtype=torch.int64)].tolist()
            texts.append(decode_tokens(self._constraint.tokenizer, tokens).strip() if is_finished else None)
        return texts
