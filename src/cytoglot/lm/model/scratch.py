"""Small Llama models made from nothing, for users without a hub.

What makes them learn from a few hundred cells is how they start. Word vectors (for genes: PCA loadings) go into the
embedding, and one attention layer is set to hand on their mean over the text, which for a cell sentence is close to
the cell's principal components; training refines a useful model instead of finding one.

Axes: w words, d embedding dimensions, k dimensions of the given vectors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from cytoglot.config import Settings
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.lm.model.tokenizer import word_token_ids

Texts = Sequence[NDArray[np.int64]]

#: A few words with extreme loadings would otherwise set the scale for all.
MAX_LOADING = 8.0


class ScratchSettings(Settings):
    """Size and start of a model made from scratch; the defaults are the preset "small"."""

    hidden_size: int = Field(default=128, ge=8)
    """Embedding dimensions d."""
    n_layers: int = Field(default=1, ge=1)
    """Transformer layers."""
    n_heads: int = Field(default=4, ge=1)
    """Attention heads; divides hidden_size into parts of even size."""
    feed_forward: int = Field(default=256, ge=8)
    """Width of the feed-forward layers."""
    context_length: int = Field(default=2048, ge=8)
    """Most tokens the model can read."""
    tie_embeddings: bool = False
    """Use the embedding as output layer; halves the parameters of large vocabularies."""
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of attention weights dropped in training."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    """Base of the rotary position angles."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the random weights."""
    word_scale: float = Field(default=1.0, gt=0)
    """Root mean square that each given word-vector dimension is brought to, over words."""
    word_constant: float = Field(default=1.0, ge=0)
    """Squared size of a constant coordinate of all words relative to the given vectors; keeps the normalization of
    the first layer from blowing up the short vectors of uninformative words. 0 leaves it out."""
    word_noise: float = Field(default=0.3, ge=0)
    """Standard deviation of the coordinates that the given vectors leave free, relative to word_scale."""
    pool_gain: float = Field(default=1.0, ge=0)
    """Size of the mean word vector as handed on by attention at the start; 0 leaves that attention layer random.
    Acts only when word vectors are given."""
    word_output_scale: float = Field(default=0.1, gt=0)
    """Output vectors of the words start this much smaller where a profile says already how frequent they are, so that
    training begins at the profile's likelihood. Without effect where embedding and output layer are one."""
    pool_layer: int = Field(default=0, ge=0)
    """The layer whose attention starts as a mean over words."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> ScratchSettings:
        if self.hidden_size % (2 * self.n_heads):
            message = f"hidden_size must be a multiple of 2 x n_heads = {2 * self.n_heads}, found {self.hidden_size}"
            raise ValueError(message)
        if self.pool_layer >= self.n_layers:
            raise ValueError(f"pool_layer must be below n_layers = {self.n_layers}, found {self.pool_layer}")
        return self


PRESETS: Mapping[str, ScratchSettings] = {
    "tiny": ScratchSettings(hidden_size=64, n_layers=1, n_heads=4, feed_forward=128),
    "small": ScratchSettings(),
    "base": ScratchSettings(hidden_size=256, n_layers=4, n_heads=8, feed_forward=768, context_length=4096),
    "large": ScratchSettings(hidden_size=512, n_layers=8, n_heads=8, feed_forward=1536, context_length=8192),
}


def scratch_settings(preset: str = "small", overrides: Mapping[str, object] | None = None) -> ScratchSettings:
    """Return a preset with some fields replaced; an unknown preset names the nearest ones."""
    if preset not in PRESETS:
        raise UnknownNameError("preset", preset, PRESETS)
    return ScratchSettings.model_validate({**PRESETS[preset].model_dump(), **(overrides or {})})


def scratch_model(
    tokenizer: PreTrainedTokenizerBase,
    settings: ScratchSettings | str = "small",
    *,
    seed: int,
    words: Sequence[str] | None = None,
    word_vectors: NDArray[np.floating] | None = None,
    word_texts: Sequence[NDArray[np.integer]] | None = None,
    has_profile: bool = False,
) -> LlamaForCausalLM:
    """Return an untrained Llama model for the tokenizer, in evaluation mode, float32, on the CPU.

    The same seed gives the same weights; torch's global generator is left as it was.

    Parameters
    ----------
    settings
        Or the name of a preset.
    words, word_vectors
        A vector of any scale for each word, shape (n_words, k), k below hidden_size. Columns are centred, all together
        brought to the root mean square `word_scale` (keeping their proportions: whiten them before if you want equal
        ones) and clipped at 8 times that; words count by their frequency in `word_texts`. Rows of zeros are fine.
    word_texts
        A sample of texts as arrays of indices into `words` (a few hundred). Averages over long texts are smaller
        than single vectors; from the sample, the pooling layer is scaled so that their differences arrive with a root
        mean square of `pool_gain`. Without it, texts of one word are assumed.

    has_profile
        The logits of the words will have a profile's weights added (see `word_output_scale`).

    Raises
    ------
    InputError
        Vectors without words, of another number of rows, too wide, or not finite; words that are not single tokens.
    """
    if isinstance(settings, str):
        settings = scratch_settings(settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(llama_config(tokenizer, settings))
        if word_vectors is not None:
            _check_vectors(words, word_vectors, settings)
            token_ids = torch.from_numpy(word_token_ids(tokenizer, words or []))
            texts = [np.asarray(ids, dtype=np.int64) for ids in word_texts or () if len(ids)]
            # How often each word occurs in the texts; without any, all alike.
            counts = np.bincount(np.concatenate(texts or [np.arange(len(word_vectors))]), minlength=len(word_vectors))
            frequency_w = torch.from_numpy((counts / counts.sum()).astype(np.float32))
            embedding_wd = _word_embedding(word_vectors, frequency_w, settings)
            with torch.no_grad():
                model.get_input_embeddings().weight[token_ids] = embedding_wd
                if settings.pool_gain > 0:
                    _start_as_pool(model, embedding_wd, texts, word_vectors.shape[1], settings)
        if has_profile and not settings.tie_embeddings:
            with torch.no_grad():
                model.lm_head.weight[torch.from_numpy(word_token_ids(tokenizer, words or []))] *= (
                    settings.word_output_scale
                )
    return model.eval()


_RARE = 0.01  # probability of all tokens together that follow no prompt of the sample
_RIDGE = 0.01  # relative to the mean square of the hidden states


def start_at_frequencies(
    model: LlamaForCausalLM, prompts: Sequence[NDArray[np.integer]], next_tokens: NDArray[np.integer]
) -> None:
    """Change the output layer so that each token begins with its frequency after such prompts, elsewhere as before.

    Without this the first steps learn only which tokens occur at all, the same for every prompt. Some runs then need
    hundreds of steps to tell similar labels apart, probably because those steps undo what the model starts with (see
    `_start_as_pool`). Does nothing where embedding and output layer are one.

    Parameters
    ----------
    prompts
        Token ids of each, with their opening tokens; those beyond the context are left out.
    next_tokens
        The token that follows each.
    """
    limit = model.config.max_position_embeddings
    fit = [i for i, ids in enumerate(prompts) if 2 <= len(ids) <= limit]
    if model.config.tie_word_embeddings or not fit:
        return
    ends, before_dd = [], torch.zeros(model.config.hidden_size, model.config.hidden_size, dtype=torch.float64)
    with torch.no_grad():
        for i in fit:
            ids_bt = torch.from_numpy(np.asarray(prompts[i], dtype=np.int64))[None]
            hidden_td = model.model(input_ids=ids_bt, use_cache=False).last_hidden_state[0].double()
            ends.append(hidden_td[-1])
            before_dd += hidden_td[:-1].T @ hidden_td[:-1] / (len(hidden_td) - 1)
        end_nd = torch.stack(ends)
        # The direction that is 1 at the end of a prompt and 0 before it, by ridge regression.
        gram_dd = (end_nd.T @ end_nd + before_dd) / len(fit)
        gram_dd += _RIDGE * gram_dd.diagonal().mean() * torch.eye(len(gram_dd), dtype=torch.float64)
        direction_d = torch.linalg.solve(gram_dd, end_nd.mean(dim=0))
        n_vocabulary = len(model.lm_head.weight)
        count_v = np.bincount(np.asarray(next_tokens)[fit], minlength=n_vocabulary)
        log_p_v = np.log(np.maximum(count_v / len(fit), _RARE / n_vocabulary))
        model.lm_head.weight += torch.outer(torch.from_numpy(log_p_v), direction_d).float()


def llama_config(tokenizer: PreTrainedTokenizerBase, settings: ScratchSettings) -> LlamaConfig:
    """Return the configuration of the model that `scratch_model` makes."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.feed_forward,
        num_hidden_layers=settings.n_layers,
        num_attention_heads=settings.n_heads,
        num_key_value_heads=settings.n_heads,
        max_position_embeddings=settings.context_length,
        tie_word_embeddings=settings.tie_embeddings,
        attention_dropout=settings.attention_dropout,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
        initializer_range=settings.init_std,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _check_vectors(words: Sequence[str] | None, word_vectors: NDArray[np.floating], settings: ScratchSettings) -> None:
    n_words = 0 if words is None else len(words)
    if word_vectors.ndim != 2 or len(word_vectors) != n_words:
        raise InputError(
            f"word_vectors must have one row for each of the {n_words} words, found shape {word_vectors.shape}"
        )
    room = settings.hidden_size - (settings.word_constant > 0)
    if not 1 <= word_vectors.shape[1] <= room:
        raise InputError(
            f"word_vectors must have between 1 and {room} columns to fit hidden_size {settings.hidden_size}, "
            f"found {word_vectors.shape[1]}; keep the first components or choose a larger preset"
        )
    if not np.isfinite(word_vectors).all():
        n_faulty = int((~np.isfinite(word_vectors)).any(axis=1).sum())
        raise InputError(f"word_vectors must be finite, found NaN or infinity in {n_faulty} of {n_words} rows")


