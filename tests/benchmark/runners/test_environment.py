"""Environments: what cannot be built is named, and what the command line says of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from anndata import AnnData

from cytoglot.benchmark.runners import find_runner
from cytoglot.benchmark.runners.environment import build_environment, built_environment, environment_folder
from cytoglot.cli.main import run
from cytoglot.errors import InputError, ResourceError

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
TOML = 'description = "d"\nversion = "1"\npython = "{}"\ntested = "no"\nrequirements = ["./no/such/package"]\n'


def test_an_environment_that_cannot_be_built_is_named_with_the_step(write_runner: Callable[..., Path]) -> None:
    folder = write_runner("broken", toml=TOML.format(HERE))
    runner = find_runner("broken", [folder])
    with pytest.raises(ResourceError, match=r"runner 'broken' cannot be built: installing its requirements failed"):
        build_environment(runner)
    assert built_environment(runner) is None
    before = environment_folder(runner)
    (runner.folder / "requirements.lock").write_text("numpy==2.0.0\n")
    assert environment_folder(runner) != before


def test_a_python_that_is_not_here_is_named(write_runner: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_runner("old", toml=TOML.format("3.1"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ResourceError, match=r"runner 'old' cannot be built: it needs Python 3\.1, and neither"):
        build_environment(find_runner("old", [folder]))


def test_a_misspelt_key_is_refused_with_a_suggestion(write_runner: Callable[..., Path]) -> None:
    folder = write_runner("typo", toml=TOML.format(HERE) + 'licence = "MIT"\n')
    with pytest.raises(InputError, match="unknown key 'licence'"):
        find_runner("typo", [folder])


def test_the_command_writes_vectors_and_one_object(
    write_runner: Callable[..., Path], counts: AnnData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, cells, output = str(write_runner()), tmp_path / "cells.h5ad", tmp_path / "out.parquet"
    counts.write_h5ad(cells)
    call = ["runner", "run", "first-counts", str(cells), "-o", str(output), "--runners", folder, "--json"]
    assert run(call) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["cells"], shown["dimensions"], shown["was_kept"]) == (12, 3, False)
    assert output.is_file()
    assert run(call) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert run([*call, "--overwrite", "--set", "fault=nan"]) == 2
    assert "NaN or infinite for the cell 'cell 3'" in capsys.readouterr().err
