"""The few errors that callers may want to catch.

The command line turns an `InputError` or a `ResourceError` into one line on stderr and exit code 2 (1 for a full disk),
other errors of this file into one line and exit code 1; anything else is a fault of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CytoglotError(Exception):
    """Base of every error that cytoglot raises on purpose."""


class InputError(CytoglotError, ValueError):
    """The user's input cannot be used; the message says what was expected, what was found and what to do."""


class UnknownNameError(InputError, KeyError):
    """A name that is not known; the message lists the nearest known ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        super().__init__(f"unknown {kind} {name!r}; {nearest_names(name, self.known)}")

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


class ResourceError(CytoglotError, RuntimeError):
    """The machine is at fault, not the input: a killed worker, a full disk, damaged weights."""


class NotFiniteError(CytoglotError, ArithmeticError):
    """A computation that must give numbers gave NaN or infinity; the message says where what it was given is kept."""


class VocabularyMismatchError(InputError):
    """Data and model (or two files) speak of different genes."""


class MissingExtraError(CytoglotError, ImportError):
    """An optional dependency is absent; the message holds the install command."""


def nearest_names(name: str, known: Iterable[str], *, n: int = 3) -> str:
    """Say which known names are nearest to `name`, or list them all when none is near (at most 20)."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=n, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    listed = ", ".join(repr(k) for k in known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    return f"known: {listed}" if listed else "none are known"
