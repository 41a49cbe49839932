"""The benchmark of a GPU runs where there is none, on models of no use: its code is there when a GPU is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_gpu_benchmark_measures_everything_it_names() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--json"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["matmul_tflops"] > 0
    rows = {row["what"]: row for row in result["results"]}
    assert set(rows) == {"train tiny", "embed tiny", "constraint"}
    assert all(row["tokens_per_s"] > 0 for name, row in rows.items() if name != "constraint")
    assert rows["constraint"]["ratio"] > 0
