"""The choice of the next token, with noise that belongs to the sample and not to the batch.

Axes: b rows of the batch, s symbols (tokens that an answer can use).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytoglot import hashing
from cytoglot.errors import InputError
from cytoglot.lm.constraint import sampling_kernels
from cytoglot.lm.constraint.answer_constraint import AllowedSymbols, AnswerState, check_width


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most likely token."""
    top_p: float = 1.0
    """Only the most likely tokens that together just reach this probability are drawn from; 1 draws from all."""
    seed: int = 0
    """Another seed gives other samples."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature must be 0 (most likely token) or above and finite, found {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, found {self.top_p}")


class TokenSampler:
    """Draws tokens by Gumbel-max: the largest of logit / temperature + Gumbel noise.

    The noise of a token is a pure function of seed, stream, step and token id: 64 bits of a hash (SplitMix64), the same
    on every device. So a sample is the same in any batch and under any numbering of symbols, and on a CPU no noise is
    made for what is not allowed.

    Parameters
    ----------
    streams
        What names the noise of each row; equal names give equal noise.
    tokens_s
        Token id of each symbol; None where symbols are token ids.
    """

    def __init__(self, sampling: Sampling, streams: Sequence[str], *, tokens_s: Tensor | None = None) -> None:
        self.sampling = sampling
        names = (hashlib.blake2b(f"{sampling.seed}\0{stream}".encode(), digest_size=8) for stream in streams)
        keys = [int.from_bytes(name.digest(), "little", signed=True) for name in names]
        self._stream_b = torch.tensor(keys, dtype=torch.int64)
        self._n_steps = 0
        self._tokens_s = tokens_s
        self._tokens_on_cpu: NDArray[np.int64] | None = None if tokens_s is None else tokens_s.cpu().numpy()

    def choose(self, logits_bs: Tensor, allowed_bs: Tensor) -> Tensor:
        """Return one allowed symbol for each row, int64; logits are in float32, both of shape (b, s)."""
        if logits_bs.shape != allowed_bs.shape:
            found = f"{tuple(logits_bs.shape)} and {tuple(allowed_bs.shape)}"
            raise InputError(f"expected logits and a mask of one shape, found {found}; pass the logits of symbols only")
        if logits_bs.device.type == "cpu":
            places_s = np.arange(logits_bs.shape[1])
            return self._draw_compiled(logits_bs, places_s, AllowedSymbols.of_mask(allowed_bs), with_log_probs=False)[0]
        return self._draw_on_device(logits_bs.masked_fill(~allowed_bs, -torch.inf))

    def draw(
        self, logits_bv: Tensor, state: AnswerState, *, with_log_probs: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Return a symbol for each row that its state allows, int64, and its log-probability in nats.

        The log-probability is over the allowed symbols, before temperature and top_p, float64 on a CPU and float32
        elsewhere; None if not asked for. Logits are those of the whole vocabulary: on a CPU, only those of allowed
        symbols are looked at.
        """
        if logits_bv.device.type == "cpu":
            places_s = np.arange(logits_bv.shape[1]) if self._tokens_on_cpu is None else self._tokens_on_cpu
            return self._draw_compiled(logits_bv, places_s, state.allowed_symbols(), with_log_probs=with_log_probs)
        logits_bs = logits_bv.float()
        if self._tokens_s is not None:
            self._tokens_s = self._tokens_s.to(logits_bv.device)
            logits_bs = logits_bv[:, self._tokens_s].float()
        logits_bs = logits_bs.masked_fill(~state.allowed(), -torch.inf)
        symbol_b = self._draw_on_device(logits_bs)
        if not with_log_probs:
            return symbol_b, None
        return symbol_b, logits_bs.log_softmax(dim=1).gather(1, symbol_b[:, None])[:, 0]

    def select(self, rows: Sequence[int]) -> None:
        """Keep only some rows, in the order given."""
        self._stream_b = self._stream_b[torch.tensor(list(rows), dtype=torch.int64)]

    def _draw_compiled(
        self, logits_bv: Tensor, places_s: NDArray[np.int64], allowed: AllowedSymbols, *, with_log_probs: bool
    ) -> tuple[Tensor, Tensor | None]:
        check_width(logits_bv.shape[1], places_s)
        self._n_steps += 1
        n_rows = len(logits_bv)
        symbol_b, log_prob_b = np.empty(n_rows, dtype=np.int64), np.empty(n_rows, dtype=np.float64)
        sampling_kernels.draw_symbols(
            logits_bv.detach().float().contiguous().numpy(),
            places_s,
            places_s if self._tokens_on_cpu is None else self._tokens_on_cpu,
            allowed,
            self._stream_b.numpy().view(np.uint64),
            self._n_steps,
            float(self.sampling.temperature),
            float(self.sampling.top_p),
            with_log_probs,
            symbol_b,
            log_prob_b,
        )
        return torch.from_numpy(symbol_b), torch.from_numpy(log_prob_b) if with_log_probs else None

    def _draw_on_device(self, logits_bs: Tensor) -> Tensor:
        self._n_steps += 1
        if self.sampling.temperature == 0:
            return logits_bs.argmax(dim=1)
        # Apple's devices have no float64.
        precise = torch.float32 if logits_bs.device.type == "mps" else torch.float64
        scaled_bs = logits_bs.to(precise) / self.sampling.temperature
        if self.sampling.top_p < 1:
            scaled_bs = keep_top_p(scaled_bs, self.sampling.top_p)
        if self._tokens_s is None:
            token_s = torch.arange(logits_bs.shape[1], device=logits_bs.device)
        else:
            token_s = self._tokens_s = self._tokens_s.to(logits_bs.device)
        self._stream_b = self._stream_b.to(logits_bs.device)
        uniform_bs = token_uniforms(self._stream_b, self._n_steps, token_s, dtype=precise)
        waiting_times_bs = -torch.log1p(-uniform_bs)
        return (scaled_bs - waiting_times_bs.log()).argmax(dim=1)


