"""`data list` and `data get`: what has a name, where it is, and one line where it cannot be had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no address that answers."""
    monkeypatch.setenv("CYTOGLOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CYTOGLOT_DATA", str(tmp_path / "absent"))
    for scheme in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")
    return tmp_path / "cache"


def test_every_name_is_listed_with_the_place_where_it_is(command: Command, nowhere: Path) -> None:
    shown = command("data", "list").out
    assert "pbmc68k_reduced: bundled with scanpy\n" in shown
    assert "pbmc3k: not downloaded\n" in shown
    rows = {row["name"]: row for row in command("data", "list", "--json").result["datasets"]}
    assert {"pbmc68k_reduced", "pbmc3k", "pbmc3k_10x", "pbmc3k_raw", "pbmc5k_protein_10x"} == set(rows)
    assert all(row["licence"] and row["citation"] for row in rows.values())


def test_what_is_bundled_needs_no_download(command: Command, nowhere: Path) -> None:
    pytest.importorskip("scanpy")
    result = command("data", "get", "pbmc68k_reduced", "--json").result
    assert result["where"] == "bundled with scanpy"
    assert "Zheng et al. 2017" in result["citation"]
    assert Path(result["path"]).is_file()
    assert not nowhere.exists()


def test_what_cannot_be_downloaded_is_one_line_that_says_where_to_put_it(command: Command, nowhere: Path) -> None:
    line = command("data", "get", "pbmc3k").refusal
    assert "could not download https://exampledata.scverse.org/scanpy/pbmc3k_raw.h5ad" in line
    assert str(nowhere / "pbmc3k_raw" / "pbmc3k_raw.h5ad") in line
    assert [path for path in nowhere.rglob("*") if path.is_file()] == []


def test_an_unknown_name_is_answered_with_the_nearest(command: Command, nowhere: Path) -> None:
    assert "did you mean 'pbmc3k'" in command("data", "get", "pbmc33k").refusal
