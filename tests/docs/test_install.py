"""What the README says of installing: extras resolve to tested versions, and its first lines work when fresh."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONSTRAINTS = sorted(REPOSITORY.glob("constraints-py*.txt"))


def requirements(*extras: str) -> list[Requirement]:
    """Return what the package and the extras ask for by name, without extras that name other extras."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return [asked for line in lines if (asked := Requirement(line)).name != "cytoglot"]


def pins_of(constraints: Path) -> dict[str, Version]:
    """Return package → version of a constraints file."""
    pins = re.findall(r"^([\w.-]+)==(\S+)$", constraints.read_text(encoding="utf-8"), re.MULTILINE)
    return {canonicalize_name(name): Version(version) for name, version in pins}


def test_every_requirement_has_a_lower_bound() -> None:
    """Without one, pip answers a conflict with a release that is years old."""
    asked = requirements(*EXTRAS)
    assert [str(one) for one in asked if not any(part.operator in (">=", "==") for part in one.specifier)] == []


@pytest.mark.parametrize("constraints", CONSTRAINTS, ids=lambda path: path.stem)
def test_the_tested_versions_are_allowed_and_complete(constraints: Path) -> None:
    pins = pins_of(constraints)
    for asked in requirements("lm", "train", "report", "dask", "c2s", "ray", "dev", "test"):
        assert canonicalize_name(asked.name) in pins, f"{constraints.name} has no {asked.name}"
        assert pins[canonicalize_name(asked.name)] in asked.specifier, f"{constraints.name}: {asked}"


def test_each_python_that_the_package_names_has_tested_versions() -> None:
    named = {c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", c)}
    assert {f"constraints-py{version.replace('.', '')}" for version in named} == {path.stem for path in CONSTRAINTS}


def _pip(*arguments: str | Path, python: str | Path = sys.executable) -> None:
    done = subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.index
@pytest.mark.parametrize("extra", [name for name in EXTRAS if name not in ("all", "dev", "test")])
def test_an_extra_resolves_to_no_older_release_than_the_tested_one(extra: str, tmp_path: Path) -> None:
    """pip prefers an ancient release of a package over an error where a newer one conflicts with something else.

    Major and minor version are compared; of an extra that is not in `all`, the major version: vLLM pins many packages.
    """
    depth = 2 if extra in Requirement(EXTRAS["all"][0]).extras else 1
    report = tmp_path / "report.json"
    _pip("install", "--dry-run", "--ignore-installed", "--quiet", "--report", report, f"{REPOSITORY}[{extra}]")
    found = {
        canonicalize_name(one["metadata"]["name"]): Version(one["metadata"]["version"])
        for one in json.loads(report.read_text(encoding="utf-8"))["install"]
    }
    (constraints,) = [path for path in CONSTRAINTS if path.stem.endswith("py{}{}".format(*sys.version_info))]
    pins = pins_of(constraints)
    older = {
        asked.name: f"{found[name]}, tested {pins[name]}"
        for asked in requirements(extra)
        if (name := canonicalize_name(asked.name)) in pins
        and (asked.marker is None or asked.marker.evaluate({**default_environment(), "extra": extra}))
        and found[name].release[:depth] < pins[name].release[:depth]
    }
    assert older == {}


@pytest.mark.slow
def test_the_first_lines_of_the_readme_work_in_a_fresh_environment(tmp_path: Path) -> None:
    """Three commands: make an environment, install, run the first Python block. How long each took is printed (`-s`).

    torch is that of the tested versions, so that the CPU build is taken where pip finds one.
    """
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (script,) = re.findall(r'```python title="first.py"\n(.*?)```', readme, re.DOTALL)
    assert sum(bool(line) for line in script.splitlines()) == 5, "the README promises five lines"
    (tmp_path / "first.py").write_text(script, encoding="utf-8")
    (constraints,) = [path for path in CONSTRAINTS if path.stem.endswith("py{}{}".format(*sys.version_info))]
    python = tmp_path / "env" / "bin" / "python"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    _pip("install", "--quiet", "-c", constraints, "torch", f"{REPOSITORY}[lm,report]", python=python)
    installed = time.perf_counter()
    done = subprocess.run([python, "first.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    print(f"installed in {installed - started:.0f} s, ran in {time.perf_counter() - installed:.0f} s")
    assert (tmp_path / "map.png").stat().st_size > 10_000
    assert (tmp_path / "model" / "model.safetensors").is_file()
