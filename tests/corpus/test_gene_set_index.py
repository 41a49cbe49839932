"""MinHash against exact Jaccard indices, and what an index finds among many sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytoglot.corpus.gene_set_index import (
    NOTHING,
    GeneSetIndex,
    band_keys,
    chance_to_find,
    estimated_jaccard,
    jaccard,
    leading_sets,
    random_orders,
    signatures,
)

N_GENES, WIDTH = 500, 64
ORDERS = random_orders(N_GENES, n_orders=1024, seed=3)
gene_sets = st.sets(st.integers(0, N_GENES - 1), max_size=WIDTH)


def as_arrays(sets: list[set[int]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.full((len(sets), WIDTH), NOTHING, np.uint32)
    for row, members in enumerate(sets):
        table[row, : len(members)] = sorted(members)
    return table, np.array([len(s) for s in sets], np.int64)


def exact(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


def look_up(
    queries: list[set[int]], others: list[set[int]], *, threshold: float, own_places: bool = False
) -> tuple[list[int], list[float], list[int]]:
    """Return the pairs, the best Jaccard index and the place of the best of each query; others stand at 1000, …."""
    first = 1000 if own_places else 0
    sets, sizes = as_arrays(queries)
    places = np.arange(first, first + len(queries)).astype(np.uint64)
    index = GeneSetIndex(sets, sizes, places, ORDERS[:, :256].copy())
    n_found, best = np.zeros(len(queries), np.int64), np.zeros(len(queries))
    best_place = np.zeros(len(queries), np.uint64)
    index.look_up(
        *as_arrays(others),
        np.arange(1000, 1000 + len(others)).astype(np.uint64),
        threshold=threshold,
        asked=np.ones(len(queries), bool),
        n_found=n_found,
        best=best,
        best_place=best_place,
    )
    return n_found.tolist(), best.tolist(), best_place.tolist()


@given(st.lists(st.tuples(gene_sets, gene_sets), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_the_jaccard_index_is_that_of_python_sets(pairs: list[tuple[set[int], set[int]]]) -> None:
    first, second = (as_arrays(list(side))[0] for side in zip(*pairs, strict=True))
    assert jaccard(first, second) == pytest.approx([exact(a, b) for a, b in pairs])


@given(gene_sets.filter(bool), gene_sets.filter(bool))
@settings(max_examples=60, deadline=None)
def test_the_estimate_is_within_five_standard_errors(a: set[int], b: set[int]) -> None:
    first, second = signatures(*as_arrays([a, b]), ORDERS)
    truth = exact(a, b)
    error = np.sqrt(truth * (1 - truth) / ORDERS.shape[1])
    assert estimated_jaccard(first, second) == pytest.approx(truth, abs=5 * error + 1e-9)


def test_every_gene_is_first_equally_often() -> None:
    counts = np.bincount(random_orders(10, n_orders=20_000).argmin(axis=0), minlength=10)
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(20_000 * 0.1 * 0.9)


def test_leading_sets_by_hand() -> None:
    offsets, ids = np.array([0, 4, 4, 6]), np.array([7, 2, 9, 1, 3, 2], np.uint16)
    counted = np.ones(10, bool)
    counted[9] = False
    sets, sizes = leading_sets(offsets, ids, counted, n_genes=3)
    assert sets.tolist() == [[1, 2, 7], [NOTHING] * 3, [2, 3, NOTHING]]
    assert sizes.tolist() == [3, 0, 2]
    assert leading_sets(offsets, ids, counted, n_genes=2)[0].tolist() == [[2, 7], [NOTHING] * 2, [2, 3]]


def test_pairs_are_found_with_the_stated_chance() -> None:
    rng, n, size, shared = np.random.default_rng(1), 1500, 40, 33
    truth = shared / (2 * size - shared)
    table = [rng.permutation(N_GENES)[: 2 * size - shared].tolist() for _ in range(n)]
    first, second = [set(row[:size]) for row in table], [set(row[size - shared :]) for row in table]
    keys = [band_keys(signatures(*as_arrays(sets), ORDERS[:, :128].copy()), n_bands=16) for sets in (first, second)]
    found = (keys[0] == keys[1]).any(axis=1).mean()
    expected = chance_to_find(truth, n_orders=128, n_bands=16)
    assert 0.3 < expected < 0.98
    assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / n)


def test_an_index_finds_each_near_pair_once_and_no_far_one() -> None:
    rng = np.random.default_rng(2)
    others = [set(rng.choice(N_GENES, 50, replace=False).tolist()) for _ in range(200)]
    near = set(others[17])
    near.discard(min(near))  # 49 of 50
    far = {*list(others[3])[:25], *range(25)}
    n_found, best, place = look_up([near, far, set(others[5])], [*others, set(others[5])], threshold=0.9)
    assert n_found == [1, 0, 2]
    assert best == pytest.approx([0.98, 0.0, 1.0])
    assert place == [1017, 0, 1005]


@given(st.integers(0, 5))
@settings(deadline=None, max_examples=6)
def test_the_pairs_of_an_index_are_those_of_a_comparison_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = [set(rng.choice(N_GENES, 50, replace=False).tolist()) for _ in range(5)]
    others = [{*list(members)[: 50 - drop], *range(drop)} for members in base for drop in (0, 1, 2, 10, 25)]
    n_found, best, _ = look_up(base, others, threshold=0.95)
    assert n_found == [sum(exact(q, o) >= 0.95 for o in others) for q in base]
    assert best == pytest.approx([max(exact(q, o) for o in others) for q in base])


def test_a_cell_is_not_its_own_neighbour() -> None:
    members = set(range(30))
    assert look_up([members], [members], threshold=0.9, own_places=True)[0] == [0]
    assert look_up([members, members], [members, members], threshold=0.9, own_places=True)[0] == [1, 1]


def test_empty_sets_are_like_no_other() -> None:
    assert look_up([set(), {1}], [set(), set()], threshold=0.5)[0] == [0, 0]


def test_orders_that_bands_cannot_share_evenly_are_refused() -> None:
    with pytest.raises(ValueError, match="250 orders cannot be dealt to 16 bands evenly"):
        band_keys(np.zeros((1, 250), np.uint32), n_bands=16)
