"""The loss is that of the model's own logits in every family; examples packed into one row do not see each other."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from numbered_batches import collate
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
)

from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.lora import add_lora
from cytoglot.training.loop.loss import check_apart, halves, loss_sum, uses_flash

V = 96
_IDS = {"vocab_size": V, "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, **_IDS}
_GROUPED = {**_WIDE, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 256}
CONFIGS = {
    "llama": LlamaConfig(**_GROUPED),
    "tied": LlamaConfig(**_GROUPED, tie_word_embeddings=True),
    "neox": GPTNeoXConfig(**_WIDE, max_position_embeddings=256),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=256, **_IDS),
    "gemma2": Gemma2Config(**_GROUPED, sliding_window=8, final_logit_softcapping=2.0),
    "gemma3": Gemma3TextConfig(**_GROUPED, sliding_window=8, layer_types=["sliding_attention", "full_attention"]),
    "mistral": MistralConfig(**_GROUPED, sliding_window=8),
    "cohere": CohereConfig(**_GROUPED, logit_scale=0.25),
    "granite": GraniteConfig(**_GROUPED, logits_scaling=3.0),
    "bloom": BloomConfig(hidden_size=32, n_layer=2, n_head=2, **_IDS),
    "mamba": MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, **_IDS),
}
PACKABLE = ("llama", "neox", "gpt2", "gemma2", "gemma3", "mistral", "cohere", "granite")


@pytest.fixture(scope="module")
def models() -> dict[str, torch.nn.Module]:
    made = {}
    with torch.random.fork_rng(devices=[]):
        for family, config in CONFIGS.items():
            torch.manual_seed(0)
            made[family] = AutoModelForCausalLM.from_config(config).eval()
    return made


def examples(n: int = 5, *, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Examples of 12 to 30 tokens, a third of which weigh something."""
    rng = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(n):
        length = int(torch.randint(12, 31, (), generator=rng))
        weights = torch.rand(length, generator=rng) * (torch.rand(length, generator=rng) < 1 / 3)
        weights[0], weights[-1] = 0, 1
        made.append({"input_ids": torch.randint(3, V, (length,), generator=rng), "weights": weights})
    return made


def by_all_logits(model: torch.nn.Module, some: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """The loss by the model's own logits of each example alone."""
    total = torch.zeros(())
    for one in some:
        logits_tv = model(input_ids=one["input_ids"][None], use_cache=False).logits[0].float()
        loss_t = functional.cross_entropy(logits_tv[:-1], one["input_ids"][1:], reduction="none")
        total = total + (loss_t * one["weights"][1:]).sum()
    return total


@pytest.mark.parametrize("family", CONFIGS)
def test_loss_and_gradients_are_those_of_the_models_own_logits(models: dict[str, torch.nn.Module], family: str) -> None:
    model, some = copy.deepcopy(models[family]), examples()
    expected = by_all_logits(model, some)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    found = loss_sum(model, collate(some, pad_token_id=2))
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    for name, p in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(p.grad, gradients[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "tied", "gemma2"])
def test_an_adapted_model_has_the_loss_of_its_own_logits(models: dict[str, torch.nn.Module], family: str) -> None:
    lm = LanguageModel(model=copy.deepcopy(models[family]), tokenizer=None)  # type: ignore[arg-type]
    model = add_lora(lm, rank=2, train_vectors=True, seed=0).model.eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(generator=torch.Generator().manual_seed(1))
        expected = by_all_logits(model, examples())
        torch.testing.assert_close(loss_sum(model, collate(examples(), pad_token_id=2)), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("family", "attention"),
    [(family, kind) for family in PACKABLE for kind in ("sdpa", "eager") if (family, kind) != ("gemma2", "sdpa")],
)
@pytest.mark.parametrize("training", [False, True])
def test_packed_examples_have_the_loss_that_they_have_alone(
    models: dict[str, torch.nn.Module], family: str, attention: str, training: bool
) -> None:
    model = copy.deepcopy(models[family]).train(training)
    model.set_attn_implementation(attention)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = collate(examples(9), pad_token_id=2, row_tokens=70)
    assert 2 <= len(batch["input_ids"]) < 9
    with torch.no_grad():
        alone = by_all_logits(model, examples(9))
        torch.testing.assert_close(loss_sum(model, batch), alone, rtol=1e-5, atol=0)
        assert check_apart(model)


def test_the_check_finds_what_leaks(models: dict[str, torch.nn.Module]) -> None:
    assert not check_apart(models["bloom"])  # no positions that could begin anew
    assert not check_apart(models["mamba"])  # a state that goes on
    leaking = copy.deepcopy(models["llama"])
    forward = leaking.forward

    def with_a_mask(**inputs: torch.Tensor) -> object:
        return forward(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]))

    leaking.forward = with_a_mask  # type: ignore[assignment]
    assert not check_apart(leaking)
    batch = collate(examples(9), pad_token_id=2, row_tokens=70)
    with torch.no_grad():
        assert abs(loss_sum(leaking, batch) - by_all_logits(models["llama"], examples(9))) > 1


