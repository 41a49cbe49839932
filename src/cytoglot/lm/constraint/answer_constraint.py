"""What every answer format gives to sampling: which tokens may follow, and what was written.

An `AnswerConstraint` belongs to a format and a tokenizer and starts an `AnswerState` for a batch, which says what each
row may take next and is told what it took. Both speak *symbols*: the tokens that an answer can use, renumbered.

Axes: b rows of the batch, t tokens, v vocabulary of the tokenizer, s symbols, r slots in which rows live.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from cytoglot.errors import InputError
from cytoglot.lm.constraint import sampling_kernels


class AllowedSymbols(NamedTuple):
    """What each row may take next, as compiled loops read it, on the CPU: a shared or lasting mask, and a short list.

    Row b may take the symbols s below `open_rs.shape[1]` where `open_rs[slot_b[b], s]`, provided that
    `shows_open_r[slot_b[b]]`, and the first `n_few_r[slot_b[b]]` of `few_rc[slot_b[b]]`, which are not among those.
    """

    slot_b: NDArray[np.int64]
    open_rs: NDArray[np.bool_]
    shows_open_r: NDArray[np.bool_]
    few_rc: NDArray[np.int32]
    n_few_r: NDArray[np.int32]

    @classmethod
    def of_mask(cls, allowed_rs: Tensor, slot_b: Tensor | None = None) -> AllowedSymbols:
        """Return the symbols that a mask allows; row b's is `allowed_rs[slot_b[b]]`, by default `allowed_rs[b]`."""
        n_slots = len(allowed_rs)
        return cls(
            slot_b=np.arange(n_slots) if slot_b is None else slot_b.numpy(),
            open_rs=allowed_rs.contiguous().numpy(),
            shows_open_r=np.ones(n_slots, dtype=np.bool_),
            few_rc=np.empty((n_slots, 0), dtype=np.int32),
            n_few_r=np.zeros(n_slots, dtype=np.int32),
        )


class AnswerState(ABC):
    """How far each row of a batch has come with its answer."""

    @property
    @abstractmethod
    def is_finished_b(self) -> Tensor:
        """Rows whose answer is complete, bool."""

    @abstractmethod
    def allowed(self) -> Tensor:
        """Return the symbols that each row may take next, bool (b, s); at least one in each row."""

    def allowed_symbols(self) -> AllowedSymbols:
        """Return the same for compiled loops, of a state on the CPU; good until the state changes."""
        return AllowedSymbols.of_mask(self.allowed())

    @abstractmethod
    def advance(self, symbol_b: Tensor) -> None:
        """Take one more symbol for each row, -1 for a token without one; finished rows ignore it."""

    @abstractmethod
    def select(self, rows: Tensor) -> None:
        """Keep, repeat or drop rows, in the order given."""

    @abstractmethod
    def texts(self) -> list[str | None]:
        """Return each row's answer without its frame, None where it is not complete."""

    def word_tokens(self) -> list[tuple[int, ...]]:
        """Return how many tokens each word of each row took; empty for formats without words."""
        return [()] * len(self.is_finished_b)


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
        self._tokens_on_cpu: NDArray[np.int64] = tokens_s.numpy()
        self._tokens_elsewhere = tokens_s
        self._runs_of: dict[int, NDArray[np.int64]] = {}

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

    def mask(self, scores: Tensor, state: AnswerState) -> Tensor:
        """Return scores (b, v) with minus infinity for what a state does not allow; `scores` is not changed."""
        if scores.device.type == "cpu" and scores.dtype == torch.float32 and not scores.requires_grad:
            check_width(scores.shape[1], self._tokens_on_cpu)
            allowed, masked = state.allowed_symbols(), torch.empty(scores.shape)
            sampling_kernels.mask_scores(
                scores.contiguous().numpy(),
                self._tokens_on_cpu,
                self._runs(allowed.open_rs.shape[1]),
                allowed,
                masked.numpy(),
            )
            return masked
        if self._tokens_elsewhere.device != scores.device:
            self._tokens_elsewhere = self.tokens_s.to(scores.device)
        is_masked = torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
        is_masked[:, self._tokens_elsewhere] = ~state.allowed()
        return scores.masked_fill(is_masked, -torch.inf)

    def symbols_of(self, token_ids: Tensor) -> Tensor:
        """Return the symbols of token ids, -1 for tokens that no answer uses; same shape and device."""
        if self._symbols_s.device != token_ids.device:
            self._symbols_s = self._symbols_s.to(token_ids.device)
            self._sorted_tokens_s = self._sorted_tokens_s.to(token_ids.device)
        place = torch.searchsorted(self._sorted_tokens_s, token_ids.contiguous()).clamp(max=len(self._symbols_s) - 1)
        return torch.where(self._sorted_tokens_s[place] == token_ids, self._symbols_s[place], -1)

    def _runs(self, n_symbols: int) -> NDArray[np.int64]:
        """Return where, among the first symbols, tokens leave off following each other; 0 and the end included."""
        if n_symbols not in self._runs_of:
            breaks = 1 + np.flatnonzero(np.diff(self._tokens_on_cpu[:n_symbols]) != 1)
            self._runs_of[n_symbols] = np.concatenate([[0], breaks, [n_symbols]]).astype(np.int64)
        return self._runs_of[n_symbols]

    def read(self, token_ids_bt: Tensor) -> list[str | None]:
        """Return the answers that generated token ids spell, None where they are not a complete answer.

        Tokens after end of text are ignored.
        """
        budget_b = torch.full((len(token_ids_bt),), self.max_tokens(), device=token_ids_bt.device)
        state = self.start(budget_b)
        for symbol_b in self.symbols_of(token_ids_bt).unbind(dim=1):
            state.advance(symbol_b)
        return state.texts()


