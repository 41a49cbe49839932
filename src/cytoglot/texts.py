"""Texts that come from files, in any encoding that says what it is, and texts and names that files can hold."""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

from cytoglot.errors import InputError

# UTF-32 first: its mark begins as that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
#: HDF5 ends a text at U+0000, and halves of a character (surrogates) are no UTF-8.
_NOT_STORABLE = re.compile("[\0\ud800-\udfff]")
#: the group itself, the one above it, and the column that anndata keeps names of cells in
_NO_KEYS = {"": "%", ".": "%2E", "..": "%2E%2E", "_index": "%5Findex"}
_KEY_BYTES = 255
"""of a name: what file systems allow, where a zarr element is a folder"""


@contextmanager
def open_text(path: str | Path) -> Iterator[TextIO]:
    """Open a text file, plain or gzip: UTF-8, or what its byte order mark says (UTF-8, UTF-16, UTF-32); any line ends.

    Raises
    ------
    InputError
        The file is of another encoding, or is damaged gzip.
    """
    path = Path(path)
    try:
        with path.open("rb") as raw:
            is_gzip = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            file = io.BufferedReader(gzip.GzipFile(fileobj=raw)) if is_gzip else raw
            start = file.peek(4)[:4]
            encoding = next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")
            yield io.TextIOWrapper(file, encoding=encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read as {error.encoding.upper()}; save it as UTF-8 text") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged gzip ({error}); copy it again") from error


def read_text(path: str | Path) -> str:
    """Return the whole of a text file, as `open_text` reads it."""
    with open_text(path) as file:
        return file.read()


def read_pairs(path: str | Path, *, what: str, columns: tuple[str, str]) -> dict[str, str]:
    """Return first column → second column of a text file with two columns, such as a TSV or CSV.

    Columns are separated by tabs, else commas, else semicolons, as the first line has them. Empty lines are skipped.

    Parameters
    ----------
    what, columns
        What the file is, and what its columns hold, for messages.

    Raises
    ------
    InputError
        The file is missing, no text or empty, a line has not two columns or nothing in the first, or one text of the
        first column is mapped to two of the second.
    """
    if not Path(path).is_file():
        raise InputError(f"{what} {path} does not exist; pass a text file with two columns")
    lines = read_text(path).splitlines()
    first = next((line for line in lines if line.strip()), "")
    delimiter = next((mark for mark in ("\t", ",", ";") if mark in first), "\t")
    pairs: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = next(csv.reader([line], delimiter=delimiter))
        where = f"{what} {path}, line {number}"
        if len(row) != 2:
            raise InputError(
                f"{where}: expected two columns ({', '.join(columns)}) separated by a tab or a comma, found "
                f"{len(row)}; write one pair per line"
            )
        old, new = (value.strip() for value in row)
        if not old:
            raise InputError(f"{where}: expected a name in the first column, found none; remove the line")
        if pairs.setdefault(old, new) != new:
            raise InputError(f"{where}: {old!r} is mapped to {pairs[old]!r} and to {new!r}; keep one of the lines")
    if not pairs:
        raise InputError(f"{what} {path} is empty; write one pair per line: {', '.join(columns)}")
    return pairs


def storable(text: str) -> str:
    """Return the text with U+FFFD in place of what HDF5 or UTF-8 cannot hold: U+0000 and halves of a character."""
    return _NOT_STORABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def is_key(name: str) -> bool:
    """Tell whether a name can be that of a column or an element of every AnnData format, as it stands."""
    fits = len(name.encode("utf-8", "surrogatepass")) <= _KEY_BYTES
    return fits and name not in _NO_KEYS and "/" not in name and _NOT_STORABLE.search(name) is None


def as_key(name: str) -> str:
    """Return a name for a column or an element: percent-encoded where it cannot stand as it is.

    Two names never become one: "%" is encoded too. The end of a name that is too long is a digest.
    """
    if name in _NO_KEYS:
        return _NO_KEYS[name]
    key = re.sub("[%/\0\ud800-\udfff]", lambda sign: quote(sign[0].encode("utf-8", "surrogatepass"), safe=""), name)
    if is_key(key):
        return key
    return (
        key.encode()[: _KEY_BYTES - 20].decode(errors="ignore") + "%~" + hashlib.sha256(key.encode()).hexdigest()[:16]
    )
