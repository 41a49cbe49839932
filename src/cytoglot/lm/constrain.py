"""Answer formats as masks over the next token, for `transformers.generate` and for our own sampling.

`constrain` turns an `AnswerFormat` into an `AnswerConstraint`; that starts an `AnswerState` for a batch, which says
what each row may take next and is told what it took. An answer is framed as in training: a space, the answer, the
terminator, end of text. Words and options are admitted in the tokenizer's own spelling only, numbers in any.

Axes: b rows of the batch, t tokens, v vocabulary of the tokenizer, s symbols (tokens that an answer can use).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from cytoglot.answer_format import AnswerFormat, DistinctWords, FreeText, Number, OneOf
from cytoglot.errors import InputError
from cytoglot.lm.number_grammar import NumberGrammar
from cytoglot.lm.tokenizer import encode_completions
from cytoglot.lm.word_trie import TrieState, WordTrie, build_trie

_TRIES: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[object, ...], WordTrie]] = WeakKeyDictionary()
_TRIES_KEPT = 8


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


def constrain(
    answer_format: AnswerFormat, tokenizer: PreTrainedTokenizerBase, *, terminator: str = "."
) -> AnswerConstraint:
    """Return the constraint that an answer format puts on a tokenizer's tokens.

    The trie of words is built once for each tokenizer and set of words and then shared.

    Parameters
    ----------
    answer_format
        `DistinctWords` and `OneOf` admit the spelling that the tokenizer itself gives a word or option behind a
        space; so an answer is what training has shown. `Number` admits any spelling in tokens. `FreeText` only has
        a length.
    terminator
        Text between the answer and end of text, as in the training texts; may be empty. `FreeText` has none.

    Raises
    ------
    InputError
        The tokenizer has no end-of-text token, drops or confuses words, or lacks digits; or a number's range is empty.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end-of-text token, which ends an answer; set tokenizer.eos_token")
    if isinstance(answer_format, DistinctWords):
        trie = _trie(tokenizer, answer_format.words, terminator, separate=True)
        bounds = (answer_format.min_words, answer_format.max_words)
        return WordConstraint(trie, bounds=bounds, eos_id=int(tokenizer.eos_token_id))
    if isinstance(answer_format, OneOf):
        trie = _trie(tokenizer, answer_format.options, terminator, separate=False)
        return WordConstraint(trie, bounds=(1, 1), eos_id=int(tokenizer.eos_token_id))
    if isinstance(answer_format, Number):
        grammar = NumberGrammar(answer_format.low, answer_format.high, terminator=terminator)
        return NumberConstraint(grammar, tokenizer)
    return FreeTextConstraint(answer_format, tokenizer)


class WordConstraint(AnswerConstraint):
    """Distinct words, or one option: an option is the one word of an answer with its terminator inside."""

    def __init__(self, trie: WordTrie, *, bounds: tuple[int, int], eos_id: int) -> None:
        super().__init__(trie.symbol_tokens_s, eos_id)
        self.bounds = bounds
        self._trie = trie
        # Tokens of the n longest words, for any n.
        self._longest_n = np.cumsum(np.sort(trie.word_lengths_w)[::-1])

    def start(self, budget_b: Tensor, *, bounds_b2: Tensor | None = None) -> TrieState:
        """Return the state of a new batch."""
        if self._trie.parent_k.device != budget_b.device:
            self._trie = self._trie.to(budget_b.device)
        if bounds_b2 is None:
            bounds_b2 = torch.tensor(self.bounds, device=budget_b.device).expand(len(budget_b), 2)
        return TrieState(self._trie, min_words_b=bounds_b2[:, 0], max_words_b=bounds_b2[:, 1], budget_b=budget_b)

    def max_tokens(self, n_words: int | None = None) -> int:
        """Return a budget of tokens that forbids no answer: `n_words` times the longest word, and the closing."""
        return (self.bounds[1] if n_words is None else n_words) * self._trie.depth + len(self._trie.closing_c)

    def enough_tokens(self, n_words: int | None = None) -> int:
        """Return the tokens of the `n_words` longest words and of what closes an answer."""
        n_words = self.bounds[0] if n_words is None else n_words
        return int(self._longest_n[n_words - 1]) + len(self._trie.closing_c)


