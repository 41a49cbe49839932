"""Exact log-likelihoods of answers; for a closed set of answers the shared work is done once.

The tokens of a prompt are computed once and kept as keys and values. The answers are merged into a tree of tokens,
whose root is the prompt's last token, and the whole tree is evaluated in one pass: a mask lets each node see the
prompt and its own ancestors, and positions count along the branch. Each row of logits then serves every answer that
passes through its node. Not all model families understand such masks, so the first call on a model compares the ways
below on a small example and takes the first that agrees with plain evaluation:

tree    prompts in batches, all answers in one pass over the tree
expand  prompt by prompt; its keys and values are repeated for each answer, no mask at all
plain   every prompt with every answer from the start

Axes: n prompts, a answers, b rows of a batch, t tokens, m nodes of the tree, r rows of logits, v vocabulary.
"""

from __future__ import annotations

import copy
import inspect
import logging
import weakref
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, PreTrainedModel

from cytoglot.errors import InputError
from cytoglot.lm.answer_tree import AnswerTree, Ids, split_answers
from cytoglot.lm.batches import check_lengths, checked_batch_tokens, length_batches, pad_right
from cytoglot.lm.load import LanguageModel
from cytoglot.lm.tokenizer import encode_completions, encode_prompts
from cytoglot.progress import progress_bar

logger = logging.getLogger(__name__)

Way = Literal["tree", "expand", "plain"]

#: Most logits held at once (256 MB in float32); larger trees are evaluated in parts, larger batches cut.
MAX_LOGITS = 2**26
#: Most nodes evaluated at once: attention among them grows with the square.
MAX_NODES = 2048
#: Difference per token, in nats, up to which a way agrees with plain evaluation; half precision rounds more.
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.1

_fitting_ways: weakref.WeakKeyDictionary[PreTrainedModel, dict[tuple[str, ...], Way]] = weakref.WeakKeyDictionary()


def score_answers(
    lm: LanguageModel,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    terminator: bool | str = True,
    normalise: Literal["sum", "mean"] = "sum",
    prior_prompts: Sequence[str] | None = None,
    batch_tokens: int | None = None,
) -> NDArray[np.float64]:
    """Return log p(answer | prompt) in nats for every prompt and answer, float64 of shape (n, a).

    Not normalised over the answers: a softmax over the second axis does that. Equal to `score_answers_naive` within
    rounding, whatever else is in the batch.

    Parameters
    ----------
    answers
        Distinct completions as the model was trained to write them, each starting with its space (`" B cell."`).
    terminator
        True scores the end-of-text token behind each answer, a text scores that text instead, False scores nothing.
        Without a terminator an answer that is the beginning of another is always at least as likely.
    normalise
        "mean" divides by the number of tokens scored, terminator included, for answers of very different length.
    prior_prompts
        Prompts without content. The log of the mean probability that they give to an answer is subtracted (before
        `normalise`), which takes out the model's taste for some answers :cite:p:`zhao2021calibrate`.
    batch_tokens
        Most tokens in a batch, tree and padding included; by default what suits the device.

    Raises
    ------
    InputError
        No answers, repeated or empty ones, prompts that are empty or, with the longest answer, beyond the context, or
        a model whose output is NaN.
    """
    answer_ids = _encode_answers(lm, answers, terminator)
    prompt_ids = _encode_checked_prompts(lm, prompts, answer_ids)
    likelihood_na = _score(lm, prompt_ids, answer_ids, checked_batch_tokens(lm, batch_tokens))
    if prior_prompts is not None:
        if len(prior_prompts) == 0:
            raise InputError("prior_prompts is empty; pass at least one prompt without content, or None")
        prior_pa = score_answers(lm, prior_prompts, answers, terminator=terminator, batch_tokens=batch_tokens)
        likelihood_na = likelihood_na - (np.logaddexp.reduce(prior_pa, axis=0) - np.log(len(prior_pa)))
    if normalise == "mean":
        likelihood_na = likelihood_na / np.array([len(ids) for ids in answer_ids])
    return likelihood_na


