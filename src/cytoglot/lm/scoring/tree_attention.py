"""Attention in which only the last queries of a row are masked: a prompt and the tree of its answers in one pass.

A mask over all tokens would slow down the prompt, which is most of them: kernels without a mask skip what lies ahead
and need half of the time. Here the tokens of prompts take these kernels, as in any plain pass, and only the nodes of
the tree are masked. Nothing is cached and copied in between.

Axes: b rows, h heads, t tokens (stem and nodes), k keys, m nodes, d dimensions of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

if TYPE_CHECKING:
    from cytoglot.lm.model.language_model import LanguageModel


NAME = "cytoglot_tree"


def tree_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **options: Any
) -> tuple[Tensor, None]:
    """Return what each token reads, shape (b, t, h, d).

    Parameters
    ----------
    query, key, value
        Shapes (b, h, t, d), (b, h, k, d) and (b, h, k, d). Keys are those of a prefix read earlier (maybe none), of the
        stem and of the nodes.
    attention_mask
        Shape (b, 1, m, k), added to what the last m queries read of the keys. The other queries, the stem, see the
        prefix and the stem up to themselves.
    """
    attention_mask = attention_mask.to(query.dtype)
    n_stem = query.shape[2] - attention_mask.shape[2]
    n_seen = key.shape[2] - attention_mask.shape[2]
    nodes_bmhd, _ = sdpa_attention_forward(module, query[:, :, n_stem:], key, value, attention_mask, **options)
    if n_stem == 0:
        return nodes_bmhd, None
    ahead = None
    if n_stem < n_seen:  # the kernels' own causal mask would put the first query beside the first key
        ahead = torch.ones(n_stem, n_seen, dtype=torch.bool, device=key.device).tril_(n_seen - n_stem)[None, None]
    stem_bthd, _ = sdpa_attention_forward(
        module, query[:, :, :n_stem], key[:, :, :n_seen], value[:, :, :n_seen], ahead, **options
    )
    return torch.cat([stem_bthd, nodes_bmhd], dim=1), None


AttentionInterface.register(NAME, tree_attention)


@contextmanager
def last_queries_masked(lm: LanguageModel) -> Iterator[None]:
    """Run a block with `tree_attention`; afterwards the model's attention is as before.

    Raises
    ------
    NotImplementedError
        The model attends by something else than `sdpa`.
    """
    config = lm.model.config.get_text_config()
    before = config._attn_implementation
    if before != "sdpa":
        raise NotImplementedError(f"trees are read in one pass with sdpa attention only, found {before}")
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
