"""A causal language model with its tokenizer and device, and the rules for loading one."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as library_logging

from cytoglot.atomic import atomic_path
from cytoglot.errors import InputError
from cytoglot.lm.tokenizer import padding_id
from cytoglot.progress import progress_is_shown

logger = logging.getLogger(__name__)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """What scoring, embedding and generation work on. Two are equal only if they are the same object."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a device is immutable

    @property
    def context_length(self) -> int | None:
        """Most tokens the model can read, or None when its configuration does not say."""
        length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return None if length is None else int(length)

    @property
    def pad_id(self) -> int:
        """Id that fills up short rows; padded positions never influence a result."""
        return padding_id(self.tokenizer)

    @property
    def n_vocabulary(self) -> int:
        """Width of the output layer."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def body(self) -> torch.nn.Module:
        """The model without its output layer; returns hidden states."""
        return self.model.get_decoder()

    @property
    def attention_window(self) -> int | None:
        """Shortest span that some layer's attention is limited to, None when every layer sees the whole text."""
        config = self.model.config.get_text_config()
        slides = getattr(config, "use_sliding_window", True)
        spans = (
            getattr(config, "sliding_window", None) if slides else None,
            getattr(config, "attention_chunk_size", None),
        )
        return min((int(span) for span in spans if span), default=None)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Run a block without dropout and without a gradient graph; the model's mode is as before afterwards."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.model.train(was_training)

    def save(self, folder: str | Path) -> None:
        """Write weights (safetensors), configuration and tokenizer as a plain `transformers` folder, atomically."""
        with atomic_path(folder) as path, own_progress_only():
            self.model.save_pretrained(path)
            self.tokenizer.save_pretrained(path)