def score_pairs(
    lm: LanguageModel,
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    terminator: bool | str = True,
    batch_tokens: int | None = None,
) -> NDArray[np.float64]:
    """Return log p(completion | prompt) in nats of each prompt with its own completion, float64 of shape (n,).

    For long completions that differ between prompts: held-out likelihood, or p(cell | type) for a generative
    classifier. `terminator` and errors are as in `score_answers`; completions may repeat.
    """
    if len(prompts) != len(completions):
        raise InputError(f"expected one completion per prompt, found {len(prompts)} and {len(completions)}")
    if len(completions) == 0:
        return np.empty(0)
    completion_ids = _encode_completions(lm, completions, terminator)
    prompt_ids = encode_prompts(lm.tokenizer, prompts)
    _check_pairs(lm, prompt_ids, np.array([len(ids) for ids in completion_ids]), what="prompt with its completion")
    with lm.inference():
        return _checked(_plain(lm, prompt_ids, completion_ids, checked_batch_tokens(lm, batch_tokens)))


def score_answers_naive(
    lm: LanguageModel, prompts: Sequence[str], answers: Sequence[str], *, terminator: bool | str = True
) -> NDArray[np.float64]:
    """Return what `score_answers` returns, by one full forward pass for every prompt and answer: the reference."""
    answer_ids = _encode_answers(lm, answers, terminator)
    prompt_ids = _encode_checked_prompts(lm, prompts, answer_ids)
    likelihood_na = np.empty((len(prompt_ids), len(answer_ids)))
    with lm.inference():
        for i, prompt in enumerate(prompt_ids):
            for j, answer in enumerate(answer_ids):
                ids_bt = torch.from_numpy(np.concatenate([prompt, answer]))[None].to(lm.device)
                logits_tv = lm.model(input_ids=ids_bt, use_cache=False).logits[0, len(prompt) - 1 : -1]
                log_p_tv = torch.log_softmax(logits_tv.cpu().double(), dim=-1).numpy()
                likelihood_na[i, j] = log_p_tv[np.arange(len(answer)), answer].sum()
    return likelihood_na


def _encode_completions(lm: LanguageModel, texts: Sequence[str], terminator: bool | str) -> list[Ids]:  # noqa: FBT001
    ended = [text + terminator for text in texts] if isinstance(terminator, str) else list(texts)
    encoded = encode_completions(lm.tokenizer, ended, eos=terminator is True)
    for text, ids in zip(texts, encoded, strict=True):
        if len(ids) == 0:
            raise InputError(f"every answer must be at least one token long, found {text!r}; pass terminator=True")
    return encoded


def _encode_answers(lm: LanguageModel, answers: Sequence[str], terminator: bool | str) -> list[Ids]:  # noqa: FBT001
    if len(answers) == 0:
        raise InputError("expected at least one answer to score, found none")
    if len(set(answers)) != len(answers):
        raise InputError(
            f"answers must be distinct, found {len(answers) - len(set(answers))} repeated of {len(answers)}"
        )
    return _encode_completions(lm, answers, terminator)


def _encode_checked_prompts(lm: LanguageModel, prompts: Sequence[str], answers: Sequence[Ids]) -> list[Ids]:
    rows = encode_prompts(lm.tokenizer, prompts)
    _check_pairs(lm, rows, max(map(len, answers)), what="prompt with its longest answer")
    return rows


def _check_pairs(lm: LanguageModel, prompts: Sequence[Ids], n_behind: int | NDArray[np.int64], *, what: str) -> None:
    lengths = np.array([len(row) for row in prompts], dtype=np.int64)
    check_lengths(lm, lengths, what="prompt")
    check_lengths(lm, lengths + n_behind - 1, what=what)  # the last token is scored, not read


