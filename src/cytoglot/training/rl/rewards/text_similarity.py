"""How near an answer in words is to the true text, by the vectors of their tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cytoglot.errors import InputError
from cytoglot.metrics.token_matching import match_tokens
from cytoglot.training.rl.rewards.context import Answer, RewardInputs
from cytoglot.training.rl.rewards.reward import AnswerReward, RewardSettings, is_label, register_reward
from cytoglot.training.rl.rewards.text_encoder import TextTokens, load_text_encoder


class TextSimilaritySettings(RewardSettings):
    """Of `text_similarity`."""

    encoder: str | None = None
    """folder or hub name of the encoder; by default the context's"""
    layer: int = -1
    """hidden state of the encoder: -1 the last"""
    idf: bool = False
    """weigh tokens by their rarity among the true answers of the training prompts"""
    baseline: float = Field(default=0.0, ge=-1, lt=1)
    """the F1 of unrelated texts, which is rescaled to 0: raw values of many encoders lie in a narrow high band"""
    match_special: bool = False
    """tokens may match the opening and closing tokens too, as in the published package"""
    device: str = "cpu"
    """of the encoder"""


@register_reward
class TextSimilarity(AnswerReward[TextSimilaritySettings]):
    """BERTScore F1 of the answer and the true text :cite:p:`zhang2020bertscore`.

    F1 of precision (mean over the answer's tokens of the best cosine with a token of the truth) and recall (the other
    way round), tokens weighted by rarity if asked for, then (F1 − baseline) / (1 − baseline). Between −1 and 1, where a
    value below −1 is cut; an empty answer has an F1 of 0. Report encoder, layer, idf and
    baseline with it: values of two encoders do not compare.
    """

    name = "text_similarity"
    low = -1.0
    settings_type = TextSimilaritySettings

    def __init__(self, settings: TextSimilaritySettings, context: RewardInputs) -> None:
        super().__init__(settings, context)
        source = settings.encoder or context.encoder
        if source is None:
            raise InputError("it needs a text encoder, found none; set encoder to a folder or a name on the hub")
        if settings.idf and not context.texts:
            raise InputError("idf counts words in the true answers of training prompts, found none in the context")
        self._encoder = load_text_encoder(source, layer=settings.layer, device=settings.device)
        self._rarity = self._encoder.rarity(context.texts) if settings.idf else None

    def rate_all(self, answers: Sequence[Answer]) -> list[float | None]:
        """Return the rewards; None unless the true answer is a text, or the settings name the task."""
        rated: list[float | None] = [None] * len(answers)
        in_words = [not answer.is_sentence and not is_label(answer) for answer in answers]
        asked = [is_text or a.task in self.settings.tasks for is_text, a in zip(in_words, answers, strict=True)]
        chosen = [i for i, answer in enumerate(answers) if answer.true and asked[i]]
        texts = list(dict.fromkeys(text for i in chosen for text in (answers[i].text, answers[i].true) if text))
        tokens = dict(zip(texts, self._encoder.tokens(texts), strict=True)) if texts else {}
        for i in chosen:
            text, true, f1 = tokens.get(answers[i].text), tokens[answers[i].true], 0.0
            if text is not None and not text.is_special.all() and not true.is_special.all():
                (text_td, text_w), (true_td, true_w) = self._countable(text), self._countable(true)
                f1 = match_tokens(text_td, true_td, text_weights=text_w, reference_weights=true_w).f1
            rated[i] = min(1.0, max(-1.0, (f1 - self.settings.baseline) / (1 - self.settings.baseline)))
        return rated

    def rate(self, answer: Answer) -> float | None:
        """Return the reward of one answer; many at once are faster."""
        return self.rate_all([answer])[0]

    def _countable(self, tokens: TextTokens) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        weight_t = (
            np.ones(len(tokens.ids)) if self._rarity is None else np.array([self._rarity[int(i)] for i in tokens.ids])
        )
        weight_t[tokens.is_special] = 0.0
        kept = np.ones(len(tokens.ids), bool) if self.settings.match_special else ~tokens.is_special
        return tokens.vectors_td[kept], weight_t[kept]
