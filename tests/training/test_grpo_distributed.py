"""Two processes align one model: groups of answers are shared out whole, and all processes have the same weights."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from cytoglot.cell_model.load import load_cell_model

SCRIPT = Path(__file__).with_name("process_of_grpo.py")

pytestmark = pytest.mark.slow


def _launch(folder: Path, source: Path, base: Path, prompts_per_step: int) -> subprocess.CompletedProcess[str]:
    grpo = {
        "rewards": {"overlap": {}, "diversity": {}},
        "group_size": 4,
        "prompts_per_step": prompts_per_step,
        "constrained": True,
        "max_answer_tokens": 12,
        "held_out_prompts": 6,
        "probes": "off",
    }
    recipe: dict[str, Any] = {
        "kind": "grpo",
        "model": {"base": str(base)},
        "sentence": {"top_genes": 6},
        "optim": {"steps": 3, "learning_rate": 0.003, "evaluate_every": 3, "batch_size": 4},
        "grpo": grpo,
    }
    settings = {"source": str(source), "out": str(folder / "model"), "recipe": recipe, "seen": str(folder / "seen")}
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--max_restarts", "0"]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(port), str(SCRIPT), str(folder / "settings.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment, check=False)


def test_two_processes_share_the_prompts_of_a_step(cells_file: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    done = _launch(tmp_path, cells_file, tiny_model_folder, prompts_per_step=4)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / "seen" / f"{rank}.json").read_text()) for rank in (0, 1))
    assert [seen["world"] for seen in (first, second)] == [2, 2]
    assert [seen["wrapper"] for seen in (first, second)] == ["DistributedDataParallel"] * 2
    # Steps of four prompts, two for each process; two batches of a step, four answers each.
    for step in range(3):
        shares = [
            sorted(n for batch in seen["numbers"][2 * step : 2 * step + 2] for n in batch) for seen in (first, second)
        ]
        expected = [[4 * step + i for i in (2 * rank, 2 * rank + 1) for _ in range(4)] for rank in (0, 1)]
        assert shares == expected
    assert first["weights"] == second["weights"]
    assert first["weights"][0] != first["weights"][-1]
    model = load_cell_model(tmp_path / "model", device="cpu")
    history = json.loads((tmp_path / "model" / "training.json").read_text())["history"]
    assert [row["step"] for row in history] == [1, 2, 3]
    assert model.spec.labels


def test_prompts_that_cannot_be_shared_out_are_refused(
    cells_file: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    done = _launch(tmp_path, cells_file, tiny_model_folder, prompts_per_step=3)
    assert done.returncode != 0
    assert "grpo.prompts_per_step (3) must be a multiple of the 2 processes" in done.stderr
