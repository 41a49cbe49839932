"""Every recipe that ships can be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from anndata import AnnData

from cytoglot.config import load_recipe
from cytoglot.corpus.format.folder import Corpus
from cytoglot.corpus.sources.recipe import load_corpus_recipe
from cytoglot.errors import InputError
from cytoglot.training.loop.trainer import make_optimizer
from cytoglot.training.recipe import ModelRecipe, TrainRecipe
from cytoglot.training.run import train
from cytoglot.training.scaling.sweep import ScaleRecipe

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
RECIPES = sorted(path for path in FOLDER.glob("*.yaml") if path.stem not in {"demo_corpus", "scaling", "verdict"})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_fits_the_settings(path: Path) -> None:
    assert load_recipe(TrainRecipe, path) is not None


def test_the_recipe_of_the_demo_corpus_fits_too() -> None:
    recipe = load_corpus_recipe(FOLDER / "demo_corpus.yaml")
    assert len({source.study or source.name for source in recipe.sources}) == len(recipe.sources) - 1
    assert {source.organism for source in recipe.sources} == {"human", "mouse"}


def test_the_recipe_of_the_ladder_fits_too() -> None:
    assert len(load_recipe(ScaleRecipe, FOLDER / "scaling.yaml").sizes) > 1


def test_the_laptop_recipe_is_the_default() -> None:
    assert load_recipe(TrainRecipe, FOLDER.joinpath("laptop.yaml")) == TrainRecipe()


def test_recipes_of_each_kind_say_what_they_are_named_for() -> None:
    pretrain, lora, qlora, c2s = (load_recipe(TrainRecipe, FOLDER / f"{n}.yaml") for n in _KINDS)
    assert (pretrain.kind, pretrain.optim.loss_on, pretrain.model.base) == ("pretrain", "everything", None)
    assert lora.lora is not None
    assert (lora.kind, lora.lora.quantize, lora.optim.stop_on) == ("sft", "none", "cell_type_annotation.macro_f1")
    assert qlora.lora is not None
    assert qlora.lora.quantize == "4bit"
    published = {"learning_rate": 1e-5, "schedule": "linear", "weight_decay": 0.01, "warmup_share": 0.0}
    assert {name: getattr(c2s.optim, name) for name in published} == published
    assert c2s.optim.batch_size * c2s.optim.gradient_accumulation == 256
    assert c2s.lora is None
    assert qlora.optim.learning_rate == 2e-4  # what a recipe says wins over its preset


def test_metadata_that_no_prompt_tells_are_refused() -> None:
    assert load_recipe(TrainRecipe, None, ["context.tissue=lung"]).context == {"tissue": "lung"}
    with pytest.raises(InputError, match="unknown field of the context 'tisue'; did you mean 'tissue'"):
        load_recipe(TrainRecipe, None, ["context.tisue=lung"])


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vectors, self.layer = torch.nn.Embedding(3, 2), torch.nn.Linear(2, 3)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.vectors


def test_the_published_recipe_has_its_optimizer_and_its_loss() -> None:
    c2s = load_recipe(TrainRecipe, None, ["preset=c2s"]).optim
    assert (c2s.betas, c2s.loss) == ((0.9, 0.999), "token_mean")
    optimizer = make_optimizer(_Model(), c2s, from_nothing=False)
    assert all(group["betas"] == (0.9, 0.999) for group in optimizer.param_groups)
    assert TrainRecipe().optim.betas == (0.9, 0.98)


def _manifest(folder: Path, base: str | None) -> Path:
    folder.mkdir()
    manifest = {"config": {"recipe": {"model": {"base": base}}}}
    (folder / "cytoglot.json").write_text(json.dumps({"manifest": manifest}))
    return folder


def test_the_rate_of_reinforcement_learning_follows_the_base(tmp_path: Path) -> None:
    """Full weights of a model that others trained are not to be undone; what began here at random may move faster."""
    scratch = _manifest(tmp_path / "scratch", None)
    adapted = _manifest(tmp_path / "adapted", str(scratch))
    tuned = _manifest(tmp_path / "tuned", "EleutherAI/pythia-410m")
    loop = _manifest(tmp_path / "loop", str(tmp_path / "loop"))
    plain = tmp_path / "plain"
    plain.mkdir()

    def rate(base: Path | str, **values: object) -> float:
        return TrainRecipe.model_validate({"kind": "grpo", "model": {"base": str(base)}, **values}).optim.learning_rate

    assert [rate(base) for base in (scratch, adapted)] == [2e-4, 2e-4]
    assert [rate(base) for base in (tuned, loop, plain, "EleutherAI/pythia-410m")] == [1e-6] * 4
    assert rate(tuned, lora={"rank": 4}) == 2e-4
    assert rate(tuned, optim={"learning_rate": 3e-5}) == 3e-5
    assert TrainRecipe(kind="grpo", model=ModelRecipe(base=str(scratch))).optim.learning_rate == 2e-4


_KINDS = ("pretrain", "lora", "qlora", "c2s")


@pytest.mark.slow
def test_adapters_learn_on_what_was_pretrained(small_corpus: Corpus, cells: AnnData, tmp_path: Path) -> None:
    """The two recipes for a laptop, one after the other, cut short."""
    short = ["optim.steps=2", "optim.evaluate_every=2", "model.scratch.hidden_size=16", "model.word_vectors=random"]
    recipe = FOLDER / "pretrain.yaml"
    base = train(small_corpus, out=tmp_path / "base", recipe=recipe, overrides=short, device="cpu")
    given = ["optim.steps=2", "optim.evaluate_every=2", f"model.base={tmp_path / 'base'}"]
    model = train(
        cells, label="cell_type", out=tmp_path / "m", recipe=FOLDER / "lora.yaml", overrides=given, device="cpu"
    )
    assert (tmp_path / "m" / "adapter" / "adapter_model.safetensors").is_file()
    assert model.spec.labels == ("type A", "type B", "type C")
    weights = zip(base.lm.model.parameters(), model.lm.model.parameters(), strict=True)
    assert [a.shape for a, _ in weights] == [b.shape for b in model.lm.model.parameters()]
    history = json.loads((tmp_path / "m" / "training.json").read_text())["history"]
    assert any("cell_type_annotation.macro_f1" in row for row in history)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tasks.cell_type_anotation=1", r"unknown task 'cell_type_anotation', did you mean 'cell_type_annotation'"),
        ("tasks.cell_generation=-1", r"the share of task 'cell_generation' must be at least 0"),
        ("tasks={cell_generation: 0}", r"at least one task needs a share above 0"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe(TrainRecipe, None, [override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["preset=[1]"], r"preset: Input should be 'scratch' or 'c2s', found \[1\]"),
        (["model.base=m", "lora.targets=[]"], r"lora\.targets.*at least 1 item"),
        (["optim.max_grad_norm=-1"], r"optim\.max_grad_norm: Input should be greater than or equal to 0"),
        (["grpo.rewards.overlap.weight=1"], "grpo says how rewards are followed, but kind is sft: set kind: grpo"),
        (["kind=grpo", "model.base=m", "fsdp={}", "optim.stop_on=x"], r"kind grpo has no fsdp, optim\.stop_on; leave"),
        (["kind=grpo", "model.base=m", "control=shuffled_labels"], "kind grpo has no control; leave that out"),
    ],
)
def test_settings_that_would_be_passed_over_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe(TrainRecipe, None, overrides)


def test_packing_and_probes_can_be_switched_off_in_a_recipe() -> None:
    recipe = load_recipe(TrainRecipe, None, ["optim.packing=off", "kind=grpo", "model.base=m", "grpo.probes=off"])
    assert (recipe.optim.packing, recipe.grpo.probes) == ("off", "off")


def test_a_named_mixture_stands_for_itself() -> None:
    recipe = load_recipe(TrainRecipe, None, ["tasks={cell_generation: 2, cell_type_annotation: 0}"])
    assert recipe.tasks == {"cell_generation": 2.0}


def test_a_task_that_a_file_of_cells_cannot_ask_is_refused(cells: AnnData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"task 'tissue_annotation' needs more than .* build a corpus with"):
        train(cells, label="cell_type", out=tmp_path / "m", recipe=TrainRecipe(tasks={"tissue_annotation": 1}))
    assert not (tmp_path / "m").exists()
