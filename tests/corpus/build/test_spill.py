"""Pieces of a span on disk: each is read alone, and the folder is whole or absent."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cytoglot.corpus.build.spill import Spill, write_array
from cytoglot.errors import InputError

SCHEMA = pa.schema([("cell_id", pa.string()), ("gene_ids", pa.list_(pa.uint16()))])


def batch(*names: str) -> pa.RecordBatch:
    ids = pa.array([[i, i + 1] for i in range(len(names))], pa.list_(pa.uint16()))
    return pa.RecordBatch.from_arrays([pa.array(names), ids], schema=SCHEMA)


def test_a_piece_is_read_alone_and_a_destination_without_cells_is_none(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "spans" / "000000")
    assert not spill.is_finished
    pieces = [(1, batch("a", "b")), (3, batch("c"))]
    hashes = np.array([(5, 1), (9, 0)], np.dtype([("hash", np.uint64), ("row", np.uint32)]))
    spill.write(pieces, 5, arrays={"hashes": hashes}, counts={"cells": 3})
    assert spill.is_finished
    assert [spill.piece(i, SCHEMA) for i in (0, 2, 4)] == [None, None, None]
    assert spill.piece(1, SCHEMA) == batch("a", "b")
    assert spill.piece(3, SCHEMA) == batch("c")
    assert np.array_equal(np.load(spill.folder / "hashes.npy"), hashes)
    assert spill.part_of("hashes", 1, 2).tolist() == [(9, 0)]
    assert spill.counts() == {"cells": 3}


def test_a_span_without_cells_has_no_pieces(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "empty")
    spill.write([], 2, arrays={}, counts={})
    assert spill.is_finished
    assert spill.piece(0, SCHEMA) is None
    assert spill.piece(1, SCHEMA) is None


def test_nothing_is_left_by_a_write_that_fails(tmp_path: Path) -> None:
    def pieces() -> object:
        yield 0, batch("a")
        raise OSError("no space")

    spill = Spill(tmp_path / "span")
    with pytest.raises(OSError, match="no space"):
        spill.write(pieces(), 1, arrays={}, counts={})  # type: ignore[arg-type]
    assert not spill.is_finished
    assert list(tmp_path.iterdir()) == []


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "span")
    spill.write([(0, batch("a", "b"))], 1, arrays={}, counts={})
    file = spill.folder / "pieces.arrow"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"pieces\.arrow is damaged: expected [0-9,]+ bytes at 0, found"):
        spill.piece(0, SCHEMA)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_told_as_such() -> None:
    with pytest.raises(OSError, match="No space left") as error:
        write_array(Path("/dev/full"), np.arange(1 << 20))
    assert error.value.errno == errno.ENOSPC
