"""Full disks, kills and absent extras: nothing half-written, a clear line, and the same command goes on."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from cytoglot.data.synthetic import make_cells
from cytoglot.resume import Parts

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def larger_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("larger") / "larger.h5ad"
    make_cells(n_cells=3000, n_genes=400, seed=4).write_h5ad(path)
    return path


def _cytoglot(*arguments: str | Path, code: str = "", **options: Any) -> subprocess.Popen[str]:
    """Start a real process; `code` runs before the command line does."""
    script = f"{code}\nfrom cytoglot.cli.main import main\nmain({[str(a) for a in arguments]!r})"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_full_disk_in_the_middle_of_encode(
    command: Command, larger_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole.parquet", tmp_path / "broken.parquet"
    arguments = ["--chunk-cells", "500", "--text", "--json"]
    assert command("encode", larger_file, "-o", whole, *arguments).code == 0
    write = Parts.write

    def fill_the_disk(self: Parts, number: int | str, table: Any) -> None:
        if number == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, number, table)

    with monkeypatch.context() as patched:
        patched.setattr(Parts, "write", fill_the_disk)
        outcome = command("encode", larger_file, "-o", broken, *arguments)
    assert outcome.code == 1
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"cytoglot: no space left for {broken}; free some and run the same command again")
    assert not broken.exists()
    assert command("encode", larger_file, "-o", broken, *arguments).result["cells"] == 3000
    assert broken.read_bytes() == whole.read_bytes()
    assert _names(tmp_path) == ["broken.parquet", "whole.parquet"]


def test_a_limit_on_file_sizes_leaves_no_half_written_file(larger_file: Path, tmp_path: Path) -> None:
    """The system refuses the bytes itself, as a full disk does."""
    out = tmp_path / "out.parquet"
    process = _cytoglot(
        "encode",
        larger_file,
        "-o",
        out,
        "--json",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    printed, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert printed == ""
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("cytoglot: ")
    assert not out.exists()


def test_a_kill_in_the_middle_of_encode(command: Command, larger_file: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.parquet", tmp_path / "broken.parquet"
    arguments = ["--chunk-cells", "100", "--ties", "rare_first", "--json"]
    assert command("encode", larger_file, "-o", whole, *arguments).code == 0
    slowly = (
        "import time\nfrom cytoglot.resume import Parts\nwrite = Parts.write\n"
        "def slow(*a):\n    time.sleep(0.1)\n    write(*a)\nParts.write = slow"
    )
    process = _cytoglot("encode", larger_file, "-o", broken, *arguments, code=slowly)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".broken*/part-000003*")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not broken.exists()
    assert command("encode", larger_file, "-o", broken, *arguments).result["cells"] == 3000
    assert broken.read_bytes() == whole.read_bytes()
    assert _names(tmp_path) == ["broken.parquet", "whole.parquet"]


def test_a_full_disk_in_the_middle_of_embed(
    command: Command, cells_file: Path, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.h5ad"
    out.write_bytes(b"an older result")
    write = Parts.write

    def fill_the_disk(self: Any, number: int, vectors_nd: Any) -> None:
        if number == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, number, vectors_nd)

    arguments = ["embed", cells_file, "--model", tiny_model_folder, "-o", out, "--chunk-cells", "60", "--json"]
    arguments += ["--overwrite"]
    with monkeypatch.context() as patched:
        patched.setattr(Parts, "write", fill_the_disk)
        outcome = command(*arguments)
    assert outcome.code == 1
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("cytoglot: ")]
    assert line.startswith(f"cytoglot: no space left for {out}; free some and run the same command again")
    assert out.read_bytes() == b"an older result"
    assert command(*arguments).result["resumed_cells"] == 120
    assert _names(tmp_path) == ["out.h5ad"]


@pytest.mark.slow
def test_a_kill_in_the_middle_of_embed(
    command: Command, cells_file: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole.h5ad", tmp_path / "broken.h5ad"
    arguments = ["embed", cells_file, "--model", tiny_model_folder, "--chunk-cells", "20", "--device", "cpu", "--json"]
    command(*arguments, "-o", whole).result
    slowly = (
        "import time\nfrom cytoglot.resume import Parts\nwrite = Parts.write\n"
        "def slow(*a):\n    write(*a)\n    time.sleep(0.3)\nParts.write = slow"
    )
    process = _cytoglot(*arguments, "-o", broken, code=slowly)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".broken*/part-000003*")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not broken.exists()
    result = command(*arguments, "-o", broken).result
    assert 80 <= result["resumed_cells"] < 240
    assert broken.read_bytes() == whole.read_bytes()
    assert _names(tmp_path) == ["broken.h5ad", "whole.h5ad"]


@pytest.mark.parametrize("name", ["annotate", "generate"])
def test_a_full_disk_while_cells_are_written(
    command: Command,
    name: str,
    cells_file: Path,
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out.h5ad"
    out.write_bytes(b"an older result")

    def fill_the_disk(self: AnnData, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half of a file")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(AnnData, "write_h5ad", fill_the_disk)
    source = ["-n", "2"] if name == "generate" else [cells_file]
    outcome = command(name, *source, "--model", tiny_model_folder, "-o", out, "--overwrite", "--json")
    assert outcome.code == 1
    assert outcome.out == ""
    assert f"cytoglot: no space left for {out}; free some and run the same command again" in outcome.err
    assert _names(tmp_path) == [".out.h5ad.unfinished", "out.h5ad"]
    assert out.read_bytes() == b"an older result"


def test_a_fault_of_ours_is_one_line_without_a_traceback(
    command: Command, cells_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("several\nlines")

    monkeypatch.setattr("cytoglot.sentence.encode_file.encode_file", broken)
    outcome = command("encode", cells_file, "-o", tmp_path / "o.parquet")
    assert outcome.code == 1
    assert outcome.err == "cytoglot: internal error, RuntimeError: several lines (CYTOGLOT_DEBUG=1 shows where)\n"
    monkeypatch.setenv("CYTOGLOT_DEBUG", "1")
    assert "Traceback" in command("encode", cells_file, "-o", tmp_path / "o.parquet").err


_WITHOUT = """
import importlib.util
import sys
blocked, look = {blocked!r}, importlib.util.find_spec
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
importlib.util.find_spec = lambda name, package=None: None if name in blocked else look(name, package)
"""
_LM = ("torch", "transformers", "accelerate", "tokenizers", "safetensors")
_REPORT = ("scanpy", "matplotlib", "umap")


def test_cells_and_sentences_need_no_extra(cells_file: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    """One process, as imports cost more than the work."""
    encoded, expression = str(tmp_path / "o.parquet"), str(tmp_path / "o.h5ad")
    ties = ["--ties", "rare_first"]
    commands = [
        ["audit", str(cells_file), "--json"],
        ["encode", str(cells_file), "-o", encoded, *ties, "--tie-rates", str(tiny_model_folder), "--json"],
        ["encode", str(cells_file), "-o", encoded, "--dry-run", "--json"],
        ["decode", encoded, "--model", str(tiny_model_folder), "-o", expression, "--json"],
        ["doctor", "--json"],
    ]
    script = _WITHOUT.format(blocked=(*_LM, *_REPORT)) + (
        f"from cytoglot.cli.main import run\nimport cytoglot\nfor c in {commands!r}:\n    assert run(c) == 0, c\n"
        f"assert not set(sys.modules) & set(blocked)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(commands)


def test_a_missing_extra_is_named(cells_file: Path, tmp_path: Path) -> None:
    model, out = ["--model", "m"], ["-o", str(tmp_path / "o.h5ad")]
    commands = [
        (["train", str(cells_file), "--label", "cell_type", "-o", str(tmp_path / "m")], "lm"),
        (["annotate", str(cells_file), *model, *out], "lm"),
        (["generate", *model, *out], "lm"),
        (["encode", str(cells_file), "--hvg", "20", "-o", str(tmp_path / "o.parquet")], "report"),
        (["reconstruct", str(cells_file), "-o", str(tmp_path / "r")], "report"),
    ]
    script = _WITHOUT.format(blocked=(*_LM, *_REPORT)) + (
        f"from cytoglot.cli.main import run\nfor c, extra in {commands!r}:\n    assert run(c) == 2, c\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == len(commands)
    for line, (_, extra) in zip(lines, commands, strict=True):
        assert f"pip install 'cytoglot[{extra}]'" in line
    assert list(tmp_path.iterdir()) == []


def test_a_real_process_prints_one_object_and_logs_elsewhere(cells_file: Path, tmp_path: Path) -> None:
    process = _cytoglot("encode", cells_file, "-o", tmp_path / "o.parquet", "--json")
    printed, said = process.communicate(timeout=120)
    assert process.returncode == 0
    assert json.loads(printed)["cells"] == 240
    assert "integer counts" in said
    refused = _cytoglot("encode", tmp_path / "nowhere.h5ad", "-o", tmp_path / "o.parquet")
    printed, said = refused.communicate(timeout=120)
    assert (refused.returncode, printed) == (2, "")
    assert len(said.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["encode", "embed", "answer", "annotate", "generate"])
def test_killed_at_random_and_repeated_ends_with_the_same_bytes(
    command: Command, name: str, cells_file: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("".join(f"A cell of {i} genes is a\n" for i in range(24)))
    model = ["--model", tiny_model_folder, "--device", "cpu"]
    arguments: list[Any] = {
        "encode": [cells_file, "--chunk-cells", "20", "--ties", "rare_first", "--text"],
        "embed": [cells_file, *model, "--chunk-cells", "20"],
        "answer": [tmp_path / "prompts.txt", *model, "--format", "free_text: 4", "--chunk-prompts", "2"],
        "annotate": [cells_file, *model, "--chunk-cells", "20"],
        "generate": [*model, "-n", "24", "--n-genes", "4", "--chunk-cells", "2"],
    }[name]
    suffix = ".h5ad" if name in ("annotate", "generate", "embed") else ".parquet"
    whole, broken = tmp_path / f"whole{suffix}", tmp_path / f"broken{suffix}"
    command(name, *arguments, "-o", whole, "--json").result
    slowly = (
        "import time\nfrom cytoglot.resume import Parts\nwrite = Parts.write\n"
        "def slow(*a):\n    write(*a)\n    time.sleep(0.2)\nParts.write = slow"
    )
    rng = np.random.default_rng(sum(name.encode()))
    for first in (0, 4):
        process = _cytoglot(name, *arguments, "-o", broken, "--json", code=slowly)
        deadline, last = time.monotonic() + 300, first + int(rng.integers(0, 4))
        while not list(tmp_path.glob(f".broken*/part-{last:06d}*")) and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not broken.exists()
    command(name, *arguments, "-o", broken, "--json").result
    if name == "answer":  # log-probabilities of another process may round otherwise; the answers are the same
        mine, other = (pd.read_parquet(path) for path in (broken, whole))
        pd.testing.assert_frame_equal(mine, other, check_exact=False, rtol=1e-4, atol=1e-5)
    else:
        assert broken.read_bytes() == whole.read_bytes()
    assert _names(tmp_path) == [broken.name, "prompts.txt", whole.name]
