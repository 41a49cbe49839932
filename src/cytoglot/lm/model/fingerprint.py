"""What tells one language model from another: its weights and its tokenizer, as 16 hex digits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cytoglot.lm.model.sources import commit_of, find_adapter
from cytoglot.manifest import fingerprint_bytes, fingerprint_file, fingerprint_texts

if TYPE_CHECKING:
    from cytoglot.lm.model.language_model import LanguageModel

_RECORDS = frozenset({"training.json", "trainer_state.json"})
"""they tell of the training, and of its time"""
_VALUES_PER_TENSOR = 1024


def model_fingerprint(lm: LanguageModel) -> str:
    """Fingerprint the weights, their type and the tokenizer, wherever the model came from and on whatever device.

    Up to 1,024 evenly spaced values of each tensor are read, so that it takes no time beside the loading; a step of
    training changes nearly all of them.
    """
    return fingerprint_bytes(_parts(lm))


def source_fingerprint(source: str | Path, revision: str | None = None) -> str | None:
    """Fingerprint a model that is not loaded: the commit of the hub, or weights, tokenizer and settings of a folder.

    Of an adapter, the base that it names counts too. None for a name of the hub whose commit neither the hub nor the
    cache knows now.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return commit_of(str(source), revision)
    known = [folder_fingerprint(folder)]
    adapter = find_adapter(str(folder), None)
    if adapter is not None:
        known.append(str(source_fingerprint(adapter.base, adapter.revision)))
    return fingerprint_texts(known)


def folder_fingerprint(folder: Path) -> str:
    """Fingerprint the files of a model folder that decide what it does: all bytes of weights, tokenizer and settings.

    Unlike `model_fingerprint` it sees a change of a single weight, and needs no model in memory.
    """
    kinds = {".safetensors", ".bin", ".pt", ".pth", ".json", ".model", ".txt", ".jinja"}
    read = sorted(p for p in folder.iterdir() if p.suffix in kinds and p.name not in _RECORDS)
    return fingerprint_texts(text for path in read for text in (path.name, fingerprint_file(path)))


def _parts(lm: LanguageModel) -> Iterator[bytes]:
    for name, tensor in lm.model.state_dict().items():
        yield f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode()
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // _VALUES_PER_TENSOR)]
        yield (some.to(torch.float32) if some.is_floating_point() else some).cpu().numpy().tobytes()
    backend = getattr(lm.tokenizer, "backend_tokenizer", None)
    yield (backend.to_str() if backend is not None else json.dumps(lm.tokenizer.get_vocab(), sort_keys=True)).encode()
