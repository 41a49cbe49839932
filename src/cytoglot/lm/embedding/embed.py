"""Vectors of texts from the hidden states of a language model.

Only the body of the model runs, and of the body only what lies below the layer that is asked for: no output layer,
whose rows (50,000 in Pythia) can cost more than all the rest.

Axes: n texts, b texts of a batch, t tokens, s spans of a text, d embedding dimensions.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cytoglot.errors import InputError, ResourceError
from cytoglot.lm.model.tokenizer import encode_prompts, encode_prompts_with_offsets
from cytoglot.lm.runtime.batches import check_lengths, checked_batch_tokens, length_batches, pad_right
from cytoglot.lm.runtime.halve_on_oom import in_halves
from cytoglot.lm.runtime.prefetch import ahead
from cytoglot.progress import progress_bar

if TYPE_CHECKING:
    from cytoglot.lm.model.language_model import LanguageModel

logger = logging.getLogger(__name__)

Pooling = Literal["mean", "last"]
Precision = Literal["auto", "float32", "bfloat16"]

MAX_PADDING = 0.05
"""A batch takes a shorter text only while padding is less than this share of it."""


def embed_texts(
    lm: LanguageModel,
    texts: Sequence[str],
    *,
    layer: int = -1,
    pooling: Pooling = "mean",
    spans: Sequence[tuple[int, int]] | None = None,
    batch_tokens: int | None = None,
    dtype: Precision = "auto",
) -> NDArray[np.float32]:
    """Return one vector per text, float32 of shape (n, d), the same whatever else is in the batch.

    The original averages over padding and keeps the gradient graph; here neither exists :cite:p:`rizvi2025c2sscale`.

    Parameters
    ----------
    layer
        Which hidden state: 0 is the token embedding, 1 the first layer's output and so on, -1 the last, which is
        after the final normalization in most families. Deeper layers are not computed.
    pooling
        "mean" over the text's tokens (its opening token included), or "last": the hidden state of the last token.
    spans
        Part of each text that is pooled, as positions (first, after the last) of its characters: those of the cell
        sentence give a vector of the genes' tokens alone. The whole text is still read, up to the last token taken. A
        token belongs to a span that it has a character of. The opening token belongs to none; a text whose span has
        no token is pooled as a whole.
    batch_tokens
        Most tokens in a batch, padding included; by default what suits the device.
    dtype
        What to compute with: see `in_precision`.

    Raises
    ------
    InputError
        A text is empty (with a tokenizer that opens with nothing) or longer than the context; a layer that the model
        does not have; an unknown pooling or dtype; spans that are not one for each text or lie outside of it.
    """
    layer = checked_layer(lm, layer)
    _check_pooling(pooling)
    _check_spans(texts, spans)
    embedding_nd = np.empty((len(texts), n_dimensions(lm)), dtype=np.float32)
    tally, lm = EmbedTally(), in_precision(lm, dtype)

    def read(chunk: NDArray[np.int64]) -> tuple[NDArray[np.int64], TextTokens]:
        some = None if spans is None else [spans[i] for i in chunk]
        return chunk, read_texts(lm, [texts[i] for i in chunk], pooling=pooling, spans=some, numbers=chunk)

    chunks = _chunks_to_read(texts, checked_batch_tokens(lm, batch_tokens))
    with progress_bar(total=len(texts), description="embed", unit="text") as bar:
        for chunk, tokens in ahead(map(read, chunks)):
            embedding_nd[chunk] = embed_tokens(
                lm, tokens, layer=layer, batch_tokens=batch_tokens, on_text=bar.update, tally=tally
            )
    logger.info("%s", tally)
    return embedding_nd


@dataclass(kw_only=True, eq=False)
class EmbedTally:
    """What was computed, to be added to as the work goes on."""

    n_texts: int = 0
    n_tokens: int = 0
    """without padding"""
    n_computed: int = 0
    """with padding"""
    n_batches: int = 0
    started: float = field(default_factory=time.perf_counter)

    def __str__(self) -> str:
        padding = 1 - self.n_tokens / self.n_computed if self.n_computed else 0.0
        return (
            f"{self.n_texts} texts of {self.n_tokens} tokens in {self.n_batches} batches, "
            f"{100 * padding:.1f} % padding, {time.perf_counter() - self.started:.1f} s"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class TextTokens:
    """Texts as the model reads them, and the tokens of each that are pooled."""

    rows: Sequence[NDArray[np.int64]]
    """token ids of each text"""
    ranges: Sequence[NDArray[np.int64]]
    """(1, 2) for each text: first token, after the last"""


def read_texts(
    lm: LanguageModel,
    texts: Sequence[str],
    *,
    pooling: Pooling = "mean",
    spans: Sequence[tuple[int, int]] | None = None,
    numbers: NDArray[np.int64] | None = None,
) -> TextTokens:
    """Return the texts as tokens: the part of `embed_texts` that can be done ahead, in another thread.

    `numbers` are what messages call the texts, where they are some of many.

    Raises
    ------
    InputError
        A text is empty or longer than the context, an unknown pooling, or spans that do not fit.
    """
    _check_pooling(pooling)
    _check_spans(texts, spans)
    if spans is None:
        rows = encode_prompts(lm.tokenizer, texts)
        ranges = [np.array([[0, len(row)]], dtype=np.int64) for row in rows]
    else:
        rows, offsets = encode_prompts_with_offsets(lm.tokenizer, texts)
        ranges = [token_ranges(o, np.array([span], dtype=np.int64)) for o, span in zip(offsets, spans, strict=True)]
        without = [i for i, r in enumerate(ranges) if r[0, 0] == r[0, 1]]
        for i in without:
            ranges[i] = np.array([[0, len(rows[i])]], dtype=np.int64)
        if without:
            logger.warning("%d of %d spans hold no token: these texts are pooled as a whole", len(without), len(texts))
    check_lengths(lm, np.array([len(row) for row in rows], dtype=np.int64), what="text", numbers=numbers)
    if pooling == "last":
        ranges = [np.maximum(r, r[:, 1:] - 1) for r in ranges]
    return TextTokens(rows=rows, ranges=ranges)


def embed_tokens(
    lm: LanguageModel,
    tokens: TextTokens,
    *,
    layer: int = -1,
    batch_tokens: int | None = None,
    on_text: Callable[[], object] = lambda: None,
    tally: EmbedTally | None = None,
) -> NDArray[np.float32]:
    """Return one vector per text, as `embed_texts` does, computed in the model's own type.

    `on_text` is called when another text is done; `tally` is added to.
    """
    embedding_nd = np.empty((len(tokens.rows), n_dimensions(lm)), dtype=np.float32)
    options: dict[str, Any] = {"layer": layer, "batch_tokens": batch_tokens, "tally": tally}
    for row, vector_sd in pooled_states(lm, tokens.rows, tokens.ranges, **options):
        embedding_nd[row] = vector_sd[0]
        if not np.isfinite(vector_sd).all():
            raise ResourceError(
                "the model gives vectors that are not finite; its weights are damaged or its type too narrow"
            )
        on_text()
    return embedding_nd


def pooled_states(
    lm: LanguageModel,
    rows: Sequence[NDArray[np.int64]],
    ranges: Sequence[NDArray[np.int64]],
    *,
    layer: int = -1,
    batch_tokens: int | None = None,
    tally: EmbedTally | None = None,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the number of each row and the mean hidden state of each of its token ranges, float32 of shape (s, d).

    Rows come in the order of their lengths, longest first. A batch for which memory runs out is halved.

    Parameters
    ----------
    rows
        Token ids of each text.
    ranges
        For each text the tokens (first, after the last) of its parts, shape (s, 2); an empty range gives zeros.

    Raises
    ------
    InputError
        A row is empty or longer than the context, or there is no such layer.
    """
    layer = checked_layer(lm, layer)
    # A causal model never looks ahead, so tokens after the last one taken need not be read.
    rows = [row[: max(1, int(r.max(initial=0)))] for row, r in zip(rows, ranges, strict=True)]
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    check_lengths(lm, lengths, what="text")
    batches = length_batches(lengths, max_tokens=checked_batch_tokens(lm, batch_tokens), max_padding=MAX_PADDING)
    tally = EmbedTally() if tally is None else tally

    def pooled(batch: Sequence[int]) -> list[NDArray[np.float32]]:
        weight_bst = torch.from_numpy(_pooling_weights([rows[i] for i in batch], [ranges[i] for i in batch]))
        with lm.inference():
            hidden_btd = _hidden_states(lm, pad_right([rows[i] for i in batch], lm.pad_id, lm.device), layer)
            pooled_bsd = torch.bmm(weight_bst.to(lm.device), hidden_btd.float()).cpu().numpy()
        return [pooled_sd[: len(ranges[i])] for i, pooled_sd in zip(batch, pooled_bsd, strict=True)]

    for batch in batches:
        yield from zip(batch.tolist(), in_halves(pooled, batch.tolist(), what="text"), strict=True)
        tally.n_texts += len(batch)
        tally.n_batches += 1
        tally.n_tokens += int(lengths[batch].sum())
        tally.n_computed += len(batch) * int(lengths[batch].max())


