"""Memory by arithmetic: sizes of published shapes, and what each choice changes."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from transformers import Gemma2Config, GPTNeoXConfig, PreTrainedConfig

from cytoglot.training.loop.memory import ModelSize, model_size, training_memory

PYTHIA = {"vocab_size": 50304, "max_position_embeddings": 2048}
GEMMA = {"vocab_size": 256000}
SHAPES: dict[str, PreTrainedConfig] = {
    "Pythia 410M": GPTNeoXConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, **PYTHIA
    ),
    "Pythia 1B": GPTNeoXConfig(
        hidden_size=2048, num_hidden_layers=16, num_attention_heads=8, intermediate_size=8192, **PYTHIA
    ),
    "Gemma 2 2B": Gemma2Config(
        hidden_size=2304, num_hidden_layers=26, num_attention_heads=8, num_key_value_heads=4, head_dim=256,
        intermediate_size=9216, **GEMMA,
    ),
    "Gemma 2 9B": Gemma2Config(
        hidden_size=3584, num_hidden_layers=42, num_attention_heads=16, num_key_value_heads=8, head_dim=256,
        intermediate_size=14336, **GEMMA,
    ),
    "Gemma 2 27B": Gemma2Config(
        hidden_size=4608, num_hidden_layers=46, num_attention_heads=32, num_key_value_heads=16, head_dim=128,
        intermediate_size=36864, **GEMMA,
    ),
}  # fmt: skip
#: Parameters as their publishers count them, in billions.
PUBLISHED = {"Pythia 410M": 0.405, "Pythia 1B": 1.01, "Gemma 2 2B": 2.61, "Gemma 2 9B": 9.24, "Gemma 2 27B": 27.2}


def memory_table() -> str:
    """The table of docs/cluster.md: GB of each GPU."""
    lines = [
        "| model | parameters | full, 1 GPU | full, 8 GPUs | LoRA, 1 GPU | LoRA, 8 GPUs | QLoRA, 1 GPU |",
        "|---|" + "---|" * 6,
    ]
    for name, config in SHAPES.items():
        size = model_size(config)
        cells = [
            training_memory(size, mode=mode, shards=shards) / 1e9
            for mode, shards in (("full", 1), ("full", 8), ("lora", 1), ("lora", 8), ("qlora", 1))
        ]
        shown = " | ".join(f"{cell:.0f} GB" if cell >= 10 else f"{cell:.1f} GB" for cell in cells)
        lines.append(f"| {name} | {size.parameters / 1e9:.2f} billion | {shown} |")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", SHAPES)
def test_sizes_are_those_published(name: str) -> None:
    size = model_size(SHAPES[name])
    assert size.parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=0.01)


def test_ends_and_vectors_by_hand() -> None:
    config = GPTNeoXConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=100
    )
    size = model_size(config)
    assert size.vectors == 2 * 8 * 100
    # query-key-value, output, up and down of each layer
    assert size.linear_ends == 2 * ((8 + 24) + (8 + 8) + (8 + 16) + (16 + 8))
    assert (size.layers, size.width, size.vocabulary) == (2, 8, 100)


def test_memory_by_hand() -> None:
    size = ModelSize(parameters=1000, vectors=200, linear_ends=50, layers=4, width=10, vocabulary=100)
    activations = 34 * 6 * 10 + 2 * 6 * 10 * 4
    logits = 10 * 0.5 * 6 * 100
    assert training_memory(size, tokens=6, learned_share=0.5) == 16 * 1000 + activations + logits
    without = training_memory(size, tokens=6, learned_share=0.5, checkpointing=False)
    assert without == 16 * 1000 + 34 * 6 * 10 * 4 + logits
    lora = training_memory(size, tokens=6, learned_share=0.5, mode="lora", rank=2)
    assert lora == 2 * 1000 + 16 * 2 * 50 + activations + logits
    qlora = training_memory(size, tokens=6, learned_share=0.5, mode="qlora", rank=2)
    assert qlora == 0.53 * 800 + 2 * 200 + 16 * 2 * 50 + activations + logits
    shared = training_memory(size, tokens=6, learned_share=0.5, shards=2)
    assert shared == 8 * 1000 + 2 * 2 * 800 / 4 + activations + logits


def test_the_table_of_the_page_is_that_of_the_arithmetic() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "cluster.md").read_text(encoding="utf-8")
    shown = page[page.index("<!-- memory: begin -->\n") + 23 : page.index("<!-- memory: end -->")]
    assert shown == memory_table(), "run: python tests/training/loop/test_memory.py, and paste what it prints"


def test_numbers_that_are_none_are_refused() -> None:
    size = model_size(SHAPES["Pythia 410M"])
    with pytest.raises(ValueError, match="must be at least 1"):
        training_memory(size, shards=0)


if __name__ == "__main__":
    print(memory_table(), end="")
