"""A small sweep from the command's function to its figure; recipes that cannot run are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

pytest.importorskip("torch")

from cytoglot.config import load_recipe
from cytoglot.errors import InputError
from cytoglot.report.scaling_figure import write_scaling_figure
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.scaling.sweep import RESULT_FILE, ScaleRecipe, grid, run_sweep

RECIPES = Path(__file__).resolve().parents[3] / "recipes"


def small(source: Path, tiny_recipe: TrainRecipe, **changes: Any) -> ScaleRecipe:
    train = tiny_recipe.model_dump(exclude_unset=True)
    train["optim"] = {**train["optim"], "steps": 4, "evaluate_every": 4}
    train["tasks"] = {"cell_type_annotation": 0.5, "cell_generation": 0.5}
    sizes = {
        name: {"hidden_size": width, "n_heads": 2, "feed_forward": width, "context_length": 128}
        for name, width in (("narrow", 8), ("middle", 16), ("wide", 32))
    }
    train["model"] = {"word_vectors": "random"}
    values = {"source": str(source), "label": "cell_type", "split_by": "donor", "sizes": sizes, "train": train}
    return ScaleRecipe.model_validate({**values, **changes})


@pytest.mark.slow
def test_a_ladder_is_judged_on_the_same_cells_resumed_and_drawn(
    cells_file: Path, tiny_recipe: TrainRecipe, tmp_path: Path
) -> None:
    recipe = small(cells_file, tiny_recipe)
    result = run_sweep(recipe, out=tmp_path / "sweep")
    rows = result["runs"]
    assert [row["size"] for row in rows] == ["narrow", "middle", "wide"]
    assert np.all(np.diff([row["parameters_without_vectors"] for row in rows]) > 0)
    assert all(row["flops"] == 6 * row["parameters_without_vectors"] * row["tokens"] > 0 for row in rows)
    # Four steps teach little: a word costs about what a blind guess among all tokens costs.
    assert all(1 < row["loss_per_word"] < 1.2 * np.log(700) for row in rows)
    law = result["power_law"]["full"]
    assert law["data_exponent"] is None
    assert {"floor", "size_exponent"} <= law["intervals"].keys()
    assert 0 < result["baselines"]["accuracy"]["most_frequent_type"] < 1

    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "sweep" / "runs").rglob("model.safetensors")}
    again = run_sweep(recipe, out=tmp_path / "sweep")
    assert again == result
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}  # finished runs are loaded

    figure = write_scaling_figure(tmp_path / "sweep")
    text = figure.read_text(encoding="utf-8")
    assert text.startswith("<svg")
    assert "loss per word" in text
    (tmp_path / "sweep" / RESULT_FILE).unlink()
    with pytest.raises(InputError, match=r"holds no scaling\.json"):
        write_scaling_figure(tmp_path / "sweep")


def test_every_combination_is_a_run(cells_file: Path, tiny_recipe: TrainRecipe) -> None:
    recipe = small(cells_file, tiny_recipe, shares=(1.0, 0.1), seeds=(0, 1))
    names = [run.name for run in grid(recipe)]
    assert len(names) == len(set(names)) == 12
    assert names[0] == "narrow-full-0.1-seed0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modes": ("lora",)}, "mode lora adapts a trained model"),
        ({"sizes": {}}, "sizes is empty"),
        ({"shares": (0.0,)}, "shares must lie above 0"),
        ({"shares": ()}, "shares"),
        ({"modes": ()}, "modes"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": (-1,)}, "seeds.0"),
        ({"held_out_cells": 1}, "held_out_cells"),
        ({"sizes": {"odd": {"hidden": 3}}}, "size odd: hidden: Extra inputs"),
        ({"sizes": {"odd": {"hidden_size": 17}}}, "size odd: hidden_size must be a multiple"),
        ({"sizes": {"../up": {}}}, "a size is named by letters, digits"),
    ],
)
def test_ladders_that_cannot_run_are_refused(
    changes: dict[str, Any], message: str, cells_file: Path, tiny_recipe: TrainRecipe, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match=message):
        run_sweep(small(cells_file, tiny_recipe, **changes), out=tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            {"model": {"base": "m"}},
            r"train\.model\.base would stand for the sizes narrow, middle, wide; give them a base",
        ),
        ({"kind": "grpo", "model": {"base": "m"}}, r"kind pretrain or sft, found train\.kind grpo"),
    ],
)
def test_a_ladder_without_sizes_of_its_own_is_refused(
    train: dict[str, Any], message: str, cells_file: Path, tiny_recipe: TrainRecipe
) -> None:
    sizes = {"sizes": {"one": {"base": "m"}}} if train.get("kind") else {}
    with pytest.raises(ValidationError, match=message):
        small(cells_file, tiny_recipe, train=train, **sizes)


def test_too_few_sizes_for_a_law_are_said(cells_file: Path, tiny_recipe: TrainRecipe, tmp_path: Path) -> None:
    sizes = {"one": {"hidden_size": 8, "n_heads": 2, "feed_forward": 8, "context_length": 128}}
    result = run_sweep(small(cells_file, tiny_recipe, sizes=sizes), out=tmp_path / "sweep")
    assert "at least three sizes or amounts" in result["power_law"]["full"]["not_fitted"]
    write_scaling_figure(tmp_path / "sweep")


def test_the_recipe_of_the_repository_is_valid() -> None:
    recipe = load_recipe(ScaleRecipe, RECIPES / "scaling.yaml")
    assert len(list(grid(recipe))) == 9
