"""Where a model comes from: a folder, one commit of a repository of the hub, or an adapter and the base it names.

Everything here looks at names and small files; weights are read elsewhere, and from safetensors only.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
from huggingface_hub.errors import HTTPError
from transformers.utils import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from cytoglot.errors import InputError
from cytoglot.pretrained import PACKAGED_MODELS, packaged_folder

logger = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_REACH_SECONDS = 5.0
_hub = {"is_unreachable": False}
"""whether it was `look_for_hub` that told the client to be offline, and no user"""
_MERGED_BESIDE = "; the folder above holds the weights with this adapter merged in: load that one"


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The files of an adapter, and the model that it adapts."""

    folder: Path
    base: str
    """folder or hub name"""
    revision: str | None
    """of the base on the hub"""

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer lies beside the adapter."""
        return any((self.folder / name).is_file() for name in TOKENIZER_FILES)


def look_for_hub() -> bool:
    """Return whether the hub can be reached; where not, its client looks in its cache alone until the next call.

    The client would ask for each file of a model six times, which takes a minute and a half to say that there is no
    network. Where a proxy leads to the hub, or the client was told to be offline, nothing is looked for.
    """
    constants = huggingface_hub.constants
    if constants.HF_HUB_OFFLINE and not _hub["is_unreachable"]:
        return False
    url = urlsplit(constants.ENDPOINT)
    if url.scheme in getproxies() or "all" in getproxies():
        return True
    connected = threading.Event()

    def connect() -> None:
        address = (url.hostname or "", url.port or (80 if url.scheme == "http" else 443))
        with suppress(OSError), socket.create_connection(address, timeout=_REACH_SECONDS):
            connected.set()

    # In a thread, since a search for the name can outlast any timeout of the connection.
    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(_REACH_SECONDS)
    _hub["is_unreachable"] = constants.HF_HUB_OFFLINE = not connected.is_set()
    if _hub["is_unreachable"]:
        logger.warning("%s cannot be reached: only models in the cache can be loaded", constants.ENDPOINT)
    return connected.is_set()


def is_hub_name(name: str | Path) -> bool:
    """Tell whether this may be the name of a repository on the hub: no folder, and in the form of one."""
    if isinstance(name, Path) or Path(name).expanduser().exists():
        return False
    return re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", name) is not None


def checked_source(name_or_folder: str | Path) -> str:
    """Return what `from_pretrained` is to be given.

    Raises
    ------
    InputError
        This is a file, a folder without a model, or neither a folder nor the name of a repository.
    """
    folder = Path(name_or_folder).expanduser()
    if folder.is_file():
        raise InputError(f"{folder} is a file; pass the folder that holds config.json and the weights")
    if folder.is_dir():
        _check_folder(folder)
        return str(folder)
    if str(name_or_folder) in PACKAGED_MODELS:
        return str(packaged_folder(str(name_or_folder)))
    if not is_hub_name(name_or_folder):
        raise InputError(f"model folder {folder} does not exist; pass a folder that holds config.json, or a hub name")
    look_for_hub()
    return str(name_or_folder)


def commit_of(source: str, revision: str | None = None) -> str | None:
    """Return the commit of a hub repository that a branch, tag or commit now stands for.

    Offline it is the commit in the cache. None for a folder, and where neither hub nor cache knows it (loading then
    says why).
    """
    if not is_hub_name(source):
        return None
    look_for_hub()
    offline = huggingface_hub.constants.is_offline_mode()
    try:
        resolved = huggingface_hub.HfApi().resolve_revision(source, revision=revision, local_files_only=offline)
    except Exception as error:  # their errors have no common base
        if not is_of_the_hub(error):
            raise
        return None
    return getattr(resolved, "resolved", None)


def is_of_the_hub(error: Exception) -> bool:
    """Tell whether an error comes from the hub's client, its HTTP library, the network or the reader of weights."""
    foreign = {"safetensors_rust", "safetensors", "huggingface_hub", HTTPError.__module__.split(".")[0]}
    return isinstance(error, (OSError, ValueError)) or type(error).__module__.split(".")[0] in foreign