def _word_embedding(
    word_vectors: NDArray[np.floating], frequency_w: torch.Tensor, settings: ScratchSettings
) -> torch.Tensor:
    """Lay out each word as [constant | scaled vector | noise], shape (w, d)."""
    vector_wk = torch.from_numpy(np.asarray(word_vectors, dtype=np.float32))
    vector_wk = vector_wk - frequency_w @ vector_wk
    n_words, k = vector_wk.shape
    size = (frequency_w @ vector_wk.square()).mean().sqrt().clamp_min(1e-12)
    vector_wk = settings.word_scale * (vector_wk / size).clamp(-MAX_LOADING, MAX_LOADING)
    constant_w1 = torch.full((n_words, 1), settings.word_scale * math.sqrt(settings.word_constant * k))
    parts = [constant_w1, vector_wk] if settings.word_constant > 0 else [vector_wk]
    n_free = settings.hidden_size - sum(part.shape[1] for part in parts)
    noise_wd = settings.word_noise * settings.word_scale * torch.randn(n_words, n_free)
    return torch.cat([*parts, noise_wd], dim=1)


def _start_as_pool(
    model: LlamaForCausalLM, embedding_wd: torch.Tensor, texts: Texts, n_vector_columns: int, settings: ScratchSettings
) -> None:
    """Set value and output projection of one layer to Q and gain·Qᵀ with Q orthogonal.

    Untrained queries and keys are small, so attention is close to a plain mean, and value then output projection
    hand it on unrotated. The constant coordinate is dropped, being the same for every text.
    """
    first = int(settings.word_constant > 0)
    # Root mean square, over texts and the vectors' columns, of the centred means of normalized embeddings.
    normal_wd = embedding_wd / embedding_wd.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-6)
    means = [normal_wd[torch.from_numpy(word_ids)].mean(dim=0) for word_ids in texts]
    mean_td = torch.stack(means) if len(means) > 1 else normal_wd
    centred = (mean_td - mean_td.mean(dim=0))[:, first : first + n_vector_columns]
    pooled = max(float(centred.square().mean().sqrt()), 1e-6)
    rotation, _ = torch.linalg.qr(torch.randn(settings.hidden_size, settings.hidden_size))
    rotation[:, :first] = 0
    attention = model.model.layers[settings.pool_layer].self_attn
    attention.v_proj.weight.copy_(rotation)
    attention.o_proj.weight.copy_(rotation.T * (settings.pool_gain / pooled))
