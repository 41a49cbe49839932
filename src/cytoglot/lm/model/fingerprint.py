"""What tells one language model from another: its weights and its tokenizer, as 16 hex digits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.sources import commit_of, find_adapter
from cytoglot.manifest import fingerprint_bytes, fingerprint_of, fingerprint_texts

_VALUES_PER_TENSOR = 1024


def model_fingerprint(lm: LanguageModel) -> str:
    """Fingerprint the weights, their type and the tokenizer, wherever the model came from and on whatever device.

    Up to 1,024 evenly spaced values of each tensor are read, so that it takes no time beside the loading; a step of
    training changes nearly all of them.
    """
    return fingerprint_bytes(_parts(lm))


def source_fingerprint(source: str | Path, revision: str | None = None) -> str | None:
    """Fingerprint a model that is not loaded: the commit of the hub, or weights, tokenizer and settings of a folder.

    Of each file up to 64 evenly spaced blocks are read. Of an adapter, the base that it names counts too. None for a
    name of the hub whose commit neither the hub nor the cache knows now.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return commit_of(str(source), revision)
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("*.model")])
    known = [text for file in files for text in (file.name, fingerprint_of(file))]
    adapter = find_adapter(str(folder), None)
    if adapter is not None:
        known.append(str(source_fingerprint(adapter.base, adapter.revision)))
    return fingerprint_texts(known)


def _parts(lm: LanguageModel) -> Iterator[bytes]:
    for name, tensor in lm.model.state_dict().items():
        yield f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode()
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // _VALUES_PER_TENSOR)]
        yield (some.to(torch.float32) if some.is_floating_point() else some).cpu().numpy().tobytes()
    backend = getattr(lm.tokenizer, "backend_tokenizer", None)
    yield (backend.to_str() if backend is not None else json.dumps(lm.tokenizer.get_vocab(), sort_keys=True)).encode()
