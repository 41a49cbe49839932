"""Sampling of constrained answers in batches, each sample the same whatever its batch.

Prompts are read once each, and what many of them begin with only once (`cytoglot.lm.runtime.prefix_cache`); keys and
values are shared among the samples. The noise of a sample is a stream of its own, named by seed, prompt and sample
number. So a sample changes with its batch only where rounding (about 1e-6 in float32) turns the order of its two best
tokens. Where memory runs out, a batch goes on in halves.

Axes: p distinct prompts of a batch, b rows (one for each answer), t tokens, v vocabulary, s symbols (tokens that an
answer can use).
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Cache

from cytoglot.answer_format import AnswerFormat, DistinctWords, GeneratedAnswer
from cytoglot.errors import InputError, ResourceError
from cytoglot.lm.constraint.answer_constraint import AnswerConstraint
from cytoglot.lm.constraint.constrain import constrain
from cytoglot.lm.generation.sampling import Sampling, TokenSampler
from cytoglot.lm.model.tokenizer import encode_prompts, word_token_ids
from cytoglot.lm.runtime.halve_on_oom import release_memory
from cytoglot.lm.runtime.prefix_cache import expand, prefix_groups, read_prefix
from cytoglot.progress import progress_bar

if TYPE_CHECKING:
    from cytoglot.lm.model.language_model import LanguageModel

logger = logging.getLogger(__name__)

Ids = NDArray[np.int64]


class StepObserver(Protocol):
    """What looks on while answers are written; `answer_ranks` collects next-word probabilities so."""

    def start(self, answers: Sequence[tuple[int, int]], constraint: AnswerConstraint) -> None:
        """Begin a batch of answers, each named by its prompt and sample number; drop one that was not finished."""

    def step(self, places: Sequence[int], logits_bs: Tensor, allowed_bs: Tensor, symbol_b: Tensor) -> None:
        """See what each row may take next, and what it takes; `places` are the rows' numbers as the batch began."""

    def finish(self) -> None:
        """Take the batch as complete: all of its answers have ended."""


