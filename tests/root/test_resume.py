"""Parts of an output: kept through a kill, taken by the same call alone, and gone when the output is whole."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cytoglot.errors import InputError, ResourceError
from cytoglot.resume import Parts, changes, parts_folder

SETTINGS = {"model": "abc", "data": "123", "seed": 1, "context": {"tissue": "blood"}}


def write_then_fail(parts: Parts, error: BaseException, *names: int | str) -> None:
    for name in names:
        parts.write(name, pa.table({"a": [1]}))
    raise error


def test_changes_are_told_by_name() -> None:
    assert changes({}, {"a": None}) == "other settings"
    assert changes(SETTINGS, {**SETTINGS, "model": "other"}) == "another model"
    new = {"model": "abc", "data": "456", "seed": 2, "context": {"tissue": "lung"}, "labels": ["x" * 50]}
    assert changes(SETTINGS, new) == 'context.tissue "blood" (now "lung"), another data, another labels, seed 1 (now 2)'
    assert changes({"a": 1}, {}) == "a 1 (now null)"


def test_parts_are_kept_for_the_same_settings_alone(tmp_path: Path) -> None:
    output = tmp_path / "sub" / "out.parquet"
    with pytest.raises(KeyboardInterrupt), Parts(output, SETTINGS).opened() as parts:
        write_then_fail(parts, KeyboardInterrupt(), 0, "rates")
    with pytest.raises(InputError, match=r"made with seed 1 \(now 2\); repeat the command that made them, or pass"):
        Parts(output, {**SETTINGS, "seed": 2}).opened().__enter__()
    with Parts(output, SETTINGS).opened() as parts:
        assert parts.missing(3) == [1, 2]
        assert parts.read("rates")["a"].to_pylist() == [1]
        with parts.whole() as path:
            pq.write_table(parts.read(0), path)
    assert pq.read_table(output)["a"].to_pylist() == [1]
    assert [path.name for path in output.parent.iterdir()] == ["out.parquet"]


def test_a_fault_of_the_input_leaves_nothing_unless_asked(tmp_path: Path) -> None:
    for keep in (False, True):
        with pytest.raises(InputError, match="NaN"), Parts(tmp_path / "o", {}).opened(keep_at_fault=keep) as parts:
            write_then_fail(parts, InputError("NaN"), 0)
        assert parts_folder(tmp_path / "o").exists() == keep


def test_settings_without_a_part_and_overwrite_begin_anew(tmp_path: Path) -> None:
    for number, names in ((1, ()), (2, (0,)), (3, (0,))):
        parts = Parts(tmp_path / "o", {"a": number})
        with pytest.raises(KeyboardInterrupt), parts.opened(overwrite=number == 3):
            write_then_fail(parts, KeyboardInterrupt(), *(parts.missing(1) and names))
        assert parts.missing(1) == [] if names else [0]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_and_parts_are_kept(tmp_path: Path, number: int) -> None:
    full, parts = OSError(number, os.strerror(number)), Parts(tmp_path / "o", {})
    with pytest.raises(ResourceError, match=r"no space left for .*goes on from the parts"), parts.opened():
        write_then_fail(parts, full, 0)
    assert Parts(tmp_path / "o", {}).missing(1) == []


WORKER = """
    import sys, time
    from pathlib import Path
    import numpy as np, pyarrow as pa, pyarrow.parquet as pq
    from cytoglot.resume import Parts

    with Parts(Path(sys.argv[1]), {"a": 1}).opened() as parts:
        print("begun", flush=True)
        for number in parts.missing(40):
            parts.write(number, pa.table({"x": np.random.default_rng(number).random(2000)}))
        with parts.whole() as path, pq.ParquetWriter(path, parts.read(0).schema) as writer:
            for number in range(40):
                writer.write_table(parts.read(number))
"""


def test_killed_at_random_and_gone_on_with_ends_with_the_same_bytes(tmp_path: Path) -> None:
    code, rng = textwrap.dedent(WORKER), np.random.default_rng(0)
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "whole.parquet")], check=True, capture_output=True)
    broken = tmp_path / "broken.parquet"
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", code, str(broken)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        with process.stdout:
            try:
                process.wait(timeout=rng.uniform(0.0, 0.15))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
        if broken.exists():
            break
    subprocess.run([sys.executable, "-c", code, str(broken)], check=True, capture_output=True)
    assert broken.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.parquet", "whole.parquet"]
