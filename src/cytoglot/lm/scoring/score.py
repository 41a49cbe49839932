"""Exact log-likelihoods of answers; for a closed set of answers the shared work is done once.

The answers are merged into a tree of tokens, whose root is the prompt's last token. A mask lets each node see the
prompt and its own ancestors, and positions count along the branch; each row of logits then serves every answer that
passes through its node. What prompts share at their beginning is read once (`cytoglot.lm.runtime.prefix_cache`). Not
all model families understand such masks, nor at every length, so the first call on a model with prompts of about this
length compares the strategies below on small examples and on a prompt as long as the longest, and takes the first that
agrees with plain evaluation:

pass    prompts in batches, each followed by the tree, in one pass without a cache
tree    prompts in batches; then, after their keys and values, one pass for each part of the tree
expand  prompt by prompt; its keys and values are shown to each answer, no mask at all
plain   every prompt with every answer from the start

Axes: n prompts, a answers.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Cache, PreTrainedModel

from cytoglot.errors import InputError, ResourceError
from cytoglot.lm.model.tokenizer import encode_completions, encode_prompts
from cytoglot.lm.runtime.batches import check_lengths, checked_batch_tokens, length_batches
from cytoglot.lm.runtime.halve_on_oom import in_halves
from cytoglot.lm.runtime.prefix_cache import PrefixGroup, prefix_groups, read_prefix, ungrouped
from cytoglot.lm.scoring import strategies as answer_passes
from cytoglot.lm.scoring.answer_tree import AnswerTree, Ids, split_answers
from cytoglot.lm.scoring.strategies import cached_batch, cached_tree, full_forward, single_pass_tree
from cytoglot.progress import progress_bar

if TYPE_CHECKING:
    from cytoglot.lm.model.language_model import LanguageModel

logger = logging.getLogger(__name__)

ScoringStrategy = Literal["single_pass_tree", "cached_tree", "cached_batch", "full_forward"]

#: Most nodes evaluated at once: attention among them grows with the square.
MAX_NODES = 2048
#: Difference per token, in nats, up to which a strategy agrees with plain evaluation; half precision rounds more.
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.1

_chosen_strategies: weakref.WeakKeyDictionary[PreTrainedModel, dict[tuple[str, ...], ScoringStrategy]] = (
    weakref.WeakKeyDictionary()
)


def score_answers(
    lm: LanguageModel,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    terminator: bool | str = True,
    normalize: Literal["sum", "mean"] = "sum",
    prior_prompts: Sequence[str] | None = None,
    batch_tokens: int | None = None,
) -> NDArray[np.float64]:
    """Return log p(answer | prompt) in nats for every prompt and answer, float64 of shape (n, a).

    Not normalized over the answers: a softmax over the second axis does that. Equal to `score_answers_naive` within
    rounding, whatever else is in the batch.

    Parameters
    ----------
    answers
        Distinct completions as the model was trained to write them, each starting with its space (`" B cell."`).
    terminator
        True scores the end-of-text token after each answer, a text scores that text instead, False scores nothing.
        Without a terminator an answer that is the beginning of another is always at least as likely.
    normalize
        "mean" divides by the number of tokens scored, terminator included, for answers of very different length.
    prior_prompts
        Prompts without content. The log of the mean probability that they give to an answer is subtracted (before
        `normalize`), which takes out the model's taste for some answers :cite:p:`zhao2021calibrate`.
    batch_tokens
        Most tokens in a batch, tree and padding included; by default what suits the device.

    Raises
    ------
    InputError
        No answers, repeated or empty ones, prompts that are empty or, with the longest answer, beyond the context.
    ResourceError
        The model's output is NaN.
    """
    answer_ids = _encode_answers(lm, answers, terminator)
    prompt_ids = _encode_checked_prompts(lm, prompts, answer_ids)
    likelihood_na = _score(lm, prompt_ids, answer_ids, checked_batch_tokens(lm, batch_tokens))
    if prior_prompts is not None:
        if len(prior_prompts) == 0:
            raise InputError("prior_prompts is empty; pass at least one prompt without content, or None")
        prior_pa = score_answers(lm, prior_prompts, answers, terminator=terminator, batch_tokens=batch_tokens)
        likelihood_na = likelihood_na - (np.logaddexp.reduce(prior_pa, axis=0) - np.log(len(prior_pa)))
    if normalize == "mean":
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
    likelihood_n = np.empty(len(prompt_ids))
    longest = max(len(p) + len(c) for p, c in zip(prompt_ids, completion_ids, strict=True))
    with lm.inference():
        for group in prefix_groups(lm, prompt_ids, longest):
            prefix = read_prefix(lm, group.prefix) if len(group.prefix) else None
            some, their_completions = ([rows[i] for i in group.members] for rows in (prompt_ids, completion_ids))
            likelihood_n[group.members] = full_forward(
                lm, some, their_completions, checked_batch_tokens(lm, batch_tokens), prefix
            )
    return _checked(likelihood_n)


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


def _check_pairs(lm: LanguageModel, prompts: Sequence[Ids], n_after: int | NDArray[np.int64], *, what: str) -> None:
    lengths = np.array([len(row) for row in prompts], dtype=np.int64)
    check_lengths(lm, lengths, what="prompt")
    check_lengths(lm, lengths + n_after - 1, what=what)  # the last token is scored, not read


def _score(lm: LanguageModel, prompts: Sequence[Ids], answers: Sequence[Ids], batch_tokens: int) -> NDArray[np.float64]:
    if len(prompts) == 0:
        return np.empty((0, len(answers)))
    longest = max(map(len, prompts)) + max(map(len, answers))
    strategies: tuple[ScoringStrategy, ...] = ("single_pass_tree", "cached_tree", "cached_batch")
    if longest > (lm.attention_window or longest):
        strategies = strategies[2:]  # a sliding layer would see too far through the tree's mask
    elif len(_parts(lm, answers)) > 1:
        strategies = strategies[1:]
    with lm.inference():
        strategy = _chosen_strategy(lm, prompts, answers, strategies)
        groups = [ungrouped(prompts)] if strategy == "full_forward" else prefix_groups(lm, prompts, longest)
        return _checked(_evaluate(lm, prompts, answers, strategy, batch_tokens, groups))


def _parts(lm: LanguageModel, answers: Sequence[Ids]) -> list[Ids]:
    return split_answers(answers, max(2, min(MAX_NODES, answer_passes.MAX_LOGITS // lm.n_vocabulary)))


def _checked(likelihood: NDArray[np.float64]) -> NDArray[np.float64]:
    if np.isnan(likelihood).any():
        raise ResourceError(
            f"the model gives NaN for {np.isnan(likelihood).sum()} of {likelihood.size} likelihoods; its weights are "
            "damaged, or its numbers overflow: load it with dtype='float32'"
        )
    return likelihood


def _evaluate(
    lm: LanguageModel,
    prompts: Sequence[Ids],
    answers: Sequence[Ids],
    strategy: ScoringStrategy,
    batch_tokens: int,
    groups: Sequence[PrefixGroup],
) -> NDArray[np.float64]:
    parts = _parts(lm, answers)
    trees = [AnswerTree.build([answers[j] for j in part]) for part in parts]
    n_nodes = max(tree.n_nodes for tree in trees)
    in_trees = np.argsort(np.concatenate(parts))

    def score(prefix: Cache | None, batch: Sequence[int]) -> list[NDArray[np.float64]]:
        some = [prompts[i] for i in batch]
        if strategy == "single_pass_tree" and len(trees) == 1:
            return list(single_pass_tree(lm, some, trees[0], prefix)[:, in_trees])
        if strategy in ("single_pass_tree", "cached_tree"):
            return list(cached_tree(lm, some, trees, prefix)[:, in_trees])
        if strategy == "cached_batch":
            return [cached_batch(lm, prompt, answers, batch_tokens, prefix) for prompt in some]
        return [full_forward(lm, [prompt] * len(answers), answers, batch_tokens) for prompt in some]

    max_rows = (
        max(1, answer_passes.MAX_LOGITS // (n_nodes * lm.n_vocabulary))
        if strategy in ("single_pass_tree", "cached_tree")
        else 1
    )
    likelihood_na = np.empty((len(prompts), len(answers)))
    lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    with progress_bar(total=len(prompts), description="score", unit="prompt") as bar:
        for group in groups:
            # What a group begins with is read once for all of its batches.
            prefix = read_prefix(lm, group.prefix) if len(group.prefix) else None
            left = lengths[group.members] - len(group.prefix)
            for some in length_batches(left, max_tokens=batch_tokens, extra=n_nodes, max_rows=max_rows):
                batch = group.members[some]
                likelihood_na[batch] = in_halves(partial(score, prefix), batch.tolist(), what="prompt with its answers")
                bar.update(len(batch))
    return likelihood_na


def _chosen_strategy(
    lm: LanguageModel, prompts: Sequence[Ids], answers: Sequence[Ids], strategies: tuple[ScoringStrategy, ...]
) -> ScoringStrategy:
    """Return the first of the strategies that is right for this model, else "full_forward".

    Found out once for each range of lengths, from a power of two to the next, and remembered: attention may go wrong
    only beyond its first block of keys.
    """
    known = _chosen_strategies.setdefault(lm.model, {})
    longest = max(prompts, key=len)
    attention = str(lm.model.config._attn_implementation)
    key = (attention, str(lm.model.dtype), str(lm.device), str(len(longest).bit_length()), *strategies)
    if key not in known:
        known[key] = _find_strategy(lm, longest, np.unique(np.concatenate([prompts[0], *answers])), strategies)
        logger.debug(
            "answers to up to %d tokens are scored by %r for %s with %s attention",
            2 ** len(longest).bit_length() - 1,
            known[key],
            type(lm.model).__name__,
            attention,
        )
    return known[key]


def _find_strategy(
    lm: LanguageModel, longest: Ids, tokens: Ids, strategies: tuple[ScoringStrategy, ...]
) -> ScoringStrategy:
    """Compare strategies with plain evaluation.

    On short prompts of unlike length with answers that begin alike, and on one prompt as long as the longest with two
    such answers, which costs about two passes over that prompt for plain evaluation and one for each strategy.
    """
    draw = np.random.default_rng(0)
    limit = min(lm.context_length or len(longest) + 4, lm.attention_window or len(longest) + 4)
    short = [draw.choice(tokens, size=n) for n in (3, max(1, min(12, (lm.attention_window or 17) - 5)), 1)]
    a, b, c, d = (draw.choice(tokens, size=2) for _ in range(4))
    answers = [np.concatenate(parts) for parts in ([a, b], [a, c], [a], [d, a, b[:1]])]
    examples = [(short, answers)]
    if len(long := longest[: limit - 4]) > len(short[1]):
        examples.append(([long], answers[:2]))
    is_half = lm.model.dtype in (torch.float16, torch.bfloat16)
    tolerance = HALF_TOLERANCE if is_half else TOLERANCE

    def score(strategy: ScoringStrategy, example: tuple[list[Ids], list[Ids]]) -> NDArray[np.float64]:
        return _evaluate(lm, *example, strategy, MAX_NODES, [ungrouped(example[0])])

    expected = [score("full_forward", example) for example in examples]
    for strategy in strategies:
        try:
            differences = [
                (np.abs(score(strategy, example) - plain) / [len(answer) for answer in example[1]]).max()
                for example, plain in zip(examples, expected, strict=True)
            ]
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, NotImplementedError) as error:
            logger.debug("%s cannot score by %r: %s", type(lm.model).__name__, strategy, error)
            continue
        if all(difference <= tolerance for difference in differences):  # not so where one is NaN
            return strategy
        logger.debug("%s scores wrongly by %r: off by %.2g", type(lm.model).__name__, strategy, max(differences))
    return "full_forward"