def find_adapter(source: str, revision: str | None) -> Adapter | None:
    """Return the adapter that a folder or repository holds in place of a whole model; None for a whole model.

    Raises
    ------
    InputError
        The adapter's weights are in a format that can run code, its configuration names no base, or the base is a
        folder that is not here.
    """
    folder = Path(source)
    if is_hub_name(source):
        if find_adapter_config_file(source, revision=revision) is None:
            return None
        wanted = [ADAPTER_CONFIG, ADAPTER_WEIGHTS, "tokenizer*", "special_tokens_map.json", *TOKENIZER_FILES]
        try:
            folder = Path(huggingface_hub.snapshot_download(source, revision=revision, allow_patterns=wanted))
        except Exception as error:
            if not is_of_the_hub(error):
                raise
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"the adapter {source} cannot be fetched from the Hugging Face hub: {reason}") from error
    elif not (folder / ADAPTER_CONFIG).is_file():
        return None
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise InputError(
            f"the adapter in {source} has no {ADAPTER_WEIGHTS}, found {_listed(folder)}; save it again with "
            "safe_serialization=True: other formats can run code and are not read"
        )
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); copy the adapter again") from error
    if not isinstance(config, dict) or not config.get("base_model_name_or_path"):
        raise InputError(f"{path} names no base model; write its folder or hub name into base_model_name_or_path")
    base = _base_of(str(config["base_model_name_or_path"]), folder)
    return Adapter(folder=folder, base=base, revision=config.get("revision"))


def find_file(source: str, name: str, revision: str | None = None) -> Path | None:
    """Return where a file of a folder or hub repository lies, after fetching it; None if there is none."""
    found = cached_file(
        source,
        name,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def check_index(source: str, revision: str | None) -> None:
    """Refuse weights in several files of which the index names one that is not safetensors.

    `transformers` opens whatever an index names, even if it was told to read safetensors only.
    """
    found = find_file(source, INDEX, revision)
    if found is None:
        return
    try:
        files = set(json.loads(found.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{INDEX} of {source} is damaged ({error}); copy the model again") from error
    unsafe = sorted(str(name) for name in files if not str(name).endswith(".safetensors"))
    if unsafe:
        raise InputError(
            f"{INDEX} of {source} names {unsafe[0]}, which is not safetensors; save the model again with "
            "save_pretrained(..., safe_serialization=True): other formats can run code and are not read"
        )


def _base_of(base: str, folder: Path) -> str:
    """Return the base as it can be loaded: a folder is looked for from here and from the adapter's folder."""
    for candidate in (Path(base).expanduser(), folder / base):
        if candidate.is_dir():
            return str(candidate)
    if is_hub_name(base) and "/" in base:
        return base
    merged = _MERGED_BESIDE if (folder.parent / "config.json").is_file() else ""
    raise InputError(
        f"the adapter in {folder} was trained on {base}, which is not here; put that model there, or write its folder "
        f"or hub name into base_model_name_or_path of {folder / ADAPTER_CONFIG}{merged}"
    )


def _check_folder(folder: Path) -> None:
    found = {path.name for path in folder.iterdir()}
    weights = any(name.endswith(".safetensors") and name != ADAPTER_WEIGHTS for name in found)
    if ADAPTER_CONFIG in found:
        if weights and "config.json" in found:
            raise InputError(
                f"{folder} holds both a whole model and an adapter ({ADAPTER_CONFIG}), so which is meant cannot be "
                "known; move the adapter into a folder of its own"
            )
        return
    if "config.json" not in found:
        unfinished = ".work" in found
        advice = " (its training was not finished: run the same `cytoglot train` again)" if unfinished else ""
        raise InputError(f"{folder} is not a model folder: no config.json there, found {_listed(folder)}{advice}")
    if not weights:
        raise InputError(
            f"{folder} holds no safetensors weights, found {_listed(folder)}; save the model again with "
            "save_pretrained(..., safe_serialization=True): other formats can run code and are not read"
        )
    # transformers 5 makes an empty tokenizer of the model's class where none was saved, without a word.
    if not any(name in found for name in TOKENIZER_FILES):
        raise InputError(
            f"{folder} holds no tokenizer, found {_listed(folder)}; call tokenizer.save_pretrained({str(folder)!r})"
        )


def _listed(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
