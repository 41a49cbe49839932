"""How near one text is to another, word by word."""

from __future__ import annotations

import re
from collections import Counter

from cytoglot.metrics.spec import metric

_WORD = re.compile(r"[^\s.,;:!?()\[\]\"]+")


@metric("exact_match", inputs="text_pair", direction="higher", reference="equality of the words in order, case folded")
def exact_match(predicted: str, true: str) -> float:
    """Return 1.0 if both texts have the same words in the same order, else 0.0.

    Case, white space and the punctuation between words do not count; two texts without words match.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.exact_match("Naive B cell.", "naive b cell")
    1.0
    """
    return float(words(predicted) == words(true))


@metric("token_f1", inputs="text_pair", direction="higher", reference=":cite:p:`rajpurkar2016squad`, articles kept")
def token_f1(predicted: str, true: str) -> float:
    """Return the harmonic mean of precision and recall over the bag of words of both texts.

    A word counts as often as it occurs in both. Unlike the published script, articles stay. Without words in both texts
    the result is 1.0, without words in one of them 0.0.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.token_f1("naive B cell", "memory B cell of blood")
    0.5
    """
    found, wanted = Counter(words(predicted)), Counter(words(true))
    if not found or not wanted:
        return float(found == wanted)
    n_shared = (found & wanted).total()
    return 2 * n_shared / (found.total() + wanted.total())


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without the punctuation around them; "CD4+" and "HLA-DRA" are words."""
    return _WORD.findall(text.casefold())
