"""How likely each word is at each rank of an answer, instead of one sampled answer.

Two estimates of P(word g has rank r) are free of bias: the share of sampled answers with g at rank r, and the mean over
them of P(next word is g | their first r - 1 words), for which every word that might have come next counts. The second
errs far less for words that few answers have, the first for words that nearly all have. Each word gets the mixture
that errs least; the best share of the second is E[sum_r h_r (1 - H_r)] / E[sum_r h_r (1 - h_r)], where h_r is the
probability of the next word and H_r its sum up to rank r (their difference is a martingale, used as a control variate).
Where a tokenizer spells some word in several tokens, the probability of a next word would take a pass for each
beginning, so there the words of the sampled answers are only counted.

Axes: p prompts, b answers of a batch, r ranks (0 is the first), w words, s symbols (tokens that an answer can use), m
measures of a word in an answer (presence; rank x presence; value x presence).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytoglot.answer_format import DistinctWords
from cytoglot.errors import InputError
from cytoglot.lm.constraint.answer_constraint import AnswerConstraint
from cytoglot.lm.generation.generate import sample_answers
from cytoglot.lm.generation.sampling import Sampling, keep_top_p
from cytoglot.lm.model.tokenizer import encode_completions

if TYPE_CHECKING:
    from cytoglot.lm.model.language_model import LanguageModel

_WORDS_AT_ONCE = 2048


@dataclass(frozen=True, kw_only=True, eq=False)
class AnswerRanks:
    """Ranks of words in the answers to some prompts, each prompt counting equally.

    Errors are standard errors of the mean over sampled answers: how far more samples may still move it. Intervals are
    of the answers themselves: between which ranks or values a word lies in a share of them.
    """

    words: tuple[str, ...]
    probability_prw: NDArray[np.float32]
    """P(word has this rank), shape (prompts, most words, words); sums over r to P(word is in the answer)"""
    n_samples: int
    """sampled answers of each prompt"""
    present_w: NDArray[np.float64]
    """P(word is in the answer)"""
    present_error_w: NDArray[np.float64]
    rank_w: NDArray[np.float64]
    """mean rank in answers that have the word, 1 for the first; NaN for words that no answer can have"""
    rank_error_w: NDArray[np.float64]
    value_w: NDArray[np.float64] | None
    """mean of the values given, 0 for answers without the word; None without values"""
    value_error_w: NDArray[np.float64] | None

    def rank_interval(self, share: float = 0.9) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the ranks between which a word lies in the central `share` of the answers that have it.

        The lower one is the first rank up to which at least (1 - share) / 2 of those answers have the word, the upper
        one likewise with (1 + share) / 2; NaN for words that no answer can have.
        """
        _check_share(share)
        up_to_rw = np.cumsum(self.probability_prw.mean(axis=0, dtype=np.float64), axis=0)
        total_w = up_to_rw[-1]
        low, high = (
            1.0 + np.argmax(up_to_rw >= total_w * edge * (1 - 1e-12), axis=0)
            for edge in ((1 - share) / 2, (1 + share) / 2)
        )
        return np.where(total_w > 0, low, np.nan), np.where(total_w > 0, high, np.nan)

    def value_interval(
        self, values_prw: NDArray[np.floating], share: float = 0.9
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return between which values a word lies in the central `share` of all answers, 0 in those without it.

        `values_prw` says what a word is worth at a rank, and is of the shape of `probability_prw`.
        """
        _check_share(share)
        _check_values(values_prw, self.probability_prw.shape)
        low, high = np.empty(len(self.words)), np.empty(len(self.words))
        for start in range(0, len(self.words), _WORDS_AT_ONCE):
            some = slice(start, start + _WORDS_AT_ONCE)
            weight_kw = self.probability_prw[:, :, some].reshape(-1, low[some].size) / float(len(self.probability_prw))
            absent_w = np.clip(1 - weight_kw.sum(axis=0, dtype=np.float64), 0, 1)
            value_kw = np.vstack([values_prw[:, :, some].reshape(weight_kw.shape), np.zeros_like(absent_w)])
            order_kw = np.argsort(value_kw, axis=0, kind="stable")
            up_to_kw = np.cumsum(np.take_along_axis(np.vstack([weight_kw, absent_w]), order_kw, axis=0), axis=0)
            sorted_kw = np.take_along_axis(value_kw, order_kw, axis=0)
            for edge, out in (((1 - share) / 2, low), ((1 + share) / 2, high)):
                place_w = np.argmax(up_to_kw >= up_to_kw[-1] * edge * (1 - 1e-12), axis=0)
                out[some] = np.take_along_axis(sorted_kw, place_w[None], axis=0)[0]
        return low, high


def answer_ranks(
    lm: LanguageModel,
    prompts: Sequence[str],
    answer_format: DistinctWords | Sequence[DistinctWords],
    *,
    sampling: Sampling,
    n_samples: int = 64,
    values_prw: NDArray[np.floating] | None = None,
    batch_size: int = 64,
    terminator: str = ".",
) -> AnswerRanks:
    """Return how likely each word is at each rank of the answers to some prompts taken together.

    The answers are those that `sample_answers` would draw: of the given temperature and top_p, under the constraint of
    the format.

    Parameters
    ----------
    answer_format
        One for all prompts, or one for each, of the same words.
    n_samples
        Answers sampled for each prompt, at least 2.
    values_prw
        What a word is worth at a rank, shape (prompts, most words of any format, words); its mean is then returned.

    Raises
    ------
    InputError
        There are no prompts, fewer than 2 samples, formats with different words, values of another shape, or what
        `sample_answers` refuses.
    """
    formats = list(answer_format) if isinstance(answer_format, Sequence) else [answer_format] * len(prompts)
    if not prompts or len(formats) != len(prompts):
        raise InputError(f"need at least one prompt and one format for each, found {len(prompts)} and {len(formats)}")
    if n_samples < 2:
        raise InputError(f"ranks need at least 2 samples of each prompt, to know their error, found {n_samples}")
    words = formats[0].words
    if any(one.words != words for one in formats):
        raise InputError("the formats have different words; call answer_ranks for each list of words")
    shape = (len(prompts), max(one.max_words for one in formats), len(words))
    if values_prw is not None:
        _check_values(values_prw, shape)
    tokens = encode_completions(lm.tokenizer, [f" {word}" for word in words])
    sums = _Sums(shape, values_prw)
    is_counted = max(map(len, tokens)) > 1
    tokens_w = torch.tensor([int(ids[0]) for ids in tokens])
    answers = sample_answers(
        lm,
        prompts,
        formats,
        sampling=sampling,
        n_samples=n_samples,
        batch_size=batch_size,
        terminator=terminator,
        with_log_probs=False,
        observer=None if is_counted else _NextWords(sums, tokens_w, sampling),
    )
    if is_counted:
        index = {word: i for i, word in enumerate(words)}
        for prompt, samples in enumerate(answers):
            for answer in samples:
                sums.count(prompt, np.array([index[word] for word in answer.text.split(" ")]))
    return sums.ranks(words, n_samples)


class _Sums:
    """Sums over the answers of each prompt of what was chosen ("c") and of what was likely ("h"), and of products."""

    def __init__(self, shape: tuple[int, int, int], values_prw: NDArray[np.floating] | None) -> None:
        self.values_prw = values_prw
        self.chosen_prw, self.likely_prw = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
        self.n_measures = 2 if values_prw is None else 3
        n_prompts, _, n_words = shape
        self._first = {kind: np.zeros((self.n_measures, n_prompts, n_words)) for kind in "ch"}
        # Of which pairs of measures the variance needs products: all but those of a value with another.
        self._pairs = [(0, 0), (0, 1), (1, 1), (2, 2)][: self.n_measures + 1]
        self._second = {
            (pair, kinds): np.zeros((n_prompts, n_words)) for pair in self._pairs for kinds in ("cc", "ch", "hc", "hh")
        }
        self._gain_w, self._spread_w = np.zeros(n_words), np.zeros(n_words)

    def add(self, prompt: int, chosen_mbw: NDArray[np.float32], likely_mbw: NDArray[np.float32]) -> None:
        """Add answers of one prompt."""
        of_kind = {"c": chosen_mbw, "h": likely_mbw}
        for kind, values_mbw in of_kind.items():
            self._first[kind][:, prompt] += values_mbw.sum(axis=1, dtype=np.float64)
        for (one, other), kinds in self._second:
            product_w = np.einsum("bw,bw->w", of_kind[kinds[0]][one], of_kind[kinds[1]][other], dtype=np.float64)
            self._second[(one, other), kinds][prompt] += product_w

    def add_gain(self, gain_w: NDArray[np.floating], spread_w: NDArray[np.floating]) -> None:
        """Add to the sums that decide how much of the likely is taken."""
        self._gain_w += gain_w
        self._spread_w += spread_w

    def count(self, prompt: int, word_ids: NDArray[np.int64]) -> None:
        """Add one answer by its words alone."""
        ranks = np.arange(len(word_ids))
        self.chosen_prw[prompt, ranks, word_ids] += 1
        self.likely_prw[prompt, ranks, word_ids] += 1
        measures_m1w = np.zeros((self.n_measures, 1, self.chosen_prw.shape[2]), dtype=np.float32)
        measures_m1w[0, 0, word_ids], measures_m1w[1, 0, word_ids] = 1, 1 + ranks
        if self.values_prw is not None:
            measures_m1w[2, 0, word_ids] = self.values_prw[prompt, ranks, word_ids]
        self.add(prompt, measures_m1w, measures_m1w)

    def ranks(self, words: tuple[str, ...], n_samples: int) -> AnswerRanks:
        """Return means and errors; the errors are of a ratio for ranks, and within prompts for all."""
        share_w = np.ones(len(words))
        np.divide(self._gain_w, self._spread_w, out=share_w, where=self._spread_w > 0)
        share_w = np.clip(share_w, 0, 1)
        shares = {"c": 1 - share_w, "h": share_w}
        mean_mpw = (shares["c"] * self._first["c"] + shares["h"] * self._first["h"]) / n_samples
        square = {pair: np.zeros(mean_mpw.shape[1:]) for pair in self._pairs}
        for (pair, kinds), product_pw in self._second.items():
            square[pair] += shares[kinds[0]] * shares[kinds[1]] * product_pw
        square = {pair: total_pw / n_samples for pair, total_pw in square.items()}
        n_prompts = len(self.chosen_prw)

        def error(variance_pw: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.sqrt(np.maximum(variance_pw, 0).sum(axis=0) / (n_samples - 1)) / n_prompts

        present_w, ranked_w = mean_mpw[:2].mean(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            rank_w = np.where(present_w > 0, ranked_w / present_w, np.nan)
            # ranked - rank * present has mean 0; its spread over presence is that of the ratio.
            residual_pw = mean_mpw[1] - rank_w * mean_mpw[0]
            square_pw = square[1, 1] - 2 * rank_w * square[0, 1] + rank_w**2 * square[0, 0]
            rank_error_w = np.where(present_w > 0, error(square_pw - residual_pw**2) / present_w, np.nan)
        has_values = self.values_prw is not None
        probability_prw = (shares["c"] * self.chosen_prw + shares["h"] * self.likely_prw) / n_samples
        return AnswerRanks(
            words=words,
            probability_prw=probability_prw.astype(np.float32),
            n_samples=n_samples,
            present_w=np.clip(present_w, 0, 1),
            present_error_w=error(square[0, 0] - mean_mpw[0] ** 2),
            rank_w=rank_w,
            rank_error_w=rank_error_w,
            value_w=mean_mpw[2].mean(axis=0) if has_values else None,
            value_error_w=error(square[2, 2] - mean_mpw[2] ** 2) if has_values else None,
        )


class _NextWords:
    """Looks at the next-word probabilities of every step; each word is one token, so each step is a rank."""

    def __init__(self, sums: _Sums, tokens_w: Tensor, sampling: Sampling) -> None:
        self._sums, self._tokens_w, self._sampling = sums, tokens_w, sampling
        self._prompt_b: list[int] = []
        self._steps: list[tuple[list[int], NDArray[np.float32], NDArray[np.float32]]] = []
        self._chosen_mbw = self._likely_mbw = self._gain_w = self._spread_w = torch.empty(0)

    def start(self, answers: Sequence[tuple[int, int]], constraint: AnswerConstraint) -> None:
        """Begin a batch of answers."""
        self._prompt_b = [prompt for prompt, _ in answers]
        self._symbol_w = constraint.symbols_of(self._tokens_w)
        self._steps = []

    def step(self, places: Sequence[int], logits_bs: Tensor, allowed_bs: Tensor, symbol_b: Tensor) -> None:
        """See what each row might have taken, and what it took."""
        if len(self._steps) >= self._sums.chosen_prw.shape[1]:
            return  # only what closes an answer comes after the last rank
        symbol_w = self._symbol_w.to(logits_bs.device)
        likely_bw = next_probabilities(logits_bs, allowed_bs, self._sampling)[:, symbol_w]
        chosen_bw = (symbol_b[:, None] == symbol_w).to(likely_bw)
        rows = torch.tensor(list(places), device=likely_bw.device)
        if not self._steps:
            shape = (self._sums.n_measures, len(self._prompt_b), likely_bw.shape[1])
            self._chosen_mbw, self._likely_mbw = likely_bw.new_zeros(shape), likely_bw.new_zeros(shape)
            self._gain_w, self._spread_w = likely_bw.new_zeros((2, likely_bw.shape[1]))
        prompts = [self._prompt_b[place] for place in places]
        factors: list[Tensor | float] = [1.0, float(len(self._steps) + 1)]
        if self._sums.values_prw is not None:
            factors.append(torch.from_numpy(self._sums.values_prw[prompts, len(self._steps)]).to(likely_bw))
        for measure, factor in enumerate(factors):
            self._chosen_mbw[measure].index_add_(0, rows, chosen_bw * factor)
            self._likely_mbw[measure].index_add_(0, rows, likely_bw * factor)
        self._gain_w += (likely_bw * (1 - self._likely_mbw[0, rows])).sum(dim=0)
        self._spread_w += (likely_bw * (1 - likely_bw)).sum(dim=0)
        distinct = sorted(set(prompts))
        of_prompt = torch.tensor([[one == prompt for one in prompts] for prompt in distinct]).to(likely_bw)
        chosen_pw, likely_pw = ((of_prompt @ x_bw).cpu().numpy() for x_bw in (chosen_bw, likely_bw))
        self._steps.append((distinct, chosen_pw, likely_pw))

    def finish(self) -> None:
        """Add the batch to the sums."""
        for rank, (prompts, chosen_pw, likely_pw) in enumerate(self._steps):
            self._sums.chosen_prw[prompts, rank] += chosen_pw
            self._sums.likely_prw[prompts, rank] += likely_pw
        prompt_b = np.array(self._prompt_b)
        chosen_mbw, likely_mbw = self._chosen_mbw.cpu().numpy(), self._likely_mbw.cpu().numpy()
        for prompt in sorted(set(self._prompt_b)):
            of_prompt = prompt_b == prompt
            self._sums.add(prompt, chosen_mbw[:, of_prompt], likely_mbw[:, of_prompt])
        self._sums.add_gain(self._gain_w.cpu().numpy(), self._spread_w.cpu().numpy())


def next_probabilities(logits_bs: Tensor, allowed_bs: Tensor, sampling: Sampling) -> Tensor:
    """Return the probability with which sampling takes each symbol next, shape (b, s), 0 for what is not allowed."""
    allowed_logits_bs = logits_bs.masked_fill(~allowed_bs, -torch.inf)
    if sampling.temperature == 0:
        best_b = allowed_logits_bs.argmax(dim=1, keepdim=True)
        return torch.zeros_like(allowed_logits_bs).scatter_(1, best_b, 1.0)
    scaled_bs = allowed_logits_bs / sampling.temperature
    return (scaled_bs if sampling.top_p >= 1 else keep_top_p(scaled_bs, sampling.top_p)).softmax(dim=1)


def _check_values(values_prw: NDArray[np.floating], shape: tuple[int, ...]) -> None:
    if values_prw.shape != shape:
        raise InputError(f"values must have the shape (prompts, most words, words) = {shape}, found {values_prw.shape}")


def _check_share(share: float) -> None:
    if not 0 < share < 1:
        raise InputError(f"the share of an interval must be between 0 and 1, found {share}")
