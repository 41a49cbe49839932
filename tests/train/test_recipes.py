"""Every recipe that ships can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from anndata import AnnData

from cytoglot.config import load_recipe
from cytoglot.corpus.recipe import load_corpus_recipe
from cytoglot.errors import InputError
from cytoglot.train.recipe import TrainRecipe
from cytoglot.train.sft import train

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
RECIPES = sorted(path for path in FOLDER.glob("*.yaml") if not path.stem.endswith("_corpus"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_fits_the_settings(path: Path) -> None:
    assert load_recipe(TrainRecipe, path) is not None


def test_the_recipe_of_the_demo_corpus_fits_too() -> None:
    recipe = load_corpus_recipe(FOLDER / "demo_corpus.yaml")
    assert len({source.study or source.name for source in recipe.sources}) == len(recipe.sources) - 1
    assert {source.organism for source in recipe.sources} == {"human", "mouse"}


def test_the_laptop_recipe_is_the_default() -> None:
    assert load_recipe(TrainRecipe, FOLDER.joinpath("laptop.yaml")) == TrainRecipe()


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


def test_a_named_mixture_stands_for_itself() -> None:
    recipe = load_recipe(TrainRecipe, None, ["tasks={cell_generation: 2, cell_type_annotation: 0}"])
    assert recipe.tasks == {"cell_generation": 2.0}


def test_a_task_that_a_file_of_cells_cannot_ask_is_refused(cells: AnnData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"task 'tissue_annotation' needs more than .* build a corpus with"):
        train(cells, label="cell_type", out=tmp_path / "m", recipe=TrainRecipe(tasks={"tissue_annotation": 1}))
    assert not (tmp_path / "m").exists()
