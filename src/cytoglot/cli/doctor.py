"""What is installed here, what it can do, and what to install for the rest."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from cytoglot.extras import EXTRAS
from cytoglot.manifest import package_versions

_NEEDED_FOR = {
    "lm": "train, annotate, embed, generate, evaluate",
    "train": "LoRA (peft) and GRPO (trl)",
    "report": "highly variable genes, plots, reports, the demo",
    "dask": "encoding dask arrays",
    "c2s": "reading cell2sentence data sets through `datasets`",
    "census": "corpora of cells from CELLxGENE Census",
    "ray": "building corpora on a Ray cluster",
}


def examine() -> dict[str, Any]:
    """Return versions, extras with what is missing, devices and threads."""
    extras = []
    for name, modules in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        fix = f"pip install 'cytoglot[{name}]'" if missing else ""
        state = "missing: " + ", ".join(missing) if missing else "installed"
        extras.append({"extra": name, "state": state, "needed_for": _NEEDED_FOR[name], "install": fix})
    return {
        "versions": [{"package": name, "version": version} for name, version in package_versions().items()],
        "extras": extras,
        "devices": _devices(),
        "threads": _threads(),
        "data_folder": _data_folder(),
    }


def _devices() -> list[dict[str, Any]]:
    devices: list[dict[str, Any]] = [{"device": "cpu", "name": f"{os.cpu_count()} cores"}]
    if importlib.util.find_spec("torch") is None:
        return devices
    import torch

    devices += [
        {"device": f"cuda:{i}", "name": torch.cuda.get_device_name(i)}
        for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    ]
    if torch.mps.is_available():
        devices.append({"device": "mps", "name": "Apple GPU"})
    return devices


def _threads() -> list[dict[str, Any]]:
    import numba

    threads = [{"library": "numba", "threads": numba.get_num_threads()}]
    if importlib.util.find_spec("torch") is not None:
        import torch

        threads.append({"library": "torch", "threads": torch.get_num_threads()})
    threads.append({"library": "OMP_WAIT_POLICY", "threads": os.environ.get("OMP_WAIT_POLICY", "not set")})
    return threads


def _data_folder() -> str:
    from cytoglot.data.datasets import data_folder

    folder = data_folder()
    return str(folder) if folder else "none (set CYTOGLOT_DATA to a folder of .h5ad files)"
