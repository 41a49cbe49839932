"""The folder of a training run: empty, unfinished, finished, or of another run.

It is unfinished while it holds `.work`, which keeps what the run is made of and its checkpoints.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from cytoglot.atomic import write_json
from cytoglot.cell_model.spec import SPEC_FILE, CellModelSpec
from cytoglot.errors import InputError
from cytoglot.manifest import Manifest, changed_keys

WORK = ".work"
MARK_FILE = "checkpoint.json"
"""what a checkpoint says of itself, written last"""


def is_finished(folder: Path) -> bool:
    """Tell whether the folder holds a finished model."""
    return (folder / SPEC_FILE).is_file() and not (folder / WORK).is_dir()


def check_folder(folder: Path, manifest: Manifest, *, overwrite: bool) -> None:
    """Refuse a folder of other things, and without `overwrite` a folder of another run."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; pass a folder for the model")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    started = folder / WORK / "manifest.json"
    if not is_finished(folder) and not started.is_file():
        raise InputError(f"{folder} is not empty and holds no run of cytoglot; pass another folder for the model")
    if overwrite:
        return
    finished = is_finished(folder)
    before = CellModelSpec.load(folder).manifest if finished else json.loads(started.read_text(encoding="utf-8"))
    changed = _changes(before, manifest.to_dict())
    if changed:
        state, aim = ("a finished model", "to load it") if finished else ("an unfinished run", "to resume it")
        raise InputError(
            f"{folder} holds {state} with other {' and '.join(changed)}; pass the same settings and inputs {aim}, "
            "--overwrite to start anew, or another folder"
        )


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return "config (what changed)", "seeds (...)", "inputs (...)", as far as they differ.

    Where an input lies is no part of the run, so the name of its source is not compared.
    """
    found = []
    for kind in ("config", "seeds", "inputs"):
        old, new = ({k: v for k, v in side.get(kind, {}).items() if k != "source"} for side in (before, after))
        if kind == "inputs" and "cells" in old:
            found.append("inputs (an earlier version wrote it, which did not keep what is in them)")
        elif kind == "inputs":
            names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
            found += [f"inputs ({', '.join(names)})"] if names else []
        elif changed := changed_keys(old, new):
            found.append(f"{kind} ({', '.join(changed[:5])}{', …' if len(changed) > 5 else ''})")
    return found


def open_work(folder: Path, manifest: Manifest, *, overwrite: bool) -> None:
    """Make the work folder, which marks the run as unfinished, or go on with the one that is there.

    Raises
    ------
    InputError
        The folder cannot be written.
    """
    try:
        if overwrite and folder.is_dir():
            shutil.rmtree(folder)
        if not (folder / WORK / "manifest.json").is_file():
            write_json(folder / WORK / "manifest.json", manifest.to_dict())
    except OSError as error:
        raise InputError(f"expected a folder that can be written, found {folder}: {error.strerror or error}") from error


@contextmanager
def writing(what: str, folder: str | Path) -> Iterator[None]:
    """Say in one line that something cannot be written into a folder, and what to do."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch's writer of archives says so by a RuntimeError.
        words = ("iostream", "PytorchStreamWriter")
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in words):
            raise
        raise InputError(
            f"{what} cannot be written into {folder}: {error}; make room or allow writing, and run the same command "
            "again: it goes on from the last checkpoint"
        ) from error


def last_checkpoint(work: Path, *, mark: str = MARK_FILE) -> Path | None:
    """Return the newest checkpoint of ours that was written whole: `mark` is written last."""
    found = [path for path in work.glob("checkpoint-*") if (path / mark).is_file()]
    return max(found, key=step_of, default=None)


def discard_old_checkpoints(work: Path, *, n_kept: int) -> None:
    """Keep the newest checkpoints only."""
    for checkpoint in sorted(work.glob("checkpoint-*"), key=step_of)[:-n_kept]:
        shutil.rmtree(checkpoint, ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    """Return the optimizer steps that a checkpoint has behind it."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def make_readable(folder: Path) -> None:
    """Give the weights the mode of any new file: safetensors writes them for their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o666 & ~umask)
