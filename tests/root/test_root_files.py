"""errors, extras, atomic, registry, config, manifest, answer_format: the files every stage leans on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from cytoglot.answer_format import DistinctWords, OneOf
from cytoglot.atomic import atomic_path, write_json, write_text
from cytoglot.config import Settings, load_recipe
from cytoglot.errors import InputError, MissingExtraError, UnknownNameError
from cytoglot.extras import require
from cytoglot.manifest import Manifest, file_stamp, fingerprint_file, fingerprint_texts
from cytoglot.registry import Registry


def test_import_loads_neither_torch_nor_plotting() -> None:
    code = (
        "import cytoglot, sys; print([m for m in ('torch','transformers','scanpy','matplotlib') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_unknown_name_lists_the_nearest_and_reads_as_a_sentence() -> None:
    registry: Registry[int] = Registry("task")
    registry.register("annotation")(1)
    with pytest.raises(UnknownNameError, match="did you mean 'annotation'") as caught:
        registry["anotation"]
    assert not str(caught.value).startswith("'")


def test_a_name_is_taken_once() -> None:
    registry: Registry[int] = Registry("task")
    registry.register("a")(1)
    with pytest.raises(ValueError, match="registered already"):
        registry.register("a")(2)


def test_missing_extra_names_the_install_command() -> None:
    with pytest.raises(MissingExtraError, match=r"plots needs 'no_such_module'.*pip install 'cytoglot\[report\]'"):
        require("no_such_module", extra="report", purpose="plots")


def test_atomic_path_leaves_the_old_file_when_the_writer_fails(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def interrupted() -> None:
        with atomic_path(target) as path:
            path.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        interrupted()
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_atomic_path_replaces_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for content in ("one", "two"):
        with atomic_path(target) as path:
            path.mkdir()
            (path / "x").write_text(content)
    assert (target / "x").read_text() == "two"
    assert len(list(tmp_path.iterdir())) == 1


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


class _Inner(Settings):
    steps: int = 10


class _Outer(Settings):
    name: str = "x"
    inner: _Inner = _Inner()


def test_recipe_takes_yaml_and_overrides(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: y\ninner:\n  steps: 3\n")
    assert load_recipe(_Outer, recipe, ["inner.steps=5"]) == _Outer(name="y", inner=_Inner(steps=5))


@pytest.mark.parametrize(
    "overrides",
    [
        ["inner.steps=5", "table={c: 3}"],
        "inner.steps=5\ntable={c: 3}",
        {"inner.steps": 5, "table": {"c": 3}},
        {"inner": {"steps": 5}, "table": {"c": 3}},
    ],
)
def test_overrides_are_texts_a_text_or_a_mapping(overrides: Any, tmp_path: Path) -> None:
    class Recipe(_Outer):
        table: dict[str, int] = {}
        inner: _Inner | None = None

    (tmp_path / "r.yaml").write_text("inner: null\ntable: {a: 1, b: 2}\n")
    expected = Recipe(inner=_Inner(steps=5), table={"c": 3})
    assert load_recipe(Recipe, tmp_path / "r.yaml", overrides) == expected
    read = load_recipe(Recipe, Recipe(name="z", table={"a": 1}), overrides)
    assert read == expected.model_copy(update={"name": "z"})
    assert read.model_fields_set == {"name", "inner", "table"}


def test_a_group_in_a_mapping_leaves_its_other_settings() -> None:
    class Pair(Settings):
        first: int = 1
        second: int = 1

    class Recipe(Settings):
        pair: Pair = Pair()

    recipe = load_recipe(Recipe, Recipe(pair=Pair(first=2)), {"pair": {"second": 3}})
    assert recipe.pair == Pair(first=2, second=3)
    with pytest.raises(InputError, match=r"unknown key 'pair\.third', known: 'first', 'second'"):
        load_recipe(Recipe, None, {"pair": {"third": 3}})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["inner.stepz=5"], "unknown key 'inner.stepz', did you mean 'steps'"),
        (["inner.steps=many"], "inner.steps: .*found 'many'"),
        (["steps"], "must look like a.b=value"),
        (["name=x", "name.y=1"], "is a value and not a group"),
    ],
)
def test_recipe_faults_say_what_to_do(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe(_Outer, None, overrides)


def test_a_recipe_means_words_by_on_and_off(tmp_path: Path) -> None:
    class Switches(Settings):
        mode: Literal["on", "off"]
        flag: bool = False

    recipe = tmp_path / "r.yaml"
    recipe.write_text("mode: off\nflag: yes\n")
    assert load_recipe(Switches, recipe) == Switches(mode="off", flag=True)
    assert load_recipe(Switches, None, ["mode=on", "flag=true"]) == Switches(mode="on", flag=True)


def test_a_recipe_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes("name: café\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"r\.yaml cannot be read as UTF-8; save it as UTF-8 text"):
        load_recipe(_Outer, tmp_path / "r.yaml")


class _Sources(Settings):
    several: list[_Outer] = []
    by_name: dict[str, _Inner] = {}
    perhaps: _Inner | None = None
    either: int | _Inner = 3
    plain: dict[str, str] = {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("several: [{name: x}, {nam: y}]", r"unknown key 'several\.1\.nam', did you mean 'name'"),
        ("several: [{inner: {stepz: 1}}]", r"unknown key 'several\.0\.inner\.stepz', did you mean 'steps'"),
        ("by_name: {a: {stepz: 1}}", r"unknown key 'by_name\.a\.stepz', did you mean 'steps'"),
        ("perhaps: {stepz: 1}", r"unknown key 'perhaps\.stepz', did you mean 'steps'"),
        ("either: {stepz: 1}", r"either\._Inner\.stepz', did you mean 'steps'"),
        ("seeveral: []", r"unknown key 'seeveral', did you mean 'several'"),
    ],
)
def test_a_misspelt_key_anywhere_in_a_recipe_has_a_suggestion(tmp_path: Path, values: str, message: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(values)
    with pytest.raises(InputError, match=message):
        load_recipe(_Sources, recipe)


def test_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_recipe(_Outer, tmp_path / "none.yaml")


def test_fingerprints_tell_order_and_boundaries_apart(tmp_path: Path) -> None:
    assert fingerprint_texts(["ab", "c"]) != fingerprint_texts(["a", "bc"])
    assert fingerprint_texts(["a", "b"]) != fingerprint_texts(["b", "a"])
    (tmp_path / "f").write_text("x")
    before = fingerprint_file(tmp_path)
    (tmp_path / "f").write_text("y")
    assert fingerprint_file(tmp_path) != before


@pytest.mark.parametrize("n_bytes", [0, 5, (1 << 23) + 7, 1 << 24])
def test_the_fingerprint_of_a_file_sees_every_byte(n_bytes: int, tmp_path: Path) -> None:
    """An edit in place between the blocks of a sample would not be seen by a sample."""
    path, rng = tmp_path / "file", np.random.default_rng(0)
    content = bytearray(rng.bytes(n_bytes))
    path.write_bytes(content)
    seen = {fingerprint_file(path)}
    for place in {0, n_bytes // 3, n_bytes - 1, *rng.integers(0, max(n_bytes, 1), 3).tolist()} if n_bytes else ():
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert fingerprint_file(path) not in seen
        seen.add(fingerprint_file(path))
    path.write_bytes(content)
    assert fingerprint_file(path) in seen
    path.rename(tmp_path / "other name")
    assert fingerprint_file(tmp_path / "other name") in seen


def test_the_fingerprint_of_a_folder_sees_every_file_whatever_its_time(tmp_path: Path) -> None:
    for i in range(80):  # zarr has a file for each chunk
        (tmp_path / f"{i:02}").write_bytes(bytes(10))
    before, stamp = fingerprint_file(tmp_path), file_stamp(tmp_path)
    times = (tmp_path / "41").stat()
    (tmp_path / "41").write_bytes(bytes(9) + b"x")
    os.utime(tmp_path / "41", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprint_file(tmp_path) != before
    assert file_stamp(tmp_path) != stamp
    (tmp_path / "41").write_bytes(bytes(10))
    assert fingerprint_file(tmp_path) == before
    (tmp_path / "41").rename(tmp_path / "99")
    assert fingerprint_file(tmp_path) != before


def test_manifest_round_trip() -> None:
    manifest = Manifest(command="encode", config={"a": 1}, seeds={"s": 0}, inputs={"x": "ff"})
    assert Manifest.from_dict(manifest.to_dict()) == manifest
    assert "numpy" in manifest.versions


def test_answer_formats_check_themselves() -> None:
    with pytest.raises(ValueError, match="2 options, 1 distinct"):
        OneOf(options=("a", "a"))
    with pytest.raises(ValueError, match="min_words <= max_words"):
        DistinctWords(words=("A", "B"), min_words=1, max_words=3)
    with pytest.raises(ValueError, match="free of spaces"):
        DistinctWords(words=("A B", "C"), min_words=1, max_words=1)