def in_precision(lm: LanguageModel, dtype: Precision) -> LanguageModel:
    """Return the model with weights of another type, the same object where nothing is to be done; `lm` is not changed.

    "auto": bfloat16 for a float32 model on a CUDA device that computes with it, else the model's own type. A CPU
    computes with float32 unless asked: those that have bfloat16 are 1.3 to 1.9 times as fast with it, at a cosine above
    0.9999 (`benchmarks/bench_embed`), but many have not and are slower, and a result should not depend on that. The
    copy takes memory of its own: for many calls make it once, or load the model in that type. Buffers, such as the
    frequencies of rotary positions, stay in float32, as when a checkpoint is loaded.

    Raises
    ------
    InputError
        There is no such type.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype != "auto" and dtype not in known:
        raise InputError(f"dtype must be auto, {' or '.join(known)}, found {dtype!r}")
    own = lm.model.dtype
    halves = own == torch.float32 and lm.device.type == "cuda" and torch.cuda.is_bf16_supported()
    wanted = known[dtype] if dtype != "auto" else torch.bfloat16 if halves else own
    if wanted == own:
        return lm
    converted = {
        id(p): torch.nn.Parameter(p.detach().to(wanted), requires_grad=False)
        for p in lm.model.parameters()
        if p.is_floating_point()
    }
    return replace(lm, model=copy.deepcopy(lm.model, converted))


def n_dimensions(lm: LanguageModel) -> int:
    """Return the width of a hidden state."""
    return int(lm.model.config.get_text_config().hidden_size)


def checked_layer(lm: LanguageModel, layer: int) -> int:
    """Return the number of the hidden state, counted from 0.

    Raises
    ------
    InputError
        The model has no such layer.
    """
    n_layers = int(lm.model.config.get_text_config().num_hidden_layers)
    if not -n_layers - 1 <= layer <= n_layers:
        raise InputError(f"layer must lie between {-n_layers - 1} and {n_layers} in this model, found {layer}")
    return layer % (n_layers + 1)


def token_ranges(offsets_t2: NDArray[np.int64], spans_s2: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the tokens (first, after the last) that have a character of each span, shape (s, 2).

    Equal numbers where there are none.
    """
    first = np.searchsorted(offsets_t2[:, 1], spans_s2[:, 0], side="right")
    after = np.searchsorted(offsets_t2[:, 0], spans_s2[:, 1], side="left")
    return np.stack([first, np.where(spans_s2[:, 1] > spans_s2[:, 0], np.maximum(first, after), first)], axis=1)


