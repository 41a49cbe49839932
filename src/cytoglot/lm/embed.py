"""Vectors of texts from the hidden states of a language model.

Only the body of the model runs: no output layer, whose rows (50,000 in Pythia) can cost more than all the rest.

Axes: n texts, b texts of a batch, t tokens, d embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cytoglot.errors import InputError
from cytoglot.lm.batches import check_lengths, checked_batch_tokens, length_batches, pad_right
from cytoglot.lm.load import LanguageModel
from cytoglot.lm.tokenizer import encode_prompts
from cytoglot.progress import progress_bar

Pooling = Literal["mean", "last"]


def embed_texts(
    lm: LanguageModel,
    texts: Sequence[str],
    *,
    layer: int = -1,
    pooling: Pooling = "mean",
    only_tokens: NDArray[np.integer] | None = None,
    batch_tokens: int | None = None,
) -> NDArray[np.float32]:
    """Return one vector per text, float32 of shape (n, d), the same whatever else is in the batch.

    The original averages over padding and keeps the gradient graph; here neither exists :cite:p:`rizvi2025c2sscale`.

    Parameters
    ----------
    layer
        Which hidden state: 0 is the token embedding, 1 the first layer's output and so on, -1 the last, which is
        after the final normalisation in most families.
    pooling
        "mean" over the text's tokens (its opening token included), or "last": the hidden state of the last token.
    only_tokens
        Token ids to which the mean is restricted (those of the words: the vector then owes nothing to the wording of
        the prompt). A text with none of them is averaged over all its tokens.
    batch_tokens
        Most tokens in a batch, padding included; by default what suits the device.

    Raises
    ------
    InputError
        A text is empty (with a tokenizer that opens with nothing) or longer than the context; a layer that the model
        does not have; an unknown pooling; `only_tokens` with "last".
    """
    _check_options(lm, layer, pooling, only_tokens)
    rows = encode_prompts(lm.tokenizer, texts)
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    check_lengths(lm, lengths, what="text")
    embedding_nd = np.empty((len(rows), int(lm.model.config.get_text_config().hidden_size)), dtype=np.float32)
    batches = length_batches(lengths, max_tokens=checked_batch_tokens(lm, batch_tokens))
    with lm.inference(), progress_bar(total=len(rows), description="embed", unit="text") as bar:
        for batch in batches:
            batch_rows = [rows[i] for i in batch]
            hidden_btd = _hidden_states(lm, pad_right(batch_rows, lm.pad_id, lm.device), layer)
            weight_bt = torch.from_numpy(_pooling_weights(batch_rows, pooling, only_tokens)).to(lm.device)
            pooled_bd = torch.bmm(weight_bt[:, None], hidden_btd.float())[:, 0]
            embedding_nd[batch] = pooled_bd.cpu().numpy()
            bar.update(len(batch))
    return embedding_nd


def _check_options(lm: LanguageModel, layer: int, pooling: str, only_tokens: NDArray[np.integer] | None) -> None:
    n_layers = int(lm.model.config.get_text_config().num_hidden_layers)
    if not -n_layers - 1 <= layer <= n_layers:
        raise InputError(f"layer must lie between {-n_layers - 1} and {n_layers} in this model, found {layer}")
    if pooling not in ("mean", "last"):
        raise InputError(f"pooling must be 'mean' or 'last', found {pooling!r}")
    if pooling == "last" and only_tokens is not None:
        raise InputError("only_tokens restricts the mean and does nothing with pooling='last'; pass one of the two")


def _hidden_states(lm: LanguageModel, ids_bt: torch.Tensor, layer: int) -> torch.Tensor:
    if layer == -1 or layer == lm.model.config.get_text_config().num_hidden_layers:
        return lm.body(input_ids=ids_bt, use_cache=False).last_hidden_state
    return lm.body(input_ids=ids_bt, use_cache=False, output_hidden_states=True).hidden_states[layer]


def _pooling_weights(
    rows: Sequence[NDArray[np.int64]], pooling: Pooling, only_tokens: NDArray[np.integer] | None
) -> NDArray[np.float32]:
    """Share of each token in its text's vector, shape (b, t); 0 on padding, sums to 1 in each row."""
    weight_bt = np.zeros((len(rows), max(map(len, rows))), dtype=np.float32)
    for weights, row in zip(weight_bt, rows, strict=True):
        if pooling == "last":
            weights[len(row) - 1] = 1
            continue
        taken = np.ones(len(row), dtype=bool) if only_tokens is None else np.isin(row, only_tokens)
        if not taken.any():
            taken[:] = True
        weights[: len(row)] = taken / np.float32(taken.sum())
    return weight_bt
