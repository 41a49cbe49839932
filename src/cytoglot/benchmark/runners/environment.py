"""The environment of a runner: built once from its lock, kept in the cache, named by what it is made of."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cytoglot.atomic import write_json
from cytoglot.benchmark.runners.find import Runner
from cytoglot.benchmark.runners.settings import HOST
from cytoglot.download import cache_folder
from cytoglot.errors import ResourceError
from cytoglot.manifest import fingerprint_texts
from cytoglot.resume import locked

logger = logging.getLogger(__name__)

_MARK = "built.json"
_SHOWN_LINES = 3
"""of what a failed step printed"""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A Python that has what a runner requires."""

    python: Path
    search_path: tuple[Path, ...] = ()
    """folders of code that was fetched"""


def environment_folder(runner: Runner) -> Path:
    """Return where the environment is or will be; another Python, requirement or commit gives another folder."""
    settings = runner.settings
    lock = runner.lock.read_text(encoding="utf-8") if runner.lock else "\n".join(settings.requirements)
    key = fingerprint_texts([settings.python, lock, *(f"{code.url} {code.commit}" for code in settings.code)])
    return cache_folder() / "runners" / "environments" / f"{runner.name}-{key}"


def built_environment(runner: Runner) -> Environment | None:
    """Return the environment, or None where it must be built first."""
    folder = environment_folder(runner)
    if runner.settings.python == HOST and not runner.settings.code:
        return Environment(python=Path(sys.executable))
    if not (folder / _MARK).is_file():
        return None
    code = [folder / "code" / str(i) / one.folder for i, one in enumerate(runner.settings.code)]
    python = Path(sys.executable) if runner.settings.python == HOST else _python_in(folder / "venv")
    return Environment(python=python, search_path=tuple(code))


def build_environment(runner: Runner) -> Environment:
    """Return the environment of a runner, made now unless it is there.

    `venv` of the wanted Python makes it and pip fills it; `uv` does both where that Python is not on the path.

    Raises
    ------
    ResourceError
        There is no such Python, another process is building, or a step failed: the message names the runner and the
        step, and shows the last lines that it printed.
    """
    if (found := built_environment(runner)) is not None:
        return found
    folder, started = environment_folder(runner), time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as is_ours:
        if not is_ours:
            raise ResourceError(
                f"another process is building the environment of the runner {runner.name!r}; wait for it"
            )
        if built_environment(runner) is None:
            for part in ("venv", "code"):  # of a build that was interrupted
                shutil.rmtree(folder / part, ignore_errors=True)
            (folder / "build.log").unlink(missing_ok=True)
            logger.info("building the environment of the runner %s in %s", runner.name, folder)
            if runner.settings.python != HOST:
                _make_venv(runner, folder)
            for i, code in enumerate(runner.settings.code):
                checkout = folder / "code" / str(i)
                checkout.mkdir(parents=True)
                git = ["git", "-C", str(checkout)]
                for arguments in (["init", "--quiet"], ["fetch", "--quiet", "--depth=1", code.url, code.commit]):
                    _step(runner, folder, [*git, *arguments], what=f"fetching {code.url}")
                _step(runner, folder, [*git, "checkout", "--quiet", "FETCH_HEAD"], what=f"fetching {code.url}")
            write_json(folder / _MARK, {"runner": runner.name, "seconds": round(time.perf_counter() - started, 1)})
    found = built_environment(runner)
    assert found is not None
    return found


def _make_venv(runner: Runner, folder: Path) -> None:
    version, venv = runner.settings.python, folder / "venv"
    wanted: list[str] = ["-r", str(runner.lock)] if runner.lock else list(runner.settings.requirements)
    python, uv = _find_python(version), shutil.which("uv")
    if python is not None:
        _step(runner, folder, [python, "-m", "venv", str(venv)], what=f"making an environment by {python}")
        install = [str(_python_in(venv)), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    elif uv is not None:
        _step(runner, folder, [uv, "venv", "--python", version, str(venv)], what=f"uv venv --python {version}")
        install = [uv, "pip", "install", "--python", str(_python_in(venv))]
    else:
        raise ResourceError(
            f"the environment of the runner {runner.name!r} cannot be built: it needs Python {version}, and neither "
            f"python{version} nor uv is on the path; install one of them"
        )
    if wanted:
        _step(runner, folder, [*install, *wanted], what="installing its requirements")


def _find_python(version: str) -> str | None:
    """Return a Python of that version which can be started: what is on the path may be a stub of a version manager."""
    for candidate in (sys.executable, shutil.which(f"python{version}")):
        if candidate is not None:
            command = [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
            shown = subprocess.run(command, capture_output=True, text=True, check=False)
            if shown.returncode == 0 and shown.stdout.strip() == version:
                return candidate
    return None


def _python_in(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _step(runner: Runner, folder: Path, command: Sequence[str], *, what: str) -> None:
    log = folder / "build.log"
    # the search path and the prefix of this Python would leak into the other one
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    try:
        with log.open("a", encoding="utf-8") as file:
            code = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False
            ).returncode
    except OSError as error:
        raise ResourceError(
            f"the environment of the runner {runner.name!r} cannot be built: {what} failed ({error})"
        ) from error
    if code != 0:
        raise ResourceError(
            f"the environment of the runner {runner.name!r} cannot be built: {what} failed with {last_lines(log)} "
            f"(all of it in {log})"
        )


def last_lines(log: Path) -> str:
    """Return the last lines of a log that are not empty, as one."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-_SHOWN_LINES:]) or "no output"