def test_flash_attention_is_given_a_single_row(
    models: dict[str, torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps examples apart in a batch of one row alone, and says nothing."""
    seen = []
    model = copy.deepcopy(models["llama"])
    forward = model.forward

    def watched(**inputs: torch.Tensor) -> object:
        seen.append(tuple(inputs["input_ids"].shape))
        return forward(**inputs)

    model.forward = watched  # type: ignore[assignment]
    monkeypatch.setattr("cytoglot.training.loop.loss.uses_flash", lambda _: True)
    batch = collate(examples(9), pad_token_id=2, row_tokens=70)
    with torch.no_grad():
        torch.testing.assert_close(loss_sum(model, batch), by_all_logits(models["llama"], examples(9)))
        assert seen == [(1, batch["input_ids"].numel())]
        assert check_apart(model)
    assert uses_flash(SimpleNamespace(config=SimpleNamespace(_attn_implementation="flash_attention_3")))  # type: ignore[arg-type]


def test_an_untrained_model_is_judged_as_well() -> None:
    """Its attention hardly changes its logits, and still tells."""
    torch.manual_seed(0)
    fresh = AutoModelForCausalLM.from_config(LlamaConfig(**{**_GROUPED, "initializer_range": 0.02})).eval()
    assert check_apart(fresh)
    fresh.config._attn_implementation = "eager"
    forward = fresh.forward
    fresh.forward = lambda **inputs: forward(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]))  # type: ignore[assignment]
    assert not check_apart(fresh)


def test_a_model_that_does_not_call_its_output_layer_has_the_same_loss(models: dict[str, torch.nn.Module]) -> None:
    class Own(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def get_output_embeddings(self) -> None:
            return None

        def forward(self, **inputs: torch.Tensor) -> object:
            return self.model(**inputs)

    with torch.no_grad():
        found = loss_sum(Own(models["llama"]), collate(examples(), pad_token_id=2))
        torch.testing.assert_close(found, by_all_logits(models["llama"], examples()), rtol=1e-5, atol=0)


@pytest.mark.parametrize("row_tokens", [None, 70, 1000])
def test_halves_have_the_loss_of_the_whole_down_to_single_examples(
    models: dict[str, torch.nn.Module], row_tokens: int | None
) -> None:
    batch = collate(examples(9), pad_token_id=2, row_tokens=row_tokens)
    parts = [batch]
    for _ in range(5):
        parts = [half for part in parts for half in halves(part)]
    assert len(parts) == 9
    with torch.no_grad():
        total = sum(loss_sum(models["llama"], part) for part in parts)
        torch.testing.assert_close(total, loss_sum(models["llama"], batch), rtol=1e-5, atol=0)


def test_packing_puts_every_example_into_a_row_with_positions_of_its_own() -> None:
    ids = [torch.tensor([5, 6, 7]), torch.tensor([8, 9]), torch.tensor([3, 4, 5, 6])]
    items = [{"input_ids": one, "weights": torch.ones(len(one)), "about": f"cell {i}"} for i, one in enumerate(ids)]
    batch = collate(items, pad_token_id=2, row_tokens=6)
    assert batch["input_ids"].tolist() == [[3, 4, 5, 6, 8, 9], [5, 6, 7, 2, 2, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 0, 0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 1, 2, 2], [1, 1, 1, 0, 0, 0]]
    assert batch["weights"].tolist() == [[0, 1, 1, 1, 0, 1], [0, 1, 1, 0, 0, 0]]
    assert (batch["n_examples"], batch["n_tokens"]) == (3, 9)
    assert batch["about"] == ["cell 0", "cell 1", "cell 2"]
