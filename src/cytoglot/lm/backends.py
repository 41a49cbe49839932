"""The sockets for generators and scorers, filled by a `transformers` model in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytoglot.answer_format import AnswerFormat
from cytoglot.lm.generate import generate_answers
from cytoglot.lm.load import LanguageModel
from cytoglot.lm.score import score_answers


@dataclass(frozen=True, kw_only=True, eq=False)
class CausalLm:
    """A language model as `TextGenerator` and `AnswerScorer`."""

    lm: LanguageModel
    temperature: float = 1.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    """Share of probability that tokens are drawn from."""
    terminator: str = "."
    """Text between an answer and end of text in the training texts."""
    batch_size: int = 64
    """Most answers written at the same time."""

    def generate(
        self, prompts: Sequence[str], answer_format: AnswerFormat, *, n_samples: int, seed: int
    ) -> list[list[str]]:
        """Return `n_samples` answers for each prompt, without space in front and terminator."""
        return generate_answers(
            self.lm,
            prompts,
            answer_format,
            seed=seed,
            n_samples=n_samples,
            temperature=self.temperature,
            top_p=self.top_p,
            batch_size=self.batch_size,
            terminator=self.terminator,
        )

    def log_likelihood(self, prompts: Sequence[str], answers: Sequence[str]) -> NDArray[np.float64]:
        """Return log p(answer | prompt) in nats, end of text included, shape (n_prompts, n_answers).

        Answers are given as to `generate`'s caller: space and terminator are put around them here.
        """
        return score_answers(self.lm, prompts, [f" {answer}{self.terminator}" for answer in answers])
