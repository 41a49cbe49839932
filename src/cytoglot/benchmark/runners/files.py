"""Weights and tables of a runner: where they lie, which are missing, and their checksums."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cytoglot.benchmark.runners.find import Runner
from cytoglot.benchmark.runners.settings import NeededFile
from cytoglot.download import cache_folder, fetch
from cytoglot.errors import InputError


def weights_folder(runner: Runner, chosen: Path | None = None) -> Path:
    """Return the folder of the weights: the chosen one, else that of the cache."""
    return cache_folder() / "runners" / "weights" / runner.name if chosen is None else chosen


def missing_files(runner: Runner, folder: Path) -> list[NeededFile]:
    """Return the files that are not in the folder."""
    return [file for file in runner.settings.files if not (folder / file.name).exists()]


def fetch_files(runner: Runner, folder: Path) -> None:
    """Download the files that are missing and have an address.

    Raises
    ------
    InputError
        A file cannot be downloaded, or what came has another checksum.
    """
    for file in missing_files(runner, folder):
        if file.url is not None:
            fetch(file.url, checksum=f"sha256:{file.sha256}", target=folder / file.name)


def checked_files(runner: Runner, folder: Path) -> dict[str, str]:
    """Return name → SHA-256 of each file that the runner needs (of a folder: of the names and hashes of its files).

    Raises
    ------
    InputError
        A file is missing (all such are named, with where they can be had) or has another checksum than it must have.
    """
    if missing := missing_files(runner, folder):
        listed = "; ".join(f"{file.name} ({file.what})" for file in missing)
        raise InputError(
            f"the runner {runner.name!r} needs files that are not in {folder}: {listed}. Put them there, or pass the "
            "folder that holds them with --weights"
        )
    found = {}
    for file in runner.settings.files:
        found[file.name] = _sha256(folder / file.name)
        if file.sha256 is not None and found[file.name] != file.sha256:
            raise InputError(
                f"{folder / file.name} must have the SHA-256 {file.sha256}, found {found[file.name]}; the runner "
                f"{runner.name!r} was written for that file, so fetch it again, or copy the runner and change its hash"
            )
    return found


def _sha256(path: Path) -> str:
    if path.is_dir():
        inner = sorted(file for file in path.rglob("*") if file.is_file())
        text = "".join(f"{file.relative_to(path).as_posix()} {_sha256(file)}\n" for file in inner)
        return hashlib.sha256(text.encode()).hexdigest()
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
