"""Which texts are the beginning of a decimal number in a range."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from cytoglot.errors import InputError

DECIMALS = 6
"""Most digits behind the point; expression values, scores and doses need no more."""

_NUMBER = re.compile(r"(-?)(0|[1-9]\d*)(?:\.(\d+))?")
_BEGUN = re.compile(r"(-?)(0|[1-9]\d*)?(\.\d*)?")


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