class ConstraintProcessor(LogitsProcessor):
    """Masks logits so that only answers of the format can be generated.

    What each row has written is read from `input_ids`, step by step. Where rows go on from other rows (beam search),
    so do their states; only where a row goes on from none of them is the text read anew from the prompt's end.
    """

    def __init__(self, constraint: AnswerConstraint, prompt_length: int, max_new_tokens: int) -> None:
        self.constraint, self.prompt_length, self.max_new_tokens = constraint, prompt_length, max_new_tokens
        self._state: AnswerState | None = None
        self._seen_bt = torch.empty((0, 0), dtype=torch.int64)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (b, v) with minus infinity for what is not allowed; `scores` is not changed."""
        written_bt = input_ids[:, self.prompt_length :]
        n_seen, state = self._seen_bt.shape[1], self._state
        rows = None if state is None else self._origins(written_bt)
        if state is None or rows is None:
            n_seen = 0
            budget_b = torch.full((len(written_bt),), self.max_new_tokens, dtype=torch.int64, device=written_bt.device)
            state = self.constraint.start(budget_b)
        elif len(rows):
            state.select(rows)
        for symbol_b in self.constraint.symbols_of(written_bt[:, n_seen:]).unbind(dim=1):
            state.advance(symbol_b)
        self._state, self._seen_bt = state, written_bt.clone()
        return self.constraint.mask(scores, state)

    def _origins(self, written_bt: Tensor) -> Tensor | None:
        """Return the earlier row that each row continues, nothing if it is its own, None if some row continues none."""
        seen_bt = self._seen_bt
        n_seen = seen_bt.shape[1]
        # Fewer tokens are another generation's.
        if written_bt.shape[1] < n_seen or written_bt.device != seen_bt.device:
            return None
        begun_bt = written_bt[:, :n_seen]
        if torch.equal(begun_bt, seen_bt):
            return torch.empty(0, dtype=torch.int64, device=seen_bt.device)
        if n_seen == 0:  # a batch of another size
            return None
        rows = (_fingerprints(begun_bt)[:, None] == _fingerprints(seen_bt)).byte().argmax(dim=1)
        return rows if torch.equal(begun_bt, seen_bt[rows]) else None


def _fingerprints(token_ids_bt: Tensor) -> Tensor:
    """Return a number for each row, int64, that tells rows apart; by chance, rarely, it does not."""
    odd = torch.arange(1, 2 * token_ids_bt.shape[1], 2, device=token_ids_bt.device)
    # Odd multipliers whose upper bits depend on the place, too; overflow is as good as any number.
    return ((token_ids_bt + 1) * (odd * odd * -7046029254386353131 | 1)).sum(dim=1)


def check_width(n_logits: int, tokens_s: NDArray[np.int64]) -> None:
    """Refuse logits that lack a token: compiled loops do not look where they read."""
    if tokens_s.max(initial=-1) >= n_logits:
        raise InputError(
            f"expected logits of all {int(tokens_s.max()) + 1:,} tokens, found {n_logits:,}; the tokenizer has more "
            "tokens than the model, call model.resize_token_embeddings(len(tokenizer))"
        )


def decode_tokens(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Return the text of tokens without special ones; white space stays as the tokens spell it."""
    text: str = tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
