"""One output made in parts, so that a run that was killed goes on where it stopped and ends with the same bytes.

Finished parts lie in a hidden folder beside the output (the last step is then a rename), with the settings that decide
their content: the model, the data, every option. Parts of other settings are refused, and what has changed is told.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cytoglot.atomic import atomic_path, put_in_place, write_json
from cytoglot.errors import InputError, ResourceError

_SETTINGS = "settings.json"
_SHOWN = 40
"""characters of a setting that a message repeats"""


@dataclass(frozen=True)
class Parts:
    """Parts 0, 1, 2, … of one output, each a Parquet file, whole or absent; small enough to be sent to workers."""

    output: Path
    settings: Mapping[str, Any]
    """JSON values that decide the parts; by convention "model" and "data" are fingerprints"""

    @property
    def folder(self) -> Path:
        """Where the parts lie until the output is whole."""
        return parts_folder(self.output)

    @contextmanager
    def opened(self, *, overwrite: bool = False, keep_at_fault: bool = False) -> Iterator[Parts]:
        """Hold the folder for this process; it is deleted when the work ends well.

        It is deleted too when the input is at fault (an `InputError`), unless `keep_at_fault`: another input would make
        other parts. After anything else (a full disk, a kill) it keeps its parts, and the same call goes on from them.

        Raises
        ------
        InputError
            Another process is making the same output, or the parts there are of other settings and `overwrite` is not
            given.
        ResourceError
            The disk is full.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder) as is_ours:
                if not is_ours:
                    raise InputError(f"another process is writing {self.output}; wait for it, or write to another file")
                self._begin(overwrite=overwrite)
                try:
                    yield self
                except InputError:
                    if not keep_at_fault:
                        shutil.rmtree(self.folder, ignore_errors=True)
                    raise
                shutil.rmtree(self.folder)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ResourceError(
                f"no space left for {self.output}; free some and run the same command again: "
                f"it goes on from the parts kept in {self.folder}"
            ) from error

    def missing(self, n_parts: int) -> list[int]:
        """Return which of the first `n_parts` parts are still to be made."""
        return [number for number in range(n_parts) if not self.has(number)]

    def has(self, name: int | str) -> bool:
        """Tell whether there is a part of this number or name."""
        return self._path(name).is_file()

    def write(self, name: int | str, table: pa.Table) -> None:
        """Keep one part; it is on the disk when this returns. A part with a name is none of the output's own."""
        with atomic_path(self._path(name)) as path:
            pq.write_table(table, path)

    def read(self, name: int | str) -> pa.Table:
        """Return what `write` kept."""
        return pq.read_table(self._path(name))

    @contextmanager
    def whole(self) -> Iterator[Path]:
        """Yield the path to put the output together at; on success it is opened again and takes its name."""
        partial = self.folder / f"output{self.output.suffix}"
        try:
            yield partial
            put_in_place(partial, self.output)
        finally:
            partial.unlink(missing_ok=True)

    def _begin(self, *, overwrite: bool) -> None:
        file = self.folder / _SETTINGS
        wanted = json.loads(json.dumps(dict(self.settings)))
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        if found == wanted:
            return
        # Without a part nothing is lost: a command that was refused for its settings may be corrected.
        if found is not None and not overwrite and any(self.folder.glob("part-*.parquet")):
            raise InputError(
                f"{self.folder} holds parts of an unfinished {self.output.name}, made with {changes(found, wanted)}; "
                "repeat the command that made them, or pass --overwrite (overwrite=True) to begin anew"
            )
        for path in self.folder.iterdir():
            if path.name != "lock":
                path.unlink()
        write_json(file, wanted)

    def _path(self, name: int | str) -> Path:
        return self.folder / (f"part-{name:06d}.parquet" if isinstance(name, int) else f"{name}.parquet")


def parts_folder(output: str | Path) -> Path:
    """Return where the parts of an unfinished output lie."""
    output = Path(output)
    return output.with_name(f".{output.name}.unfinished")


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Say in which settings two runs differ, such as "another model, seed 1 (now 2)"."""
    before, after = dict(_flat(old)), dict(_flat(new))
    told = []
    for name in sorted(before.keys() | after.keys()):
        first, second = before.get(name), after.get(name)
        if first == second:
            continue
        texts = [json.dumps(value, ensure_ascii=False) for value in (first, second)]
        is_fingerprint = name in ("model", "data") or max(map(len, texts)) > _SHOWN
        told.append(f"another {name}" if is_fingerprint else f"{name} {texts[0]} (now {texts[1]})")
    return ", ".join(dict.fromkeys(told)) or "other settings"


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder, which ends with the process however that ends; yield whether we have it."""
    is_ours = True
    with (folder / "lock").open("w") as file:
        # no such module on Windows: there two runs on one output at a time are not told apart
        with suppress(ModuleNotFoundError):
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                is_ours = False
        yield is_ours


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
