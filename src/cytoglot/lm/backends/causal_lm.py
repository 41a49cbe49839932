"""The sockets for generators and scorers, filled by a `transformers` model in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cytoglot.answer_format import AnswerFormat, GeneratedAnswer
from cytoglot.errors import InputError
from cytoglot.lm.embedding.embed import Pooling, embed_texts
from cytoglot.lm.generation.generate import generate_answers, sample_answers
from cytoglot.lm.generation.sampling import Sampling
from cytoglot.lm.model.fingerprint import model_fingerprint
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.scoring.score import score_answers


@dataclass(frozen=True, kw_only=True, eq=False)
class CausalLm:
    """A language model as `TextGenerator` and `AnswerScorer`, with vectors of texts besides."""

    lm: LanguageModel
    temperature: float = 1.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    """Share of probability that tokens are drawn from."""
    terminator: str = "."
    """Text between an answer and end of text in the training texts."""
    batch_size: int = 64
    """Most answers written at the same time."""

    def settings(self) -> dict[str, Any]:
        """Return JSON values of all that decides the answers, the weights among them."""
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "terminator": self.terminator}
        return {"model": model_fingerprint(self.lm), **sampling}

    def generate(
        self, prompts: Sequence[str], answer_format: AnswerFormat, n_samples: int = 1, seed: int = 0
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

    def sample(
        self,
        prompts: Sequence[str],
        answer_format: AnswerFormat,
        n_samples: int = 1,
        seed: int = 0,
        *,
        keys: Sequence[str] | None = None,
    ) -> list[list[GeneratedAnswer]]:
        """Return `n_samples` answers for each prompt with their log-probabilities.

        `keys` name the noise of each prompt, so that a prompt has the same answers in whatever list it comes.
        """
        return sample_answers(
            self.lm,
            prompts,
            answer_format,
            sampling=Sampling(temperature=self.temperature, top_p=self.top_p, seed=seed),
            n_samples=n_samples,
            batch_size=self.batch_size,
            terminator=self.terminator,
            keys=keys,
        )

    def log_likelihood(
        self,
        prompts: Sequence[str],
        answers: Sequence[str],
        *,
        terminator: bool = True,
        normalize: Literal["sum", "mean"] = "sum",
        prior_prompts: Sequence[str] | None = None,
    ) -> NDArray[np.float64]:
        """Return log p(answer | prompt) in nats, shape (n_prompts, n_answers).

        Parameters
        ----------
        answers
            Distinct; a space is put in front of those that do not begin with white space.
        terminator
            Whether the text that ends an answer, and end of text, are scored with it. Without them, an answer that is
            the beginning of another is always at least as likely.
        normalize, prior_prompts
            As in `cytoglot.lm.scoring.score.score_answers`.
        """
        if isinstance(answers, str):
            raise InputError(f"expected a list of answers, found one text of {len(answers)} characters; pass [text]")
        if not all(answer.strip() for answer in answers):
            raise InputError("answers to score must not be empty; leave the empty ones out")
        ending = self.terminator if terminator else ""
        framed = [f"{answer if answer[:1].isspace() else ' ' + answer}{ending}" for answer in answers]
        return score_answers(
            self.lm, prompts, framed, terminator=terminator, normalize=normalize, prior_prompts=prior_prompts
        )

    def embed(
        self,
        texts: Sequence[str],
        layer: int = -1,
        pooling: Pooling = "mean",
        *,
        spans: Sequence[tuple[int, int]] | None = None,
    ) -> NDArray[np.float32]:
        """Return one vector per text, float32 of shape (n_texts, d); see `cytoglot.lm.embedding.embed.embed_texts`."""
        return embed_texts(self.lm, texts, layer=layer, pooling=pooling, spans=spans)
