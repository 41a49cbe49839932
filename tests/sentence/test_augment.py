"""Views of a sentence."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cytoglot.sentence.augment import AugmentSettings, answering_view, tie_order, training_view


@given(st.integers(0, 60), st.integers(0, 1000))
def test_a_view_holds_only_genes_of_the_cell_and_none_twice(n: int, seed: int) -> None:
    ids = np.random.default_rng(seed).permutation(1000)[:n]
    view = training_view(ids, np.random.default_rng(seed), AugmentSettings())
    assert len(set(view.tolist())) == len(view)
    assert set(view.tolist()) <= set(ids.tolist())
    assert len(view) >= min(n, AugmentSettings().min_genes)


def test_without_noise_a_view_is_the_sentence() -> None:
    still = AugmentSettings(max_gene_dropout=0, rank_jitter=0, truncate_share=0, unchanged_share=0)
    ids = np.arange(50)
    assert (training_view(ids, np.random.default_rng(0), still) == ids).all()


def test_jitter_moves_the_end_of_a_sentence_and_hardly_its_beginning() -> None:
    noisy = AugmentSettings(max_gene_dropout=0, rank_jitter=0.15, truncate_share=0, unchanged_share=0)
    moved = np.zeros(200)
    for seed in range(50):
        view = training_view(np.arange(200), np.random.default_rng(seed), noisy)
        moved += np.abs(np.argsort(view) - np.arange(200))
    assert moved[:5].mean() < moved[150:].mean() / 10


def test_answering_views_depend_on_cell_and_number_alone() -> None:
    ids, settings = np.arange(80), AugmentSettings()
    first = answering_view(ids, cell_id="a", view=1, settings=settings)
    assert (first == answering_view(ids, cell_id="a", view=1, settings=settings)).all()
    assert first.tolist() != answering_view(ids, cell_id="b", view=1, settings=settings).tolist()
    assert first.tolist() != answering_view(ids, cell_id="a", view=2, settings=settings).tolist()
    assert (answering_view(ids, cell_id="a", view=0, settings=settings) == ids).all()


def test_ties_are_drawn_again_and_all_else_stays():
    ids = np.array([7, 3, 9, 1, 4, 8, 2])
    tied = np.array([False, True, False, True, True, False, False])
    rng = np.random.default_rng(0)
    seen = {tuple(ids[tie_order(tied, rng)].tolist()) for _ in range(300)}
    assert {(frozenset(s[:2]), frozenset(s[2:5]), s[5:]) for s in seen} == {
        (frozenset({7, 3}), frozenset({9, 1, 4}), (8, 2))
    }
    assert len(seen) == 2 * 6, "every order of the equal genes comes"
