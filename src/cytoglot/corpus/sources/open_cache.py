"""The source that a process has open: the next thing asked of a source is mostly asked of the same one."""

from __future__ import annotations

import multiprocessing.util
from pathlib import Path

from cytoglot.corpus.sources.expand import CorpusSource, open_corpus_source
from cytoglot.corpus.sources.recipe import GeneRecipe, SourceRecipe

_open: dict[str, CorpusSource] = {}


def opened_source(source: SourceRecipe, genes: GeneRecipe, base: str | Path) -> CorpusSource:
    """Return a source, open; the one that was open before is closed.

    Raises
    ------
    InputError
        It cannot be opened.
    """
    which = repr((source, genes, str(base)))
    if which not in _open:
        close_sources()
        _open[which] = open_corpus_source(source, genes, base)
        # Processes of a pool leave without the interpreter's own farewell, and temporary files would stay.
        multiprocessing.util.Finalize(None, close_sources, exitpriority=10)
    return _open[which]


def close_sources() -> None:
    """Close what is open."""
    while _open:
        _open.popitem()[1].close()