@dataclass(frozen=True, kw_only=True)
class _Request:
    """One prompt and what is asked of it."""

    index: int
    prompt_ids: NDArray[np.int64]
    answer_format: AnswerFormat
    key: str

    @property
    def bounds(self) -> tuple[int, int] | None:
        """Fewest and most words, None for formats without words."""
        one = self.answer_format
        return (one.min_words, one.max_words) if isinstance(one, DistinctWords) else None


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One answer to be written: to which request, which sample, and after which prompt of the batch."""

    request: _Request
    sample: int
    prompt: int


def generate_answers(
    lm: LanguageModel,
    prompts: Sequence[str],
    answer_format: AnswerFormat | Sequence[AnswerFormat],
    *,
    seed: int,
    n_samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    batch_size: int = 64,
    terminator: str = ".",
    keys: Sequence[str] | None = None,
) -> list[list[str]]:
    """Return the texts of `n_samples` answers for each prompt; see `sample_answers`."""
    answers = sample_answers(
        lm,
        prompts,
        answer_format,
        sampling=Sampling(temperature=temperature, top_p=top_p, seed=seed),
        n_samples=n_samples,
        batch_size=batch_size,
        terminator=terminator,
        keys=keys,
        with_log_probs=False,
    )
    return [[answer.text for answer in samples] for samples in answers]


def sample_answers(
    lm: LanguageModel,
    prompts: Sequence[str],
    answer_format: AnswerFormat | Sequence[AnswerFormat],
    *,
    sampling: Sampling,
    n_samples: int = 1,
    batch_size: int = 64,
    terminator: str = ".",
    keys: Sequence[str] | None = None,
    with_log_probs: bool = True,
    observer: StepObserver | None = None,
) -> list[list[GeneratedAnswer]]:
    """Return `n_samples` answers for each prompt, every one complete and valid for its format.

    Where the model's context is too short for `max_words` words, an answer of `DistinctWords` ends early, but never
    before `min_words`.

    Parameters
    ----------
    answer_format
        One for all prompts, or one for each. Prompts whose formats differ only in the number of words share batches.
    batch_size
        Most answers written at the same time; halved where memory runs out. It changes memory and speed, not the
        answers.
    terminator
        Text between answer and end of text, as in the training texts.
    keys
        What names each prompt's noise, so that a long list can be done in parts or in another order; by default the
        prompt's place in the list. The same prompt under the same key gives the same samples.
    with_log_probs
        False leaves the log-probabilities empty and saves their cost.
    observer
        Shown the logits of every step.

    Raises
    ------
    InputError
        A prompt is empty or does not fit the model's context together with its answer, there is not one format or one
        key for each prompt, a setting is out of range, or the tokenizer cannot serve the format (see `constrain`).
    torch.OutOfMemoryError
        Not even a single answer fits the memory of the device.
    """
    if n_samples < 1 or batch_size < 1:
        raise InputError(f"n_samples and batch_size must be at least 1, found {n_samples} and {batch_size}")
    requests = _requests(lm, prompts, answer_format, keys)
    groups = [(constrain(shared, lm.tokenizer, terminator=terminator), group) for shared, group in _by_words(requests)]
    for constraint, group in groups:
        for request in group:
            n_prompt = len(request.prompt_ids)
            if n_prompt == 0:
                raise InputError(
                    f"prompt {request.index} is empty and the tokenizer puts no opening token; give a word"
                )
            n_answer = constraint.enough_tokens(request.bounds[0] if request.bounds else None)
            if lm.context_length is not None and n_prompt + n_answer > lm.context_length:
                asked = f" for {request.bounds[0]:,} words" if request.bounds else ""
                raise InputError(
                    f"prompt {request.index} has {n_prompt:,} tokens and its answer may need {n_answer:,}{asked}, "
                    f"together more than the model's context of {lm.context_length:,}; shorten the prompt or ask for "
                    "less"
                )
    answers: dict[tuple[int, int], GeneratedAnswer] = {}
    answering = partial(
        _Answering, lm, sampling=sampling, batch_size=batch_size, with_log_probs=with_log_probs, observer=observer
    )
    with lm.inference(), progress_bar(total=len(requests) * n_samples, description="generating", unit="answer") as bar:
        for constraint, group in groups:
            for row, answer in answering(constraint).answers(group, n_samples):
                answers[row.request.index, row.sample] = answer
                bar.update()
    return [[answers[index, sample] for sample in range(n_samples)] for index in range(len(requests))]


def _requests(
    lm: LanguageModel,
    prompts: Sequence[str],
    answer_format: AnswerFormat | Sequence[AnswerFormat],
    keys: Sequence[str] | None,
) -> list[_Request]:
    prompt_ids = encode_prompts(lm.tokenizer, prompts)
    formats = answer_format if isinstance(answer_format, (list, tuple)) else [answer_format] * len(prompt_ids)
    for one in formats:
        if not isinstance(one, AnswerFormat):
            raise InputError(
                f"expected OneOf, DistinctWords, Number or FreeText of cytoglot.answer_format, found {one!r}"[:300]
            )
    keys = [str(index) for index in range(len(prompt_ids))] if keys is None else keys
    if not len(prompt_ids) == len(formats) == len(keys):
        raise InputError(
            f"need one answer format and one key for each prompt, found {len(prompt_ids)} prompts, {len(formats)} "
            f"formats and {len(keys)} keys"
        )
    rows = zip(prompt_ids, formats, keys, strict=True)
    return [
        _Request(index=index, prompt_ids=ids, answer_format=one, key=key) for index, (ids, one, key) in enumerate(rows)
    ]


def _by_words(requests: Sequence[_Request]) -> list[tuple[AnswerFormat, list[_Request]]]:
    """Return the requests that can share a batch, with a format that is as wide as all of theirs."""
    groups: dict[AnswerFormat | tuple[str, ...], list[_Request]] = {}
    for request in requests:
        one = request.answer_format
        groups.setdefault(one.words if isinstance(one, DistinctWords) else one, []).append(request)
    shared: list[tuple[AnswerFormat, list[_Request]]] = []
    for group in groups.values():
        formats = [request.answer_format for request in group]
        of_words = [one for one in formats if isinstance(one, DistinctWords)]
        if of_words:
            fewest, most = min(one.min_words for one in of_words), max(one.max_words for one in of_words)
            shared.append((DistinctWords(words=of_words[0].words, min_words=fewest, max_words=most), group))
        else:
            shared.append((formats[0], group))
    return shared


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Distinct prompts, and the answers to write after them."""

    prompt_ids: list[Ids]
    rows: list[_Row]
    prefix: Ids
    """What all prompts begin with and is read already; may be empty."""
    prefix_cache: Cache | None


