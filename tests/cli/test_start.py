"""What happens before anything is computed: mistakes are found before torch is imported, threads are counted."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def _run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
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
