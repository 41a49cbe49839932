"""Adapters: they start as nothing, every part of them learns, the base does not, and merging changes no answer."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

pytest.importorskip("peft")
from peft import PeftModel

from cytoglot.errors import InputError
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.lora import add_lora, merge_lora, save_adapter
from cytoglot.lm.scoring.score import score_answers

FAMILIES = ("llama", "neox", "gpt2", "gemma2", "gemma3", "mistral", "bloom", "mamba")
IDS = torch.tensor([[5, 9, 30, 7, 11, 40], [8, 8, 21, 3, 17, 2]])


@pytest.fixture
def base(make_lm, word_tokenizer: PreTrainedTokenizerFast, request: pytest.FixtureRequest) -> LanguageModel:
    made: LanguageModel = make_lm(request.param, word_tokenizer)
    return LanguageModel(model=copy.deepcopy(made.model), tokenizer=made.tokenizer)


def steps(lm: LanguageModel, n: int) -> Iterator[None]:
    """Take optimizer steps; gradients are there at each yield."""
    optimizer = torch.optim.SGD([p for p in lm.model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(n):
        optimizer.zero_grad()
        lm.model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        yield
        optimizer.step()


@pytest.mark.parametrize("base", FAMILIES, indirect=True)
def test_every_part_learns_the_base_does_not_and_merging_changes_nothing(base: LanguageModel) -> None:
    before = {name: value.clone() for name, value in base.model.named_parameters()}
    plain = base.model(input_ids=IDS).logits.detach()
    lm = add_lora(base, rank=4, alpha=8, dropout=0.0, seed=1)
    # B is zero; with gradients some kernels of other families round otherwise.
    torch.testing.assert_close(lm.model(input_ids=IDS).logits, plain, rtol=0, atol=1e-5)
    for _ in steps(lm, 2):
        gradients = {name: p.grad for name, p in lm.model.named_parameters() if p.requires_grad}
    assert {name.split(".")[-3] for name in gradients} == {"lora_A", "lora_B"}
    silent = [name for name, gradient in gradients.items() if gradient is None or not gradient.abs().sum() > 0]
    assert silent == []
    frozen = {n.replace("base_model.model.", "").replace(".base_layer", ""): p for n, p in lm.model.named_parameters()}
    for name, value in before.items():
        assert torch.equal(frozen[name], value), name
        assert frozen[name].grad is None
    adapted = lm.model(input_ids=IDS).logits.detach()
    assert (adapted - plain).abs().max() > 1e-3
    merged = merge_lora(lm)
    assert not merged.is_adapted
    torch.testing.assert_close(merged.model(input_ids=IDS).logits, adapted, rtol=0, atol=1e-5 * float(adapted.std()))


@pytest.mark.parametrize("base", ["llama", "gemma3"], indirect=True)  # its output layer is tied to the vectors
def test_vectors_are_trained_in_full_on_demand_and_kept_with_the_adapter(base: LanguageModel, tmp_path: Path) -> None:
    untouched = copy.deepcopy(base.model)
    tied = base.model.get_input_embeddings().weight is base.model.get_output_embeddings().weight
    lm = add_lora(base, rank=2, train_vectors=True, dropout=0.0)
    for _ in steps(lm, 2):
        vectors = lm.model.get_input_embeddings().weight
        assert vectors.grad.abs().sum() > 0
    assert (lm.model.get_input_embeddings().weight is lm.model.get_output_embeddings().weight) == tied
    expected = lm.model(input_ids=IDS).logits.detach()
    save_adapter(lm, tmp_path / "adapter")
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft asks by it
        again = PeftModel.from_pretrained(untouched, str(tmp_path / "adapter"))
    torch.testing.assert_close(again(input_ids=IDS).logits, expected, rtol=0, atol=1e-5)
    merge_lora(lm).model.save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(input_ids=IDS).logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("base", ["llama"], indirect=True)
def test_an_adapted_model_answers_like_any_other(base: LanguageModel) -> None:
    expected = score_answers(base, ["Genes: GNLY. Type:"], [" B cell.", " NK cell."])
    lm = add_lora(base, rank=2)
    found = score_answers(lm, ["Genes: GNLY. Type:"], [" B cell.", " NK cell."])
    assert abs(found - expected).max() < 1e-5
    assert lm.n_vocabulary == base.n_vocabulary
    assert lm.context_length == base.context_length


@pytest.mark.parametrize("base", ["llama"], indirect=True)
def test_the_seed_decides_and_torchs_own_state_is_left_alone(base: LanguageModel) -> None:
    state = torch.random.get_rng_state()
    first, second, third = (
        add_lora(LanguageModel(model=copy.deepcopy(base.model), tokenizer=base.tokenizer), rank=2, seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [torch.cat([p.flatten() for p in lm.model.parameters() if p.requires_grad]) for lm in (first, second)]
    assert torch.equal(*weights)
    other = torch.cat([p.flatten() for p in third.model.parameters() if p.requires_grad])
    assert not torch.equal(weights[0], other)


@pytest.mark.parametrize("base", ["llama"], indirect=True)
def test_layers_can_be_chosen_and_unknown_ones_are_named(base: LanguageModel) -> None:
    with pytest.raises(InputError, match=r"no layer is called 'q_pro'.*did you mean .*'q_proj'"):
        add_lora(base, targets=("q_pro",))
    lm = add_lora(base, targets=("q_proj", "v_proj"))
    trained = {name.split(".")[-4] for name, p in lm.model.named_parameters() if p.requires_grad}
    assert trained == {"q_proj", "v_proj"}


@pytest.mark.parametrize("base", ["llama"], indirect=True)
def test_a_plain_model_has_nothing_to_merge_or_save(base: LanguageModel, tmp_path: Path) -> None:
    assert merge_lora(base) is base
    with pytest.raises(InputError, match="expected a model with an adapter"):
        save_adapter(base, tmp_path)


def test_gradients_reach_the_adapter_through_recomputed_layers() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    model = AutoModelForCausalLM.from_config(config)
    gradients = []
    for recomputed in (False, True):
        lm = add_lora(LanguageModel(model=copy.deepcopy(model), tokenizer=None), rank=2, dropout=0.0, seed=0)  # type: ignore[arg-type]
        if recomputed:
            lm.model.enable_input_require_grads()
            lm.model.activation_checkpointing_enable()
            lm.model.train()
        for _ in steps(lm, 2):
            found = {name: p.grad.clone() for name, p in lm.model.named_parameters() if p.requires_grad}
        gradients.append(found)
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value)
