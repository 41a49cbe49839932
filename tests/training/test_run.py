"""One door to every kind of training: what recipe and call say together, and what is refused."""

from __future__ import annotations

import copy
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from anndata import AnnData

import cytoglot as cg
from cytoglot.cell_model.load import CellModel, load_cell_model
from cytoglot.corpus.format.folder import Corpus
from cytoglot.data.splits.split import Split
from cytoglot.errors import InputError, VocabularyMismatchError
from cytoglot.training import run
from cytoglot.training.job import TrainJob, is_corpus_source, settled
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.run import train

Calls = list[tuple[str, Any]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tiny_model: CellModel) -> Calls:
    """What is called instead of training, and with which job."""
    found: Calls = []

    def stand_in(name: str) -> Callable[[TrainJob], CellModel]:
        def called(job: TrainJob) -> CellModel:
            found.append((name, job))
            return tiny_model

        return called

    monkeypatch.setattr("cytoglot.training.supervised.train.train_supervised", stand_in("supervised"))
    monkeypatch.setattr("cytoglot.training.rl.grpo.train_grpo", stand_in("grpo"))
    monkeypatch.setattr(run, "publish", lambda folder, repository, *, private: found.append(
        ("publish", {"folder": folder, "repository": repository, "private": private})))  # fmt: skip
    return found


def _recipe(**values: Any) -> TrainRecipe:
    return TrainRecipe.model_validate(values)


@pytest.mark.parametrize("kind", ["pretrain", "sft"])
def test_files_and_corpora_go_one_way(calls: Calls, small_corpus: Corpus, cells: AnnData, kind: str) -> None:
    train(cells, label="cell_type", out="m", recipe=_recipe(kind=kind), seed=7, split_by="donor")
    train(small_corpus.folder, out="m", recipe=_recipe(kind=kind), threads=1)
    train(small_corpus, out="m", recipe=_recipe(kind=kind))
    assert [name for name, _ in calls] == ["supervised"] * 3
    of_file, of_folder, of_corpus = (job for _, job in calls)
    assert (of_file.label, of_file.out, of_file.seed, of_file.split_by) == ("cell_type", Path("m"), 7, "donor")
    assert of_file.recipe.kind == kind
    assert (of_folder.source, of_folder.threads, of_folder.label) == (small_corpus.folder, 1, None)
    assert [is_corpus_source(job.source) for job in (of_file, of_folder, of_corpus)] == [False, True, True]


def test_fractions_and_overrides_reach_the_job(calls: Calls, cells: AnnData) -> None:
    train(cells, label="cell_type", out="m", fractions=(0.8, 0.2, 0.0), overrides={"optim": {"steps": 5}})
    train(cells, label="cell_type", out="m", recipe=_recipe(views=2), overrides="optim.steps=6")
    (_, first), (_, second) = calls
    assert first.fractions == (0.8, 0.2, 0.0)
    assert (first.recipe.optim.steps, second.recipe.optim.steps, second.recipe.views) == (5, 6, 2)
    split = Split(train=("a",), by="cell", seed=0, fractions=(1, 0, 0))
    with pytest.raises(InputError, match="pass split or fractions, not both"):
        train(cells, label="cell_type", out="m", split=split, fractions=(0.8, 0.2, 0.0))
    with pytest.raises(InputError, match=r"three numbers from 0 to 1 that sum to 1.*found \(0.8, 0.1\)"):
        train(cells, label="cell_type", out="m", fractions=(0.8, 0.1))  # type: ignore[arg-type]


def test_reinforcement_learning_takes_either(
    calls: Calls, small_corpus: Corpus, cells: AnnData, tiny_model_folder: Path, tmp_path: Path
) -> None:
    recipe = _recipe(kind="grpo", model={"base": str(tiny_model_folder)})
    train(small_corpus, out="m", recipe=recipe)
    train(cells, out="m", recipe=recipe)
    assert [(name, job.label) for name, job in calls] == [("grpo", None), ("grpo", "cell_type")]  # the base knows it
    with pytest.raises(InputError, match=r"pass the label.*the base model names none"):
        train(cells, out="m", recipe=_recipe(kind="grpo", model={"base": str(tmp_path)}))


