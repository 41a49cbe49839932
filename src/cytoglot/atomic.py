"""Atomic writes: a file appears whole under its name, or not at all; and only if it can be opened again."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import shutil
import sys
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cytoglot.errors import CytoglotError, InputError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it onto `target` on success, delete it on any error.

    Works for a file and for a folder (an existing target folder is replaced). The parent folder is created. The
    temporary name keeps the target's suffix, because writers look at it, and starts with a dot.

    Raises
    ------
    CytoglotError
        An h5ad, zarr or Parquet file that was written cannot be opened again; what had the name before still has it.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.stem}.{uuid.uuid4().hex[:8]}.partial{target.suffix}"
    try:
        yield temporary
        put_in_place(temporary, target)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def put_in_place(temporary: Path, target: Path) -> None:
    """Open what was written again (files of a folder too), flush it, and give it its name."""
    inner = [temporary] if temporary.suffix == ".zarr" or not temporary.is_dir() else sorted(temporary.rglob("*"))
    for path in inner:
        try:
            open_again(path)
        except Exception as error:  # whatever a reader may raise
            name = target if path == temporary else target / path.relative_to(temporary)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise CytoglotError(
                f"{name} was written but cannot be opened again ({reason}), so it was deleted and what had this name "
                "before still has it; names with '/' or '.' may be at fault, else the disk"
            ) from error
    if not temporary.is_dir():
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(target)
    elif not target.exists():
        temporary.replace(target)
    elif _exchanged(temporary, target):
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        # Between the two renames neither folder has the name: after a crash there the old one is `.NAME.….old`.
        old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
        target.replace(old)
        try:
            temporary.replace(target)
        except OSError:
            old.replace(target)
            raise
        shutil.rmtree(old, ignore_errors=True)


def open_again(path: Path) -> None:
    """Read a file of cells or a table as far as its frame: all names and small tables, of large matrices one row.

    Raises
    ------
    Exception
        Whatever the reader of the format raises. Files of other formats are not looked at.
    """
    if path.suffix == ".parquet" and path.is_file():
        with pq.ParquetFile(path) as file:
            if file.num_row_groups:
                file.read_row_group(file.num_row_groups - 1, columns=file.schema_arrow.names[:1])
    elif path.suffix == ".h5ad" and path.is_file():
        with importlib.import_module("h5py").File(path, "r") as file:
            _open_cells(file)
    elif path.suffix == ".zarr" and path.is_dir():
        _open_cells(importlib.import_module("zarr").open_group(path, mode="r"))


def _open_cells(root: Any) -> None:
    # By name, because the language model's own files pass through here and `lm` may not import anndata.
    io = importlib.import_module("anndata.io")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a copy of a file of an old format is of that format
        for name in ("obs", "var", "uns", "raw/var"):
            if name in root:
                io.read_elem(root[name])
    matrices = [root[name] for name in ("X", "raw/X") if name in root]
    for name in ("layers", "obsm", "varm", "obsp", "varp"):
        matrices += list(root[name].values()) if name in root and hasattr(root[name], "values") else []
    for matrix in matrices:
        kind = matrix.attrs.get("encoding-type", "")
        if kind in ("csr_matrix", "csc_matrix"):
            io.sparse_dataset(matrix)
        elif hasattr(matrix, "shape"):
            _ = matrix[:1] if matrix.shape else matrix[()]
        elif kind:
            io.read_elem(matrix)
        elif "h5sparse_format" not in matrix.attrs:
            raise ValueError(f"{matrix.name} is a folder of {', '.join(matrix)}, not a matrix")


def write_text(target: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(target) as path:
        path.write_text(text, encoding="utf-8")


def write_json(target: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused: they are not JSON."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def check_output_folder(folder: Path, *, written_by: str, mark: str) -> None:
    """Refuse to write into a folder that holds other things than an earlier result of the same command.

    Raises
    ------
    InputError
        The folder is a file, or is not empty and lacks the `mark` that the command writes.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; pass a folder to write")
    if folder.is_dir() and not (folder / mark).is_file() and any(folder.iterdir()):
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:3])
        raise InputError(
            f"{folder} holds other things than a result of `cytoglot {written_by}` ({held}); pass another folder"
        )


def _exchanged(first: Path, second: Path) -> bool:
    """Exchange two names in one step where the system can (Linux, most file systems); tell whether it did."""
    if not sys.platform.startswith("linux"):
        return False
    with contextlib.suppress(OSError, AttributeError):
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        return rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0
    return False
