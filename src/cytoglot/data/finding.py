"""One finding of an audit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What a check saw and what to do about it."""

    level: Literal["ok", "note", "warning", "error"]
    """error: the data cannot be used as they are; warning: results would suffer; note: good to know"""
    check: str
    message: str
    fix: str = ""