class NumberConstraint(AnswerConstraint):
    """A number in a range; its states remember what may follow each text, since rows write the same few texts."""

    def __init__(self, grammar: NumberGrammar, tokenizer: PreTrainedTokenizerBase) -> None:
        pieces = _pieces(tokenizer, set(" -.0123456789" + grammar.terminator))
        missing = set("-.0123456789" + grammar.terminator) - set(pieces.values())
        if missing:
            raise InputError(f"the tokenizer cannot write any number: it has no token for {sorted(missing)}")
        eos_id = int(tokenizer.eos_token_id)
        super().__init__(torch.tensor([*pieces, eos_id]), eos_id)
        self.grammar, self.pieces = grammar, tuple(pieces.values())
        self._allowed: dict[str, Tensor] = {}

    def start(self, budget_b: Tensor, *, bounds_b2: Tensor | None = None) -> NumberState:
        """Return the state of a new batch."""
        return NumberState(self, n_rows=len(budget_b), device=budget_b.device)

    def max_tokens(self, n_words: int | None = None) -> int:
        """Return the length of the longest number and its frame: a token has at least one character."""
        return self.grammar.longest + 1

    def allowed_after(self, text: str) -> Tensor:
        """Return the symbols that may follow a text, bool (s,), on the CPU."""
        if text not in self._allowed:
            follows = [self.grammar.begins(text + piece) for piece in self.pieces]
            self._allowed[text] = torch.tensor([*follows, self.grammar.completes(text)])
        return self._allowed[text]


class NumberState:
    """The text that each row has written of its number."""

    def __init__(self, constraint: NumberConstraint, *, n_rows: int, device: torch.device) -> None:
        self._constraint, self._device = constraint, device
        self._written = [""] * n_rows
        self._is_finished = [False] * n_rows

    @property
    def is_finished_b(self) -> Tensor:
        """Rows whose answer is complete."""
        return torch.tensor(self._is_finished, dtype=torch.bool, device=self._device)

    def allowed(self) -> Tensor:
        """Return the symbols that each row may take next, bool (b, s)."""
        allowed_bs = torch.stack([self._constraint.allowed_after(text) for text in self._written])
        allowed_bs[:, self._constraint.eos_symbol] |= ~allowed_bs.any(dim=1)
        return allowed_bs.to(self._device)

    def advance(self, symbol_b: Tensor) -> None:
        """Take one more symbol for each row."""
        for row, symbol in enumerate(symbol_b.tolist()):
            if self._is_finished[row]:
                continue
            if symbol == self._constraint.eos_symbol:
                self._is_finished[row] = self._constraint.grammar.completes(self._written[row])
            else:
                # A token that no number uses makes the text one that nothing completes.
                self._written[row] += self._constraint.pieces[symbol] if symbol >= 0 else "\0"

    def select(self, rows: Tensor) -> None:
        """Keep only some rows, in the order given."""
        self._written = [self._written[row] for row in rows.tolist()]
        self._is_finished = [self._is_finished[row] for row in rows.tolist()]

    def texts(self) -> list[str | None]:
        """Return each row's number as written, None where it is not complete."""
        pairs = zip(self._written, self._is_finished, strict=True)
        return [self._constraint.grammar.number_in(text) if is_finished else None for text, is_finished in pairs]

    def word_tokens(self) -> list[tuple[int, ...]]:
        """Return nothing for each row: a number has no words."""
        return [()] * len(self._written)


