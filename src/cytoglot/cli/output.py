"""What all commands write: one JSON object on stdout, or lines and tables to read."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cytoglot.errors import InputError


def show(result: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a result: one JSON object, or lines of "name: value" and tables for lists of rows."""
    if as_json:
        sys.stdout.write(json.dumps(_plain(result), ensure_ascii=False, allow_nan=False) + "\n")
        return
    for name, value in result.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            sys.stdout.write(f"{name}:\n{table(value)}\n")
        elif value is not None:
            sys.stdout.write(f"{name}: {_cell(value)}\n")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay out rows in columns for reading."""
    columns = list(rows[0])
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  " + "  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def check_output(path: Path, *, suffixes: tuple[str, ...], overwrite: bool, inputs: Sequence[str | Path] = ()) -> None:
    """Refuse an output that exists, is an input, does not end in what is written, or cannot be written."""
    if path.suffix not in suffixes:
        raise InputError(f"the output must end in {' or '.join(suffixes)}, found {path.name!r}")
    if path.is_dir():
        raise InputError(f"the output {path} is a folder; pass a file name ending in {suffixes[0]}")
    if any(path.exists() and Path(one).exists() and path.samefile(one) for one in inputs):
        raise InputError(f"the output {path} is the input; pass another file with -o")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"the output {path} cannot be written: {above} is no folder that you may write to")
    refuse_existing(path, overwrite=overwrite)


def check_folder(folder: Path, *, written_by: str, mark: str, overwrite: bool) -> None:
    """Refuse a folder that holds a finished result of a command, which writes the file `mark`, or anything else."""
    from cytoglot.atomic import check_output_folder

    check_output_folder(folder, written_by=written_by, mark=mark)
    if (folder / mark).is_file():
        refuse_existing(folder, overwrite=overwrite)


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Refuse to replace what is there, unless it was allowed."""
    if path.exists() and not overwrite:
        raise InputError(f"the output {path} exists; pass --overwrite to replace it, or another output")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_cell(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_cell, value))
    # Four digits, but no exponent for what people count: 12346 seconds, not 1.235e+04.
    return (f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}") if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
