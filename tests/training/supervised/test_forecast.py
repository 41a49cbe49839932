"""Forecasts count what training would do, for every kind and source, and read no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from anndata import AnnData

from cytoglot.cell_model.load import CellModel
from cytoglot.corpus.format.folder import Corpus
from cytoglot.training.cells import training_cells
from cytoglot.training.job import TrainJob, settled
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.supervised import forecast


def _recipe(base: TrainRecipe, **values: Any) -> TrainRecipe:
    return TrainRecipe.model_validate({**base.model_dump(exclude_unset=True), **values})


def forecast_training(source: AnnData | Corpus, recipe: TrainRecipe) -> dict[str, Any]:
    label = "cell_type" if isinstance(source, AnnData) else None
    job = settled(TrainJob(source=source, label=label, recipe=recipe), needs_folder=False)
    with training_cells(job, job.open()) as cells:
        return forecast.forecast_training(cells, recipe)


def test_a_file_and_a_model_from_nothing(cells: AnnData, tiny_recipe: TrainRecipe, tiny_model: CellModel) -> None:
    found = forecast_training(cells, tiny_recipe)
    assert (found["steps"], found["examples"]) == (160, 2560)
    assert found["cells"] == sum(tiny_model.spec.label_counts)  # of training
    # The tokens of one example are rounded to a tenth: half of that times the examples may differ.
    assert found["tokens"] == pytest.approx(2560 * found["tokens_per_example"], abs=0.05 * 2560)
    history = json.loads((Path(str(tiny_model.folder)) / "training.json").read_text())["history"]
    # Views of training drop genes, which the forecast does not.
    assert history[-1]["tokens"] == pytest.approx(found["tokens"], rel=0.35)
    n_parameters = sum(p.numel() for p in tiny_model.lm.model.parameters())
    assert found["parameters"] == found["trainable_parameters"] == n_parameters
    assert found["seconds"] > 0
    assert found["memory_mb"] >= 16 * n_parameters / 1e6
    assert found["disk_mb"] >= 1


def test_a_base_is_described_by_its_configuration_alone(
    cells: AnnData, tiny_recipe: TrainRecipe, tiny_model: CellModel, tmp_path: Path
) -> None:
    """Weights that cannot be read do no harm: they are not."""
    folder = tmp_path / "base"
    tiny_model.lm.save(folder)
    (folder / "model.safetensors").write_bytes(b"not read")
    recipe = _recipe(tiny_recipe, model={"base": str(folder)})
    full = forecast_training(cells, recipe)
    assert full["parameters"] == sum(p.numel() for p in tiny_model.lm.model.parameters())
    assert full["context"] == 512
    adapted = forecast_training(cells, _recipe(recipe, lora={"rank": 2}))
    # query, key, value, output: 32 to 32; gate and up: 32 to 64; down: 64 to 32; two matrices of rank 2 each
    assert adapted["trainable_parameters"] == 2 * (4 * (32 + 32) + 3 * (32 + 64))
    assert adapted["parameters"] == full["parameters"]
    assert adapted["disk_mb"] <= full["disk_mb"]
    vectors = forecast_training(cells, _recipe(recipe, lora={"rank": 2, "train_vectors": True}))
    assert vectors["trainable_parameters"] > adapted["trainable_parameters"]


def test_memory_follows_the_way_of_training(tiny_recipe: TrainRecipe, small_corpus: Corpus) -> None:
    wide = {"scratch": {"hidden_size": 128, "n_layers": 2, "n_heads": 4, "feed_forward": 256, "context_length": 512}}

    def memory(**optim: Any) -> float:
        recipe = TrainRecipe.model_validate({"model": wide, "optim": {"batch_size": 16, **optim}})
        return float(forecast_training(small_corpus, recipe)["memory_mb"])

    assert memory(gradient_checkpointing=True) < memory()
    assert memory(batch_size=2) < memory()
    assert memory(weight_average=0.0) < memory()


def test_rows_of_a_corpus_hold_several_examples(small_corpus: Corpus, tiny_recipe: TrainRecipe) -> None:
    recipe = TrainRecipe.model_validate(
        {
            "model": tiny_recipe.model.model_dump(exclude_unset=True),
            "optim": {"steps": 10, "batch_size": 4},
            "tasks": {"cell_type_annotation": 1},
            "sentence": {"top_genes": 10},
        }
    )
    found = forecast_training(small_corpus, recipe)
    assert found["parameters"] > 2 * 32 * len(small_corpus.vocabulary)  # every gene has its two vectors
    assert found["cells"] == small_corpus.description.total("n_cells", "train")
    assert 10 < found["tokens_per_example"] < 60
    assert found["examples"] == round(10 * 4 * 512 / found["tokens_per_example"]) or found["examples"] > 10 * 4
    assert found["tokens"] == pytest.approx(10 * 4 * 512, rel=0.02)
    longer = forecast_training(small_corpus, recipe.model_copy(update={"sentence": TrainRecipe().sentence}))
    assert longer["tokens_per_example"] > found["tokens_per_example"]


def test_alignment_counts_the_answers_of_its_groups(
    small_corpus: Corpus, tiny_model: CellModel, tmp_path: Path
) -> None:
    tiny_model.lm.save(tmp_path / "base")
    values: dict[str, Any] = {
        "kind": "grpo",
        "model": {"base": str(tmp_path / "base")},
        "optim": {"steps": 5},
        "tasks": {"cell_generation": 1},
        "grpo": {"prompts_per_step": 2, "group_size": 4, "max_answer_tokens": 10},
    }
    short = forecast_training(small_corpus, TrainRecipe.model_validate(values))
    assert (short["kind"], short["examples"], short["seconds"]) == ("grpo", 5 * 2 * 4, None)
    values["grpo"]["max_answer_tokens"] = 1000
    long = forecast_training(small_corpus, TrainRecipe.model_validate(values))
    assert long["tokens"] > short["tokens"]
    values["grpo"]["kl"] = 0.0
    assert forecast_training(small_corpus, TrainRecipe.model_validate(values))["memory_mb"] <= long["memory_mb"]
