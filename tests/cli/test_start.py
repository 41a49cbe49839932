"""What happens before anything is computed: mistakes are found before torch is imported, threads are counted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def _run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        env={name: value for name, value in os.environ.items() if name != "NUMBA_NUM_THREADS"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "cells.h5ad", "-o", "model"], "pass --label"),
        (["train", "--label", "x", "-o", "model"], "pass SOURCE"),
        (["train", "cells.h5ad", "--label", "x"], "pass -o FOLDER"),
    ],
)
def test_a_missing_argument_is_said_before_torch_is_imported(arguments: list[str], message: str) -> None:
    found = _run(
        f"import sys; from cytoglot.cli.main import run; print(run({arguments!r})); "
        "print({'torch', 'transformers', 'pandas'} & set(sys.modules))"
    )
    assert message in found.stderr
    assert found.stdout.splitlines() == ["2", "set()"]


_OUTPUTS = {
    "annotate in.h5ad --model m -o": ".h5ad",
    "embed in.h5ad --model m -o": ".h5ad",
    "encode in.h5ad -o": ".parquet",
    "decode in.parquet -o": ".h5ad",
    "generate --model m -o": ".h5ad",
    "gene-embeddings --model m -o": ".parquet",
    "import-c2s in -o": ".parquet",
    "corpus stats in -o": ".html",
    "evaluate in.h5ad --model m -o": "results.json",
    "reconstruct in.h5ad -o": "curves.json",
    "report": "report.html",
    "demo -o": "evaluation/report.html",
}


def test_an_output_that_exists_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    commands = []
    for number, (line, name) in enumerate(_OUTPUTS.items()):
        folder = tmp_path / str(number)
        output = folder / f"out{name}" if name.startswith(".") else folder / name
        output.parent.mkdir(parents=True)
        output.write_text("{}")
        commands.append([*line.split(), str(output if name.startswith(".") else folder)])
    found = _run(
        f"import sys\nfrom cytoglot.cli.main import run\nfor words in {commands!r}:\n"
        "    print(run(words), {'torch', 'transformers'} & set(sys.modules))"
    )
    assert found.stdout.splitlines() == ["2 set()"] * len(commands), found.stderr
    assert found.stderr.count("exists; pass --overwrite") == len(commands)


def test_numba_takes_as_many_threads_as_openmp() -> None:
    script = "import atexit, os; from cytoglot.cli.main import main\n"
    script += "atexit.register(lambda: print(os.environ['NUMBA_NUM_THREADS']))\nmain(['--version'])"
    assert _run(script, OMP_NUM_THREADS="3").stdout.split()[-1] == "3"
    assert _run(script, OMP_NUM_THREADS="3", NUMBA_NUM_THREADS="2").stdout.split()[-1] == "2"


def test_our_warnings_are_shown_in_one_line_and_others_are_not() -> None:
    script = (
        "import warnings, sys\nfrom cytoglot.cli import main as place\n"
        "def warn(*_):\n"
        "    exec(\"warnings.warn('ours', FutureWarning)\", {'__name__': 'cytoglot.x', 'warnings': warnings})\n"
        "    exec(\"warnings.warn('theirs', FutureWarning)\", {'__name__': 'other', 'warnings': warnings})\n"
        "    return 0\nplace.run = warn\nplace.main([])"
    )
    assert _run(script).stderr.splitlines() == ["ours"]