def _score(lm: LanguageModel, prompts: Sequence[Ids], answers: Sequence[Ids], batch_tokens: int) -> NDArray[np.float64]:
    if len(prompts) == 0:
        return np.empty((0, len(answers)))
    longest = max(map(len, prompts)) + max(map(len, answers))
    # Beyond its window a sliding layer would see too far through the tree's mask.
    ways: tuple[Way, ...] = ("tree", "expand") if longest <= (lm.attention_window or longest) else ("expand",)
    with lm.inference():
        way = _fitting_way(lm, np.unique(np.concatenate([prompts[0], *answers])), ways)
        return _checked(_evaluate(lm, prompts, answers, way, batch_tokens))


def _checked(likelihood: NDArray[np.float64]) -> NDArray[np.float64]:
    if np.isnan(likelihood).any():
        raise InputError(
            f"the model gives NaN for {np.isnan(likelihood).sum()} of {likelihood.size} likelihoods; its weights are "
            "damaged, or its numbers overflow: load it with dtype='float32'"
        )
    return likelihood


def _evaluate(
    lm: LanguageModel, prompts: Sequence[Ids], answers: Sequence[Ids], way: Way, batch_tokens: int
) -> NDArray[np.float64]:
    likelihood_na = np.empty((len(prompts), len(answers)))
    with progress_bar(total=len(prompts), description="score", unit="prompt") as bar:
        if way == "tree":
            groups = split_answers(answers, max(2, min(MAX_NODES, MAX_LOGITS // lm.n_vocabulary)))
            trees = [AnswerTree.build([answers[j] for j in group]) for group in groups]
            n_nodes = max(tree.n_nodes for tree in trees)
            max_rows = max(1, MAX_LOGITS // (n_nodes * lm.n_vocabulary))
            lengths = np.array([len(row) for row in prompts], dtype=np.int64)
            for batch in length_batches(lengths, max_tokens=batch_tokens, extra=n_nodes, max_rows=max_rows):
                scores = _tree(lm, [prompts[i] for i in batch], trees)
                likelihood_na[np.ix_(batch, np.concatenate(groups))] = scores
                bar.update(len(batch))
        else:
            one_prompt = _expand if way == "expand" else _repeat
            for i, prompt in enumerate(prompts):
                likelihood_na[i] = one_prompt(lm, prompt, answers, batch_tokens)
                bar.update(1)
    return likelihood_na


def _tree(lm: LanguageModel, prompts: Sequence[Ids], trees: Sequence[AnswerTree]) -> NDArray[np.float64]:
    """Score the answers of all trees, in their order, for a batch of prompts."""
    cache = DynamicCache()
    prefix_bt = pad_right([prompt[:-1] for prompt in prompts], lm.pad_id, lm.device)
    if prefix_bt.shape[1]:
        lm.body(input_ids=prefix_bt, past_key_values=cache, use_cache=True)
    scores = []
    for tree in trees:
        logits_bmv = lm.model(
            input_ids=_tree_tokens(prompts, tree).to(lm.device),
            attention_mask=_tree_mask(prompts, tree, prefix_bt.shape[1], lm.model.dtype).to(lm.device),
            position_ids=_tree_positions(prompts, tree).to(lm.device),
            past_key_values=cache,
            use_cache=True,
        ).logits
        log_p_be = _edge_log_p(logits_bmv, tree)
        scores += [log_p_be[:, edges].sum(axis=1) for edges in tree.answer_edges]
        cache.crop(-tree.n_nodes)
    return np.stack(scores, axis=1)


def _tree_tokens(prompts: Sequence[Ids], tree: AnswerTree) -> torch.Tensor:
    tokens_bm = np.tile(tree.token, (len(prompts), 1))
    tokens_bm[:, 0] = [prompt[-1] for prompt in prompts]
    return torch.from_numpy(tokens_bm)


def _tree_positions(prompts: Sequence[Ids], tree: AnswerTree) -> torch.Tensor:
    return torch.from_numpy(np.array([len(prompt) - 1 for prompt in prompts])[:, None] + tree.depth)


def _tree_mask(prompts: Sequence[Ids], tree: AnswerTree, n_prefix: int, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask, shape (b, 1, m, n_prefix + m): each node sees its prompt without padding, and its ancestors."""
    is_prompt_bt = np.arange(n_prefix) < np.array([len(prompt) - 1 for prompt in prompts])[:, None]
    seen_bmt = np.concatenate(
        [
            np.broadcast_to(is_prompt_bt[:, None], (len(prompts), tree.n_nodes, n_prefix)),
            np.broadcast_to(tree.sees, (len(prompts), tree.n_nodes, tree.n_nodes)),
        ],
        axis=2,
    )
    mask = torch.zeros(seen_bmt.shape, dtype=dtype)
    return mask.masked_fill_(torch.from_numpy(~seen_bmt), torch.finfo(dtype).min)[:, None]


def _edge_log_p(logits_bmv: torch.Tensor, tree: AnswerTree) -> NDArray[np.float64]:
    node, token = torch.from_numpy(tree.edge_node), torch.from_numpy(tree.edge_token)
    picked_be = logits_bmv[:, node.to(logits_bmv.device), token.to(logits_bmv.device)].cpu().double()
    normaliser_bm = _log_normaliser(logits_bmv.flatten(0, 1)).view(logits_bmv.shape[:2])
    return (picked_be - normaliser_bm[:, node]).numpy()


def _expand(lm: LanguageModel, prompt: Ids, answers: Sequence[Ids], batch_tokens: int) -> NDArray[np.float64]:
    """Score answers behind one prompt. Its cache is repeated for each; nothing is padded in front, so no mask."""
    prefix_1t = torch.from_numpy(prompt[:-1])[None].to(lm.device)
    cache = DynamicCache(config=lm.model.config)
    if prefix_1t.shape[1]:
        lm.body(input_ids=prefix_1t, past_key_values=cache, use_cache=True)
    likelihood_a = np.empty(len(answers))
    lengths = np.array([len(answer) for answer in answers], dtype=np.int64)
    max_rows = max(1, MAX_LOGITS // (int(lengths.max()) * lm.n_vocabulary))
    for batch in length_batches(lengths, max_tokens=batch_tokens, extra=len(prompt) - 1, max_rows=max_rows):
        repeated = copy.deepcopy(cache)
        repeated.batch_repeat_interleave(len(batch))
        read = [np.append(prompt[-1], answers[j][:-1]) for j in batch]
        logits_btv = lm.model(
            input_ids=pad_right(read, lm.pad_id, lm.device), past_key_values=repeated, use_cache=True
        ).logits
        likelihood_a[batch] = _path_log_p(logits_btv, [0] * len(batch), [answers[j] for j in batch])
    return likelihood_a


def _repeat(lm: LanguageModel, prompt: Ids, answers: Sequence[Ids], batch_tokens: int) -> NDArray[np.float64]:
    return _plain(lm, [prompt] * len(answers), answers, batch_tokens)


def _plain(
    lm: LanguageModel, prompts: Sequence[Ids], completions: Sequence[Ids], batch_tokens: int
) -> NDArray[np.float64]:
    """Score pairs, each read from its start; only the positions of completions reach the output layer."""
    read = [np.concatenate([p, c[:-1]]) for p, c in zip(prompts, completions, strict=True)]
    lengths = np.array([len(row) for row in read], dtype=np.int64)
    max_rows = max(1, MAX_LOGITS // (int(max(map(len, completions))) * lm.n_vocabulary))
    likelihood_n = np.empty(len(read))
    for batch in length_batches(lengths, max_tokens=batch_tokens, max_rows=max_rows):
        ids_bt = pad_right([read[i] for i in batch], lm.pad_id, lm.device)
        first = min(len(prompts[i]) for i in batch) - 1
        logits_btv = _last_logits(lm.model, ids_bt, ids_bt.shape[1] - first)
        starts = [len(prompts[i]) - 1 - first for i in batch]
        likelihood_n[batch] = _path_log_p(logits_btv, starts, [completions[i] for i in batch])
    return likelihood_n


def _last_logits(model: PreTrainedModel, ids_bt: torch.Tensor, n_kept: int) -> torch.Tensor:
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        return model(input_ids=ids_bt, use_cache=False, logits_to_keep=n_kept).logits
    return model(input_ids=ids_bt, use_cache=False).logits[:, -n_kept:]


def _path_log_p(logits_btv: torch.Tensor, starts: Sequence[int], tokens: Sequence[Ids]) -> NDArray[np.float64]:
    """Sum the log-probabilities of each row's tokens, the first of which is predicted at column `start`."""
    sizes = np.array([len(ids) for ids in tokens])
    row = torch.from_numpy(np.repeat(np.arange(len(tokens)), sizes)).to(logits_btv.device)
    column = torch.from_numpy(
        np.concatenate([start + np.arange(size) for start, size in zip(starts, sizes, strict=True)])
    )
    logits_rv = logits_btv[row, column.to(logits_btv.device)]
    token = torch.from_numpy(np.concatenate(tokens)).to(logits_btv.device)
    picked = logits_rv.gather(1, token[:, None])[:, 0].cpu().double()
    log_p = (picked - _log_normaliser(logits_rv)).numpy()
    return np.add.reduceat(log_p, np.cumsum(sizes) - sizes)


def _log_normaliser(logits_rv: torch.Tensor, *, chunk: int = 2**22) -> torch.Tensor:
    """Return log Σ exp of each row as float64 on the CPU, summed in float64 (float32 where the device has no more)."""
    wide = torch.float32 if logits_rv.device.type == "mps" else torch.float64
    parts = []
    for block in torch.split(logits_rv, max(1, chunk // logits_rv.shape[1])):
        highest = block.amax(dim=1, keepdim=True).float()
        total = (block.float() - highest).exp_().sum(dim=1, dtype=wide)
        parts.append(total.log().cpu().double() + highest[:, 0].cpu().double())
    return torch.cat(parts)


def _fitting_way(lm: LanguageModel, tokens: Ids, ways: tuple[Way, ...]) -> Way:
    """Return the first of the ways that is right for this model, else "plain"; found out once and remembered."""
    known = _fitting_ways.setdefault(lm.model, {})
    key = (str(lm.model.config._attn_implementation), str(lm.model.dtype), str(lm.device), *ways)
    if key not in known:
        known[key] = _find_way(lm, tokens, ways)
        logger.info("answers are scored by %r for %s with %s attention", known[key], type(lm.model).__name__, key[0])
    return known[key]


def _find_way(lm: LanguageModel, tokens: Ids, ways: tuple[Way, ...]) -> Way:
    """Compare ways with plain evaluation, on prompts of unlike length and answers that begin alike."""
    draw = np.random.default_rng(0)
    prompts = [draw.choice(tokens, size=n) for n in (3, max(1, min(12, (lm.attention_window or 17) - 5)), 1)]
    a, b, c, d = (draw.choice(tokens, size=2) for _ in range(4))
    answers = [np.concatenate(parts) for parts in ([a, b], [a, c], [a], [d, a, b[:1]])]
    expected = np.stack([_repeat(lm, prompt, answers, MAX_NODES) for prompt in prompts])
    is_half = lm.model.dtype in (torch.float16, torch.bfloat16)
    tolerance = (HALF_TOLERANCE if is_half else TOLERANCE) * np.array([len(answer) for answer in answers])
    for way in ways:
        try:
            found = _evaluate(lm, prompts, answers, way, MAX_NODES)
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, NotImplementedError) as error:
            logger.debug("%s cannot score by %r: %s", type(lm.model).__name__, way, error)
            continue
        if (np.abs(found - expected) <= tolerance).all():
            return way
        logger.debug("%s scores wrongly by %r: off by %.2g", type(lm.model).__name__, way, abs(found - expected).max())
    return "plain"
