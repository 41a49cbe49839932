"""Alignment: the reward rises on held-out prompts, a killed run ends as an unbroken one, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cytoglot.answer_format import DistinctWords, OneOf
from cytoglot.cell_model.load import CellModel, load_cell_model
from cytoglot.cell_model.spec import SPEC_FILE, TRAINING_FILE, load_split
from cytoglot.corpus.format.folder import Corpus
from cytoglot.data.splits.split import Split
from cytoglot.errors import InputError
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.tokenizer import build_tokenizer, encode_prompts
from cytoglot.training.recipe import GrpoRecipe, LoraRecipe, ModelRecipe, OptimRecipe, SentenceRecipe, TrainRecipe
from cytoglot.training.rl import callback as grpo_watch
from cytoglot.training.rl import trainer as rollouts
from cytoglot.training.run import train

RARE = "rare_genes:share"
REWARDS = """
calls = []

def share(completions, genes=(), **columns):
    calls.append(columns)
    return [sum(w.rstrip(".") in genes for w in text.split()) / max(1, len(text.split())) for text in completions]

def constant(completions, **columns):
    return [0.25] * len(completions)

def silent(completions, **columns):
    return [None] * len(completions)

def failing(completions, **columns):
    raise RuntimeError("no licence for this reward")

def length(completions, **columns):
    return [float(len(text)) for text in completions]
"""


@pytest.fixture(scope="module", autouse=True)
def own_rewards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A module of rewards, as a user may have one."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "rare_genes.py").write_text(REWARDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


@pytest.fixture(scope="module")
def free_model_folder(cells: AnnData, tiny_recipe: TrainRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a profile, which may write without a constraint."""
    recipe = tiny_recipe.model_copy(
        update={
            "model": tiny_recipe.model.model_copy(update={"profile": False, "sentence_head": False}),
            "optim": tiny_recipe.optim.model_copy(update={"word_loss": "all_tokens", "steps": 80}),
        }
    )
    folder = tmp_path_factory.mktemp("free_model") / "model"
    model = train(cells, label="cell_type", out=folder, recipe=recipe, seed=3, device="cpu")
    assert model.profile is None
    assert model.head is None
    return folder


def _recipe(base: Path | str, rewards: dict[str, Any] | None = None, **changes: Any) -> TrainRecipe:
    grpo = {
        "group_size": 6,
        "prompts_per_step": 2,
        "max_answer_tokens": 16,
        "held_out_prompts": 8,
        "held_out_samples": 3,
        "probes": "off",
        "constrained": True,
        **changes.pop("grpo", {}),
    }
    optim = {"steps": 6, "learning_rate": 1e-2, "evaluate_every": 2, "weight_decay": 0.0, **changes.pop("optim", {})}
    return TrainRecipe(
        kind="grpo",
        model=ModelRecipe(base=str(base)),
        sentence=SentenceRecipe(top_genes=8),
        optim=OptimRecipe(**optim),
        grpo=GrpoRecipe(rewards={"easy": {"reward": RARE, "genes": _rare()}} if rewards is None else rewards, **grpo),
        **changes,
    )


def _rare() -> list[str]:
    """The second half of the genes, which are no markers: hardly any answer has them before."""
    return [f"GENE{i}" for i in range(60, 121)]


def _run(source: Any, out: Path, recipe: TrainRecipe, **options: Any) -> CellModel:
    return train(source, out=out, recipe=recipe, seed=3, device="cpu", **options)


