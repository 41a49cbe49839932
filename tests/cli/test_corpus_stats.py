"""`corpus stats` writes the page and prints the numbers; what it cannot do it says in one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cytoglot.corpus.format.folder import Corpus
from cytoglot.errors import MissingExtraError

Command = Callable[..., Any]


def test_prints_sizes_and_writes_the_page(command: Command, small_corpus: Corpus, tmp_path: Path) -> None:
    page = tmp_path / "new" / "stats.html"
    outcome = command("corpus", "stats", small_corpus.folder, "-o", page)
    assert outcome.code == 0, outcome.err
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert str(page) in outcome.out
    assert [line.split()[0] for line in outcome.out.splitlines()[2:5]] == ["train", "validation", "test"]


def test_json_is_one_object_with_all_numbers(command: Command, small_corpus: Corpus, tmp_path: Path) -> None:
    page = tmp_path / "stats.html"
    result = command("corpus", "stats", small_corpus.folder, "-o", page, "--json", "--seed", "3").result
    assert result["html"] == str(page)
    assert page.is_file()
    assert result["fingerprint"] == small_corpus.description.fingerprint
    assert sum(part["cells"] for part in result["parts"]) == 240
    assert result["group_sizes"]["train"]["3"] > 0
    assert {line["task"] for line in result["tasks"]} >= {"cell_type_annotation", "gene_set_naming"}


@pytest.mark.parametrize(
    ("folder", "output", "message"),
    [
        ("corpus", "stats.txt", r"must end in \.html or \.htm, found 'stats\.txt'"),
        ("elsewhere", "stats.html", "is no corpus"),
    ],
)
def test_refusals(
    command: Command, small_corpus: Corpus, tmp_path: Path, folder: str, output: str, message: str
) -> None:
    path = small_corpus.folder if folder == "corpus" else tmp_path
    refusal = command("corpus", "stats", path, "-o", tmp_path / output).refusal
    assert re.search(message, refusal)
    assert not (tmp_path / output).exists()


def test_a_missing_extra_is_said_before_anything_is_counted(
    command: Command, small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(module: str, **_: str) -> None:
        raise MissingExtraError(f"{module} is not installed")

    def counted(*_: object, **__: object) -> None:
        raise AssertionError("counted first")

    monkeypatch.setattr("cytoglot.extras.require", missing)
    monkeypatch.setattr("cytoglot.corpus.inspect.statistics.corpus_statistics", counted)
    outcome = command("corpus", "stats", small_corpus.folder, "-o", tmp_path / "stats.html")
    assert outcome.code != 0
    assert "is not installed" in outcome.err
