"""Every command refuses an output that exists, `--overwrite` replaces it, and an input is never replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anndata import AnnData

Command = Callable[..., Any]
#: command → the ending of its output; each is refused before anything is read
FILES = {
    "annotate": ".h5ad",
    "embed": ".h5ad",
    "encode": ".parquet",
    "decode": ".h5ad",
    "generate": ".h5ad",
    "gene-embeddings": ".parquet",
    "gene-vectors": ".parquet",
    "import-c2s": ".parquet",
    "corpus stats": ".html",
}
FOLDERS = {"evaluate": "results.json", "reconstruct": "curves.json"}


def _call(name: str, source: Path, output: Path) -> list[str | Path]:
    inputs: list[str | Path] = [] if name in ("generate", "gene-embeddings", "gene-vectors") else [source]
    model = ["--model", "absent"] if name not in ("encode", "import-c2s", "corpus stats", "reconstruct") else []
    return [*name.split(), *inputs, *model, "-o", output]


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_exists_is_refused_and_kept(command: Command, name: str, cells_file: Path, tmp_path: Path) -> None:
    output = tmp_path / f"output{FILES[name]}"
    output.write_text("precious")
    refusal = command(*_call(name, cells_file, output)).refusal
    assert refusal == f"the output {output} exists; pass --overwrite to replace it, or another output"
    assert output.read_text() == "precious"
    passed = command(*_call(name, tmp_path / "absent", output), "--overwrite")  # and fails for what is absent
    assert "exists; pass" not in passed.err
    assert output.read_text() == "precious"


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_with_a_result_is_refused(command: Command, name: str, cells_file: Path, tmp_path: Path) -> None:
    (tmp_path / FOLDERS[name]).write_text("{}")
    assert "pass --overwrite to replace it" in command(*_call(name, cells_file, tmp_path)).refusal


def test_pages_are_refused_until_overwrite(command: Command, tiny_model_folder: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    card = folder / "README.md"
    card.write_text("by hand")
    assert "README.md exists; pass --overwrite" in command("card", folder).refusal
    assert card.read_text() == "by hand"
    assert command("card", "--model", folder, "--overwrite").code == 0
    assert card.read_text() != "by hand"
    (tmp_path / "report.html").write_text("page")
    assert "report.html exists; pass --overwrite" in command("report", tmp_path).refusal


@pytest.mark.parametrize("name", ["annotate", "embed"])
def test_an_output_that_is_the_input_is_refused(command: Command, name: str, cells: AnnData, tmp_path: Path) -> None:
    path, link = tmp_path / "cells.h5ad", tmp_path / "link.h5ad"
    cells.write_h5ad(path)
    link.symlink_to(path)
    before = path.read_bytes()
    for output in (path, link):
        refusal = command(name, path, "--model", "absent", "-o", output, "--overwrite").refusal
        assert refusal == f"the output {output} is the input; pass another file with -o"
    assert path.read_bytes() == before


def test_overwrite_replaces(command: Command, cells_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "cells.parquet"
    output.write_text("old")
    assert command("encode", cells_file, "-o", output, "--overwrite").code == 0
    assert output.read_bytes()[:4] == b"PAR1"
    assert command("encode", cells_file, "-o", output, "--dry-run").code == 0, "a forecast replaces nothing"