class _Answering:
    """Answers the requests of one constraint, batch by batch."""

    def __init__(
        self,
        lm: LanguageModel,
        constraint: AnswerConstraint,
        *,
        sampling: Sampling,
        batch_size: int,
        with_log_probs: bool,
        observer: StepObserver | None,
    ) -> None:
        self.lm, self.constraint, self.sampling = lm, constraint, sampling
        self.batch_size, self.with_log_probs, self.observer = batch_size, with_log_probs, observer
        # Families without position ids cannot read rows of different length together.
        taken = inspect.signature(lm.model.forward).parameters
        self.takes_padding = {"attention_mask", "position_ids"} <= taken.keys()

    def answers(self, requests: Sequence[_Request], n_samples: int) -> Iterator[tuple[_Row, GeneratedAnswer]]:
        """Yield every answer, in the order in which they become ready."""
        for batch in self._batches(requests, n_samples):
            # More answers than a batch has belong to one prompt, which is read once for all of them.
            kept = _read_prompts(self.lm, batch) if len(batch.rows) > self.batch_size else None
            start = 0
            while start < len(batch.rows):
                some = batch.rows[start : start + self.batch_size]
                try:
                    answers = self._write(batch, kept, some)
                except torch.OutOfMemoryError as error:
                    if len(some) < 2:
                        error.add_note(
                            "a single answer does not fit the memory of the device; use a smaller model or prompt"
                        )
                        raise
                    answers = []
                # Outside of the handler, whose traceback would keep the tensors of the failed attempt alive.
                if not answers:
                    release_memory()
                    self.batch_size = len(some) // 2
                    logger.warning(
                        "out of memory with %d answers at a time; going on with %d", len(some), self.batch_size
                    )
                    continue
                yield from zip(some, answers, strict=True)
                start += len(some)

    def _batches(self, requests: Sequence[_Request], n_samples: int) -> Iterator[_Batch]:
        """Give batches of prompts of similar length, of at most `batch_size` answers, or all those of one prompt."""
        of_prompt: dict[bytes, list[_Request]] = {}
        for request in requests:
            of_prompt.setdefault(request.prompt_ids.tobytes(), []).append(request)
        distinct = list(of_prompt.values())
        prompt_ids = [same[0].prompt_ids for same in distinct]
        longest = max(map(len, prompt_ids)) + self.constraint.max_tokens()
        if self.lm.context_length is not None:
            longest = min(longest, self.lm.context_length)
        for group in prefix_groups(self.lm, prompt_ids, longest):
            cache = read_prefix(self.lm, group.prefix) if len(group.prefix) else None
            make = partial(_batch, n_samples=n_samples, prefix=group.prefix, prefix_cache=cache)
            batch: list[list[_Request]] = []
            for same in sorted((distinct[row] for row in group.members), key=lambda same: len(same[0].prompt_ids)):
                n_rows = (sum(map(len, batch)) + len(same)) * n_samples
                mixed = bool(batch) and len(batch[-1][0].prompt_ids) != len(same[0].prompt_ids)
                if batch and (n_rows > self.batch_size or (mixed and not self.takes_padding)):
                    yield make(batch)
                    batch = []
                batch.append(same)
            if batch:
                yield make(batch)

    def _write(self, batch: _Batch, kept: _Reading | None, rows: Sequence[_Row]) -> list[GeneratedAnswer]:
        if kept is None:
            used = sorted({row.prompt for row in rows})
            reading = _read_prompts(self.lm, batch, used)
            prompts = [used.index(row.prompt) for row in rows]
        else:
            # Writing goes on with the keys and values themselves; spare them for the others.
            reading, prompts = copy.deepcopy(kept), [row.prompt for row in rows]
        reading.select(torch.tensor(prompts, device=self.lm.device))
        writer = _Writer(self.lm, self.constraint, reading, rows, self.sampling)
        return writer.write(with_log_probs=self.with_log_probs, observer=self.observer)


