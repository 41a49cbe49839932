"""The examples of CONTRIBUTING.md work: they are built in a copy of the package and pass its contracts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
#: What is copied of the tests beside those of classifiers and embedders: the contracts of tasks and metrics.
_CONTRACTS = (
    "conftest.py",
    "corpus/conftest.py",
    "corpus/read/test_tokenize.py",
    "metrics/test_spec.py",
    "tasks/conftest.py",
    "tasks/task_records.py",
    "tasks/whole_way.py",
    "tasks/test_task.py",
)
_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)


def _append(path: Path, after: str, added: str) -> None:
    """Put a text after another one, which must be there once."""
    text = path.read_text(encoding="utf-8")
    assert text.count(after) == 1, f"{path.name} has {text.count(after)} times {after!r}"
    path.write_text(text.replace(after, after + added), encoding="utf-8")


@pytest.mark.slow
def test_the_worked_examples_pass_the_contracts(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    for part in _CONTRACTS:
        (tmp_path / "tests" / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / "tests" / part, tmp_path / "tests" / part)
    for kind in ("classifiers", "embedders"):
        shutil.copytree(REPOSITORY / "tests" / "benchmark" / kind, tmp_path / "tests" / "benchmark" / kind)
    loose = []
    for language, title, text in _BLOCK.findall((REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        if title == "src/cytoglot/metrics/generation.py":
            path = tmp_path / title
            path.write_text(path.read_text(encoding="utf-8") + "\n\n" + text, encoding="utf-8")
        elif title:
            (tmp_path / title).write_text(text, encoding="utf-8")
        elif language == "python":
            loose.append(text)
    package = tmp_path / "src" / "cytoglot"
    _append(package / "benchmark" / "classifiers" / "base.py", '"nearest_neighbors"', ', "naive_bayes"')
    _append(package / "benchmark" / "embedders" / "base.py", '"random_vectors"', ', "few_components"')
    entry = '    "leading_overlap": (SENTENCES[0], SENTENCES[1]),\n'
    _append(tmp_path / "tests" / "metrics" / "test_spec.py", "ARGUMENTS = {\n", entry)
    (tmp_path / "loose.py").write_text("\n".join(re.sub(r"^from __future__.*\n", "", t) for t in loose))
    recipe = (
        "from cytoglot.config import load_recipe; from cytoglot.training.recipe import TrainRecipe; "
        "assert load_recipe(TrainRecipe, 'recipe.yaml').tasks['leading_gene'] == 0.1"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1"}
    chosen = (
        "leading_gene or treatment_response or neighbor_annotation or naive_bayes or few_components or leading_overlap"
    )
    for command in (["-c", recipe], ["loose.py"], ["-m", "pytest", "-q", "-p", "no:randomly", "tests", "-k", chosen]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    n_expected = 3 + 2 + 2 + 3 * 18 + 3 + 1 + 7 + 2
    assert int(passed.group(1)) >= n_expected, "the new tasks, metric, classifier and embedder are in the contracts"
