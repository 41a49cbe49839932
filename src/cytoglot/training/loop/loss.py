"""The loss of a batch: what predicting each weighted token costs, by the model's own logits.

A batch holds `input_ids` (b, t) and `weights` (b, t), the share of each token in the loss, and where rows are packed
`position_ids` and `segment_ids` (b, t). Examples of one row do not see each other because their positions begin anew,
no attention mask is given and nothing is cached: any of the three, and `transformers` lets them see each other without
a word (differences of 10 in the logits). `check_apart` measures it.

Axes: b rows, t tokens, v vocabulary, n tokens that are predicted with a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cytoglot.lm.scoring.distinct_words import AnswerWords

Batch = dict[str, Any]


def loss_sum(
    model: torch.nn.Module,
    batch: Mapping[str, Any],
    *,
    inside: torch.nn.Module | None = None,
    words: AnswerWords | None = None,
) -> Tensor:
    """Return the sum of the weighted token losses of a batch, a scalar in nats, float32.

    Parameters
    ----------
    model
        A causal language model, or one in a wrapper whose `forward` has to be called, as for several processes.
    inside
        The model within the wrapper; the model itself by default.
    words
        What answers of distinct words are made of. Where the batch tells of such answers (`n_words`, `conditions`),
        each of their words is predicted among those not yet written, as it is when they are sampled.
    """
    inside = inside or model
    if "position_ids" in batch and uses_flash(inside):
        batch = in_one_row(batch)
    ids_bt, weights_bt = batch["input_ids"], batch["weights"]
    predicts_bt = torch.zeros_like(weights_bt, dtype=torch.bool)
    predicts_bt[:, :-1] = weights_bt[:, 1:] > 0
    inputs = {name: batch[name] for name in ("input_ids", "position_ids") if name in batch}
    logits_nv = logits_at(model, inputs, predicts_bt, inside=inside)
    ids_n, weights_n = ids_bt[:, 1:][predicts_bt[:, :-1]], weights_bt[:, 1:][predicts_bt[:, :-1]]
    if words is None or "n_words" not in batch:
        loss_n = functional.cross_entropy(logits_nv.float(), ids_n, reduction="none")
        return (loss_n * weights_n).sum()
    is_word_bt = (weights_bt > 0) & (batch["n_words"] > 0)
    is_word_n = is_word_bt[:, 1:][predicts_bt[:, :-1]]
    other_n = functional.cross_entropy(logits_nv[~is_word_n].float(), ids_n[~is_word_n], reduction="none")
    word_n = words.losses(
        logits_nv[is_word_n], is_word_bt, ids_bt, batch["n_words"], batch["conditions"], batch.get("segment_ids")
    )
    return (other_n * weights_n[~is_word_n]).sum() + (word_n * weights_n[is_word_n]).sum()


def logits_at(
    model: torch.nn.Module, inputs: Mapping[str, Tensor], chosen_bt: Tensor, *, inside: torch.nn.Module
) -> Tensor:
    """Return the model's own logits at the chosen places, shape (n, v), row by row.

    The body runs on all tokens, the output layer on the chosen ones: with half of a small model's work in its output
    layer that is nearly twice as fast as computing all. What a family does to its logits afterwards, such as Gemma's
    soft cap or the scales of Cohere and Granite, is done by the model itself.
    """

    def choose(_: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden_btd = arguments[0]
        return (hidden_btd[chosen_bt][None], *arguments[1:]) if hidden_btd.shape[:2] == chosen_bt.shape else None

    # The output layer sees the chosen hidden states alone, as one row.
    layer = inside.get_output_embeddings()  # type: ignore[operator]
    handle = None if layer is None else layer.register_forward_pre_hook(choose)
    try:
        logits: Tensor = model(**inputs, use_cache=False).logits
    finally:
        if handle is not None:
            handle.remove()
    if logits.shape[:2] == chosen_bt.shape:  # a family that does not call its output layer
        return logits[chosen_bt]
    return logits[0]


def uses_flash(model: torch.nn.Module) -> bool:
    """Return whether attention is one of the flash attentions, which keep examples apart in a single row alone."""
    return str(model.config._attn_implementation).startswith("flash")  # type: ignore[union-attr]


def in_one_row(batch: Mapping[str, Any]) -> Batch:
    """Return packed rows as one row; what is padded becomes examples of one token without weight."""
    if "segment_ids" in batch:  # examples of several rows have the same numbers
        segments_bt = batch["segment_ids"]
        first_b = torch.arange(len(segments_bt), device=segments_bt.device) * (int(segments_bt.max()) + 1)
        batch = {**batch, "segment_ids": torch.where(segments_bt > 0, segments_bt + first_b[:, None], 0)}
    return {
        name: value.reshape(1, -1) if isinstance(value, Tensor) and value.ndim == 2 else value
        for name, value in batch.items()
    }


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
    """Return whether examples packed into common rows get the logits that they have alone.

    Five short examples of random ids in two rows are run through the model, as training does it, and alone. False too
    for a model that has no positions that could begin anew.
    """
    device = next(model.parameters()).device
    n_vocabulary = int(model.config.get_text_config().vocab_size)  # type: ignore[union-attr, operator]
    examples = torch.randint(n_vocabulary, (48,), generator=torch.Generator().manual_seed(0)).to(device)
    lengths = [11, 13, 7, 8, 9]
    positions = torch.cat([torch.arange(n) for n in lengths]).to(device)
    packed: Batch = {"input_ids": examples.reshape(2, 24), "position_ids": positions.reshape(2, 24)}
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            together_tv = _all_logits(model, packed)
            alone = [_all_logits(model, {"input_ids": ids[None]}) for ids in torch.split(examples, lengths)]
    except TypeError:  # no such argument
        return False
    finally:
        model.train(training)
    alone_tv = torch.cat(alone)
    # Rounding, relative to the spread of the logits; a leak changes them by a few hundredths at least.
    tolerance = 1e-4 if next(model.parameters()).dtype == torch.float32 else 0.05
    return bool((together_tv - alone_tv).abs().max() < tolerance * alone_tv.std())


def _all_logits(model: torch.nn.Module, batch: Batch) -> Tensor:
    if "position_ids" in batch and uses_flash(model):
        batch = in_one_row(batch)
    return logits_at(model, batch, torch.ones_like(batch["input_ids"], dtype=torch.bool), inside=model).float()