def _batch(batch: Sequence[Sequence[_Request]], *, n_samples: int, prefix: Ids, prefix_cache: Cache | None) -> _Batch:
    rows = [
        _Row(request=request, sample=sample, prompt=prompt)
        for prompt, same in enumerate(batch)
        for request in same
        for sample in range(n_samples)
    ]
    prompt_ids = [same[0].prompt_ids for same in batch]
    return _Batch(prompt_ids=prompt_ids, rows=rows, prefix=prefix, prefix_cache=prefix_cache)


@dataclass(kw_only=True)
class _Reading:
    """What the model has read of each row, and what it expects next.

    All fields have the same rows, in the same order: of prompts at first, after the first `select` of answers. Before
    every draw these hold, and `_Writer._read` restores them after each token:
    `logits_bv` are those after the last token read, so nothing that was drawn is unread;
    `cache` holds exactly the tokens that `mask_bt` has columns for, real ones and padding on the left;
    `length_b` counts a row's real tokens, so it is the position of its next one, whatever its padding;
    `ids_bt` and `cache` are never both there: a model that keeps nothing reads `ids_bt` again, others need no ids.
    The cache is changed in place by the model: what is to be read from twice is copied first (`_write`).
    """

    cache: Cache | None
    """None for a model that keeps nothing: it reads `ids_bt` again at each step."""
    ids_bt: Tensor | None
    logits_bv: Tensor
    mask_bt: Tensor | None
    """Real tokens, where rows of different length are padded on the left."""
    length_b: Tensor

    def select(self, rows: Tensor) -> None:
        """Keep some rows, or repeat them, in the order given."""
        if self.cache is not None:
            self.cache.reorder_cache(rows)
        self.ids_bt = None if self.ids_bt is None else self.ids_bt[rows]
        self.logits_bv, self.length_b = self.logits_bv[rows], self.length_b[rows]
        self.mask_bt = None if self.mask_bt is None else self.mask_bt[rows]


