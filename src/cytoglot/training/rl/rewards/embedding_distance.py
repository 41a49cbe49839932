"""How near a written cell lies to the training cells of its type, in the hidden states of a language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cytoglot.errors import InputError
from cytoglot.training.rl.rewards.context import Answer, RewardInputs
from cytoglot.training.rl.rewards.reward import AnswerReward, RewardSettings, register_reward

if TYPE_CHECKING:
    from cytoglot.lm.model.language_model import LanguageModel


class EmbeddingDistanceSettings(RewardSettings):
    """Of `embedding_distance`."""

    target: Literal["typical", "centre"] = "typical"
    """typical: as far from the centroid as the type's cells usually are; centre: the nearer the better, which favors
    the average cell"""
    width: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    """distance, in units of the type's spread, that divides the reward by e"""
    layer: int = -1
    """hidden state: -1 the last, 0 the word vectors"""
    max_cells: int = Field(default=200, gt=1)
    """training cells of a type that its centroid is made of"""


@dataclass(frozen=True, kw_only=True)
class _Cloud:
    """Where the training cells of a type are."""

    centroid_d: NDArray[np.float64]
    typical: float
    """median distance of the cells from the centroid"""
    scale: float
    """what distances are measured in: that median, or a thousandth of the centroid's length if cells are all alike"""


@register_reward
class EmbeddingDistance(AnswerReward[EmbeddingDistanceSettings]):
    """exp(−|d − s| / (width · s)) · (distinct genes / max(asked, written)); for the centre, d in the place of |d − s|.

    d is the Euclidean distance between the mean hidden state of the answer's genes and the centroid of the type's
    training sentences, s the median of that distance over those sentences, each cut to its own length. Between 0 and 1;
    an answer without genes earns 0. Vectors come from the context's model, which must not be the one in training.
    """

    name = "embedding_distance"
    settings_type = EmbeddingDistanceSettings

    def __init__(self, settings: EmbeddingDistanceSettings, context: RewardInputs) -> None:
        super().__init__(settings, context)
        if context.lm is None:
            raise InputError("it needs a language model for its vectors, found none; give the context an lm")
        self._cloud = cache(self._measure)

    def rate_all(self, answers: Sequence[Answer]) -> list[float | None]:
        """Return the rewards; None for what is no sentence, and for a type with fewer than two training cells."""
        genes = [tuple(dict.fromkeys(w for w in a.words if w in self.context.gene_set)) for a in answers]
        clouds = [self._cloud(answer.cell_type) if answer.is_sentence else None for answer in answers]
        rated: list[float | None] = [None if cloud is None else 0.0 for cloud in clouds]
        chosen = [i for i, value in enumerate(rated) if value is not None and genes[i]]
        distinct = list(dict.fromkeys(genes[i] for i in chosen))
        vector_of = dict(zip(distinct, self._embed(distinct), strict=True)) if distinct else {}
        for i in chosen:
            cloud = clouds[i]
            assert cloud is not None
            away = float(np.linalg.norm(vector_of[genes[i]] - cloud.centroid_d))
            if self.settings.target == "typical":
                away = abs(away - cloud.typical)
            nearness = float(np.exp(-away / (self.settings.width * cloud.scale)))
            rated[i] = nearness * len(genes[i]) / answers[i].longest
        return rated

    def rate(self, answer: Answer) -> float | None:
        """Return the reward of one answer; many at once are faster."""
        return self.rate_all([answer])[0]

    def _measure(self, cell_type: str) -> _Cloud | None:
        cells = [sentence for sentence in self.context.profiles.cells(cell_type) if sentence]
        if len(cells) < 2:
            return None
        taken = np.linspace(0, len(cells) - 1, min(len(cells), self.settings.max_cells)).round().astype(int)
        vectors_nd = self._embed([cells[i] for i in taken])
        centroid_d = vectors_nd.mean(axis=0)
        typical = float(np.median(np.linalg.norm(vectors_nd - centroid_d, axis=1)))
        scale = max(typical, 1e-3 * float(np.linalg.norm(centroid_d)), 1e-12)
        return _Cloud(centroid_d=centroid_d, typical=typical, scale=scale)

    def _embed(self, sentences: Sequence[tuple[str, ...]]) -> NDArray[np.float64]:
        from cytoglot.lm.embedding.embed import embed_texts  # torch is loaded for this reward only

        lm = self.context.lm
        assert lm is not None
        texts = [_text_that_fits(lm, sentence) for sentence in sentences]
        return embed_texts(lm, texts, layer=self.settings.layer).astype(np.float64)


def _text_that_fits(lm: LanguageModel, sentence: Sequence[str]) -> str:
    """Return the sentence, without its last genes where the model could not read all of them."""
    from cytoglot.lm.model.tokenizer import encode_prompts

    limit = lm.context_length
    sentence = sentence[:limit]  # a gene has one token at least
    while True:
        text = " " + " ".join(sentence)  # after a space, as genes are in training
        n_tokens = len(encode_prompts(lm.tokenizer, [text])[0])
        if limit is None or n_tokens <= limit or len(sentence) <= 1:
            return text
        sentence = sentence[: max(1, min(len(sentence) - 1, len(sentence) * limit // n_tokens))]
