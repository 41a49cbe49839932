"""What many prompts share at their beginning is read once: one cell, then many questions about it.

Shared beginnings are found on token ids, since only there it is certain that the keys and values are the same. The
keys and values of a prefix are computed for a batch of one and shown to all members without copying them.

Axes: r rows (prompts), t tokens.
"""

from __future__ import annotations

import copy
import inspect
import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

if TYPE_CHECKING:
    from cytoglot.lm.model.language_model import LanguageModel


logger = logging.getLogger(__name__)

Ids = NDArray[np.int64]

#: Cost of a token read after a prefix, in tokens read from the start: attention to keys that are there already needs a
#: mask, and the keys are copied for each row. Measured on a CPU with models 128 and 256 wide: 1.2 to 1.4, more only
#: where nearly everything is shared, which pays anyway.
COST_AFTER_PREFIX = 1.5
#: Difference of logits, in nats, up to which reading after a prefix agrees with plain reading; half precision: 0.2.
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.2

_sharing: weakref.WeakKeyDictionary[PreTrainedModel, dict[tuple[str, ...], bool]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class PrefixGroup:
    """Rows that begin alike."""

    prefix: Ids
    """What all members begin with; empty where sharing would save nothing. Shorter than every member."""
    members: Ids
    """Numbers of the rows, ascending."""


def shared_prefixes(rows: Sequence[Ids], *, min_tokens: int = 32) -> list[PrefixGroup]:
    """Return groups of rows to be read after a common prefix; every row is in exactly one, in no special order.

    A row shares at most all tokens but its last, so that there is always something left to read after the prefix.
    Rows are grouped where that costs less than to read each from its start, a token after a prefix counted
    `COST_AFTER_PREFIX`: a short instruction before long and different cells is not shared, a cell before short
    questions is.
    What no group takes comes last, as one group with an empty prefix. Prefixes do not nest.

    Parameters
    ----------
    rows
        Token ids, not negative; may be empty, or repeated.
    min_tokens
        Shortest prefix that is shared.
    """
    if len(rows) == 0:
        return []
    keys = [np.asarray(row, dtype=">i8").tobytes() for row in rows]  # big-endian bytes sort as the numbers do
    order = sorted(range(len(rows)), key=keys.__getitem__)
    groups = [
        PrefixGroup(prefix=rows[branch.rows[0]][: branch.depth], members=np.sort(np.array(branch.rows)))
        for branch in _best_groups(rows, order, max(1, min_tokens))
    ]
    shared = {row for group in groups for row in group.members.tolist()}
    alone = np.array([row for row in range(len(rows)) if row not in shared], dtype=np.int64)
    if len(alone):
        groups.append(PrefixGroup(prefix=np.empty(0, dtype=np.int64), members=alone))
    return groups


def prefix_groups(lm: LanguageModel, rows: Sequence[Ids], longest: int) -> list[PrefixGroup]:
    """Return the groups of `shared_prefixes`, or one of all rows where the model cannot share `longest` tokens."""
    groups = shared_prefixes(rows)
    # The model is tried out only where there is something to share.
    return groups if all(len(g.prefix) == 0 for g in groups) or can_share(lm, longest) else [ungrouped(rows)]


def ungrouped(rows: Sequence[Ids]) -> PrefixGroup:
    """Return all rows as one group that shares nothing."""
    return PrefixGroup(prefix=np.empty(0, dtype=np.int64), members=np.arange(len(rows)))


def read_prefix(lm: LanguageModel, ids: Ids) -> Cache:
    """Return keys and values of one prefix, for a batch of one; to be called inside of `lm.inference()`.

    An empty prefix gives an empty cache.
    """
    cache = DynamicCache(config=lm.model.config)
    if len(ids):
        lm.body(input_ids=torch.from_numpy(ids)[None].to(lm.device), past_key_values=cache, use_cache=True)
    return cache


def expand(cache: Cache, n: int) -> Cache:
    """Return the cache of one prefix as that of `n` rows; the one given stays as it is.

    Rows are views of the same numbers until the model appends to them, which copies. A cache of `n` rows already gives
    one of the same rows.

    Raises
    ------
    NotImplementedError
        The cache holds something else than keys and values, such as the state of Mamba's layers, which models change in
        place.
    """
    expanded = copy.copy(cache)
    expanded.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in expanded.layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise NotImplementedError(f"cannot show a cache of {type(layer).__name__} to several rows")
        if layer.keys is not None and layer.get_seq_length() > 0:
            layer.keys = layer.keys.expand(n, *layer.keys.shape[1:])
            layer.values = layer.values.expand(n, *layer.values.shape[1:])
    return expanded


def can_share(lm: LanguageModel, longest: int) -> bool:
    """Return whether rows of up to `longest` tokens may be read after a prefix with the same result.

    Not where a layer's attention is limited to less than `longest`. Otherwise found out on a small example and
    remembered: families without keys and values (Mamba) cannot.
    """
    if lm.attention_window is not None and longest > lm.attention_window:
        return False
    known = _sharing.setdefault(lm.model, {})
    key = (str(lm.model.config._attn_implementation), str(lm.model.dtype), str(lm.device))
    if key not in known:
        known[key] = _agrees(lm)
        logger.debug("%s %s prefixes", type(lm.model).__name__, "shares" if known[key] else "cannot share")
    return known[key]


@dataclass(eq=False)
class _Branch:
    """Rows, neighbors in sorted order, with the groups that save most among them."""

    depth: int
    """Tokens that all rows share."""
    rows: list[int]
    n_tokens: int
    """Sum of the rows' lengths."""
    groups: list[_Branch] = field(default_factory=list)
    saved: float = 0.0
    """Tokens that the groups save."""


def _best_groups(rows: Sequence[Ids], order: Sequence[int], min_tokens: int) -> list[_Branch]:
    """Walk the tree of shared prefixes from its leaves; at each branching, children join where that saves more."""
    # A stack of open branches, each with its children so far; a shorter common prefix closes the deeper ones.
    stack: list[tuple[int, list[_Branch]]] = [(0, [])]
    for place, row in enumerate(order):
        leaf = _Branch(depth=max(0, len(rows[row]) - 1), rows=[row], n_tokens=len(rows[row]))
        ahead = 0  # how many first tokens it shares with the next row, less than either has
        if place + 1 < len(order):
            one, other = rows[row], rows[order[place + 1]]
            ahead = max(0, min(len(one), len(other)) - 1)
            differs = one[:ahead] != other[:ahead]
            ahead = int(np.argmax(differs)) if differs.any() else ahead
        if stack[-1][0] < ahead:
            stack.append((ahead, []))
        stack[-1][1].append(leaf)
        while stack[-1][0] > ahead:
            depth, children = stack.pop()
            joined = _join(depth, children, min_tokens)
            if stack[-1][0] < ahead:
                stack.append((ahead, []))
            stack[-1][1].append(joined)
    return _join(0, stack[0][1], min_tokens).groups


def _join(depth: int, children: Sequence[_Branch], min_tokens: int) -> _Branch:
    """Return the branch over some children, which share `depth` tokens, with the groups that save most.

    A child gains by joining what its rows save after these `depth` tokens, less what its own groups save already: a
    child with long prefixes of its own stays apart, since prefixes do not nest. Reading the shared prefix once costs
    `depth` tokens, whoever joins; so the children whose gain is positive join together or not at all. After a prefix a
    token costs `COST_AFTER_PREFIX`: rows of n tokens gain only if depth is above (1 - 1 / COST_AFTER_PREFIX) · n, a
    third of them.
    """
    rows = [row for child in children for row in child.rows]
    branch = _Branch(depth=depth, rows=rows, n_tokens=sum(child.n_tokens for child in children))
    gains = [_saved(depth, child) - child.saved if depth >= min_tokens else 0.0 for child in children]
    pays = sum(gain for gain in gains if gain > 0) > depth
    joining = [child for child, gain in zip(children, gains, strict=True) if pays and gain > 0]
    apart = [child for child, gain in zip(children, gains, strict=True) if not (pays and gain > 0)]
    branch.groups = [group for child in apart for group in child.groups]
    branch.saved = sum(child.saved for child in apart)
    if joining:
        members = [row for child in joining for row in child.rows]
        branch.groups.append(_Branch(depth=depth, rows=members, n_tokens=sum(child.n_tokens for child in joining)))
        branch.saved += sum(_saved(depth, child) for child in joining) - depth
    return branch


def _saved(depth: int, child: _Branch) -> float:
    """Tokens saved by reading a child's rows after a prefix of `depth` tokens that is there already."""
    return child.n_tokens - COST_AFTER_PREFIX * (child.n_tokens - depth * len(child.rows))


def _agrees(lm: LanguageModel) -> bool:
    """Read rows of unlike length after a prefix, padded, and compare with reading each from its start."""
    if "past_key_values" not in inspect.signature(lm.body.forward).parameters:
        return False
    n_prefix = max(1, min(8, (lm.attention_window or 12) - 4))
    n_tokens = min(lm.n_vocabulary, len(lm.tokenizer))
    prefix, first, second = np.split(np.random.default_rng(0).integers(n_tokens, size=n_prefix + 5), [n_prefix, -2])
    try:
        with lm.inference():
            plain = [_logits(lm, np.concatenate([prefix, rest])[None])[0, -1] for rest in (first, second)]
            cache = expand(read_prefix(lm, prefix), 2)
            logits_btv = _logits(lm, np.stack([first, np.append(second, first[0])]), cache)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        logger.debug("%s cannot read after a prefix: %s", type(lm.model).__name__, error)
        return False
    found = [logits_btv[0, -1], logits_btv[1, len(second) - 1]]
    tolerance = HALF_TOLERANCE if lm.model.dtype in (torch.float16, torch.bfloat16) else TOLERANCE
    return all(float((a - b).abs().max()) <= tolerance for a, b in zip(plain, found, strict=True))


def _logits(lm: LanguageModel, ids_bt: Ids, cache: Cache | None = None) -> torch.Tensor:
    options = {"use_cache": False} if cache is None else {"past_key_values": cache, "use_cache": True}
    return lm.model(input_ids=torch.from_numpy(ids_bt).to(lm.device), **options).logits.float()
