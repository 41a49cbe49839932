"""The one progress bar and its off switch.

Bars are drawn on stderr, only on a terminal or when asked for, so that logs and `--json` output stay clean.
"""

from __future__ import annotations

import sys

from tqdm.auto import tqdm

_forced: bool | None = None


def set_progress(shown: bool | None) -> None:  # noqa: FBT001 - a switch is a switch
    """Show bars always (True), never (False) or on terminals only (None, the default)."""
    global _forced
    _forced = shown


def progress_is_shown() -> bool:
    """Return whether bars are drawn at present."""
    return sys.stderr.isatty() if _forced is None else _forced


def progress_bar(*, total: int | None, description: str, unit: str = "it") -> tqdm:
    """Return a bar to `update(n)` by hand; use it as a context manager."""
    return tqdm(
        total=total, desc=description, unit=unit, disable=not progress_is_shown(), file=sys.stderr, mininterval=0.5
    )
