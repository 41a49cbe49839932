"""Two processes on a CPU (gloo) train the very model that one trains; a killed one ends the run, which goes on later.

Some launchers run one process where two were asked for and end well: what each process saw is looked at, not the exit
status.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from safetensors.numpy import load_file

from cytoglot.training.recipe import TrainRecipe

SCRIPT = Path(__file__).with_name("process_of_run.py")

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def launch(
    n_processes: int, folder: Path, source: Path, recipe: TrainRecipe, *, stop_at: int | None = None, **optim: Any
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Run a training of so many processes; return how it ended and the folder of the model."""
    values = recipe.model_dump(mode="json", exclude_unset=True)
    values["optim"] = {**values["optim"], "steps": 6, "evaluate_every": 3, **optim}
    folder.mkdir(exist_ok=True)
    settings = {
        "source": str(source),
        "out": str(folder / "model"),
        "recipe": values,
        "seen": str(folder / "seen"),
        "stop_at": stop_at,
    }
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable]
    if n_processes > 1:
        command += ["-m", "torch.distributed.run", "--nproc_per_node", str(n_processes), "--max_restarts", "0"]
        command += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, str(SCRIPT), str(folder / "settings.json")],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    return done, folder / "model"


def what_was_seen(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "seen").glob("*.json"))]


def losses(model: Path) -> list[tuple[float | None, float | None]]:
    rows = json.loads((model / "training.json").read_text(encoding="utf-8"))["history"]
    return [(row["train_loss"], row["validation_loss"]) for row in rows]


def assert_same_model(one: Path, other: Path) -> None:
    first, second = (load_file(model / "model.safetensors") for model in (one, other))
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_allclose(values, second[name], atol=2e-5, err_msg=name)
    for (train, validation), (train_2, validation_2) in zip(losses(one), losses(other), strict=True):
        assert (train is None) == (train_2 is None)
        assert (validation is None) == (validation_2 is None)
        if train is not None:
            assert train == pytest.approx(train_2, rel=1e-5)
        if validation is not None:
            assert validation == pytest.approx(validation_2, rel=1e-5)


def test_two_processes_train_the_model_of_one(cells_file: Path, tiny_recipe: TrainRecipe, tmp_path: Path) -> None:
    done, alone = launch(1, tmp_path / "one", cells_file, tiny_recipe, batch_size=8, readers=2)
    assert done.returncode == 0, done.stderr
    done, together = launch(2, tmp_path / "two", cells_file, tiny_recipe, batch_size=4)
    assert done.returncode == 0, done.stderr
    (single,), pair = what_was_seen(tmp_path / "one"), what_was_seen(tmp_path / "two")
    assert single["world"] == 1
    assert [seen["rank"] for seen in pair] == [0, 1]
    assert {seen["world"] for seen in pair} == {2}
    assert {seen["wrapper"] for seen in pair} == {"DistributedDataParallel"}
    assert pair[0]["examples"] != pair[1]["examples"]
    # Each step has the same examples, shared out.
    for step, examples in enumerate(single["examples"]):
        assert examples == sorted(pair[0]["examples"][step] + pair[1]["examples"][step])
    assert_same_model(alone, together)


def test_a_killed_process_ends_the_run_which_goes_on_later(
    cells_file: Path, tiny_recipe: TrainRecipe, tmp_path: Path
) -> None:
    done, whole = launch(2, tmp_path / "whole", cells_file, tiny_recipe, batch_size=4)
    assert done.returncode == 0, done.stderr
    done, model = launch(2, tmp_path / "killed", cells_file, tiny_recipe, batch_size=4, stop_at=4)
    assert done.returncode != 0
    assert (model / ".work").is_dir()
    assert not (model / "cytoglot.json").exists()
    done, model = launch(2, tmp_path / "killed", cells_file, tiny_recipe, batch_size=4)
    assert done.returncode == 0, done.stderr
    assert "resuming from step 3" in done.stderr
    assert_same_model(whole, model)


def test_a_launcher_that_starts_one_of_two_is_refused(
    cells_file: Path, tiny_recipe: TrainRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cytoglot.errors import InputError
    from cytoglot.training.loop import distributed as processes

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "PartialState", lambda **_: None)  # as where the launcher's variables are missing
    with pytest.raises(InputError, match=r"expected 2 processes \(WORLD_SIZE\), found 1"):
        processes.join_processes("cpu")
