"""The prompts of another model that a corpus is to be asked in: checked before it is built, kept, used by all readers.

A file of templates is copied into the corpus. The name of an installed package stays a name: its wordings are read when
they are needed, and never copied.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cytoglot.errors import InputError, UnknownNameError
from cytoglot.tasks.c2s_templates import PACKAGE, templates_for
from cytoglot.tasks.task import Task, tasks

FOLDER = "templates"


def check_wordings(templates: Mapping[str, str], base: Path) -> None:
    """Read the templates of a recipe, each a file relative to `base` or the name of a package.

    Raises
    ------
    InputError
        A task or a file is unknown, or a template is broken or names an unknown field.
    """
    for name, source in templates.items():
        if name not in tasks:
            raise UnknownNameError("task", name, tasks)
        if source == PACKAGE:
            templates_for(name, source)
            continue
        path = base / source
        if not path.is_file():
            raise InputError(
                f"templates of {name}: expected {PACKAGE!r} or a .toml or .json file, found no file {path}"
            )
        tasks[name].with_templates(templates_for(name, path))


def copy_wordings(templates: Mapping[str, str], base: Path, out: Path) -> None:
    """Copy the files of a recipe's templates into the corpus `out`."""
    for name, source in templates.items():
        if source != PACKAGE:
            (out / FOLDER).mkdir(exist_ok=True)
            shutil.copyfile(base / source, _kept(out, name, source))


def reworded_tasks(templates: Mapping[str, str], folder: Path) -> dict[str, Task[Any, Any]]:
    """Return task → the same in the wordings that the corpus in `folder` keeps or names."""
    places = {name: source if source == PACKAGE else _kept(folder, name, source) for name, source in templates.items()}
    return {name: tasks[name].with_templates(templates_for(name, place)) for name, place in places.items()}


def _kept(folder: Path, name: str, source: str) -> Path:
    return folder / FOLDER / f"{name}{Path(source).suffix}"
