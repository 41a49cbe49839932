"""A causal language model with its tokenizer and device, and the rules for loading one."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as library_logging

from cytoglot.atomic import atomic_path
from cytoglot.errors import InputError
from cytoglot.extras import require
from cytoglot.lm.model.sources import Adapter, check_index, checked_source, commit_of, find_adapter, is_of_the_hub
from cytoglot.lm.model.tokenizer import padding_id
from cytoglot.progress import progress_is_shown

logger = logging.getLogger(__name__)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantise = Literal["none", "8bit", "4bit"]


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """What scoring, embedding and generation work on. Two are equal only if they are the same object."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a device is immutable
    source: str | None = None
    """folder or hub name that it was loaded from; None for a model made here"""
    revision: str | None = None
    """commit of the hub that it was loaded from"""

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
    quantise: Quantise = "none",
) -> LanguageModel:
    """Load a causal language model from a folder or from the Hugging Face hub, ready for inference.

    Weights are read from safetensors only, since other formats can run code. A tokenizer without a pad token gets its
    end-of-text token as one. Of a folder or repository that holds an adapter alone (`adapter_config.json`), the base
    model that it names is loaded and the adapter merged into it. All files of a hub model are of one commit, which is
    in `LanguageModel.revision`.

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
    quantise
        Hold the weights of the linear layers in 8 or 4 bits (4: NF4, computed in bfloat16). Needs an NVIDIA GPU and
        the package `bitsandbytes`; such a model can be trained with adapters only.

    Raises
    ------
    InputError
        The folder is missing or is not a model folder, the hub cannot provide the name, weights are missing or
        damaged, the tokenizer is missing or does not belong to the model, the model brings code that is not trusted,
        the base of an adapter cannot be found, or the device is not there.
    """
    target = choose_device(device)
    quantisation = _quantisation(quantise, target)
    source = checked_source(name_or_folder)
    commit = commit_of(source, revision)
    adapter = find_adapter(source, commit or revision)
    if adapter is not None and quantisation is not None:
        raise InputError(f"{source} holds an adapter, which cannot be merged into quantised weights; quantise its base")
    options = {"revision": commit or revision or "main", "trust_remote_code": trust_remote_code}
    if adapter is not None:
        lm = replace(_adapted(adapter, device, dtype, trust=trust_remote_code), source=source, revision=commit)
    else:
        given: dict[str, Any] = {"dtype": _torch_dtype(dtype, target)}
        if quantisation is not None:
            given |= {"quantization_config": quantisation, "device_map": {"": str(target)}}
        model, tokenizer = _read(name_or_folder, source, given, options)
        lm = LanguageModel(model=model, tokenizer=tokenizer, device=target, source=source, revision=commit)
        if quantisation is None:
            lm.model.to(target)
    lm.model.eval()
    logger.info("loaded %s: %s parameters, %s on %s", source, f"{lm.model.num_parameters():,}", lm.model.dtype, target)
    return lm


