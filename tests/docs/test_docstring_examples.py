"""Every public function and class has an example in its docstring, and it runs with what it prints.

The examples find `cells.h5ad`, some labelled cells, and `model`, a model that was trained on them.
"""

from __future__ import annotations

import doctest
import inspect
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

import cytoglot as cg

MODULES = ("cg.corpus", "cg.datasets", "cg.metrics", "cg.pl")
#: Methods that are called with prompts, cells or a folder; a class shows its other ones in its own example.
METHODS = {
    "LanguageModel": ("generate", "sample", "log_likelihood", "embed", "save"),
    "CellModel": ("sentences", "label_scores", "embeddings", "generate", "log_likelihood", "embed"),
}


def public_objects() -> Iterator[tuple[str, object]]:
    for name in cg.__all__:
        value = getattr(cg, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            yield f"cg.{name}", value
        for method in METHODS.get(name, ()):
            yield f"cg.{name}.{method}", getattr(value, method)
    for path in MODULES:
        module = getattr(cg, path.removeprefix("cg."))
        for name in getattr(module, "__all__", vars(module)):
            value = getattr(module, name)
            # what a module imports is not its own; classes are shown by the functions that take or return them
            if not name.startswith("_") and inspect.isfunction(value) and value.__module__.startswith(module.__name__):
                yield f"{path}.{name}", value


OBJECTS = dict(public_objects())


@pytest.fixture(scope="module")
def folder(cells_file: Path, tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with `cells.h5ad` and `model`."""
    made = tmp_path_factory.mktemp("examples")
    shutil.copy(cells_file, made / "cells.h5ad")
    shutil.copytree(tiny_model_folder, made / "model")
    return made


@pytest.mark.parametrize("name", OBJECTS)
def test_the_example_runs_and_prints_what_it_shows(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    docstring = inspect.getdoc(OBJECTS[name]) or ""
    test = doctest.DocTestParser().get_doctest(docstring, {}, name, None, 0)
    assert test.examples, f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    printed: list[str] = []
    runner.run(test, out=printed.append)
    assert runner.failures == 0, "".join(printed)
    pyplot.close("all")


def test_public_objects_are_found() -> None:
    assert {"cg.train", "cg.LanguageModel", "cg.LanguageModel.generate", "cg.pl.rank_curve", "cg.metrics.ece"} <= {
        *OBJECTS
    }
    assert "cg.datasets.read" not in OBJECTS
