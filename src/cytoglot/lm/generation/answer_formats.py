"""Answer formats as a user writes them: on the command line, or in a YAML file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cytoglot.answer_format import AnswerFormat, DistinctWords, FreeText, Number, OneOf
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.texts import read_text

KINDS = ("one_of", "distinct_words", "number", "free_text")
_HELP = "'one_of: A | B', 'distinct_words: 5..10 of genes.txt', 'number: 0..1', 'free_text: 64', or a YAML file"
_NUMBER = r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)"
_RANGE = re.compile(rf"\s*{_NUMBER}\s*(?:\.\.\s*{_NUMBER})?\s*(?:of\s+(.+))?", re.IGNORECASE)


def read_answer_format(text: str, *, words: Sequence[str] | None = None) -> AnswerFormat:
    """Return the format that a text, or the YAML file that it names, describes.

    One line `kind: value`, or in a file also `kind:` with a list or fields below:

    - `one_of: B cell | T cell` (taken as it stands, whatever signs are in it), a list, or the name of a text file with
      one option per line;
    - `distinct_words: 5..10 of genes.txt` (`5` for exactly five), or fields `words` (a list or a file), `min`, `max`;
      without words, those of the model;
    - `number: 0..1`, or fields `low`, `high`;
    - `free_text`, `free_text: 64`, or a field `max_tokens`.

    Files are found beside the YAML file, or from the current folder.

    Parameters
    ----------
    words
        For `distinct_words` without words, such as the genes of a model.

    Raises
    ------
    InputError
        The text is no such format, a file is missing, or the format is impossible (more words than there are).
    """
    folder = Path()
    given: Any = text
    if text.endswith((".yaml", ".yml")):
        path = Path(text)
        if not path.is_file():
            raise InputError(f"the format file {path} does not exist; expected {_HELP}")
        folder, given = path.parent, read_text(path)
    kind, _, value = text.partition(":")
    if kind.strip() == "one_of" and "|" in value and value.strip()[0] not in "|[{'\"":
        # Labels such as "T cell #2" mean something else in YAML.
        return _checked_options(part.strip() for part in value.split("|"))
    try:
        parsed = yaml.safe_load(given)
    except yaml.YAMLError as error:
        raise InputError(f"the answer format is not YAML ({str(error).splitlines()[0]}); expected {_HELP}") from error
    if isinstance(parsed, str):
        parsed = {parsed: None}
    if not isinstance(parsed, dict) or len(parsed) != 1:
        raise InputError(f"an answer format is one of {', '.join(KINDS)}, found {text!r}; expected {_HELP}")
    ((kind, value),) = parsed.items()
    if kind not in KINDS:
        raise UnknownNameError("answer format", str(kind), KINDS)
    try:
        return _made(kind, value, folder, words)
    except (ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the answer format {kind} is impossible: {error}") from error


def _made(kind: str, value: Any, folder: Path, words: Sequence[str] | None) -> AnswerFormat:
    if kind == "one_of":
        options = [part.strip() for part in value.split("|")] if isinstance(value, str) and "|" in value else value
        return _checked_options(_texts(options, folder, what="options of one_of"))
    if kind == "free_text":
        if value is None:
            return FreeText()
        tokens = value
        if isinstance(value, dict):
            tokens = _fields(kind, value, {"max_tokens"}).get("max_tokens", FreeText.max_tokens)
        return FreeText(max_tokens=_whole(tokens, "max_tokens of free_text", least=1))
    if kind == "number":
        low, high, _ = _range(kind, value, "low", "high", {"low", "high"})
        bounds = float(low), float(high)
        if not all(map(math.isfinite, bounds)) or bounds[0] > bounds[1]:
            raise InputError(f"number expects finite bounds, the lower one first, found {low}..{high}")
        return Number(low=bounds[0], high=bounds[1])
    few, many, named = _range(kind, value, "min", "max", {"words", "min", "max"})
    chosen = words if named is None else _texts(named, folder, what="words of distinct_words")
    if chosen is None:
        raise InputError("distinct_words needs words: 'distinct_words: 5..10 of genes.txt'; this model brings none")
    return DistinctWords(
        words=tuple(chosen), min_words=_whole(few, "min", least=1), max_words=_whole(many, "max", least=1)
    )


def _range(kind: str, value: Any, first: str, last: str, known: set[str]) -> tuple[Any, Any, Any]:
    if isinstance(value, dict):
        fields = _fields(kind, value, known)
        missing = sorted({first, last} - fields.keys())
        if missing:
            raise InputError(f"the answer format {kind} lacks {', '.join(missing)}; expected {_HELP}")
        return fields[first], fields[last], fields.get("words")
    match = _RANGE.fullmatch(str(value))
    if match is None or (match[3] and kind == "number"):
        raise InputError(f"{kind} expects a range such as 5..10, found {value!r}; expected {_HELP}")
    low, high, named = match.groups()
    if high is None and kind == "number":
        raise InputError(f"number expects a range such as 0..1, found {value!r}")
    return low, low if high is None else high, named


def _fields(kind: str, value: Mapping[str, Any], known: set[str]) -> Mapping[str, Any]:
    for name in value:
        if name not in known:
            raise UnknownNameError(f"field of {kind}", str(name), sorted(known))
    return value


def _texts(value: Any, folder: Path, *, what: str) -> tuple[str, ...]:
    """Return a list as given, or the lines of the file that a text names."""
    if isinstance(value, str):
        path = folder / value
        if not path.is_file():
            raise InputError(f"{what}: the file {path} does not exist; pass a list, or a text file with one per line")
        value = [line.strip() for line in read_text(path).splitlines()]
        value = [line for line in value if line]
    if not isinstance(value, list) or not all(isinstance(one, (str, int, float)) for one in value):
        raise InputError(f"{what} must be a list of texts, found {value!r}"[:300])
    if any(isinstance(one, bool) for one in value):
        raise InputError(f"{what}: yes, no, on, off, true and false are no texts in YAML; put them in quotes")
    return tuple(str(one) for one in value)


def _checked_options(options: Iterable[str]) -> OneOf:
    options = tuple(options)
    if not all(option.strip() for option in options):
        raise InputError(f"options of one_of must not be empty, found {list(options)}"[:300])
    if len(set(options)) != len(options):
        raise InputError(f"options of one_of must be distinct, found {list(options)}"[:300])
    return OneOf(options=options)


def _whole(value: Any, what: str, *, least: int) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = least - 1
    if number < least:
        raise InputError(f"{what} must be a whole number of at least {least}, found {value!r}")
    return number