class FreeTextConstraint(AnswerConstraint):
    """Any tokens, but no more than the format's `max_tokens`, end of text included."""

    def __init__(self, answer_format: FreeText, tokenizer: PreTrainedTokenizerBase) -> None:
        if answer_format.max_tokens < 1:
            raise InputError(f"max_tokens must be at least 1, found {answer_format.max_tokens}")
        ids = sorted(tokenizer.get_vocab().values())
        super().__init__(torch.tensor(ids), int(tokenizer.eos_token_id))
        self.answer_format, self.tokenizer = answer_format, tokenizer

    def start(self, budget_b: Tensor, *, bounds_b2: Tensor | None = None) -> FreeTextState:
        """Return the state of a new batch."""
        return FreeTextState(self, budget_b=budget_b.clamp(max=self.answer_format.max_tokens))

    def max_tokens(self, n_words: int | None = None) -> int:
        """Return the format's `max_tokens`."""
        return self.answer_format.max_tokens


class FreeTextState:
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

    def advance(self, symbol_b: Tensor) -> None:
        """Take one more symbol for each row."""
        symbol_b = torch.where(self.is_finished_b, self._constraint.eos_symbol, symbol_b)
        self._symbols_bt = torch.cat([self._symbols_bt, symbol_b[:, None]], dim=1)
        self._ended_b = self._ended_b | (symbol_b == self._constraint.eos_symbol)

    def select(self, rows: Tensor) -> None:
        """Keep only some rows, in the order given."""
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

    def word_tokens(self) -> list[tuple[int, ...]]:
        """Return nothing for each row: free text is not cut into words."""
        return [()] * len(self._symbols_bt)


def decode_tokens(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Return the text of tokens without special ones; white space stays as the tokens spell it."""
    text: str = tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def _trie(tokenizer: PreTrainedTokenizerBase, words: tuple[str, ...], terminator: str, *, separate: bool) -> WordTrie:
    """Return the trie of words; the terminator closes the last one (`separate`) or is the end of each."""
    tries = _TRIES.setdefault(tokenizer, {})
    # Tokens can be added to a tokenizer, which may change how words are spelled.
    key = (words, terminator, separate, len(tokenizer), tokenizer.eos_token_id)
    if key not in tries:
        while len(tries) >= _TRIES_KEPT:
            del tries[next(iter(tries))]
        ending = "" if separate else terminator
        word_tokens = encode_completions(tokenizer, [f" {word}{ending}" for word in words])
        closing = _terminator_ids(tokenizer, words, terminator) if separate else []
        special = {tokenizer.eos_token_id, tokenizer.unk_token_id} - {None}
        tries[key] = build_trie(
            words, word_tokens, closing=np.array([*closing, tokenizer.eos_token_id]), refused=sorted(special)
        )
    return tries[key]


def _terminator_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str], terminator: str) -> list[int]:
    """Return the tokens of the terminator as it stands behind a word, where it has no space in front."""
    if not terminator:
        return []
    for word in words[:100]:
        bare, closed = (ids.tolist() for ids in encode_completions(tokenizer, [f" {word}", f" {word}{terminator}"]))
        if closed[: len(bare)] == bare:
            return list(closed[len(bare) :])
    raise InputError(
        f"the terminator {terminator!r} melts into every word in this tokenizer, as in {f' {words[0]}{terminator}'!r}; "
        "pass another terminator, or an empty one"
    )


def _pieces(tokenizer: PreTrainedTokenizerBase, characters: set[str]) -> dict[int, str]:
    """Return the tokens that consist of these characters alone, id → the text that they add to a text."""
    anchor = encode_completions(tokenizer, ["a"])[0].tolist()
    start = len(decode_tokens(tokenizer, anchor))
    special: set[Any] = set(tokenizer.all_special_ids)
    pieces = {}
    for token_id in sorted(set(tokenizer.get_vocab().values()) - special):
        piece = decode_tokens(tokenizer, [*anchor, token_id])[start:]
        if piece and characters.issuperset(piece):
            pieces[token_id] = piece
    return pieces
