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

from cytoglot.errors import InputError


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

    Each row has a counter-based generator (Philox) of its own and takes the same number of draws from it at each step,
    so that its noise is a function of seed, stream and step.

    Parameters
    ----------
    streams
        What names the noise of each row; equal names give equal noise.
    """

    def __init__(self, sampling: Sampling, streams: Sequence[str]) -> None:
        self.sampling = sampling
        is_random = sampling.temperature > 0
        self._generators = [_generator(sampling.seed, stream) for stream in streams] if is_random else []

    def choose(self, logits_bs: Tensor, allowed_bs: Tensor) -> Tensor:
        """Return one allowed symbol for each row, int64; logits are in float32."""
        allowed_logits_bs = logits_bs.masked_fill(~allowed_bs, -torch.inf)
        if not self._generators:
            return allowed_logits_bs.argmax(dim=1)
        scaled_bs = allowed_logits_bs / self.sampling.temperature
        if self.sampling.top_p < 1:
            scaled_bs = keep_top_p(scaled_bs, self.sampling.top_p)
        return (scaled_bs + self._gumbel(logits_bs.shape[1]).to(logits_bs.device)).argmax(dim=1)

    def select(self, rows: Sequence[int]) -> None:
        """Keep only some rows, in the order given."""
        if self._generators:
            self._generators = [self._generators[row] for row in rows]

    def _gumbel(self, n_symbols: int) -> Tensor:
        waiting_times_bs = np.empty((len(self._generators), n_symbols))
        for generator, row in zip(self._generators, waiting_times_bs, strict=True):
            generator.standard_exponential(out=row)
        # Minus the log of an exponential is Gumbel; zero, drawn once in 10^16, would be infinite.
        return -torch.from_numpy(waiting_times_bs).float().clamp_(min=1e-30).log_()


def keep_top_p(logits_bs: Tensor, top_p: float) -> Tensor:
    """Return logits with minus infinity outside the smallest set of symbols whose probability reaches `top_p`.

    The most likely symbol is always kept, and so are all that are as likely as the last one kept.
    """
    probability_bs = logits_bs.softmax(dim=1)
    falling_bs = _falling(probability_bs)
    n_kept_b = (falling_bs.cumsum(dim=1) - falling_bs < top_p).sum(dim=1)
    least_kept_b = falling_bs.gather(1, n_kept_b[:, None] - 1)
    return logits_bs.masked_fill(probability_bs < least_kept_b, -torch.inf)


def _falling(values_bs: Tensor) -> Tensor:
    if values_bs.device.type != "cpu":
        return values_bs.sort(dim=1, descending=True).values
    # torch also sorts the places, which takes it 20 times as long as numpy's vectorised sort of the values.
    return torch.from_numpy(-np.sort(-values_bs.numpy(), axis=1))


def _generator(seed: int, stream: str) -> np.random.Generator:
    digest = hashlib.blake2b(f"{seed}\0{stream}".encode(), digest_size=16).digest()
    key: NDArray[np.uint64] = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
