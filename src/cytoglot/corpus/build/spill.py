"""What one span of cells leaves on disk on its way to the shards: a piece for each shard, and a few arrays.

A span goes to every shard and a shard takes from every span, so each piece is read alone: an Arrow record batch without
its schema (which all pieces share), found by its place in the file. Nothing is memory-mapped: mapped pages count
as memory of the process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytoglot.atomic import atomic_path
from cytoglot.errors import InputError

_PIECES, _OFFSETS, _COUNTS = "pieces.arrow", "offsets.npy", "counts.json"


@dataclass(frozen=True)
class Spill:
    """A folder of pieces and arrays, whole or absent."""

    folder: Path

    @property
    def is_finished(self) -> bool:
        """Whether it has been written, and is not to be written again."""
        return (self.folder / _COUNTS).is_file()

    def write(
        self,
        pieces: Iterable[tuple[int, pa.RecordBatch]],
        n_destinations: int,
        *,
        arrays: Mapping[str, NDArray[Any]],
        counts: Mapping[str, Any],
    ) -> None:
        """Write everything, atomically.

        Parameters
        ----------
        pieces
            Destination (rising) and its cells; a destination without cells may be left out.
        arrays
            Kept under their names.
        counts
            Plain JSON values.
        """
        ends = np.zeros(n_destinations, np.int64)
        with atomic_path(self.folder) as partial:
            partial.mkdir()
            with (partial / _PIECES).open("wb") as file:
                for destination, batch in pieces:
                    file.write(batch.serialize())
                    ends[destination] = file.tell()
                _flush(file)
            offsets = np.concatenate([np.zeros(1, np.int64), np.maximum.accumulate(ends)])
            for name, array in {Path(_OFFSETS).stem: offsets, **arrays}.items():
                write_array(partial / f"{name}.npy", array)
            (partial / _COUNTS).write_text(json.dumps(dict(counts)), encoding="utf-8")

    def counts(self) -> dict[str, Any]:
        """Return what was given as `counts`."""
        return json.loads((self.folder / _COUNTS).read_text(encoding="utf-8"))

    def piece(self, destination: int, schema: pa.Schema) -> pa.RecordBatch | None:
        """Read the cells for one destination; None if there are none.

        Raises
        ------
        InputError
            The file is shorter than it was written.
        """
        first, last = self.part_of(Path(_OFFSETS).stem, destination, destination + 2).tolist()
        if first == last:
            return None
        data = _read(self.folder / _PIECES, first, last - first)
        return pa.ipc.read_record_batch(pa.py_buffer(data), schema)

    def part_of(self, name: str, first: int, last: int) -> NDArray[Any]:
        """Read the entries from `first` up to `last` of one of the arrays, and no others."""
        path = self.folder / f"{name}.npy"
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            _, _, dtype = np.lib.format.read_array_header_1_0(file)
            start = file.tell() + first * dtype.itemsize
        return np.frombuffer(_read(path, start, (last - first) * dtype.itemsize), dtype)


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write a .npy file; unlike `numpy.save`, whose error has no number, this one tells a full disk as such."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.tobytes())
        _flush(file)


def _read(path: Path, start: int, n_bytes: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        data = file.read(n_bytes)
        while len(data) < n_bytes and (more := file.read(n_bytes - len(data))):
            data += more
    if len(data) < n_bytes:
        raise InputError(
            f"{path} is damaged: expected {n_bytes:,} bytes at {start:,}, found {len(data):,}; delete the unfinished "
            "corpus and build it again"
        )
    return data


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
