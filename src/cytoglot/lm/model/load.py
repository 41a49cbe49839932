"""The rules for loading a causal language model from a folder or the hub."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from dataclasses import replace
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

from cytoglot.errors import InputError, ResourceError
from cytoglot.extras import require
from cytoglot.lm.model.language_model import LanguageModel, choose_device, own_progress_only
from cytoglot.lm.model.lora import merge_lora
from cytoglot.lm.model.sources import Adapter, check_index, checked_source, commit_of, find_adapter, is_of_the_hub

logger = logging.getLogger(__name__)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantize = Literal["none", "8bit", "4bit"]


def load_model(
    name_or_folder: str | Path,
    *,
    device: str = "auto",
    dtype: Dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    quantize: Quantize = "none",
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
    quantize
        Hold the weights of the linear layers in 8 or 4 bits (4: NF4, computed in bfloat16). Needs an NVIDIA GPU and
        the package `bitsandbytes`; such a model can be trained with adapters only.

    Raises
    ------
    InputError
        The folder is missing or is not a model folder, the hub cannot provide the name, weights are missing, the
        tokenizer is missing or does not belong to the model, the model brings code that is not trusted, the base of an
        adapter cannot be found, or the device is not there.
    ResourceError
        The weights are damaged.

    Examples
    --------
    >>> import cytoglot as cg
    >>> lm = cg.load_model("model")  # or "vandijklab/C2S-Pythia-410m-cell-type-prediction", from the hub
    >>> type(lm).__name__
    'LanguageModel'
    """
    target = choose_device(device)
    quantization = _quantization(quantize, target)
    source = checked_source(name_or_folder)
    commit = commit_of(source, revision)
    adapter = find_adapter(source, commit or revision)
    if adapter is not None and quantization is not None:
        raise InputError(f"{source} holds an adapter, which cannot be merged into quantized weights; quantize its base")
    options = {"revision": commit or revision or "main", "trust_remote_code": trust_remote_code}
    if adapter is not None:
        lm = replace(_adapted(adapter, device, dtype, trust=trust_remote_code), source=source, revision=commit)
    else:
        known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        if dtype != "auto" and dtype not in known:
            raise InputError(f"dtype must be auto, {', '.join(known)}, found {dtype!r}")
        # Half precision on a CPU changes scores in the second digit; who wants its speed asks for it.
        own = torch.float32 if target.type == "cpu" else "auto"
        given: dict[str, Any] = {"dtype": own if dtype == "auto" else known[dtype]}
        if quantization is not None:
            given |= {"quantization_config": quantization, "device_map": {"": str(target)}}
        model, tokenizer = _read(name_or_folder, source, given, options)
        lm = LanguageModel(model=model, tokenizer=tokenizer, device=target, source=source, revision=commit)
        if quantization is None:
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
        damaged = type(error).__module__.startswith("safetensors")
        raise (ResourceError if damaged else InputError)(_why_not(name_or_folder, error)) from error
    for kind, consequence in (("missing_keys", "would be random"), ("mismatched_keys", "have another shape")):
        keys = sorted(str(key) for key in loading.get(kind) or ())
        if keys:
            raise InputError(
                f"the weights in {name_or_folder} do not fit a causal language model: {len(keys)} tensors "
                f"{consequence}, such as {keys[0]}"
            )
    if not tokenizer("ACTB cell", add_special_tokens=False)["input_ids"]:
        raise InputError(f"the tokenizer of {name_or_folder} is empty: it gives no token for 'ACTB cell'")
    n_rows = model.get_input_embeddings().weight.shape[0]
    if _n_ids(tokenizer) > n_rows:
        raise InputError(
            f"the tokenizer of {name_or_folder} has {_n_ids(tokenizer):,} tokens but the model only {n_rows:,} rows; "
            "they do not belong together (after adding tokens, call model.resize_token_embeddings(len(tokenizer)))"
        )
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _adapted(adapter: Adapter, device: str, dtype: Dtype, *, trust: bool) -> LanguageModel:
    """Return the base with the adapter merged into its weights, and with the tokenizer beside the adapter, if any."""
    peft = require("peft", extra="train", purpose="an adapter")
    try:
        lm = load_model(adapter.base, device=device, dtype=dtype, revision=adapter.revision, trust_remote_code=trust)
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
        As for `load_model`.
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


def _quantization(quantize: Quantize, device: torch.device) -> BitsAndBytesConfig | None:
    if quantize == "none":
        return None
    if quantize not in {"8bit", "4bit"}:
        raise InputError(f"quantize must be none, 8bit or 4bit, found {quantize!r}")
    if device.type != "cuda":
        raise InputError(
            f"quantize={quantize} needs an NVIDIA GPU, found {device}; leave it out, or use such a machine"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"quantize={quantize} needs the package bitsandbytes; run: pip install bitsandbytes")
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


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


def _n_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the rows that a model needs: one more than the highest id, which may be above the number of tokens."""
    return 1 + max(tokenizer.get_vocab().values(), default=-1)