def _record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / TRAINING_FILE).read_text(encoding="utf-8"))
    return found


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def aligned(cells: AnnData, tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> CellModel:
    """A short run on an easy reward."""
    return _run(cells, tmp_path_factory.mktemp("aligned") / "m", _recipe(tiny_model_folder))


def _folder(model: CellModel) -> Path:
    assert model.folder is not None
    return model.folder


def test_the_reward_rises_on_held_out_prompts(aligned: CellModel) -> None:
    rows = [row for row in _record(_folder(aligned))["evaluation"] if row["reward"] == "easy"]
    assert [row["step"] for row in rows] == [0, 2, 4, 6]
    assert rows[0]["gain"] == 0
    assert rows[-1]["gain_low"] > 0.02
    assert rows[-1]["low"] < rows[-1]["mean"] < rows[-1]["high"]
    assert rows[-1]["mean"] == pytest.approx(rows[0]["mean"] + rows[-1]["gain"])


def test_the_log_tells_of_rewards_and_groups(aligned: CellModel) -> None:
    history = _record(_folder(aligned))["history"]
    assert [row["step"] for row in history] == [1, 2, 3, 4, 5, 6]
    for row in history:
        assert row["reward"] == pytest.approx(row["rewards/easy"])
        assert row["group_std"] > 0
        assert row["share_without_spread"] == 0
        assert row["cut_off_share"] == 0
        assert {"kl", "entropy", "clipped_share", "seconds", "tokens"} <= row.keys()
    assert history[0]["kl"] == 0
    assert history[-1]["kl"] > 0


def test_diversity_is_told_beside_that_of_real_cells(aligned: CellModel) -> None:
    rows = _record(_folder(aligned))["diversity"]
    assert [row["step"] for row in rows] == [0, 2, 4, 6]
    for row in rows:
        assert row["words"] == 8
        assert row["repeated_words"] == 0
        assert 0 < row["between_samples"] < 1
        assert 0 < row["between_real_cells"] < 1


def test_the_aligned_model_is_a_model_folder_like_any_other(aligned: CellModel, tiny_model: CellModel) -> None:
    again = load_cell_model(_folder(aligned), device="cpu")
    assert again.spec == aligned.spec
    assert again.spec.labels == tiny_model.spec.labels
    assert again.spec.vocabulary == tiny_model.spec.vocabulary
    assert again.spec.ranking == tiny_model.spec.ranking
    assert load_split(_folder(aligned)) == load_split(_folder(tiny_model))
    assert not (_folder(aligned) / ".work").exists()
    plain = AutoModelForCausalLM.from_pretrained(_folder(aligned))
    ids = torch.tensor([[0, 5, 9]])
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=ids).logits, aligned.lm.model(input_ids=ids).logits)


def test_the_card_tells_what_rewards_said(aligned: CellModel) -> None:
    row = next(r for r in _record(_folder(aligned))["evaluation"] if (r["step"], r["reward"]) == (6, "easy"))
    card = (_folder(aligned) / "README.md").read_text(encoding="utf-8")
    expected = f"{row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f}) | {row['gain']:.3f} ("
    assert f"| easy | constrained | {expected}" in card
    assert "On 8 prompts of validation cells" in card


def test_a_finished_folder_is_returned_as_it_is(
    aligned: CellModel, cells: AnnData, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollouts.CellGrpoTrainer, "train", _never)
    before = (_folder(aligned) / SPEC_FILE).stat().st_mtime_ns
    _run(cells, _folder(aligned), _recipe(tiny_model_folder))
    assert (_folder(aligned) / SPEC_FILE).stat().st_mtime_ns == before
    with pytest.raises(InputError, match="holds a finished model with other config"):
        _run(cells, _folder(aligned), _recipe(tiny_model_folder, grpo={"kl": 0.5}))


