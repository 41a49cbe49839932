"""Token vectors of texts from any encoder: a folder, or a name on the hub such as a BioBERT.

Axes: t tokens of a text, d dimensions, b texts of a batch.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytoglot import extras
from cytoglot.errors import InputError

_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class TextTokens:
    """The tokens of one text."""

    ids: NDArray[np.int64]
    """shape (t,)"""
    vectors_td: NDArray[np.float32]
    is_special: NDArray[np.bool_]
    """shape (t,): opening and closing tokens, which are no part of the text"""


class TextEncoder:
    """An encoder from `load_text_encoder`."""

    def __init__(self, model: Any, tokenizer: Any, *, layer: int) -> None:
        self._model, self._tokenizer, self._layer = model, tokenizer, layer
        limits = (tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None))
        self._max_tokens = min((int(n) for n in limits if n is not None and n < 1_000_000), default=512)

    def tokens(self, texts: Sequence[str]) -> list[TextTokens]:
        """Return the tokens of each text with their hidden states; a text is cut at what the encoder can read."""
        import torch

        encoded: list[TextTokens] = []
        for start in range(0, len(texts), _BATCH):
            rows = self._tokenizer(
                [_encodable(text) for text in texts[start : start + _BATCH]],
                padding=True,
                truncation=True,
                max_length=self._max_tokens,
                return_special_tokens_mask=True,
                return_tensors="pt",
            )
            special_bt, mask_bt = rows.pop("special_tokens_mask").bool().numpy(), rows["attention_mask"].bool().numpy()
            with torch.inference_mode():
                states = self._model(**rows.to(self._model.device), output_hidden_states=True).hidden_states
            vectors_btd = states[self._layer].float().cpu().numpy()
            ids_bt = rows["input_ids"].cpu().numpy()
            encoded += [
                TextTokens(ids=ids_t[mask_t], vectors_td=vectors_td[mask_t], is_special=special_t[mask_t])
                for ids_t, vectors_td, special_t, mask_t in zip(ids_bt, vectors_btd, special_bt, mask_bt, strict=True)
            ]
        return encoded

    def rarity(self, texts: Sequence[str]) -> Mapping[int, float]:
        """Return token id → ln((n + 1) / (texts with it + 1)); a token of none of the n texts has ln(n + 1)."""
        counts: Counter[int] = Counter()
        for text in texts:
            ids = self._tokenizer(
                _encodable(text), truncation=True, max_length=self._max_tokens, add_special_tokens=False
            )
            counts.update(set(ids["input_ids"]))
        known = {token: math.log((len(texts) + 1) / (n + 1)) for token, n in counts.items()}
        return defaultdict(lambda: math.log(len(texts) + 1), known)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair is no text to a tokenizer


def load_text_encoder(name_or_folder: str | Path, *, layer: int = -1, device: str = "cpu") -> TextEncoder:
    """Load an encoder and its tokenizer, weights from safetensors only.

    Parameters
    ----------
    name_or_folder
        A folder that exists wins over a hub name.
    layer
        Hidden state whose vectors are compared: 0 the input vectors, −1 the last. Which is best depends on the encoder.

    Raises
    ------
    MissingExtraError
        `transformers` or `torch` is not installed.
    InputError
        The encoder cannot be loaded, or does not have that layer.
    """
    extras.require("torch", extra="lm", purpose="text similarity")
    transformers = extras.require("transformers", extra="lm", purpose="text similarity")
    from cytoglot.lm.model.language_model import own_progress_only

    folder = Path(name_or_folder).expanduser()
    source = str(folder) if folder.is_dir() else str(name_or_folder)
    try:
        with own_progress_only():
            tokenizer = transformers.AutoTokenizer.from_pretrained(source)
            model = transformers.AutoModel.from_pretrained(source, use_safetensors=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"text encoder {source!r} cannot be loaded; pass a folder with config.json, safetensors weights and a "
            f"tokenizer, or a name on the hub: {reason}"
        ) from error
    n_layers = int(model.config.num_hidden_layers)
    if not -n_layers - 1 <= layer <= n_layers:
        raise InputError(f"layer must lie between {-n_layers - 1} and {n_layers} in encoder {source!r}, found {layer}")
    return TextEncoder(model.to(device).eval(), tokenizer, layer=layer)
