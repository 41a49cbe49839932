"""Atomic writes: a file appears whole under its name, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cytoglot.errors import InputError


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it onto `target` on success, delete it on any error.

    Works for a file and for a folder (an existing target folder is replaced). The parent folder is created. The
    temporary name keeps the target's suffix, because writers look at it, and starts with a dot.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.stem}.{uuid.uuid4().hex[:8]}.partial{target.suffix}"
    try:
        yield temporary
        if temporary.is_dir():
            _replace_folder(temporary, target)
        else:
            _flush(temporary)
            temporary.replace(target)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def write_text(target: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(target) as path:
        path.write_text(text, encoding="utf-8")


def write_json(target: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused: they are not JSON."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def check_output_folder(folder: Path, *, written_by: str, mark: str) -> None:
    """Refuse to write into a folder that holds other things than an earlier result of the same command.

    Raises
    ------
    InputError
        The folder is a file, or is not empty and lacks the `mark` that the command writes.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; pass a folder to write")
    if folder.is_dir() and not (folder / mark).is_file() and any(folder.iterdir()):
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:3])
        raise InputError(
            f"{folder} holds other things than a result of `cytoglot {written_by}` ({held}); pass another folder"
        )


def _flush(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _replace_folder(source: Path, target: Path) -> None:
    if target.exists():
        old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
        target.replace(old)
        source.replace(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        source.replace(target)