def _chunks_to_read(texts: Sequence[str], batch_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Yield the numbers of texts that are read at a time: a few batches of texts of like length, longest first."""
    if isinstance(texts, str):
        raise InputError(f"expected a list of texts, found one text of {len(texts)} characters; pass [text]")
    n_characters = np.array([len(text) for text in texts], dtype=np.int64)
    order = np.argsort(-n_characters, kind="stable")
    # a token has a few characters, so these are four batches or more
    part = np.cumsum(n_characters[order]) // (8 * batch_tokens)
    yield from np.split(order, np.flatnonzero(np.diff(part)) + 1) if len(order) else ()


def _check_pooling(pooling: str) -> None:
    if pooling not in ("mean", "last"):
        raise InputError(f"pooling must be 'mean' or 'last', found {pooling!r}")


def _check_spans(texts: Sequence[str], spans: Sequence[tuple[int, int]] | None) -> None:
    if spans is None:
        return
    if len(spans) != len(texts):
        raise InputError(f"expected one span for each of {len(texts)} texts, found {len(spans)}; pass as many of both")
    for i, (text, (first, after)) in enumerate(zip(texts, spans, strict=True)):
        if not 0 <= first <= after <= len(text):
            raise InputError(
                f"span {i} must lie in its text of {len(text)} characters, found ({first}, {after}); "
                "pass positions of characters, the second after the last"
            )


def _pooling_weights(rows: Sequence[NDArray[np.int64]], ranges: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
    """Share of each token in each vector of its text, shape (b, s, t); 0 on padding and outside of the range."""
    shape = (len(rows), max((len(r) for r in ranges), default=0), max(map(len, rows)))
    weight_bst = np.zeros(shape, dtype=np.float32)
    for weight_st, range_s2 in zip(weight_bst, ranges, strict=True):
        for weights, (first, after) in zip(weight_st, range_s2.tolist(), strict=False):
            weights[first:after] = 1 / max(after - first, 1)
    return weight_bst


class _ReachedError(Exception):
    """Ends a forward pass at the layer whose input was asked for."""

    def __init__(self, hidden_btd: torch.Tensor) -> None:
        self.hidden_btd = hidden_btd


def _hidden_states(lm: LanguageModel, ids_bt: torch.Tensor, layer: int) -> torch.Tensor:
    n_layers = lm.model.config.get_text_config().num_hidden_layers
    if layer == n_layers:
        return lm.body(input_ids=ids_bt, use_cache=False).last_hidden_state
    stacks = [m for m in lm.body.children() if isinstance(m, torch.nn.ModuleList) and len(m) == n_layers]
    if len(stacks) != 1:  # which layers are the model's cannot be told, so all of them are run
        return lm.body(input_ids=ids_bt, use_cache=False, output_hidden_states=True).hidden_states[layer]

    def stop(_: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        raise _ReachedError(args[0] if args else kwargs["hidden_states"])

    hook = stacks[0][layer].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        lm.body(input_ids=ids_bt, use_cache=False)
    except _ReachedError as reached:
        return reached.hidden_btd
    finally:
        hook.remove()
    raise AssertionError("a body that calls each of its layers")
