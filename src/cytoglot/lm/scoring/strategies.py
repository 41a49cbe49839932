"""Forward passes that give the log-probabilities of answers; `score` says which of them fits a model.

Axes: b prompts of a batch, a answers, t tokens, m nodes of the tree, e edges, r rows of logits, v vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Cache, DynamicCache

from cytoglot.lm.runtime.batches import length_batches, pad_right
from cytoglot.lm.runtime.halve_on_oom import in_halves
from cytoglot.lm.runtime.prefix_cache import expand
from cytoglot.lm.scoring.answer_tree import AnswerTree, Ids
from cytoglot.lm.scoring.tree_attention import last_queries_masked

if TYPE_CHECKING:
    from cytoglot.lm.model.language_model import LanguageModel

#: Most logits held at once (256 MB in float32); larger trees are evaluated in parts, larger batches cut.
MAX_LOGITS = 2**26
#: Logits that are normalized at once: a copy of them in float32 is made.
_CHUNK = 2**24


def single_pass_tree(
    lm: LanguageModel, prompts: Sequence[Ids], tree: AnswerTree, prefix: Cache | None = None
) -> NDArray[np.float64]:
    """Return log p of each answer after each prompt, shape (b, a); prompts and tree in a single pass.

    `prefix` is what all prompts begin with, read already; the prompts hold it too.

    Raises
    ------
    NotImplementedError
        The model attends by something else than `sdpa`.
    """
    n_prefix = _length(prefix)
    stem_bt = pad_right([prompt[n_prefix:-1] for prompt in prompts], lm.pad_id, lm.device)
    ids_bt = torch.cat([stem_bt, _tree_tokens(prompts, tree).to(lm.device)], dim=1)
    stem_positions = torch.arange(n_prefix, n_prefix + stem_bt.shape[1]).expand(len(prompts), -1)
    positions_bt = torch.cat([stem_positions, _tree_positions(prompts, tree)], dim=1).to(lm.device)
    mask_bmt = _mask(prompts, tree, n_prefix + stem_bt.shape[1], lm.model.dtype).to(lm.device)
    with last_queries_masked(lm):
        logits_bmv = _last_logits(
            lm,
            ids_bt,
            tree.n_nodes,
            _repeated(prefix, len(prompts)),
            attention_mask=mask_bmt,
            position_ids=positions_bt,
        )
    return _answer_log_p(logits_bmv, tree)


def cached_tree(
    lm: LanguageModel, prompts: Sequence[Ids], trees: Sequence[AnswerTree], prefix: Cache | None = None
) -> NDArray[np.float64]:
    """Return log p of the answers of all trees, in their order, shape (b, a); prompts first, then tree by tree."""
    n_prefix = _length(prefix)
    cache = _repeated(prefix, len(prompts)) or DynamicCache()
    stem_bt = pad_right([prompt[n_prefix:-1] for prompt in prompts], lm.pad_id, lm.device)
    if stem_bt.shape[1]:
        lm.body(input_ids=stem_bt, past_key_values=cache, use_cache=True)
    scores = []
    for tree in trees:
        mask_bmt = _mask(prompts, tree, n_prefix + stem_bt.shape[1], lm.model.dtype)
        logits_bmv = lm.model(
            input_ids=_tree_tokens(prompts, tree).to(lm.device),
            attention_mask=mask_bmt.to(lm.device),
            position_ids=_tree_positions(prompts, tree).to(lm.device),
            past_key_values=expand(cache, len(prompts)) if len(cache.layers) else DynamicCache(),
            use_cache=True,
        ).logits
        scores.append(_answer_log_p(logits_bmv, tree))
    return np.concatenate(scores, axis=1)


def cached_batch(
    lm: LanguageModel, prompt: Ids, answers: Sequence[Ids], batch_tokens: int, prefix: Cache | None = None
) -> NDArray[np.float64]:
    """Return log p of answers after one prompt, shape (a,): its cache is shown to each; no mask is needed."""
    n_prefix = _length(prefix)
    cache = _repeated(prefix, 1) or DynamicCache(config=lm.model.config)
    rest = prompt[n_prefix:-1]
    if len(rest):
        lm.body(input_ids=torch.from_numpy(rest)[None].to(lm.device), past_key_values=cache, use_cache=True)
    lengths = np.array([len(answer) for answer in answers], dtype=np.int64)
    max_rows = max(1, MAX_LOGITS // (int(lengths.max()) * lm.n_vocabulary))

    def score(batch: Sequence[int]) -> list[float]:
        read = [np.append(prompt[-1], answers[j][:-1]) for j in batch]
        ids_bt = pad_right(read, lm.pad_id, lm.device)
        repeated = expand(cache, len(batch)) if len(prompt) > 1 else None
        logits_btv = _last_logits(lm, ids_bt, ids_bt.shape[1], repeated)
        return _path_log_p(logits_btv, [0] * len(batch), [answers[j] for j in batch]).tolist()

    likelihood_a = np.empty(len(answers))
    for batch in length_batches(lengths, max_tokens=batch_tokens, extra=len(prompt) - 1, max_rows=max_rows):
        likelihood_a[batch] = in_halves(score, batch.tolist(), what="answer")
    return likelihood_a


def full_forward(
    lm: LanguageModel,
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    batch_tokens: int,
    prefix: Cache | None = None,
) -> NDArray[np.float64]:
    """Return log p of each prompt's own completion, shape (n,); only their positions reach the output layer."""
    n_prefix = _length(prefix)
    read = [np.concatenate([p[n_prefix:], c[:-1]]) for p, c in zip(prompts, completions, strict=True)]
    lengths = np.array([len(row) for row in read], dtype=np.int64)
    max_rows = max(1, MAX_LOGITS // (int(max(map(len, completions))) * lm.n_vocabulary))

    def score(batch: Sequence[int]) -> list[float]:
        ids_bt = pad_right([read[i] for i in batch], lm.pad_id, lm.device)
        first = min(len(prompts[i]) for i in batch) - n_prefix - 1
        logits_btv = _last_logits(lm, ids_bt, ids_bt.shape[1] - first, _repeated(prefix, len(batch)))
        starts = [len(prompts[i]) - n_prefix - 1 - first for i in batch]
        return _path_log_p(logits_btv, starts, [completions[i] for i in batch]).tolist()

    likelihood_n = np.empty(len(read))
    for batch in length_batches(lengths, max_tokens=batch_tokens, max_rows=max_rows):
        likelihood_n[batch] = in_halves(score, batch.tolist(), what="text")
    return likelihood_n


def _length(prefix: Cache | None) -> int:
    return 0 if prefix is None else prefix.get_seq_length()


def _repeated(prefix: Cache | None, n: int) -> Cache | None:
    return None if prefix is None else expand(prefix, n)


def _tree_tokens(prompts: Sequence[Ids], tree: AnswerTree) -> Tensor:
    tokens_bm = np.tile(tree.token, (len(prompts), 1))
    tokens_bm[:, 0] = [prompt[-1] for prompt in prompts]
    return torch.from_numpy(tokens_bm)


def _tree_positions(prompts: Sequence[Ids], tree: AnswerTree) -> Tensor:
    return torch.from_numpy(np.array([len(prompt) - 1 for prompt in prompts])[:, None] + tree.depth)


def _mask(prompts: Sequence[Ids], tree: AnswerTree, n_read: int, dtype: torch.dtype) -> Tensor:
    """Return an additive mask, shape (b, 1, m, n_read + m): nodes see their prompt, not its padding, and ancestors."""
    hidden = torch.finfo(dtype).min
    mask = torch.zeros((len(prompts), 1, tree.n_nodes, n_read + tree.n_nodes), dtype=dtype)
    length_b = torch.tensor([len(prompt) - 1 for prompt in prompts])
    mask[..., :n_read].masked_fill_((torch.arange(n_read) >= length_b[:, None])[:, None, None], hidden)
    mask[..., n_read:].masked_fill_(torch.from_numpy(~tree.sees), hidden)
    return mask


def _last_logits(lm: LanguageModel, ids_bt: Tensor, n_kept: int, cache: Cache | None = None, **options: Any) -> Tensor:
    """Return the logits at the last `n_kept` places; prompts never reach the output layer, where that can be told."""
    plain = lm.model.get_base_model() if lm.is_adapted else lm.model
    if "logits_to_keep" in inspect.signature(plain.forward).parameters:
        options["logits_to_keep"] = n_kept
    if cache is not None:
        options["past_key_values"] = cache
    return lm.model(input_ids=ids_bt, use_cache=cache is not None, **options).logits[:, -n_kept:]


def _answer_log_p(logits_bmv: Tensor, tree: AnswerTree) -> NDArray[np.float64]:
    node = torch.from_numpy(tree.edge_node).to(logits_bmv.device)
    token = torch.from_numpy(tree.edge_token).to(logits_bmv.device)
    parts = [
        torch.log_softmax(some_bmv.float(), dim=2)[:, node, token].cpu().double().numpy()
        for some_bmv in torch.split(logits_bmv, max(1, _CHUNK // logits_bmv[0].numel()))
    ]
    log_p_be = np.concatenate(parts)
    return np.stack([log_p_be[:, edges].sum(axis=1) for edges in tree.answer_edges], axis=1)


def _path_log_p(logits_btv: Tensor, starts: Sequence[int], tokens: Sequence[Ids]) -> NDArray[np.float64]:
    """Sum the log-probabilities of each row's tokens, the first of which is predicted at column `start`."""
    sizes = np.array([len(ids) for ids in tokens])
    row = torch.from_numpy(np.repeat(np.arange(len(tokens)), sizes)).to(logits_btv.device)
    columns = [start + np.arange(size) for start, size in zip(starts, sizes, strict=True)]
    column = torch.from_numpy(np.concatenate(columns)).to(logits_btv.device)
    token = torch.from_numpy(np.concatenate(tokens)).to(logits_btv.device)
    n_rows = max(1, _CHUNK // logits_btv.shape[2])
    parts = [
        torch.log_softmax(logits_btv[i, k].float(), dim=1).gather(1, next_token[:, None])[:, 0].cpu().double()
        for i, k, next_token in zip(*(torch.split(part, n_rows) for part in (row, column, token)), strict=True)
    ]
    return np.add.reduceat(torch.cat(parts).numpy(), np.cumsum(sizes) - sizes)