def token_uniforms(stream_b: Tensor, step: int, token_s: Tensor, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return what noise is made of: a number between 0 and 1, both excluded, for each row and token, shape (b, s).

    The same integer arithmetic as the compiled loops': int64 overflows as uint64 does.
    """
    key_b = _mixed(stream_b + _as_signed(step * int(hashing.STEP)))
    bits_bs = _mixed(key_b[:, None] + (token_s + 1) * _as_signed(int(hashing.STEP)))
    return _uniform(bits_bs, dtype)


def _uniform(bits: Tensor, dtype: torch.dtype) -> Tensor:
    # The largest numbers round to 1, in float32 one in 30 million; noise of 1 is minus infinity.
    return ((_shifted(bits, 11).to(dtype) + 0.5) * 2.0**-53).clamp(max=1 - torch.finfo(dtype).eps / 2)


def _mixed(bits: Tensor) -> Tensor:
    bits = (bits ^ _shifted(bits, 30)) * _as_signed(int(hashing.MIX_1))
    bits = (bits ^ _shifted(bits, 27)) * _as_signed(int(hashing.MIX_2))
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, n: int) -> Tensor:
    """Shift to the right, bringing in zeros."""
    return (bits >> n) & ((1 << (64 - n)) - 1)


def _as_signed(value: int) -> int:
    """Return the int64 with the same lowest 64 bits."""
    return (value + 2**63) % 2**64 - 2**63


def keep_top_p(logits_bs: Tensor, top_p: float) -> Tensor:
    """Return logits with minus infinity outside the smallest set of symbols whose probability reaches `top_p`.

    The most likely symbol is always kept, and so are all that are as likely as the last one kept.
    """
    probability_bs = logits_bs.softmax(dim=1)
    if probability_bs.device.type == "cpu":
        # torch also sorts the places, which takes it 20 times as long as numpy's vectorized sort of the values.
        falling_bs = torch.from_numpy(-np.sort(-probability_bs.numpy(), axis=1))
    else:
        falling_bs = probability_bs.sort(dim=1, descending=True).values
    n_kept_b = (falling_bs.cumsum(dim=1) - falling_bs < top_p).sum(dim=1)
    least_kept_b = falling_bs.gather(1, n_kept_b[:, None] - 1)
    return logits_bs.masked_fill(probability_bs < least_kept_b, -torch.inf)