def test_the_recipe_names_what_the_call_does_not(calls: Calls, cells: AnnData, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("source: cells.h5ad\nlabel: own\noutput: model\noptim: {steps: 3}\n")
    train(recipe=recipe)
    train(cells, label="cell_type", out=tmp_path / "other", recipe=recipe, overrides=["optim.steps=4"])
    (_, first), (_, second) = calls
    assert (first.source, first.label, first.out) == ("cells.h5ad", "own", Path("model"))
    assert (second.source, second.label, second.out) == (cells, "cell_type", tmp_path / "other")
    assert (first.recipe.optim.steps, second.recipe.optim.steps) == (3, 4)
    # paths of a machine are no settings of the model
    assert first.recipe.source is first.recipe.output is first.recipe.label is None
    assert first.recipe.model_dump() == second.recipe.model_copy(update={"optim": first.recipe.optim}).model_dump()


def test_what_is_missing_is_named(cells: AnnData, small_corpus: Corpus) -> None:
    with pytest.raises(InputError, match=r"no cells to train on: pass SOURCE, .* or set source in the recipe"):
        train(out="m")
    with pytest.raises(InputError, match="no folder for the model: pass -o FOLDER, or set output in the recipe"):
        train(cells, label="cell_type")
    with pytest.raises(InputError, match="pass --label, the column of obs with the cell types"):
        train(cells, out="m")
    assert settled(TrainJob(source=small_corpus, recipe=TrainRecipe()), needs_folder=False).open() is small_corpus


def test_what_is_settled_in_a_corpus_cannot_be_given(small_corpus: Corpus) -> None:
    with pytest.raises(InputError, match=r"corpus is a corpus, .* and splits are settled; leave out label"):
        train(small_corpus, label="own", out="m")
    split = Split(train=("a",), by="cell", seed=0, fractions=(1.0, 0.0, 0.0))
    with pytest.raises(InputError, match=r"is a corpus, .* leave out split_by, split, layer"):
        train(small_corpus, out="m", split_by="donor", split=split, layer="counts")


def test_a_finished_model_is_published_where_the_recipe_asks(calls: Calls, cells: AnnData) -> None:
    recipe = _recipe(push_to_hub="me/cells", hub_private=False)
    train(cells, label="cell_type", out="m", recipe=recipe)
    assert [name for name, _ in calls] == ["supervised", "publish"]
    assert calls[1][1] == {"folder": Path("m"), "repository": "me/cells", "private": False}
    assert calls[0][1].recipe.push_to_hub is None  # where it is published is no setting of the model
    with pytest.raises(InputError, match="is named owner/name, found 'cells'"):  # before hours of training
        train(cells, label="cell_type", out="m", recipe=_recipe(push_to_hub="cells"))
    assert len(calls) == 2


def test_the_verb_is_a_function() -> None:
    """`import cytoglot.training` leaves `cg.train` the function that its help shows."""
    assert inspect.isfunction(cg.train)
    assert "recipe" in inspect.signature(cg.train).parameters
    with pytest.raises(InputError, match="no cells to train on"):
        cg.train(out="m")


# Bases


def _short(recipe: TrainRecipe, base: Path | str, **model: Any) -> TrainRecipe:
    changed = recipe.model.model_copy(update={"base": str(base), **model})
    optim = recipe.optim.model_copy(update={"steps": 3, "evaluate_every": 3, "learning_rate": 1e-4})
    return recipe.model_copy(update={"model": changed, "optim": optim})


def test_a_base_of_other_genes_is_refused_before_training(
    tiny_model_folder: Path, tiny_recipe: TrainRecipe, cells: AnnData, small_corpus: Corpus, tmp_path: Path
) -> None:
    other = cells.copy()
    other.var_names = [f"Mouse{i}" for i in range(other.n_vars)]
    with pytest.raises(VocabularyMismatchError, match=r"knows 0 of the 119 genes to train on, fewer than 30%.* Mouse0"):
        train(other, label="cell_type", out=tmp_path / "m", recipe=_short(tiny_recipe, tiny_model_folder))
    assert not (tmp_path / "m").exists()
    recipe = _recipe(model={"base": str(tiny_model_folder), "min_known_genes": 0.95})
    with pytest.raises(VocabularyMismatchError, match=r"knows 119 of the 130 genes .*lower model\.min_known_genes"):
        train(small_corpus, out=tmp_path / "m", recipe=recipe)
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_other_genes_are_learned_where_the_recipe_allows(
    tiny_model_folder: Path, tiny_recipe: TrainRecipe, cells: AnnData, tmp_path: Path
) -> None:
    other = cells[:, :60].copy()
    other.var_names = [f"Mouse{i}" for i in range(other.n_vars)]
    recipe = _short(tiny_recipe, tiny_model_folder, min_known_genes=0)
    model = train(other, label="cell_type", out=tmp_path / "m", recipe=recipe, device="cpu")
    assert "Mouse0" in model.spec.vocabulary.symbols
    training = json.loads((tmp_path / "m" / "training.json").read_text())
    assert "cell_type_annotation.accuracy" in training["validation"]
    assert "fine-tuned from `model`" in (tmp_path / "m" / "README.md").read_text()


@pytest.fixture
def cache(tiny_model: CellModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model as me/cells in the cache of the hub, in two commits; main is the first."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--me--cells"
    for number, commit in enumerate(("1" * 40, "2" * 40)):
        model = copy.deepcopy(tiny_model.lm.model)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(1 + number)
        folder = repository / "snapshots" / commit
        model.save_pretrained(folder)
        tiny_model.lm.tokenizer.save_pretrained(folder)
        tiny_model.spec.save(folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1" * 40)
    return repository


def test_the_commit_of_a_base_is_pinned_in_the_manifest(
    cache: Path, tiny_recipe: TrainRecipe, cells: AnnData, tmp_path: Path
) -> None:
    """The branch moves on between two calls; the run keeps the commit that it began with."""
    recipe = _short(tiny_recipe, "me/cells")
    model = train(cells, label="cell_type", out=tmp_path / "m", recipe=recipe, device="cpu")
    manifest = model.spec.manifest
    assert manifest["config"]["recipe"]["model"]["revision"] == "1" * 40
    assert manifest["inputs"]["base"] == f"me/cells@{'1' * 40}"
    (cache / "refs" / "main").write_text("2" * 40)
    train(cells, label="cell_type", out=tmp_path / "m", recipe=recipe, device="cpu")  # finished, and still the same
    other = train(cells, label="cell_type", out=tmp_path / "n", recipe=recipe, device="cpu")
    assert other.spec.manifest["config"]["recipe"]["model"]["revision"] == "2" * 40
    named = _short(tiny_recipe, "me/cells", revision="2" * 40)
    with pytest.raises(InputError, match="holds a finished model with other config"):
        train(cells, label="cell_type", out=tmp_path / "m", recipe=named, device="cpu")


def test_a_published_cell_model_comes_back_as_one(cache: Path, tiny_model: CellModel) -> None:
    model = load_cell_model("me/cells", device="cpu")
    assert isinstance(model, CellModel)
    assert model.spec == tiny_model.spec
    assert model.lm.revision == "1" * 40
    assert cg.load_cell_model is load_cell_model


def test_torch_keeps_its_threads(cells: AnnData, tiny_recipe: TrainRecipe, tmp_path: Path) -> None:
    """numba, which ranks the cells, sets the threads of OpenMP, which are torch's too, to all cores."""
    code = (
        "import torch; torch.set_num_threads(1); import sys; import cytoglot as cg; "
        "cg.train(sys.argv[1], label='cell_type', out=sys.argv[2], "
        "overrides={'optim': {'steps': 1}, 'model': {'scratch': {'hidden_size': 16, 'n_heads': 2}, "
        "'word_vector_rank': 4}}); print(torch.get_num_threads())"
    )
    cells.write_h5ad(tmp_path / "cells.h5ad")
    without = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
    }
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "cells.h5ad", tmp_path / "m"],
        env=without, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split()[-1] == "1"
