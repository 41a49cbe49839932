"""The recipe of a corpus: a short one is complete, a faulty one says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from cytoglot.corpus.sources.recipe import CorpusRecipe, load_corpus_recipe
from cytoglot.errors import InputError


def write(folder: Path, text: str) -> Path:
    path = folder / "corpus.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_one_path_is_a_recipe(tmp_path: Path) -> None:
    recipe = load_corpus_recipe(write(tmp_path, "sources: [{path: data/kang.h5ad}]"))
    (source,) = recipe.sources
    assert (source.label, source.organism, source.primary_only) == ("kang", "human", True)
    assert recipe.groups.within == ["donor_id", "tissue"]
    assert recipe.shard_ids == 33_554_432


def test_a_recipe_and_its_dump_are_the_same() -> None:
    recipe = CorpusRecipe.model_validate(
        {
            "sources": [
                {"path": "a.h5ad", "organism": "Mus_musculus", "columns": {"donor_id": "mouse"}, "keep": {"ok": ["1"]}},
                {"name": "lung", "census": {"value_filter": "tissue == 'lung'"}},
            ],
            "split": {"fractions": [0.5, 0.25, 0.25]},
        }
    )
    assert recipe.sources[0].organism == "mouse"
    assert CorpusRecipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources: [{pth: a.h5ad}]", r"unknown key 'sources\.0\.pth', did you mean 'path'"),
        ("sources: [{census: {filter: x}}]", r"unknown key 'sources\.0\.census\.filter', did you mean 'value_filter'"),
        (
            "sources: [{path: a}]\ngenes: {min_overlp: 1}",
            r"unknown key 'genes\.min_overlp', did you mean 'min_overlap'",
        ),
        ("source: [{path: a}]", r"unknown key 'source', did you mean 'sources'"),
        ("sources: []", "sources: .*at least 1 item"),
        ("{}", "sources: Field required"),
        ("sources: [{name: x}]", "either a path or census, found neither in source 'x'"),
        ("sources: [{path: a, census: {}}]", "either a path or census, found both"),
        ("sources: [{path: b/a.h5ad}, {path: c/a.h5ad}]", "found 'a' more than once; set name: in each"),
        ("sources: [{path: a, metadata: {tisue: lung}}]", "'tisue' is no field of a cell; did you mean 'tissue'"),
        ("sources: [{path: a, columns: {donor: x}}]", "'donor' is no field of a cell; did you mean 'donor_id'"),
        ("sources: [{path: a}]\nsplit: {fractions: [0.8, 0.1, 0.2]}", "three shares that sum to 1"),
        ("sources: [{path: a}]\ngroups: {min_cells: 9, max_cells: 3}", "found 3 < 9"),
        ("sources: [{path: a}]\ncaps: {temperature: 2}", "caps.temperature: .*less than or equal to 1"),
    ],
)
def test_a_faulty_recipe_says_what_to_do(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_corpus_recipe(write(tmp_path, text))


def test_overrides_come_last(tmp_path: Path) -> None:
    path = write(tmp_path, "sources: [{path: a}]\ncells: {top_genes: 100}")
    assert load_corpus_recipe(path, ["cells.top_genes=50"]).cells.top_genes == 50


def test_a_seed_tells_two_rankings_apart_only_where_ties_are_random() -> None:
    recipe = CorpusRecipe.model_validate({"sources": [{"path": "a"}]})
    assert recipe.cells.rank_settings(1) == recipe.cells.rank_settings(2)
    random = recipe.cells.model_copy(update={"ties": "random"})
    assert random.rank_settings(1) != random.rank_settings(2)
