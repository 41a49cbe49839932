"""A causal language model with its tokenizer and device, and the choice of devices and threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as library_logging

from cytoglot.atomic import atomic_path
from cytoglot.errors import InputError
from cytoglot.lm.model.tokenizer import padding_id
from cytoglot.progress import progress_is_shown


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
