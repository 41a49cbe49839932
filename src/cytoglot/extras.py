"""Optional dependencies: one place that imports them and says what to install when they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from cytoglot.errors import MissingExtraError

#: extra → the modules it brings, as imported; `cytoglot doctor` reads this table.
EXTRAS: dict[str, tuple[str, ...]] = {
    "lm": ("torch", "transformers", "accelerate", "safetensors", "tokenizers"),
    "base": ("gguf",),
    "train": ("peft", "trl", "datasets"),
    "report": ("scanpy", "matplotlib", "umap"),
    "bench": ("harmonypy",),
    "dask": ("dask",),
    "c2s": ("datasets",),
    "census": ("tiledbsoma", "cellxgene_census"),
    "ray": ("ray",),
    "vllm": ("vllm",),
    "deepspeed": ("deepspeed",),
}


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or raise `MissingExtraError` naming the extra that brings it and what it is needed for."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A module that is there but whose own import fails is a broken install: let that error through.
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        message = f"{purpose} needs {module!r}, which is not installed; run: pip install 'cytoglot[{extra}]'"
        raise MissingExtraError(message) from error