def load_language_model(
    name_or_folder: str | Path,
    *,
    device: str = "auto",
    dtype: Dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load a causal language model from a folder or from the Hugging Face hub, ready for inference.

    Weights are read from safetensors only, since other formats can run code. A tokenizer without a pad token gets its
    end-of-text token as one.

    Parameters
    ----------
    name_or_folder
        A folder that exists wins over a hub name.
    device
        "auto" takes cuda, else mps, else cpu; anything else is given to torch.
    dtype
        "auto" is the checkpoint's own type on an accelerator and float32 on a CPU.
    revision
        Branch, tag or commit on the hub.
    trust_remote_code
        Run Python code that comes with the model. Only for sources you have read.

    Raises
    ------
    InputError
        The folder is missing or is not a model folder, the hub cannot provide the name, weights are missing or
        damaged, the tokenizer is missing or does not belong to the model, or the device is not there.
    """
    target = choose_device(device)
    source = _checked_source(name_or_folder)
    options = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    try:
        with own_progress_only():
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            model, loading = AutoModelForCausalLM.from_pretrained(
                source, dtype=_torch_dtype(dtype, target), use_safetensors=True, output_loading_info=True, **options
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise InputError(_why_not(name_or_folder, error)) from error
    except Exception as error:  # safetensors and the hub client have exceptions without a common base
        if type(error).__module__.split(".")[0] not in {"safetensors_rust", "safetensors", "huggingface_hub"}:
            raise
        raise InputError(_why_not(name_or_folder, error)) from error
    _check_complete(name_or_folder, loading)
    _check_tokenizer(name_or_folder, model, tokenizer)
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    model.to(target).eval()
    logger.info("loaded %s: %s parameters, %s on %s", source, f"{model.num_parameters():,}", model.dtype, target)
    return LanguageModel(model=model, tokenizer=tokenizer, device=target)


@contextmanager
def own_progress_only() -> Iterator[None]:
    """Silence the bars that transformers draws even where there is no terminal, unless ours are shown."""
    was_enabled = library_logging.is_progress_bar_enabled()
    if not progress_is_shown():
        library_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            library_logging.enable_progress_bar()


def choose_device(name: str = "auto") -> torch.device:
    """Return the torch device; "auto" is cuda, else mps, else cpu.

    Raises
    ------
    InputError
        The name is not a device, or there is no such device here.
    """
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device must be auto, cpu, cuda, cuda:N or mps, found {name!r}") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, True):
        raise InputError(f"device {name!r} is not available here; pass device='auto' or 'cpu'")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise InputError(f"device {name!r} is not available here, found {torch.cuda.device_count()} cuda devices")
    return device


def set_threads(n_threads: int | None) -> int:
    """Set the number of threads that torch computes with, None leaves it; return the number in force."""
    if n_threads is not None:
        if n_threads < 1:
            raise InputError(f"the number of threads must be at least 1, found {n_threads}")
        torch.set_num_threads(n_threads)
    return torch.get_num_threads()


def _torch_dtype(name: Dtype, device: torch.device) -> torch.dtype | str:
    if name == "auto":
        # Half precision on a CPU changes scores in the second digit; who wants its speed asks for it.
        return torch.float32 if device.type == "cpu" else "auto"
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise InputError(f"dtype must be auto, {', '.join(known)}, found {name!r}")
    return known[name]


def _checked_source(name_or_folder: str | Path) -> str:
    """Return what `from_pretrained` is to be given, after the checks that need no loading."""
    folder = Path(name_or_folder).expanduser()
    if folder.is_file():
        raise InputError(f"{folder} is a file; pass the folder that holds config.json and the weights")
    if folder.is_dir():
        _check_folder(folder)
        return str(folder)
    if isinstance(name_or_folder, Path) or not re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", name_or_folder):
        raise InputError(f"model folder {folder} does not exist; pass a folder that holds config.json, or a hub name")
    return name_or_folder


def _check_folder(folder: Path) -> None:
    found = sorted(path.name for path in folder.iterdir())
    listed = ", ".join(found[:10]) or "nothing"
    if "config.json" not in found:
        raise InputError(f"{folder} is not a model folder: no config.json there, found {listed}")
    if not any(name.endswith(".safetensors") for name in found):
        raise InputError(
            f"{folder} holds no safetensors weights, found {listed}; save the model again with "
            "save_pretrained(..., safe_serialization=True): other formats can run code and are not read"
        )
    # transformers 5 makes an empty tokenizer of the model's class where none was saved, without a word.
    if not any(name in found for name in TOKENIZER_FILES):
        raise InputError(
            f"{folder} holds no tokenizer, found {listed}; call tokenizer.save_pretrained({str(folder)!r})"
        )


def _why_not(name_or_folder: str | Path, error: Exception) -> str:
    reason = " ".join(str(error).split())[:500]
    if Path(name_or_folder).expanduser().is_dir():
        return f"the model in {name_or_folder} cannot be loaded: {reason}"
    return (
        f"no folder {str(name_or_folder)!r} here, and the Hugging Face hub could not provide a model of that name "
        f"(no network, HF_HUB_OFFLINE set, a wrong name, or a licence to accept first?): {reason}"
    )


def _check_complete(name_or_folder: str | Path, loading: dict[str, object]) -> None:
    for kind, consequence in (("missing_keys", "would be random"), ("mismatched_keys", "have another shape")):
        keys = sorted(str(key) for key in loading.get(kind) or ())  # type: ignore[attr-defined]
        if keys:
            raise InputError(
                f"the weights in {name_or_folder} do not fit a causal language model: {len(keys)} tensors "
                f"{consequence}, such as {keys[0]}"
            )


def _check_tokenizer(name_or_folder: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer("ACTB cell", add_special_tokens=False)["input_ids"]:
        raise InputError(f"the tokenizer of {name_or_folder} is empty: it gives no token for 'ACTB cell'")
    n_rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > n_rows:
        raise InputError(
            f"the tokenizer of {name_or_folder} has {len(tokenizer):,} tokens but the model only {n_rows:,} rows; "
            "they do not belong together"
        )
