"""`corpus audit` prints findings or one JSON object, succeeds when it finds something, and refuses in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cytoglot.corpus.format.folder import Corpus, open_corpus

Command = Callable[..., Any]


def test_findings_have_a_line_each_and_tasks_a_table(command: Command, small_corpus: Corpus) -> None:
    outcome = command("corpus", "audit", small_corpus.folder)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert "160 train, 40 validation, 40 test cells" in lines[0]
    assert "  ok       donors: none is in two parts of its study" in lines
    assert any(line.split()[:3] == ["cell_completion", "160", "/"] for line in lines)


def test_json_is_one_object_with_findings_and_numbers(command: Command, small_corpus: Corpus) -> None:
    arguments = ("--context-length", "512", "--tokens-per-gene", "3.8", "--max-cells", "20", "--seed", "3", "--json")
    result = command("corpus", "audit", small_corpus.folder, *arguments).result
    assert result["cells"] == {"train": 160, "validation": 40, "test": 40}
    assert {"level", "check", "message", "fix"} <= set(result["findings"][0])
    rows = result["numbers"]["lengths"]["over_context"]
    assert {row["tokens_per_gene"] for row in rows} == {1.0, 3.8}
    assert all("512" in row["over"] for row in rows)
    assert all(row["n_cells"] <= 20 for row in result["numbers"]["near_duplicates"]["compared"])


def test_an_audit_that_finds_damage_is_a_success(command: Command, small_corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(small_corpus.folder, folder)
    file = folder / open_corpus(folder).shards("test")[0].file
    file.write_bytes(file.read_bytes()[:-1])
    result = command("corpus", "audit", folder, "--json").result
    assert result["worst"] == "error"
    assert list(result["numbers"]["damaged_shards"]) == ["test/shard-00000.parquet"]


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_a_folder_that_is_no_corpus_is_refused(command: Command, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    assert "is no corpus: it has no corpus.json" in command("corpus", "audit", tmp_path / name).refusal
