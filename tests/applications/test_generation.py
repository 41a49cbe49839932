"""Generated cells: valid, without repeats, of the type asked for, and each its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from cytoglot.applications.generation import draw_lengths, generate
from cytoglot.cell_model.load import CellModel
from cytoglot.errors import InputError, UnknownNameError


@pytest.fixture(scope="module")
def generated(tiny_model: CellModel) -> AnnData:
    return generate(tiny_model, "type A", n=12, seed=1)


def test_every_word_is_a_gene_and_none_comes_twice(generated: AnnData, tiny_model: CellModel) -> None:
    for text in generated.obs["cell_sentence"]:
        words = text.split()
        assert words
        assert len(words) == len(set(words))
        assert set(words) <= set(tiny_model.spec.vocabulary.symbols)


def test_ranks_and_expression_tell_the_sentence(generated: AnnData) -> None:
    ranks, expression = generated.layers["rank"].toarray(), generated.X.toarray()
    for text, ranks_g, expression_g in zip(generated.obs["cell_sentence"], ranks, expression, strict=True):
        order = [g for g in np.argsort(np.where(ranks_g > 0, ranks_g, 10**6), kind="stable") if ranks_g[g]]
        assert list(generated.var_names[order]) == text.split()
        assert (expression_g[ranks_g == 0] == 0).all()
    assert (expression >= 0).all()


def test_cell_i_depends_on_the_seed_and_on_i_alone(generated: AnnData, tiny_model: CellModel) -> None:
    fewer = generate(tiny_model, "type A", n=5, n_genes=9, seed=1)
    more = generate(tiny_model, "type A", n=8, n_genes=9, seed=1)
    assert list(fewer.obs["cell_sentence"]) == list(more.obs["cell_sentence"][:5])
    assert list(generate(tiny_model, "type A", n=12, seed=2).obs["cell_sentence"]) != list(
        generated.obs["cell_sentence"]
    )


def test_the_length_is_that_which_is_asked_for(tiny_model: CellModel) -> None:
    cells = generate(tiny_model, None, n=3, n_genes=7)
    assert [len(text.split()) for text in cells.obs["cell_sentence"]] == [7, 7, 7]
    assert set(cells.obs["cell_type"]) == {"any"}
    assert [len(words) for words in tiny_model.generate_ids("type B", np.array([3, 9]), temperature=1.0)] == [3, 9]


def test_lengths_are_those_of_the_types_training_cells(tiny_model: CellModel) -> None:
    low, *_, high = tiny_model.spec.words_per_label["type A"]
    lengths = draw_lengths(tiny_model, "type A", 200, seed=0)
    assert lengths.min() >= low
    assert lengths.max() <= high
    assert abs(np.median(lengths) - tiny_model.spec.words_per_label["type A"][2]) <= 0.2 * (high - low) + 1


def test_no_temperature_gives_one_cell(tiny_model: CellModel) -> None:
    cells = generate(tiny_model, "type C", n=3, n_genes=6, temperature=0.0)
    assert cells.obs["cell_sentence"].nunique() == 1


def test_what_cannot_be_generated_is_refused(tiny_model: CellModel) -> None:
    with pytest.raises(UnknownNameError, match="unknown cell type of this model 'typ A'; did you mean 'type A'"):
        generate(tiny_model, "typ A", n=1)
    with pytest.raises(InputError, match="must be at least 1, found 0"):
        generate(tiny_model, "type A", n=0)
    n_genes = len(tiny_model.spec.vocabulary)
    with pytest.raises(InputError, match=rf"between 1 and {n_genes} \(the vocabulary\), found {n_genes + 1}"):
        generate(tiny_model, "type A", n=1, n_genes=n_genes + 1)
    without = replace(tiny_model, spec=replace(tiny_model.spec, words_per_label={}))
    with pytest.raises(InputError, match="does not know the lengths of its training sentences; pass n_genes"):
        generate(without, None, n=1)


class KilledError(BaseException):
    """What no handler expects."""


def test_killed_and_gone_on_with_gives_the_same_file(
    tiny_model: CellModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"n": 10, "n_genes": 6, "seed": 2, "chunk_cells": 3}
    whole, broken = tmp_path / "whole.h5ad", tmp_path / "broken.h5ad"
    unbroken = generate(tiny_model, "type A", output=whole, **options)
    at_once = generate(tiny_model, "type A", n=10, n_genes=6, seed=2)
    assert list(unbroken.obs["cell_sentence"]) == list(at_once.obs["cell_sentence"])
    write, done = CellModel.write, []

    def die_at_the_third(self: CellModel, *arguments: Any, first: int, **given: Any) -> list[str]:
        if len(done) == 2:
            raise KilledError
        done.append(first)
        return write(self, *arguments, first=first, **given)

    with monkeypatch.context() as patched:
        patched.setattr(CellModel, "write", die_at_the_third)
        with pytest.raises(KilledError):
            generate(tiny_model, "type A", output=broken, **options)
    assert not broken.exists()
    with pytest.raises(InputError, match=r"made with cell_type \"type A\" \(now \"type B\"\); repeat"):
        generate(tiny_model, "type B", output=broken, **options)
    generate(tiny_model, "type A", output=broken, **options)
    assert broken.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.h5ad", "whole.h5ad"]