def _read_prompts(lm: LanguageModel, batch: _Batch, prompts: Sequence[int] | None = None) -> _Reading:
    """Read all prompts of a batch, or some, after their shared prefix: prefix, padding, the rest of each prompt."""
    chosen = batch.prompt_ids if prompts is None else [batch.prompt_ids[prompt] for prompt in prompts]
    n_prefix = len(batch.prefix)
    lengths = np.array([len(ids) - n_prefix for ids in chosen])
    ids_pt = np.full((len(lengths), lengths.max()), lm.pad_id, dtype=np.int64)
    for padded, ids in zip(ids_pt, chosen, strict=True):
        padded[len(padded) - len(ids) + n_prefix :] = ids[n_prefix:]
    length_p = torch.from_numpy(lengths).to(lm.device)
    mask_pt, positions_pt = None, None
    # Without padding no mask is passed, since attention without one is faster.
    if lengths.min() < lengths.max():
        places_pt = torch.arange(ids_pt.shape[1], device=lm.device) - (ids_pt.shape[1] - length_p)[:, None]
        mask_pt, positions_pt = (places_pt >= 0).long(), places_pt.clamp(min=0) + n_prefix
        mask_pt = torch.cat([mask_pt.new_ones((len(chosen), n_prefix)), mask_pt], dim=1)
    cache = None if batch.prefix_cache is None else expand(batch.prefix_cache, len(chosen))
    read_ids_pt = torch.from_numpy(ids_pt).to(lm.device)
    logits_pv, cache = _forward(lm, read_ids_pt, cache, mask_pt, positions_pt)
    if not bool(logits_pv.isfinite().all()):
        raise ResourceError(
            "the model gives logits that are not finite; its weights are damaged or its type too narrow"
        )
    return _Reading(
        cache=cache,
        ids_bt=read_ids_pt if cache is None else None,
        logits_bv=logits_pv,
        mask_bt=mask_pt,
        length_b=length_p + n_prefix,
    )


def _forward(
    lm: LanguageModel, ids_bt: Tensor, cache: Cache | None, mask_bt: Tensor | None, positions_bt: Tensor | None
) -> tuple[Tensor, Cache | None]:
    """Return the logits after the last token of each row, and keys and values of all tokens so far, if kept."""
    taken = inspect.signature(lm.model.forward).parameters
    # By which name the model takes what it has read; None where it must read everything each time.
    name = next((name for name in ("past_key_values", "cache_params") if name in taken), None)
    options: dict[str, Any] = {} if name is None else {"use_cache": True, name: cache}
    if mask_bt is not None:
        options |= {"attention_mask": mask_bt, "position_ids": positions_bt}
    if "logits_to_keep" in taken:
        options["logits_to_keep"] = 1
    output = lm.model(input_ids=ids_bt, **options)
    return output.logits[:, -1], None if name is None else output[name]


