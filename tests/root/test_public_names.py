"""The names of the package: complete, light to import, and each parameter documented."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

pytest.importorskip("torch")

import cytoglot as cg


def public_functions() -> dict[str, Callable]:
    found = {name: value for name in cg.__all__ if inspect.isfunction(value := getattr(cg, name))}
    for owner in (cg.CellModel, cg.LanguageModel):
        methods = {n: m for n, m in vars(owner).items() if not n.startswith("_") and inspect.isfunction(m)}
        found |= {f"{owner.__name__}.{name}": method for name, method in methods.items()}
    return found


def documented(docstring: str) -> set[str]:
    """Return the names in the `Parameters` section of a docstring in the style of numpy."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[\w ]*\n-{3,}$|\Z)", inspect.cleandoc(docstring), re.M | re.S)
    lines = section[1].splitlines() if section else []
    return {name.strip() for line in lines if line[:1].strip() for name in line.split(":")[0].split(",")}


FUNCTIONS = public_functions()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_has_an_entry_and_every_entry_a_parameter(name: str) -> None:
    parameters = set(inspect.signature(FUNCTIONS[name]).parameters) - {"self"}
    assert documented(FUNCTIONS[name].__doc__ or "") == parameters


def test_the_parser_of_docstrings_by_hand() -> None:
    entries = "    a, b\n        Two.\n    c : int\n        One.\n\n"
    text = f"Do.\n\n    Parameters\n    ----------\n{entries}    Returns\n    -------\n    x\n"
    assert documented(text) == {"a", "b", "c"}
    assert documented("Do.") == set()


def test_dir_lists_all_names_and_each_can_be_had() -> None:
    assert dir(cg) == sorted(cg.__all__)
    assert len(cg.__all__) < 35
    assert {"annotate", "corpus", "datasets", "embed", "load_cell_model", "load_model", "metrics", "train"} <= set(
        dir(cg)
    )
    assert cg.datasets.known_datasets
    assert cg.corpus.open_corpus
    assert cg.metrics.accuracy
    with pytest.raises(AttributeError, match="no attribute 'anotate'"):
        cg.anotate


def test_the_import_takes_less_than_300_milliseconds() -> None:
    code = "import time; t = time.perf_counter(); import cytoglot; print(time.perf_counter() - t)"
    call = [sys.executable, "-c", code]
    seconds = [float(subprocess.run(call, capture_output=True, text=True, check=True).stdout) for _ in range(3)]
    assert min(seconds) < 0.3
