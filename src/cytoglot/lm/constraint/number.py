"""Numbers in a range as answers: which texts begin one, and which tokens may therefore follow.

Axes: b rows of the batch, s symbols (tokens that an answer can use).
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cytoglot.errors import InputError
from cytoglot.lm.constraint.answer_constraint import AnswerConstraint, AnswerState, decode_tokens
from cytoglot.lm.model.tokenizer import encode_completions

DECIMALS = 6
"""Most digits after the point; expression values, scores and doses need no more."""

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_NUMBER = re.compile(r"(-?)(0|[1-9]\d*)(?:\.(\d+))?")
_BEGUN = re.compile(r"(-?)(0|[1-9]\d*)?(\.\d*)?")


_PIECES: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[object, ...], dict[int, str]]] = WeakKeyDictionary()


class NumberGrammar:
    """The texts " NUMBER" + terminator, where NUMBER lies between two bounds, both included.

    A number is written plainly: `-` or nothing, digits without leading zeros, and perhaps a point with 1 to `decimals`
    digits; no exponent, no plus sign, no `-0`. Comparisons are exact: bounds and numbers are counted in units of the
    last decimal.

    Raises
    ------
    InputError
        A bound is infinite or NaN, `low` is above `high`, or no number of so many decimals lies between them.
    """

    def __init__(self, low: float, high: float, *, terminator: str, decimals: int = DECIMALS) -> None:
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise InputError(f"a number needs finite bounds with low <= high, found low={low}, high={high}")
        self.terminator, self.decimals = terminator, decimals
        self._unit = 10**decimals
        # By way of text, since 0.3 is meant as written and not as the binary number just below it.
        lowest = math.ceil(Fraction(repr(float(low))) * self._unit)
        highest = math.floor(Fraction(repr(float(high))) * self._unit)
        if lowest > highest:
            raise InputError(f"no number of at most {decimals} decimals lies between {low} and {high}; widen the range")
        # Magnitudes, in units of the last decimal, that a number of either sign may have; empty if first > last.
        self._range = {"": (max(lowest, 0), highest), "-": (max(-highest, 1), -lowest)}

    @property
    def longest(self) -> int:
        """Most characters of a text."""
        digits = max(len(str(last // self._unit)) for _, last in self._range.values() if last >= 0)
        return len(" -") + digits + len(".") + self.decimals + len(self.terminator)

    def begins(self, text: str) -> bool:
        """Return whether some text of the grammar begins with `text`."""
        if not text.startswith(" "):
            return text == ""
        body = text[1:]
        closing = self.terminator
        return self._begins_number(body) or any(
            self._is_number(body.removesuffix(closing[:n]))
            for n in range(len(closing) + 1)
            if body.endswith(closing[:n])
        )

    def completes(self, text: str) -> bool:
        """Return whether `text` is of the grammar."""
        return text.startswith(" ") and text.endswith(self.terminator) and self._is_number(self.number_in(text))

    def number_in(self, text: str) -> str:
        """Return the number of a complete text, as written."""
        return text.removeprefix(" ").removesuffix(self.terminator)

    def _is_number(self, body: str) -> bool:
        match = _NUMBER.fullmatch(body)
        if match is None:
            return False
        sign, whole, decimals = match.groups(default="")
        return len(decimals) <= self.decimals and self._meets(sign, whole, decimals, filled=True)

    def _begins_number(self, body: str) -> bool:
        match = _BEGUN.fullmatch(body)
        if match is None:
            return False
        sign, whole, decimals = match.groups(default="")
        first, last = self._range[sign]
        if not whole:
            return not decimals and (not sign or first <= last)
        if first > last:
            return False
        if decimals:
            return len(decimals) - 1 <= self.decimals and self._meets(sign, whole, decimals[1:])
        more_digits = range(1 if whole == "0" else len(str(last)) - len(whole) + 1)
        return any(self._meets(sign, whole, "", n_more=n) for n in more_digits)

    def _meets(self, sign: str, whole: str, decimals: str, *, filled: bool = False, n_more: int = 0) -> bool:
        """Return whether a number that starts with these digits, with `n_more` before the point, is in the range."""
        step = 10 ** (self.decimals - len(decimals) + n_more)
        magnitude = int(whole + decimals) * step
        first, last = self._range[sign]
        return magnitude <= last and magnitude + (0 if filled else step - 1) >= first


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


class NumberState(AnswerState):
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
        """Keep, repeat or drop rows, in the order given."""
        self._written = [self._written[row] for row in rows.tolist()]
        self._is_finished = [self._is_finished[row] for row in rows.tolist()]

    def texts(self) -> list[str | None]:
        """Return each row's number as written, None where it is not complete."""
        pairs = zip(self._written, self._is_finished, strict=True)
        return [self._constraint.grammar.number_in(text) if is_finished else None for text, is_finished in pairs]


def _pieces(tokenizer: PreTrainedTokenizerBase, characters: set[str]) -> dict[int, str]:
    """Return the tokens that consist of these characters alone, id → the text that they add to a text."""
    known = _PIECES.setdefault(tokenizer, {})
    # Tokens can be added to a tokenizer.
    key = (frozenset(characters), len(tokenizer))
    if key in known:
        return known[key]
    anchor = encode_completions(tokenizer, ["a"])[0].tolist()
    start = len(decode_tokens(tokenizer, anchor))
    special: set[Any] = set(tokenizer.all_special_ids)
    pieces: dict[int, str] = {}
    for spelling, token_id in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if token_id in special or _holds_letters(spelling, characters):
            continue
        piece = decode_tokens(tokenizer, [*anchor, token_id])[start:]
        if piece and characters.issuperset(piece):
            pieces[token_id] = piece
    known[key] = pieces
    return pieces


def _holds_letters(spelling: str, characters: set[str]) -> bool:
    """Return whether a token surely has letters that are none of these characters; decoding tells, but takes longer.

    Between the letters of ASCII and U+0250 lie those by which byte-level tokenizers spell other bytes.
    """
    if _BYTE.fullmatch(spelling):
        return False
    letters = (c for c in spelling.removesuffix("</w>") if c.isalpha() and not "\x80" <= c < "\u0250")
    return any(c not in characters for c in letters)
