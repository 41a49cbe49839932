"""A cache of its own for each test, a runner that needs nothing but this Python, and the modules of the scripts."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from cytoglot.benchmark.runners.find import PREPROCESS

TOML = """
description = "the first counts of each cell"
version = "1"
python = "host"
tested = "here"
reads = ["batch"]

[options]
n_genes = 3
fault = ""
"""
#: what the option `fault` makes of a right answer
SCRIPT = """
import os, sys, time
import numpy as np
from contract import read_request, write_result

request = read_request()
fault, ids = request.options["fault"], list(request.cells.obs_names)
vectors = request.cells.X.toarray()[:, : request.options["n_genes"]].astype("float32")
print("columns:", *request.cells.obs)
if fault == "crash":
    sys.exit("the model is too large")
if fault == "slow":
    time.sleep(60)
if fault == "nan":
    vectors[3, 1] = np.nan
if fault == "missing":
    vectors, ids = vectors[:-2], ids[:-2]
if fault == "twice":
    ids[1] = ids[0]
    vectors, ids = np.vstack([vectors, vectors[1]]), [*ids, request.cells.obs_names[1]]
if fault == "unknown":
    vectors, ids = np.vstack([vectors, vectors[0]]), [*ids, "cell 999"]
if fault == "shuffled":
    order = np.random.default_rng(0).permutation(len(ids))
    vectors, ids = vectors[order], [ids[i] for i in order]
if fault != "silent":
    write_result(request, vectors, ids)
if fault == "no record":
    os.remove(request.folder / "run.json")
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CYTOGLOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CYTOGLOT_RUNNERS", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def write_runner(tmp_path: Path) -> Callable[..., Path]:
    """Write a runner and return the folder that holds it."""

    def write(name: str = "first-counts", *, toml: str = TOML, script: str | None = SCRIPT, lock: str = "") -> Path:
        folder = tmp_path / "runners" / name
        folder.mkdir(parents=True)
        (folder / "runner.toml").write_text(toml)
        if script is not None:
            (folder / "run.py").write_text(script)
        if lock:
            (folder / "requirements.lock").write_text(lock)
        return folder.parent

    return write


@pytest.fixture
def counts() -> AnnData:
    """Twelve cells of six genes with Ensembl ids, three batches, and two labels that only half of the cells have."""
    rng = np.random.default_rng(0)
    counts_ng = sparse.csr_matrix(rng.poisson(3, size=(12, 6)).astype(np.int32))
    obs = pd.DataFrame(
        {"plate": [f"p{i % 3}" for i in range(12)], "cell_type": ["T cell", "B cell", "unknown", ""] * 3},
        index=[f"cell {i}" for i in range(12)],
    )
    var = pd.DataFrame(
        {"gene_ids": [f"ENSG{i:011}" for i in range(6)]}, index=["CD3D", "MS4A1", "LYZ", "NKG7", "GNLY", "PPBP"]
    )
    return AnnData(X=counts_ng, obs=obs, var=var)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a module that scripts share, as they do."""
    monkeypatch.syspath_prepend(str(PREPROCESS))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - before:
        if str(PREPROCESS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
