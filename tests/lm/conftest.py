"""Tiny random language models of several families, and the two kinds of tokenizer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.tokenizer import build_tokenizer

WORDS = ("ACTB", "B2M", "CD3D", "CD8A", "GNLY", "HLA-DRA", "AC093323.3", "MT-ND1", "MS4A1", "NKG7", "LYZ", "S100A8")
LABELS = (
    " B cell.",
    " CD4 T cell.",
    " CD8 T cell.",
    " CD8 T cell, naive.",
    " NK cell.",
    " NK cell. Or NKT.",
    " Monocyte.",
)
PROMPTS = (
    "Genes of a cell: ACTB B2M CD3D CD8A. The cell type is:",
    "Genes: GNLY. Type:",
    "Genes of a human cell, 9 in all: ACTB HLA-DRA AC093323.3 MT-ND1 MS4A1 NKG7 LYZ S100A8 B2M. Its type:",
    "What cell has the genes LYZ S100A8? It is",
    "Cell?",
)

Families = Callable[[str, PreTrainedTokenizerBase], LanguageModel]


@pytest.fixture(scope="session")
def words() -> tuple[str, ...]:
    return WORDS


@pytest.fixture(scope="session")
def labels() -> tuple[str, ...]:
    """Answers that share beginnings, one of which is the beginning of another."""
    return LABELS


@pytest.fixture(scope="session")
def prompts() -> tuple[str, ...]:
    """Prompts of very different lengths."""
    return PROMPTS


@pytest.fixture(scope="session")
def word_tokenizer() -> PreTrainedTokenizerFast:
    """Every word of WORDS one token, <bos> in front, as models made from scratch have it."""
    return build_tokenizer(WORDS, [*PROMPTS, *LABELS], n_subwords=320)


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-NeoX has it: no <bos>, no pad token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*PROMPTS, *LABELS], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )


def _config(family: str, tokenizer: PreTrainedTokenizerBase) -> object:
    # Large random weights make predictions depend on every token, so that a wrong mask or position shows.
    common = {"vocab_size": len(tokenizer), "initializer_range": 0.3, "eos_token_id": tokenizer.eos_token_id}
    wide = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, **common}
    grouped = {**wide, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 256}
    configs: dict[str, Callable[[], object]] = {
        "llama": lambda: LlamaConfig(**{**grouped, "num_key_value_heads": 2}),
        "neox": lambda: GPTNeoXConfig(**wide, max_position_embeddings=256),
        "gpt2": lambda: GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=256, **common),
        "gemma3": lambda: Gemma3TextConfig(
            **grouped, sliding_window=128, layer_types=["sliding_attention", "full_attention"]
        ),
        "gemma2": lambda: Gemma2Config(**grouped, sliding_window=128, final_logit_softcapping=5.0),
        "mistral": lambda: MistralConfig(**grouped, sliding_window=16),  # a window shorter than the prompts
        "bloom": lambda: BloomConfig(hidden_size=32, n_layer=2, n_head=2, **common),  # no position ids: ALiBi
        "mamba": lambda: MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, **common),  # no attention
    }
    return configs[family]()


@pytest.fixture(scope="session")
def make_lm() -> Families:
    """Return a function (family, tokenizer) → tiny random model; made once each."""
    made: dict[tuple[str, int], LanguageModel] = {}

    def make(family: str, tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
        key = (family, id(tokenizer))
        if key not in made:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = AutoModelForCausalLM.from_config(_config(family, tokenizer)).eval()
            made[key] = LanguageModel(model=model, tokenizer=tokenizer)
        return made[key]

    return make


@pytest.fixture
def scratch_lm(make_lm: Families, word_tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    """Llama with the word-level tokenizer."""
    return make_lm("llama", word_tokenizer)


@pytest.fixture
def hub_like_lm(make_lm: Families, byte_tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    """GPT-NeoX with byte-level BPE, as the published cell models have it."""
    return make_lm("neox", byte_tokenizer)
