"""The hidden folder of an unfinished encoding: the finished parts, kept through a kill, and the file being written.

It lies beside the output (so that the last step is a rename) and is named after all that decides the parts' content.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytoglot.atomic import atomic_path
from cytoglot.errors import InputError
from cytoglot.sentence.ranker import RankedBlock

_SUFFIX = ".unfinished"


class UnfinishedOutput:
    """Parts 0, 1, 2, ... of one output, each whole or absent, and the place where the output is put together."""

    def __init__(self, output: Path, key: str) -> None:
        self.output = output
        self.folder = output.parent / f".{output.name}.{key}{_SUFFIX}"
        self.partial = self.folder / f"output{output.suffix}"

    @contextmanager
    def opened(self) -> Iterator[UnfinishedOutput]:
        """Hold the folder for this process.

        Left by success or by a fault of the input, the folder is deleted; by anything else (a full disk, an interrupt)
        it keeps its finished parts, and the same command goes on from them.

        Raises
        ------
        InputError
            Another process is making the same output, or the disk is full.
        """
        self.output.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.folder.mkdir(exist_ok=True)
            with locked(self.folder) as is_ours:
                if not is_ours:
                    raise InputError(f"another process is writing {self.output}; wait for it, or write to another file")
                self._delete_stale_folders()
                try:
                    yield self
                except InputError:
                    shutil.rmtree(self.folder, ignore_errors=True)
                    raise
                finally:
                    self.partial.unlink(missing_ok=True)
                shutil.rmtree(self.folder)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise InputError(
                f"no space left for {self.output}; free some and run the same command again: "
                f"it goes on from the parts kept in {self.folder}"
            ) from error

    def n_parts(self) -> int:
        """Return how many parts are there, counted from the first without a gap."""
        n = 0
        while self._part(n).exists():
            n += 1
        return n

    def write_part(self, number: int, block: RankedBlock) -> None:
        """Keep one part; it is on the disk when this returns."""
        columns = [pa.array(array) for array in (block.lengths, block.n_expressed)]
        ragged = pa.table([*columns], names=["lengths", "n_expressed"])
        words = pa.table([pa.array(block.gene_ids)], names=["gene_ids"])
        with atomic_path(self._part(number)) as path, path.open("wb") as file:
            for table in (ragged, words):
                with pa.ipc.new_stream(file, table.schema) as writer:
                    writer.write_table(table)

    def read_part(self, number: int) -> RankedBlock:
        """Return what `write_part` kept."""
        with self._part(number).open("rb") as file:
            ragged, words = (pa.ipc.open_stream(file).read_all() for _ in range(2))
        return RankedBlock(
            lengths=ragged["lengths"].to_numpy(),
            gene_ids=words["gene_ids"].to_numpy(),
            n_expressed=ragged["n_expressed"].to_numpy(),
        )

    def read_rates(self) -> NDArray[np.float32] | None:
        """Return the tie rates that an earlier run has found, None where there are none."""
        path = self.folder / "tie_rates.npy"
        return np.load(path) if path.exists() else None

    def write_rates(self, rates_g: NDArray[np.float32]) -> None:
        """Keep tie rates, which cost a pass over the cells."""
        with atomic_path(self.folder / "tie_rates.npy") as path:
            np.save(path, rates_g)

    def finish(self) -> None:
        """Put the finished file in its place, over an older one."""
        with self.partial.open("rb") as file:
            os.fsync(file.fileno())
        self.partial.replace(self.output)

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.arrows"

    def _delete_stale_folders(self) -> None:
        """Delete what other settings or an older input have left for this output, unless a process works on it."""
        prefix = f".{self.output.name}."
        for folder in self.output.parent.iterdir():
            is_work = folder.name.startswith(prefix) and folder.name.endswith(_SUFFIX)
            if is_work and folder != self.folder:
                with locked(folder) as is_ours:
                    if is_ours:
                        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder, which ends with the process however that ends; yield whether we have it."""
    with (folder / "lock").open("w") as file:
        yield _lock(file)


def _lock(file: IO[Any]) -> bool:
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows: two runs on one output at a time are not told apart
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
