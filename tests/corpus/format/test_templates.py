"""Prompts of another model: named in the recipe, kept with the corpus, used by everything that reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from build_files import recipe_of, some_cells

from cytoglot.corpus.build.build import build_corpus
from cytoglot.corpus.format.folder import open_corpus
from cytoglot.corpus.read.examples import sample_examples
from cytoglot.corpus.sources.recipe import CorpusRecipe
from cytoglot.errors import InputError


def recipe(folder: Path, prompt: str, *, file: str = "prompts.json") -> CorpusRecipe:
    some_cells(40, seed=1).write_h5ad(folder / "cells.h5ad")
    (folder / "prompts.json").write_text(json.dumps({"model_input": [prompt], "response": ["{cell_type}!"]}))
    return recipe_of("cells.h5ad", templates={"cell_type_annotation": file})


def test_a_corpus_is_asked_in_the_wordings_that_its_recipe_names(tmp_path: Path) -> None:
    build_corpus(recipe(tmp_path, "{organism} of {num_genes}: {cell_sentence}\nKind?"), tmp_path / "out", base=tmp_path)
    (tmp_path / "prompts.json").unlink()  # the corpus keeps its own
    corpus = open_corpus(tmp_path / "out")
    for example in sample_examples(corpus, "train", 5, task="cell_type_annotation"):
        assert example.prompt.startswith("Homo sapiens of ")
        assert example.completion in {"B cell!", "T cell!"}
    ours = sample_examples(corpus, "train", 1, task="cell_generation")[0]
    assert "genes" in ours.prompt


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "{tissues} {cell_sentence}"}, r"'tissues'.*known"),
        ({"prompt": "{cell_sentence}", "file": "none.json"}, r"templates of cell_type_annotation: .* found no file"),
    ],
)
def test_unusable_wordings_are_refused_before_anything_is_built(
    tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build_corpus(recipe(tmp_path, **changes), tmp_path / "out", base=tmp_path)
    assert not (tmp_path / "out").exists()


def test_an_unknown_task_is_answered_with_the_nearest(tmp_path: Path) -> None:
    some_cells(40, seed=1).write_h5ad(tmp_path / "cells.h5ad")
    wrong = recipe_of("cells.h5ad", templates={"cell_type_anotation": "x.toml"})
    with pytest.raises(InputError, match="unknown task 'cell_type_anotation'; did you mean 'cell_type_annotation'"):
        build_corpus(wrong, tmp_path / "out", base=tmp_path)