def _never(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("nothing should be trained")


@pytest.mark.parametrize("lora", [None, pytest.param(LoraRecipe(rank=2), marks=pytest.mark.slow)], ids=["full", "lora"])
def test_a_killed_run_ends_as_an_unbroken_one(
    lora: LoraRecipe | None,
    cells: AnnData,
    free_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the last bit of every weight, killed between two checkpoints, with free answers and several updates."""
    recipe = _recipe(
        free_model_folder,
        lora=lora,
        grpo={"constrained": False, "updates": 2},
        optim={"batch_size": 4, "evaluate_every": 4, "steps": 8},
    )
    whole = _run(cells, tmp_path / "whole", recipe)
    _kill_at(7, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        _run(cells, tmp_path / "killed", recipe)
    monkeypatch.undo()
    assert not (tmp_path / "killed" / SPEC_FILE).exists()
    checkpoint = tmp_path / "killed" / ".work" / "checkpoint-4"
    assert list(checkpoint.parent.glob("checkpoint-*")) == [checkpoint]
    optimizer = (checkpoint / "optimizer.pt").read_bytes()
    (checkpoint / "optimizer.pt").write_bytes(optimizer[:100])
    with pytest.raises(InputError, match="checkpoint-4 is damaged"):
        _run(cells, tmp_path / "killed", recipe)
    (checkpoint / "optimizer.pt").write_bytes(optimizer)
    resumed = _run(cells, tmp_path / "killed", recipe)
    first, second = _weights(_folder(whole)), _weights(_folder(resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    before, after = _record(_folder(whole)), _record(_folder(resumed))
    assert before["evaluation"] == after["evaluation"]
    assert [_lasting(row) for row in before["history"]] == [_lasting(row) for row in after["history"]]
    assert whole.spec.calibration == resumed.spec.calibration
    assert (tmp_path / "killed" / "adapter").is_dir() == (lora is not None)


def _kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    log = grpo_watch.GrpoCallback.on_log

    def die(self: Any, args: Any, state: Any, control: Any, **options: Any) -> None:
        log(self, args, state, control, **options)
        if state.global_step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(grpo_watch.GrpoCallback, "on_log", die)


def _lasting(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "seconds"}


def test_training_prompts_are_of_training_cells_and_held_out_ones_of_validation_cells(
    aligned: CellModel, cells: AnnData, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rare_genes  # type: ignore[import-not-found]

    rare_genes.calls.clear()
    seen: dict[str, Any] = {}
    plan = rollouts.CellGrpoTrainer.__init__

    def keep(self: Any, lm: Any, prompts: Any, **options: Any) -> None:
        seen.update(trainer=self, prompts=prompts)
        plan(self, lm, prompts, **options)

    monkeypatch.setattr(rollouts.CellGrpoTrainer, "__init__", keep)
    recipe = _recipe(tiny_model_folder, tasks={"cell_generation": 1, "cell_type_annotation": 1}, optim={"steps": 2})
    _run(cells, tmp_path / "m", recipe)
    split = load_split(tiny_model_folder)
    assert split is not None
    train, validation = set(split.cells("train")), set(split.cells("validation"))
    assert {one.key for one in seen["prompts"]} <= train
    keys = {key for columns in rare_genes.calls for key in columns["key"]}
    assert keys & validation
    assert keys <= train | validation
    for one in seen["prompts"]:
        if one.task == "cell_generation":
            assert isinstance(one.answer_format, DistinctWords)
            assert one.answer_format.min_words == one.num_genes == len(one.answer.split()) == 8
        else:
            assert isinstance(one.answer_format, OneOf)
            assert (one.num_genes, one.answer) == (0, one.cell_type)
            assert set(one.answer_format.options) == {"type A", "type B", "type C"}
    prompts = [one.prompt for one in seen["prompts"]]
    ids, _, _ = seen["trainer"]._tokenize_prompts(prompts)
    tokenizer = aligned.lm.tokenizer
    assert ids == [row.tolist() for row in encode_prompts(tokenizer, prompts)]
    assert all(row.count(tokenizer.bos_token_id) == 1 for row in ids)


@pytest.mark.slow
def test_rewards_have_weights_and_clipping(cells: AnnData, tiny_model_folder: Path, tmp_path: Path) -> None:
    rewards = {
        "easy": {"reward": RARE, "genes": _rare(), "weight": 2.0, "clip_high": 0.125},
        "validity": {"weight": 0.5},
    }
    _run(cells, tmp_path / "m", _recipe(tiny_model_folder, rewards, optim={"steps": 2}))
    for row in _record(tmp_path / "m")["history"]:
        assert row["rewards/validity"] == pytest.approx(1)  # answers are constrained
        assert 0 < row["rewards/easy/clipped"] <= 1
        assert row["reward"] == pytest.approx(2 * row["rewards/easy"] + 0.5)


def test_equal_rewards_change_nothing(cells: AnnData, tiny_model_folder: Path, tmp_path: Path) -> None:
    recipe = _recipe(tiny_model_folder, {"rare_genes:constant": {}}, optim={"steps": 3})
    _run(cells, tmp_path / "m", recipe)
    before, after = _weights(tiny_model_folder), _weights(tmp_path / "m")
    assert all(torch.equal(before[name], after[name]) for name in before)
    record = _record(tmp_path / "m")
    assert [row["share_without_spread"] for row in record["history"]] == [1, 1, 1]
    assert any("all answers to each prompt earned the same" in message for message in record["messages"])
    assert "in 3 steps no group of answers had any spread of rewards" in record["messages"]


def test_empty_answers_are_rated_like_others(
    cells: AnnData, free_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that ends at once: the text is empty, one token is learned from."""

    def end_at_once(self: Any, prompt_ids: list[list[int]], *_: Any) -> tuple[list[list[int]], None]:
        return [[self.eos_token_ids[0]] for _ in prompt_ids], None

    monkeypatch.setattr(rollouts.CellGrpoTrainer, "_generate_single_turn", end_at_once)
    recipe = _recipe(free_model_folder, {"validity": {}}, grpo={"constrained": False}, optim={"steps": 2})
    _run(cells, tmp_path / "m", recipe)
    history = _record(tmp_path / "m")["history"]
    assert [row["rewards/validity"] for row in history] == [0, 0]
    assert all(math.isfinite(row["loss"]) for row in history)


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ({"rare_genes:failing": {}}, "'rare_genes:failing'.*RuntimeError: no licence for this reward"),
        ({"rare_genes:silent": {}}, "no reward says anything of answers to task 'cell_generation'"),
        ({"overlapp": {}}, "unknown reward 'overlapp'.*overlap"),
        ({}, "no reward is named: set grpo.rewards"),
    ],
)
def test_a_reward_that_cannot_be_used_is_named(
    rewards: dict[str, Any], message: str, cells: AnnData, tiny_model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        _run(cells, tmp_path / "m", _recipe(tiny_model_folder, rewards))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grpo": {"vllm": "colocate"}}, "grpo.constrained needs rollouts of this process"),
        (
            {"grpo": {"vllm": "colocate", "constrained": False}},
            "vllm is not installed; run `pip install 'trl\\[vllm\\]'",
        ),
        ({"grpo": {"top_p": 0.9}}, "grpo.top_p must be 1, found 0.9"),
        ({"grpo": {"max_answer_tokens": 4}}, "answers need up to 10 tokens, but have 4"),
        ({"grpo": {"updates": 4}}, "optim.steps \\(6\\) must be a multiple of grpo.updates \\(4\\)"),
        ({"lora": LoraRecipe(train_vectors=True)}, "leave out lora.train_vectors"),
        ({"tasks": {"multicell_generation": 1}}, "'multicell_generation' needs more than the genes and types"),
    ],
)
def test_what_cannot_hold_together_is_refused(
    changes: dict[str, Any], message: str, cells: AnnData, tiny_model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        _run(cells, tmp_path / "m", _recipe(tiny_model_folder, **changes))
    assert not (tmp_path / "m").exists()


def test_cells_without_a_validation_part_are_refused(cells: AnnData, tiny_model_folder: Path, tmp_path: Path) -> None:
    split = Split(train=tuple(map(str, cells.obs_names)), by="all", seed=0, fractions=(1.0, 0.0, 0.0))
    with pytest.raises(InputError, match="no prompt can be made of the validation part"):
        _run(cells, tmp_path / "m", _recipe(tiny_model_folder), split=split)


@pytest.mark.slow
def test_a_mixture_that_can_be_fooled_is_refused_unless_forced(
    cells: AnnData, tiny_model_folder: Path, tmp_path: Path
) -> None:
    rewards = {"overlap": {"against": "profile"}}
    with pytest.raises(InputError, match=r"mean profile of the type earns .*Change grpo.rewards .*or set grpo.probes"):
        _run(cells, tmp_path / "m", _recipe(tiny_model_folder, rewards, grpo={"probes": "refuse"}))
    assert not (tmp_path / "m").exists()
    _run(cells, tmp_path / "m", _recipe(tiny_model_folder, rewards, grpo={"probes": "warn"}, optim={"steps": 2}))
    probes = _record(tmp_path / "m")["probes"]
    assert any(row["reaches"] and "profile" in row["answer"] for row in probes)


@pytest.mark.slow
def test_a_collapse_ends_the_training_with_the_weights_before_it(
    cells: AnnData, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Few genes are rewarded, so that all answers come to hold the same; the base is what is kept."""
    rewards = {"easy": {"reward": RARE, "genes": [f"GENE{i}" for i in range(60, 68)]}}
    changes = {"kl": 0.0, "max_overlap_gain": 0.02, "on_collapse": "stop"}
    recipe = _recipe(tiny_model_folder, rewards, grpo=changes, optim={"steps": 30, "evaluate_every": 24})
    _run(cells, tmp_path / "m", recipe)
    record = _record(tmp_path / "m")
    assert record["history"][-1]["step"] == 24
    assert record["last_good_step"] == 0
    assert any("answers to one prompt grow alike" in message for message in record["messages"])
    before, after = _weights(tiny_model_folder), _weights(tmp_path / "m")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture(scope="module")
def make_plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], Path]:
    """Return a function that writes an untrained model that knows some words: a checkpoint that is not ours."""

    def make(words: tuple[str, ...]) -> Path:
        from cytoglot.lm.model.scratch import ScratchSettings, scratch_model

        tokenizer = build_tokenizer(words, [" type A.", "Genes of a cell:"], context_length=256)
        settings = ScratchSettings(hidden_size=16, n_layers=1, n_heads=2, feed_forward=32, context_length=256)
        folder = tmp_path_factory.mktemp("plain") / "model"
        LanguageModel(model=scratch_model(tokenizer, settings, seed=0), tokenizer=tokenizer).save(folder)
        return folder

    return make


@pytest.mark.slow
def test_any_checkpoint_can_be_aligned(
    cells: AnnData, make_plain: Callable[[tuple[str, ...]], Path], tmp_path: Path
) -> None:
    base = make_plain(tuple(map(str, cells.var_names)))
    recipe = _recipe(base, optim={"steps": 2}).model_copy(update={"sentence": SentenceRecipe(top_genes=8, hvg=None)})
    with pytest.raises(InputError, match=r"pass the label.*the base model names none"):
        _run(cells, tmp_path / "m", recipe)
    model = _run(cells, tmp_path / "m", recipe, label="cell_type")
    assert set(model.spec.labels) == {"type A", "type B", "type C"}
    assert model.spec.ranking.top_genes == 8


@pytest.mark.slow
def test_a_corpus_can_be_aligned_on(
    small_corpus: Corpus, make_plain: Callable[[tuple[str, ...]], Path], tmp_path: Path
) -> None:
    tasks = {"cell_generation": 2.0, "cell_type_annotation": 1.0, "gene_set_enumeration": 1.0}
    rewards = {"validity": {}, "overlap": {}, "label_match": {}}
    recipe = _recipe(make_plain(small_corpus.vocabulary.symbols), rewards, tasks=tasks, optim={"steps": 2})
    model = _run(small_corpus, tmp_path / "m", recipe)
    assert model.spec.vocabulary == small_corpus.vocabulary
    record = _record(tmp_path / "m")
    assert {row["reward"] for row in record["evaluation"]} == {"reward", *rewards}
    assert any("of answers to task 'cell_type_annotation' these rewards say nothing" in m for m in record["messages"])
    with pytest.raises(InputError, match=r"holds nothing that the tasks .* could ask"):
        _run(small_corpus, tmp_path / "n", recipe.model_copy(update={"tasks": {"interpretation_x": 1.0}}))


def test_nothing_is_printed(
    cells: AnnData, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(cells, tmp_path / "m", _recipe(tiny_model_folder, optim={"steps": 1}))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert np.isfinite(_record(tmp_path / "m")["history"][0]["loss"])
