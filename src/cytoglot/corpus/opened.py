"""The source that a process has open: spans come in order, so the next one is mostly of the same source."""

from __future__ import annotations

import multiprocessing.util
from pathlib import Path

from cytoglot.corpus.build_plan import BuildPlan
from cytoglot.corpus.sources import CorpusSource, open_corpus_source
from cytoglot.errors import InputError

_open: dict[tuple[str, int], CorpusSource] = {}


def opened_source(plan: BuildPlan, number: int) -> CorpusSource:
    """Return a source of the plan, open; the one that was open before is closed.

    Raises
    ------
    InputError
        It cannot be opened, or is not what it was when the plan was made.
    """
    at = (plan.key, number)
    if at not in _open:
        close_sources()
        planned = plan.sources[number]
        source = open_corpus_source(planned.recipe, plan.recipe.genes, Path(plan.base))
        if source.fingerprint != planned.fingerprint:
            source.close()
            raise InputError(
                f"source {planned.name!r} was changed while the corpus was built (fingerprint {planned.fingerprint} → "
                f"{source.fingerprint}); build again when it is finished"
            )
        _open[at] = source
        # Processes of a pool leave without the interpreter's own farewell, and temporary files would stay.
        multiprocessing.util.Finalize(None, close_sources, exitpriority=10)
    return _open[at]


def close_sources() -> None:
    """Close what is open."""
    while _open:
        _open.popitem()[1].close()
