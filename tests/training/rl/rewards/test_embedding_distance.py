from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from cytoglot.lm.embedding.embed import embed_texts
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.tokenizer import build_tokenizer
from cytoglot.training.rl.rewards import RewardInputs


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    """A random model that can read 24 tokens."""
    tokenizer = build_tokenizer(tuple("ABCDEFGHIJ"), ["Write a cell."], n_subwords=260)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=24,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LanguageModel(model=AutoModelForCausalLM.from_config(config).eval(), tokenizer=tokenizer)


@pytest.fixture
def given(context: RewardInputs, lm: LanguageModel) -> RewardInputs:
    return dataclasses.replace(context, lm=lm)


def test_the_distance_to_the_centroid_in_units_of_the_spread(rate, given, lm) -> None:
    cells = embed_texts(lm, [" A B C D", " A B D E", " B A F G"]).astype(float)
    centroid = cells.mean(axis=0)
    spread = np.median(np.linalg.norm(cells - centroid, axis=1))
    distance = np.linalg.norm(embed_texts(lm, [" J I H G"])[0] - centroid)
    assert rate("embedding_distance", [" J I H G."], given=given, width=0.5) == pytest.approx(
        [np.exp(-abs(distance - spread) / (0.5 * spread))], rel=1e-4
    )
    near = rate("embedding_distance", [" J I H G."], given=given, width=0.5, target="centre")
    assert near == pytest.approx([np.exp(-distance / (0.5 * spread))], rel=1e-4)


def test_it_is_scaled_by_the_genes_that_are_there(rate, given) -> None:
    whole, junk, twice, nothing = rate(
        "embedding_distance", [" A B C D.", " A B C D x y z u.", " A B C D A B C D.", ""], given=given
    )
    assert junk == pytest.approx(whole / 2)
    assert twice == pytest.approx(whole / 2)
    assert nothing == 0


def test_a_cell_of_the_type_is_nearer_than_one_of_another(rate, given) -> None:
    own, other = rate("embedding_distance", [" A B D C.", " J I H F."], given=given, width=2, target="centre")
    assert own > other


def test_a_type_with_one_cell_or_none_and_a_label_are_not_rated(rate, given) -> None:
    lonely = dataclasses.replace(given, reference={"B cell": (tuple("ABCD"),)})
    assert rate("embedding_distance", [" A B."], given=lonely) == [None]
    assert rate("embedding_distance", [" A B."], given=given, cell_type="unseen") == [None]
    assert rate("embedding_distance", [" B cell."], given=given, num_genes=0) == [None]


def test_cells_that_are_all_alike_have_no_spread(rate, given) -> None:
    alike = dataclasses.replace(given, reference={"B cell": (tuple("ABCD"),) * 3})
    assert rate("embedding_distance", [" A B C D.", " J I H G."], given=alike) == pytest.approx([1, 0], abs=1e-2)


def test_an_answer_beyond_the_context_is_cut_and_odd_ones_do_not_raise(rate, given, lm) -> None:
    wide = dataclasses.replace(given, genes=(*given.genes, *(f"GENE{i}" for i in range(40))))
    long = " " + " ".join(wide.genes) + "."
    rated = rate("embedding_distance", [long, "\ud800", "细胞 A", " ", "A " * 10_000], given=wide, num_genes=50)
    assert all(0 <= value <= 1 for value in rated)
    assert lm.context_length == 24
