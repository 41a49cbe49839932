"""Sketches against exact Jaccard indices, and what is found again among other cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cytoglot.corpus.inspect.minhash import (
    NOTHING,
    GeneSetIndex,
    band_keys,
    chance_to_find,
    jaccard,
    leading_sets,
    random_orders,
    signatures,
)

N_GENES, SIZE = 2000, 60
ALL_GENES = np.ones(N_GENES, bool)


def as_sets(sets: list[set[int]]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in sets])]).astype(np.int64)
    ids = np.array([gene for s in sets for gene in s], np.uint32)
    return leading_sets(offsets, ids, ALL_GENES, n_genes=SIZE)


def jaccard_of(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


def pair_of(similarity: float, size: int, rng: np.random.Generator) -> tuple[set[int], set[int]]:
    """Two sets of `size` genes that share so many that their index is the nearest to `similarity`."""
    n_shared = round(2 * size * similarity / (1 + similarity))
    genes = rng.choice(N_GENES, 2 * size - n_shared, replace=False).tolist()
    return set(genes[:size]), set(genes[size - n_shared :])


@dataclass
class Found:
    n: list[int]
    best: list[float]
    place: list[int]
    n_exact: int


def looked_up(
    index: list[set[int]], others: list[set[int]], *, threshold: float = 0.9, asked: list[bool] | None = None
) -> Found:
    """BlockVisitor the sets up among others, whose places follow theirs."""
    orders, q = random_orders(N_GENES), len(index)
    places = np.arange(q + len(others), dtype=np.uint64)
    n_found, best, place = np.zeros(q, np.int64), np.zeros(q), np.zeros(q, np.uint64)
    n_exact = GeneSetIndex(*as_sets(index), places[:q], orders).look_up(
        *as_sets(others),
        places[q:],
        threshold=threshold,
        asked=np.array(asked or [True] * q),
        n_found=n_found,
        best=best,
        best_place=place,
    )
    return Found(n_found.tolist(), best.tolist(), place.tolist(), n_exact)


gene_sets = st.sets(st.integers(0, N_GENES - 1), max_size=SIZE)


def test_leading_sets_are_the_first_counted_genes_in_rising_order() -> None:
    is_counted = ALL_GENES.copy()
    is_counted[[7, 9]] = False
    ids = np.array([9, 30, 7, 4, 12, 5, 8, 7], np.uint16)
    sets, sizes = leading_sets(np.array([0, 5, 5, 8]), ids, is_counted, n_genes=2)
    assert sets.tolist() == [[4, 30], [NOTHING, NOTHING], [5, 8]]
    assert sizes.tolist() == [2, 0, 2]


@given(gene_sets, gene_sets)
@settings(max_examples=60, deadline=None)
def test_the_exact_index_is_that_of_the_sets(a: set[int], b: set[int]) -> None:
    (one, other), _ = as_sets([a, b])
    assert jaccard(one[None], other[None]) == pytest.approx([jaccard_of(a, b)])


@given(gene_sets.filter(bool), gene_sets.filter(bool))
@settings(max_examples=40, deadline=None)
def test_the_sketch_estimates_the_index(a: set[int], b: set[int]) -> None:
    k = 2048
    first, second = signatures(*as_sets([a, b]), random_orders(N_GENES, n_orders=k))
    index = jaccard_of(a, b)
    assert abs((first == second).mean() - index) <= 5 * np.sqrt(index * (1 - index) / k) + 1e-12


def test_every_gene_is_first_equally_often() -> None:
    counts = np.bincount(random_orders(10, n_orders=20_000).argmin(axis=0), minlength=10)
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(20_000 * 0.1 * 0.9)


@pytest.mark.parametrize("similarity", [0.6, 0.75, 0.9])
def test_bands_agree_with_the_stated_probability(similarity: float) -> None:
    rng, n, n_orders, n_bands = np.random.default_rng(1), 1500, 48, 8
    pairs = [pair_of(similarity, 50, rng) for _ in range(n)]
    exact = jaccard_of(*pairs[0])
    orders = random_orders(N_GENES, n_orders=n_orders)
    first, second = (
        band_keys(signatures(*as_sets([pair[side] for pair in pairs]), orders), n_bands=n_bands) for side in (0, 1)
    )
    expected = chance_to_find(exact, n_orders=n_orders, n_bands=n_bands)
    share = (first == second).any(axis=1).mean()
    assert 0.05 < expected < 0.9999
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / n) + 1 / n


def test_the_chance_by_hand() -> None:
    assert chance_to_find(0.5, n_orders=4, n_bands=2) == pytest.approx(1 - 0.75**2)
    assert chance_to_find(1.0) == 1.0
    assert chance_to_find(0.0) == 0.0


def test_orders_that_cannot_be_dealt_to_the_bands_are_refused() -> None:
    with pytest.raises(ValueError, match="10 orders cannot be dealt to 4 bands evenly"):
        band_keys(np.zeros((1, 10), np.uint32), n_bands=4)


def test_near_sets_are_found_and_counted_and_far_ones_are_not() -> None:
    rng = np.random.default_rng(3)
    genes = [rng.choice(N_GENES, 70, replace=False).tolist() for _ in range(20)]
    index = [set(g[:50]) for g in genes]
    near = [set(g[1:51]) for g in genes]  # 49 of 51
    far = [set(g[10:60]) for g in genes]  # 40 of 60
    found = looked_up(index, [*far, *near, *index[:5]])
    assert found.n == [2] * 5 + [1] * 15
    assert found.best == pytest.approx([1.0] * 5 + [49 / 51] * 15)
    assert found.place == [60 + i for i in range(5)] + [40 + i for i in range(5, 20)]
    assert 25 <= found.n_exact <= 45


def test_nearly_all_pairs_at_the_threshold_are_found_and_never_twice() -> None:
    rng, n = np.random.default_rng(5), 400
    pairs = [pair_of(0.92, 50, rng) for _ in range(n)]  # 48 of 52
    found = looked_up([a for a, _ in pairs], [b for _, b in pairs])
    expected = chance_to_find(48 / 52)
    assert max(found.n) == 1
    assert abs(sum(found.n) / n - expected) < 4 * np.sqrt(expected * (1 - expected) / n)


def test_a_cell_is_not_its_own_neighbor_and_cells_not_asked_about_stay_as_they_were() -> None:
    sets, sizes = as_sets([set(range(30)), set(range(30)), set(range(100, 130))])
    places = np.array([5, 6, 7], np.uint64)
    n_found, best, place = np.zeros(3, np.int64), np.zeros(3), np.zeros(3, np.uint64)
    index = GeneSetIndex(sets, sizes, places, random_orders(N_GENES))
    asked = np.array([True, False, True])
    index.look_up(sets, sizes, places, threshold=0.9, asked=asked, n_found=n_found, best=best, best_place=place)
    assert n_found.tolist() == [1, 0, 0]
    assert (best[0], place[0]) == (1.0, 6)
    assert best[1:].tolist() == [0.0, 0.0]


def test_nothing_is_found_among_no_cells() -> None:
    assert looked_up([set(range(30))], []).n == [0]


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=10)
def test_what_is_found_is_what_a_comparison_of_all_finds(seed: int) -> None:
    """Far from the threshold, where no pair is missed: a missed one at 49 of 51 is rarer than one in 10⁵."""
    rng = np.random.default_rng(seed)
    base = [set(rng.choice(N_GENES, 50, replace=False).tolist()) for _ in range(5)]
    others = [{*sorted(members)[drop:], *range(2 * drop)} for members in base for drop in (0, 1, 15, 25)]
    found = looked_up(base, others)
    assert found.n == [sum(jaccard_of(q, other) >= 0.9 for other in others) for q in base]
    assert found.best == pytest.approx([max(jaccard_of(q, other) for other in others) for q in base])


def test_empty_sets_are_like_no_other() -> None:
    assert looked_up([set(), {1}], [set(), set()], threshold=0.5).n == [0, 0]
