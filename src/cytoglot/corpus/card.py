"""The data set card of a corpus: a README for people."""

from __future__ import annotations

from collections.abc import Sequence

from cytoglot.corpus.folder import CorpusDescription


def corpus_card(description: CorpusDescription, *, warnings: Sequence[str] = ()) -> str:
    """Return the card as Markdown."""
    return "# A corpus of cell sentences\n"
