"""What is installed here, what it can do, and what to install for the rest."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numba
from packaging.requirements import InvalidRequirement, Requirement

from cytoglot.data.datasets import data_folder
from cytoglot.extras import EXTRAS
from cytoglot.manifest import package_versions

_NEEDED_FOR = {
    "lm": "train, annotate, embed, generate, evaluate",
    "base": "the base model of `cytoglot data get smollm2-135m`",
    "train": "LoRA (peft) and GRPO (trl)",
    "report": "highly variable genes, plots, reports, the demo",
    "bench": "Harmony in comparisons of methods",
    "dask": "encoding dask arrays",
    "c2s": "reading cell2sentence data sets through `datasets`",
    "census": "corpora of cells from CELLxGENE Census",
    "ray": "building corpora and answering prompts on a Ray cluster",
    "vllm": "answering prompts by vLLM, here or while aligning",
    "deepspeed": "sharing weights among GPUs by DeepSpeed (FSDP2 needs nothing)",
}


def examine() -> dict[str, Any]:
    """Return versions, extras with what is missing, devices and threads."""
    extras = []
    for name, modules in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        fix = f"pip install 'cytoglot[{name}]'" if missing else ""
        state = "missing: " + ", ".join(missing) if missing else "installed"
        extras.append({"extra": name, "state": state, "needed_for": _NEEDED_FOR[name], "install": fix})
    devices: list[dict[str, Any]] = [{"device": "cpu", "name": f"{os.cpu_count()} cores"}]
    threads: list[dict[str, Any]] = [{"library": "numba", "threads": numba.get_num_threads()}]
    if importlib.util.find_spec("torch") is not None:
        import torch

        n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        devices += [{"device": f"cuda:{i}", "name": torch.cuda.get_device_name(i)} for i in range(n_gpus)]
        if torch.mps.is_available():
            devices.append({"device": "mps", "name": "Apple GPU"})
        threads.append({"library": "torch", "threads": torch.get_num_threads()})
    threads.append({"library": "OMP_WAIT_POLICY", "threads": os.environ.get("OMP_WAIT_POLICY", "not set")})
    return {
        "versions": [{"package": name, "version": version} for name, version in package_versions().items()],
        "extras": extras,
        "training_stack": training_stack(installed_requirements()),
        "devices": devices,
        "threads": threads,
        "data_folder": str(data_folder() or "none (set CYTOGLOT_DATA to a folder of .h5ad files)"),
    }


#: Packages that train, align and serve language models, and whose versions must fit each other.
_STACK = ("torch", "transformers", "accelerate", "peft", "trl", "vllm", "deepspeed", "bitsandbytes")
_FORBIDS = {
    "peft": "lora in a recipe",
    "trl": "kind: grpo in a recipe",
    "vllm": "grpo.vllm colocate or server, and --backend vllm",
    "deepspeed": "deepspeed in a recipe",
    "bitsandbytes": "lora.quantize",
}


def installed_requirements() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return package → its version and what it says it needs, extras included, of the installed part of the stack."""
    found = {}
    for name in _STACK:
        try:
            found[name] = (metadata.version(name), tuple(metadata.requires(name) or ()))
        except metadata.PackageNotFoundError:
            continue
    return found


def training_stack(installed: Mapping[str, tuple[str, tuple[str, ...]]]) -> list[dict[str, str]]:
    """Return, for each package of the stack, its version, with which others it clashes, and what that forbids.

    A clash is a version outside of what another package asks for by its own metadata; what it asks for in an extra
    counts where the package of that extra is installed, since it will be used then.
    """
    rows = []
    for name in _STACK:
        if name not in installed:
            forbidden = _FORBIDS.get(name, "everything that trains")
            rows.append({"package": name, "version": "not installed", "clashes": "", "forbids": forbidden})
            continue
        # what the package asks of others that are there in another version
        clashes: dict[str, None] = {}
        for line in installed[name][1]:
            try:
                asked = Requirement(line)
            except InvalidRequirement:
                continue
            other = asked.name.lower()
            if other == name or other not in installed:
                continue
            # A requirement counts always, or by an extra that is named like an installed package.
            extras = ["", *(package for package in installed if package != name)]
            if asked.marker is not None and not any(asked.marker.evaluate({"extra": extra}) for extra in extras):
                continue
            version = installed[other][0]
            if not asked.specifier.contains(version.split("+")[0], prereleases=True):
                clashes[f"wants {other}{asked.specifier}, found {version}"] = None
        forbidden = _FORBIDS.get(name, "training") if clashes else ""
        rows.append(
            {"package": name, "version": installed[name][0], "clashes": "; ".join(clashes), "forbids": forbidden}
        )
    return rows
