"""Every recipe that ships can be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from cytoglot.config import load_recipe
from cytoglot.train.recipe import TrainRecipe

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_fits_the_settings(path: Path) -> None:
    assert load_recipe(TrainRecipe, path) is not None


def test_the_laptop_recipe_is_the_default() -> None:
    assert load_recipe(TrainRecipe, RECIPES[0].with_name("laptop.yaml")) == TrainRecipe()
