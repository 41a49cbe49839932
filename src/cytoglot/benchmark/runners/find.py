"""Runners by name: those of the package, and those in folders of the user."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cytoglot.benchmark.runners.settings import Option, RunnerSettings
from cytoglot.config import load_recipe
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.manifest import fingerprint_bytes
from cytoglot.texts import read_text

MODELS = Path(__file__).parent / "models"
PREPROCESS = MODELS / "_preprocess"
"""modules that scripts share"""
VARIABLE = "CYTOGLOT_RUNNERS"


@dataclass(frozen=True, kw_only=True)
class Runner:
    """A folder with `runner.toml`, `run.py` and, as a rule, `requirements.lock`."""

    folder: Path
    settings: RunnerSettings

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.name

    @property
    def script(self) -> Path:
        """The script that embeds cells."""
        return self.folder / "run.py"

    @property
    def lock(self) -> Path | None:
        """The file of exact requirements, if there is one."""
        path = self.folder / "requirements.lock"
        return path if path.is_file() else None

    def fingerprint(self) -> str:
        """Fingerprint what decides a result beside cells, weights and options: the folder, what scripts share."""
        files = [*sorted(self.folder.glob("*")), *sorted(PREPROCESS.glob("*.py"))]
        return fingerprint_bytes(
            part for file in files if file.is_file() for part in (file.name.encode(), file.read_bytes())
        )

    def with_options(self, changes: Mapping[str, Option] | Iterable[str]) -> dict[str, Option]:
        """Return all options of the script, some changed by "name=value" texts or a mapping.

        Raises
        ------
        UnknownNameError
            The script has no such option.
        InputError
            A text has no `=`, or a value is of another type than the default.
        """
        if isinstance(changes, Mapping):
            changed = self.settings.model_copy(update={"options": {**self.settings.options, **changes}})
        else:
            changed = load_recipe(RunnerSettings, self.settings, [f"options.{text}" for text in changes])
        for name, value in changed.options.items():
            if name not in self.settings.options:
                raise UnknownNameError(f"option of the runner {self.name!r}", name, self.settings.options)
            default = self.settings.options[name]
            if not isinstance(value, type(default)) and not (isinstance(default, float) and isinstance(value, int)):
                raise InputError(
                    f"the option {name!r} of the runner {self.name!r} must be of the type of its default {default!r}, "
                    f"found {value!r}"
                )
        return changed.options


def runner_folders(extra: Iterable[Path] = ()) -> dict[str, Path]:
    """Return name → folder of every runner; of equal names the first of `extra`, of CYTOGLOT_RUNNERS, or ours.

    Parameters
    ----------
    extra
        Folders of runners. The variable `CYTOGLOT_RUNNERS` names more, separated as in `PATH`.

    Raises
    ------
    InputError
        One of these is no folder.
    """
    roots = [*extra, *(Path(part) for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part), MODELS]
    found: dict[str, Path] = {}
    for root in roots:
        if not root.is_dir():
            raise InputError(f"{root} is no folder; --runners and {VARIABLE} name folders that hold runners")
        for toml in sorted(root.glob("*/runner.toml")):
            found.setdefault(toml.parent.name, toml.parent)
    return found


def find_runner(name: str, extra: Iterable[Path] = ()) -> Runner:
    """Return the runner called `name`.

    Parameters
    ----------
    name
        The name of its folder.
    extra
        As in `runner_folders`.

    Raises
    ------
    UnknownNameError
        There is none.
    InputError
        Its `runner.toml` cannot be used, or its script is missing.
    """
    folders = runner_folders(extra)
    if name not in folders:
        raise UnknownNameError("runner", name, folders)
    return load_runner(folders[name])


def load_runner(folder: Path) -> Runner:
    """Read the runner in `folder`; an InputError names what is wrong with it."""
    path = folder / "runner.toml"
    try:
        settings = load_recipe(RunnerSettings, None, tomllib.loads(read_text(path)))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error
    except InputError as error:
        error.add_note(f"({path})")
        raise
    runner = Runner(folder=folder, settings=settings)
    if not runner.script.is_file():
        raise InputError(f"the runner {runner.name!r} has no script; write {runner.script}")
    return runner
