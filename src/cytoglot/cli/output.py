"""What all commands share: options with one meaning, and one JSON object on stdout."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cytoglot.errors import InputError
from cytoglot.progress import set_progress

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Forecast time, memory and disk; do nothing.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads.")]
Layer = Annotated[str | None, typer.Option("--layer", help="Matrix to read: X, raw or a layer's name.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Anew = Annotated[
    bool, typer.Option("--overwrite", help="Begin anew where an interrupted run of other settings has left parts.")
]
ChunkCells = Annotated[
    int | None, typer.Option("--chunk-cells", min=1, help="Cells in memory at a time, and between two saved parts.")
]
Context = Annotated[str | None, typer.Option("--context", help='Metadata for prompts, "organism=human, tissue=blood".')]


def show(result: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a result: one JSON object, or lines of "name: value" and tables for lists of rows."""
    if as_json:
        sys.stdout.write(json.dumps(_plain(result), ensure_ascii=False, allow_nan=False) + "\n")
        return
    for name, value in result.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            sys.stdout.write(f"{name}:\n{table(value)}\n")
        elif value is not None:
            sys.stdout.write(f"{name}: {value}\n")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay out rows in columns for reading."""
    columns = list(rows[0])
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  " + "  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def parse_context(text: str | None) -> dict[str, str]:
    """Read "organism=human, tissue=blood".

    Raises
    ------
    InputError
        A part is not of the form name=value, or no prompt tells such a field.
    """
    from cytoglot.tasks.task import check_context

    context = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, separator, value = part.partition("=")
        if not separator or not name.strip() or not value.strip():
            raise InputError(f'--context expects "name=value, name=value", found {part.strip()!r}')
        context[name.strip()] = value.strip()
    check_context(context)
    return context


def check_output(path: Path, *, suffixes: tuple[str, ...]) -> None:
    """Refuse an output whose ending does not say what is written, and one that cannot be written."""
    if path.suffix not in suffixes:
        raise InputError(f"the output must end in {' or '.join(suffixes)}, found {path.name!r}")
    if path.is_dir():
        raise InputError(f"the output {path} is a folder; pass a file name ending in {suffixes[0]}")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"the output {path} cannot be written: {above} is no folder that you may write to")


def quiet_for_json(*, as_json: bool) -> None:
    """Leave stderr to log lines when a machine reads stdout."""
    if as_json:
        set_progress(False)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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