def _read(
    name_or_folder: str | Path, source: str, given: dict[str, Any], options: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read weights and tokenizer of one commit or folder, and check that they are whole and belong together."""
    given = {"use_safetensors": True, "output_loading_info": True, **given}
    try:
        check_index(source, options["revision"])
        with own_progress_only():
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            model, loading = AutoModelForCausalLM.from_pretrained(source, **given, **options)
    except InputError:
        raise
    except Exception as error:
        if not isinstance(error, (KeyError, ImportError, RuntimeError)) and not is_of_the_hub(error):
            raise
        raise InputError(_why_not(name_or_folder, error)) from error
    _check_complete(name_or_folder, loading)
    _check_tokenizer(name_or_folder, model, tokenizer)
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _adapted(adapter: Adapter, device: str, dtype: Dtype, *, trust: bool) -> LanguageModel:
    """Return the base with the adapter merged into its weights, and with the tokenizer beside the adapter, if any."""
    from cytoglot.lm.model.lora import merge_lora

    peft = require("peft", extra="train", purpose="an adapter")
    try:
        lm = load_language_model(
            adapter.base, device=device, dtype=dtype, revision=adapter.revision, trust_remote_code=trust
        )
    except InputError as error:
        raise InputError(f"the adapter in {adapter.folder} needs its base {adapter.base}: {error}") from error
    if adapter.has_tokenizer:
        tokenizer = AutoTokenizer.from_pretrained(str(adapter.folder), trust_remote_code=False)
        if _n_ids(tokenizer) > lm.model.get_input_embeddings().weight.shape[0]:
            lm.model.resize_token_embeddings(_n_ids(tokenizer), mean_resizing=False)
        lm = replace(lm, tokenizer=tokenizer)
    with warnings.catch_warnings():
        # peft 0.21 still asks transformers 5.23 by an old name; nothing that a user could change.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        # An adapter of which a part is missing would do nothing there, silently.
        warnings.filterwarnings("error", message=".*missing adapter keys")
        try:
            model = peft.PeftModel.from_pretrained(lm.model, str(adapter.folder), torch_device=str(lm.device))
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, UserWarning) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"the adapter in {adapter.folder} does not fit {adapter.base}: {reason}") from error
    if not hasattr(model, "merge_and_unload"):
        kind = model.peft_config["default"].peft_type
        raise InputError(f"the adapter in {adapter.folder} is of kind {kind}, which cannot be merged into weights")
    return merge_lora(replace(lm, model=model))


def read_configuration(
    name_or_folder: str | Path, *, revision: str | None = None
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Return configuration and tokenizer of a model (of an adapter: of its base) without reading its weights.

    Raises
    ------
    InputError
        As for `load_language_model`.
    """
    source = checked_source(name_or_folder)
    commit = commit_of(source, revision)
    adapter = find_adapter(source, commit or revision)
    if adapter is not None:
        return read_configuration(adapter.base, revision=adapter.revision)
    options: dict[str, Any] = {"revision": commit or revision or "main", "trust_remote_code": False}
    try:
        return AutoConfig.from_pretrained(source, **options), AutoTokenizer.from_pretrained(source, **options)
    except Exception as error:
        if not isinstance(error, (KeyError, ImportError)) and not is_of_the_hub(error):
            raise
        raise InputError(_why_not(name_or_folder, error)) from error


def _quantisation(quantise: Quantise, device: torch.device) -> BitsAndBytesConfig | None:
    if quantise == "none":
        return None
    if quantise not in {"8bit", "4bit"}:
        raise InputError(f"quantise must be none, 8bit or 4bit, found {quantise!r}")
    if device.type != "cuda":
        raise InputError(
            f"quantise={quantise} needs an NVIDIA GPU, found {device}; leave it out, or use such a machine"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"quantise={quantise} needs the package bitsandbytes; run: pip install bitsandbytes")
    if quantise == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


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

    A process that a launcher has given a number on its machine (`LOCAL_RANK`) takes the GPU of that number.

    Raises
    ------
    InputError
        The name is not a device, or there is no such device here.
    """
    local_rank = os.environ.get("LOCAL_RANK")
    if name in ("auto", "cuda") and torch.cuda.is_available():
        name = "cuda" if local_rank is None else f"cuda:{local_rank}"
    if name == "auto":
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
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


def _why_not(name_or_folder: str | Path, error: Exception) -> str:
    reason = " ".join(str(error).split())[:500]
    if "trust_remote_code" in reason:
        return (
            f"{name_or_folder} brings Python code of its own, which is not run unless you pass trust_remote_code=True; "
            f"do so only if you have read it: {reason}"
        )
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
    if _n_ids(tokenizer) > n_rows:
        raise InputError(
            f"the tokenizer of {name_or_folder} has {_n_ids(tokenizer):,} tokens but the model only {n_rows:,} rows; "
            "they do not belong together (after adding tokens, call model.resize_token_embeddings(len(tokenizer)))"
        )


def _n_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the rows that a model needs: one more than the highest id, which may be above the number of tokens."""
    return 1 + max(tokenizer.get_vocab().values(), default=-1)
