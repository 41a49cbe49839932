"""Texts of any encoding that says what it is, and names that files can hold."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytoglot.errors import InputError
from cytoglot.texts import as_key, is_key, read_text, storable


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_marks_and_line_ends_make_no_difference(tmp_path: Path, encoding: str, pack: object) -> None:
    (tmp_path / "labels.txt").write_bytes(pack("T cell\r\nβ cell\r\n".encode(encoding)))  # type: ignore[operator]
    assert read_text(tmp_path / "labels.txt") == "T cell\nβ cell\n"


def test_what_is_no_text_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert read_text(tmp_path / "empty") == ""
    (tmp_path / "latin").write_bytes(b"T-Zelle \xe4\n")
    with pytest.raises(InputError, match=r"latin cannot be read as UTF-8; save it as UTF-8 text$"):
        read_text(tmp_path / "latin")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"T cell\n" * 1000)[:40])
    with pytest.raises(InputError, match=r"cut.gz is damaged gzip"):
        read_text(tmp_path / "cut.gz")


def test_what_files_cannot_hold_is_replaced() -> None:
    assert storable("T\0cell\ud800, β") == "T\ufffdcell\ufffd, β"


def test_names_of_columns_by_hand() -> None:
    odd = {"T/NK": "T%2FNK", "": "%", ".": "%2E", "..": "%2E%2E", "_index": "%5Findex", "a\0": "a%00", "50%": "50%25"}
    assert {name: as_key(name) for name in odd} == odd
    assert not any(map(is_key, odd.keys() - {"50%"}))
    assert is_key("CD4+ T cell, naïve")
    assert as_key("x" * 70_000) != as_key("x" * 70_001)
    assert len(as_key("x" * 70_000)) < 256


@given(st.lists(st.text(st.characters(codec=None), max_size=6), unique=True))
def test_two_names_never_become_one(names: list[str]) -> None:
    keys = [as_key(name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(map(is_key, keys))
