"""The loss of a batch: what predicting each weighted token costs, by the model's own logits.

A batch holds `input_ids` (b, t) and `weights` (b, t), the share of each token in the loss, and where rows are packed
`position_ids` and `segment_ids` (b, t). Examples of one row do not see each other because their positions begin anew,
no attention mask is given and nothing is cached: any of the three, and `transformers` lets them see each other without
a word (differences of 10 in the logits). `check_apart` measures it.

Axes: b rows, t tokens, v vocabulary, n tokens that are predicted with a weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Batch = dict[str, Any]

_TOLERANCE = 1e-3  # of logits, relative to their spread: a leak is of the order of 1


def loss_sum(model: torch.nn.Module, batch: Mapping[str, Any], *, inside: torch.nn.Module | None = None) -> Tensor:
    """Return the sum of the weighted token losses of a batch, a scalar in nats, float32.

    Parameters
    ----------
    model
        A causal language model, or one in a wrapper whose `forward` has to be called, as for several processes.
    inside
        The model within the wrapper; the model itself by default.
    """
    ids_bt, weights_bt = batch["input_ids"], batch["weights"]
    predicts_bt = torch.zeros_like(weights_bt, dtype=torch.bool)
    predicts_bt[:, :-1] = weights_bt[:, 1:] > 0
    inputs = {name: batch[name] for name in ("input_ids", "position_ids") if name in batch}
    logits_nv = logits_at(model, inputs, predicts_bt, inside=inside or model)
    ids_n, weights_n = ids_bt[:, 1:][predicts_bt[:, :-1]], weights_bt[:, 1:][predicts_bt[:, :-1]]
    loss_n = functional.cross_entropy(logits_nv.float(), ids_n, reduction="none")
    return (loss_n * weights_n).sum()


def logits_at(
    model: torch.nn.Module, inputs: Mapping[str, Tensor], chosen_bt: Tensor, *, inside: torch.nn.Module
) -> Tensor:
    """Return the model's own logits at the chosen places, shape (n, v), row by row.

    The body runs on all tokens, the output layer on the chosen ones: with half of a small model's work in its output
    layer that is nearly twice as fast as computing all. What a family does to its logits afterwards, such as Gemma's
    soft cap or the scales of Cohere and Granite, is done by the model itself.
    """
    with _only(chosen_bt, inside):
        logits: Tensor = model(**inputs, use_cache=False).logits
    if logits.shape[:2] == chosen_bt.shape:  # a family that does not call its output layer
        return logits[chosen_bt]
    return logits[0]


@contextmanager
def _only(chosen_bt: Tensor, model: torch.nn.Module) -> Iterator[None]:
    """Let the output layer see the chosen hidden states alone, as one row."""

    def choose(_: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden_btd = arguments[0]
        return (hidden_btd[chosen_bt][None], *arguments[1:]) if hidden_btd.shape[:2] == chosen_bt.shape else None

    layer = model.get_output_embeddings()  # type: ignore[operator]
    if layer is None:
        yield
        return
    handle = layer.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()


def halves(batch: Batch) -> list[Batch]:
    """Return a batch as two of about half its tokens, or as it is where it holds a single example.

    Rows are shared out; a single row is cut between two of its examples. Their `loss_sum`s add up to that of the batch.
    """
    n_rows, width = batch["input_ids"].shape
    if n_rows > 1:
        return [_part(batch, slice(None, n_rows // 2)), _part(batch, slice(n_rows // 2, None))]
    if "segment_ids" not in batch:
        return [batch]
    segments_t = batch["segment_ids"][0]
    begins_t = (segments_t[1:] != segments_t[:-1]) & (segments_t[1:] > 0)  # what is padded begins nothing
    starts = (torch.nonzero(begins_t).flatten() + 1).tolist()
    if not starts:
        return [batch]
    cut = min(starts, key=lambda start: abs(start - width // 2))
    columns = (slice(None, cut), slice(cut, None))
    return [_part(batch, (slice(None), chosen)) for chosen in columns]


def _part(batch: Batch, chosen: Any) -> Batch:
    return {
        name: value[chosen] if isinstance(value, Tensor) and value.ndim == 2 else value for name, value in batch.items()
    }


def check_apart(model: torch.nn.Module) -> bool:
    """Return whether examples packed into one row get the logits that they have alone.

    Two short examples of random ids are run through the model, together and alone. False too for a model that has no
    positions that could begin anew.
    """
    device = next(model.parameters()).device
    n_vocabulary = int(model.config.get_text_config().vocab_size)  # type: ignore[union-attr, operator]
    ids_1t = torch.randint(n_vocabulary, (1, 24), generator=torch.Generator().manual_seed(0)).to(device)
    positions_1t = torch.cat([torch.arange(11), torch.arange(13)])[None].to(device)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            packed = model(input_ids=ids_1t, position_ids=positions_1t, use_cache=False).logits[0, 11:].float()
            alone = model(input_ids=ids_1t[:, 11:], use_cache=False).logits[0].float()
    except TypeError:  # no such argument
        return False
    finally:
        model.train(training)
    tolerance = _TOLERANCE if next(model.parameters()).dtype == torch.float32 else 0.1
    return bool((packed - alone).abs().max() < tolerance * alone.std())