class _Writer:
    """Writes one batch of answers, dropping rows that are finished as soon as they are half of it."""

    def __init__(
        self,
        lm: LanguageModel,
        constraint: AnswerConstraint,
        reading: _Reading,
        rows: Sequence[_Row],
        sampling: Sampling,
    ) -> None:
        self.lm, self.constraint, self.reading = lm, constraint, reading
        self.named = [(row.request.index, row.sample) for row in rows]
        bounds = [row.request.bounds for row in rows if row.request.bounds is not None]
        # As much as its format can take, or what is left of the context.
        budgets = [constraint.max_tokens(row.request.bounds[1] if row.request.bounds else None) for row in rows]
        if lm.context_length is not None:
            left = [lm.context_length - len(row.request.prompt_ids) for row in rows]
            budgets = [min(pair) for pair in zip(budgets, left, strict=True)]
        self.state = constraint.start(
            torch.tensor(budgets, device=lm.device),
            bounds_b2=torch.tensor(bounds, device=lm.device) if bounds else None,
        )
        self.max_steps = max(budgets)
        names = [f"{row.request.key}\0{row.sample}" for row in rows]
        self.sampler = TokenSampler(sampling, names, tokens_s=constraint.tokens_s)
        self.tokens_s = constraint.tokens_s.to(lm.device)
        self.takes_all = len(self.tokens_s) == reading.logits_bv.shape[1]
        self.tokens_w, self.weights_bw = self._word_weights(rows)
        # What each row of the state is in the batch as it was given; and what is known of those.
        self.places = list(range(len(rows)))
        self.answers: list[GeneratedAnswer | None] = [None] * len(rows)
        self.log_probs: list[list[float]] = [[] for _ in rows]

    def _word_weights(self, rows: Sequence[_Row]) -> tuple[Tensor | None, Tensor | None]:
        """Return the token of each word and what is added to its logit in each row; nothing where nothing is added."""
        formats = [row.request.answer_format for row in rows]
        weights = [one.weights if isinstance(one, DistinctWords) else None for one in formats]
        first = next((one for one in formats if isinstance(one, DistinctWords) and one.weights is not None), None)
        if first is None:
            return None, None
        tokens_w = torch.from_numpy(word_token_ids(self.lm.tokenizer, first.words)).to(self.lm.device)
        plain_w = np.zeros(len(first.words), np.float32)
        weights_bw = np.stack([plain_w if one is None else one.log_weights for one in weights])
        return tokens_w, torch.from_numpy(weights_bw).to(self.lm.device)

    def write(self, *, with_log_probs: bool, observer: StepObserver | None = None) -> list[GeneratedAnswer]:
        """Return the answers in the order of the rows."""
        if observer is not None:
            observer.start(self.named, self.constraint)
        for _ in range(self.max_steps):
            logits_bv = self.reading.logits_bv
            if self.tokens_w is not None and self.weights_bw is not None:
                logits_bv = logits_bv.float().index_add(1, self.tokens_w, self.weights_bw)
            symbol_b, log_prob_b = self.sampler.draw(logits_bv, self.state, with_log_probs=with_log_probs)
            if observer is not None:
                logits_bs = logits_bv if self.takes_all else logits_bv[:, self.tokens_s]
                observer.step(self.places, logits_bs.float(), self.state.allowed(), symbol_b)
            if log_prob_b is not None:
                is_finished_b = self.state.is_finished_b.tolist()
                for place, log_prob, is_finished in zip(self.places, log_prob_b.tolist(), is_finished_b, strict=True):
                    if not is_finished:
                        self.log_probs[place].append(log_prob)
            self.state.advance(symbol_b)
            going_on = self._collect()
            if len(going_on) == 0:
                break
            self._read(self.tokens_s[symbol_b][going_on])
        if observer is not None:
            observer.finish()
        return [answer for answer in self.answers if answer is not None]

    def _collect(self) -> Tensor:
        """Take down finished answers once they are half of the rows; return the rows to go on with."""
        finished = self.state.is_finished_b.tolist()
        if 2 * sum(finished) < len(finished):
            return torch.arange(len(finished), device=self.lm.device)
        texts, word_tokens = self.state.texts(), self.state.word_tokens()
        for place, text, n_tokens in zip(self.places, texts, word_tokens, strict=True):
            if text is not None:
                log_probs = self.log_probs[place]
                ends = [0, *accumulate(n_tokens)] if log_probs else []
                self.answers[place] = GeneratedAnswer(
                    text=text,
                    token_log_probs=tuple(log_probs),
                    word_log_probs=tuple(sum(log_probs[start:end]) for start, end in pairwise(ends)),
                )
        going_on = [row for row, is_finished in enumerate(finished) if not is_finished]
        rows = torch.tensor(going_on, dtype=torch.int64, device=self.lm.device)
        self.places = [self.places[row] for row in going_on]
        self.sampler.select(going_on)
        self.state.select(rows)
        self.reading.select(rows)
        self.weights_bw = None if self.weights_bw is None else self.weights_bw[rows]
        return rows

    def _read(self, token_b: Tensor) -> None:
        reading, ids_bt, positions_bt = self.reading, token_b[:, None], None
        if reading.mask_bt is not None:
            reading.mask_bt = torch.cat([reading.mask_bt, torch.ones_like(reading.mask_bt[:, :1])], dim=1)
            positions_bt = reading.length_b[:, None]
        if reading.ids_bt is not None:
            reading.ids_bt = ids_bt = torch.cat([reading.ids_bt, ids_bt], dim=1)
            if reading.mask_bt is not None:
                positions_bt = (reading.mask_bt.cumsum(dim=1) - 1).clamp(min=0)
        reading.logits_bv, reading.cache = _forward(self.lm, ids_bt, reading.cache, reading.mask_bt, positions_bt)
        reading.length_b = reading.length_b + 1
