"""Configurations for many GPUs are read by the libraries' own code; parts of a model are put together again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch
import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from cytoglot.config import load_recipe
from cytoglot.errors import InputError, MissingExtraError
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.lora import add_lora
from cytoglot.lm.model.tokenizer import build_tokenizer
from cytoglot.training.loop.loss import loss_sum
from cytoglot.training.loop.sharded import check_sharding, whole_model, whole_weights
from cytoglot.training.recipe import LoraRecipe, ModelRecipe, OptimRecipe, TrainRecipe

CLUSTER = Path(__file__).resolve().parents[3] / "recipes" / "cluster"
GPU = torch.device("cuda")


def tiny_lm() -> LanguageModel:
    tokenizer = build_tokenizer(("CD3D", "LYZ"), ["A prompt."], n_subwords=260)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=64,
        )
        return LanguageModel(model=LlamaForCausalLM(config).eval(), tokenizer=tokenizer)


def batch_of(n_vocabulary: int) -> dict[str, Any]:
    ids = torch.randint(n_vocabulary, (3, 12), generator=torch.Generator().manual_seed(1))
    weights = torch.zeros(3, 12)
    weights[:, 7:] = 0.2
    return {"input_ids": ids, "weights": weights}


def test_the_fsdp_settings_are_those_of_fsdp2(tmp_path: Path) -> None:
    recipe = load_recipe(TrainRecipe, CLUSTER / "c2s_fsdp.yaml")
    assert recipe.fsdp is not None
    arguments = TrainingArguments(
        output_dir=str(tmp_path), fsdp=True, fsdp_config=dict(recipe.fsdp), use_cpu=True, report_to="none"
    )
    plugin = FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.activation_checkpointing is True
    assert "FULL" in str(plugin.state_dict_type)


@pytest.mark.parametrize("stage", [2, 3])
def test_the_deepspeed_files_are_filled_in(stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.utils.deepspeed import HfDeepSpeedConfig
    from transformers.integrations import deepspeed

    class Config(deepspeed.HfTrainerDeepSpeedConfig, HfDeepSpeedConfig):  # as it is where deepspeed is installed
        pass

    monkeypatch.setattr(deepspeed, "dep_version_check", lambda _: None)  # only the reading is tested
    found = json.loads((CLUSTER / f"deepspeed_zero{stage}.json").read_text(encoding="utf-8"))
    config = Config(found)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_grad_norm=0.5,
        use_cpu=True,
        report_to="none",
    )
    config.trainer_config_process(arguments)
    assert config.mismatches == []
    assert config.config["train_micro_batch_size_per_gpu"] == 4
    assert config.config["gradient_accumulation_steps"] == 2
    assert config.config["gradient_clipping"] == 0.5
    assert config.is_zero3() == (stage == 3)


def test_the_deepspeed_recipe_names_a_file_that_is_there() -> None:
    recipe = load_recipe(TrainRecipe, CLUSTER / "c2s_deepspeed.yaml")
    assert recipe.deepspeed is not None
    assert (CLUSTER.parents[1] / recipe.deepspeed).is_file()


@pytest.mark.parametrize(
    ("changes", "device", "message"),
    [
        ({"fsdp": {}}, "cpu", "fsdp shares weights among GPUs, found device cpu"),
        ({"deepspeed": "missing.json"}, "cuda", r"deepspeed names missing\.json, which is no file"),
        ({"fsdp": {}, "optim": OptimRecipe(stop_on="cell_type_annotation.accuracy")}, "cuda", "by the loss alone"),
        ({"fsdp": {}, "lora": LoraRecipe(quantize="4bit"), "model": ModelRecipe(base="x")}, "cuda", "not shared"),
    ],
)
def test_what_cannot_be_shared_is_refused(changes: dict[str, Any], device: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_sharding(TrainRecipe(**changes), torch.device(device))


def test_deepspeed_needs_its_package_and_no_average() -> None:
    recipe = TrainRecipe(deepspeed=str(CLUSTER / "deepspeed_zero3.json"), optim=OptimRecipe(weight_average=0.0))
    if "deepspeed" not in sys.modules:
        with pytest.raises(MissingExtraError, match="sharing weights by DeepSpeed"):
            check_sharding(recipe, GPU)
    check_sharding(TrainRecipe(), GPU)


def test_two_ways_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="name one of them"):
        TrainRecipe(fsdp={}, deepspeed="a.json")


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_a_whole_model_answers_as_its_parts_did(adapted: bool) -> None:
    lm = tiny_lm()
    if adapted:
        lm = add_lora(lm, rank=2, seed=0)
        for name, value in lm.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, generator=torch.Generator().manual_seed(2))
    again = whole_model(lm, whole_weights(lm.model))
    assert again.model is not lm.model
    ids = batch_of(lm.n_vocabulary)["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(again.model(input_ids=ids).logits, lm.model(input_ids=ids).logits)


def shared_step(rank: int, port: int, folder: str) -> None:
    """One process of two: a step of shared weights, then the whole of them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    lm = tiny_lm()
    for layer in lm.model.model.layers:
        fully_shard(layer)
    fully_shard(lm.model)
    optimizer = torch.optim.SGD(lm.model.parameters(), lr=0.1)
    loss = loss_sum(lm.model, batch_of(lm.n_vocabulary))  # both processes have the same batch: the mean is its gradient
    loss.backward()
    optimizer.step()
    weights = whole_weights(lm.model)
    if rank == 0:
        torch.save({"loss": loss.detach(), "weights": weights}, Path(folder) / "whole.pt")
        whole_model(lm, weights)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_shared_weights_learn_what_whole_ones_learn_and_are_put_together(tmp_path: Path) -> None:
    from tests.training.test_distributed import free_port

    torch.multiprocessing.spawn(shared_step, args=(free_port(), str(tmp_path)), nprocs=2)
    found = torch.load(tmp_path / "whole.pt", weights_only=True)
    lm = tiny_lm()
    optimizer = torch.optim.SGD(lm.model.parameters(), lr=0.1)
    loss = loss_sum(lm.model, batch_of(lm.n_vocabulary))
    loss.backward()
    optimizer.step()
    torch.testing.assert_close(found["loss"], loss.detach())
    for name, value in lm.model.state_dict().items():
        torch.testing.assert_close(found["weights"][name], value, msg=name)
