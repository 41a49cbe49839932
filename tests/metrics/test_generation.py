"""Generation metrics: oracles worked out by hand, a reference implementation, bounds, meaning."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from cytoglot.metrics import generation as g

SENTENCES = st.lists(st.sampled_from("ABCDEFGH"), max_size=8)


def test_gene_overlap_is_recall_on_sets() -> None:
    assert g.gene_overlap("BDE", "ABCD") == 0.5
    assert g.gene_overlap("BBDDE", "ABCD") == 0.5
    assert g.gene_precision("BDE", "ABCD") == pytest.approx(2 / 3)
    assert g.gene_jaccard("BDE", "ABCD") == pytest.approx(2 / 5)
    assert math.isnan(g.gene_overlap("BDE", ""))
    assert math.isnan(g.gene_precision("", "ABCD"))
    assert math.isnan(g.gene_jaccard("", ""))
    assert g.gene_overlap("", "A") == 0


def test_overlaps_take_arrays_of_ids() -> None:
    assert g.gene_overlap(np.array([1, 3, 4]), np.array([0, 1, 2, 3])) == 0.5


def test_kendall_tau_with_a_shared_last_rank_by_hand() -> None:
    # vocabulary ABCDE: "C A" → ranks 2,3,1,3,3; "A B C" → 1,2,3,4,4. C = 5, D = 2 of 10 pairs, ties 3 and 1
    assert g.kendall_tau("CA", "ABC", "ABCDE") == pytest.approx(3 / math.sqrt(7 * 9))
    assert g.kendall_tau("CA", "ABC", "ABCDE") == pytest.approx(0.377964, abs=1e-6)
    assert g.kendall_tau("CA", "ABC", "ABCDE", variant="a") == pytest.approx(0.3)


def test_kendall_tau_of_a_reversal_repeats_and_nothing() -> None:
    assert g.kendall_tau("EDCBA", "ABCDE", "ABCDE") == pytest.approx(-1)
    assert g.kendall_tau("ABABCDE", "ABCDE", "ABCDE") == pytest.approx(1)  # first occurrences: A B C D E
    assert g.kendall_tau("xCyA", "ABC", "ABCDE") == g.kendall_tau("CA", "ABC", "ABCDE")  # foreign words take no rank
    assert math.isnan(g.kendall_tau("", "ABC", "ABCDE"))
    assert g.kendall_tau("", "ABC", "ABCDE", variant="a") == 0


def test_fifty_present_of_978_leave_the_last_rank_to_the_others() -> None:
    vocabulary = list(range(978))
    ranks = g._shared_last_ranks(list(range(950)), vocabulary)
    assert ranks.max() == 951
    assert (ranks == 951).sum() == 28


@given(SENTENCES, SENTENCES)
@settings(max_examples=60, deadline=None)
def test_tau_is_symmetric_bounded_and_agrees_with_counting(first: list[str], second: list[str]) -> None:
    vocabulary = "ABCDEFGH"
    x, y = (g._shared_last_ranks(s, vocabulary) for s in (first, second))
    signs = [np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]) for i, j in combinations(range(8), 2)]
    assert g.kendall_tau(first, second, vocabulary, variant="a") == pytest.approx(sum(signs) / 28)
    tau_b = g.kendall_tau(first, second, vocabulary)
    if not math.isnan(tau_b):
        assert tau_b == pytest.approx(g.kendall_tau(second, first, vocabulary))
        assert tau_b == pytest.approx(kendalltau(x, y).statistic)


def test_tau_over_a_large_vocabulary_equals_sorting_all_of_it() -> None:
    rng = np.random.default_rng(0)
    vocabulary = list(range(3000))
    for n in (1, 7, 200):
        first, second = (rng.permutation(300)[:n].tolist() for _ in range(2))
        x, y = (g._shared_last_ranks(s, vocabulary) for s in (first, second))
        assert g.kendall_tau(first, second, set(vocabulary)) == pytest.approx(kendalltau(x, y).statistic, abs=1e-12)


@given(SENTENCES)
@settings(max_examples=40, deadline=None)
def test_a_sentence_is_perfect_against_itself(sentence: list[str]) -> None:
    if sentence:
        assert g.gene_overlap(sentence, sentence) == g.gene_jaccard(sentence, sentence) == 1
        assert g.validity(sentence, set("ABCDEFGH")) == 1
        assert 0 <= g.duplicate_share(sentence) < 1


def test_validity_and_duplicates_by_hand() -> None:
    assert g.validity(["A", "A", "foo", "B"], {"A", "B"}) == 0.75
    assert g.duplicate_share(["A", "A", "foo", "A"]) == 0.5
    assert math.isnan(g.validity([], {"A"}))
    assert math.isnan(g.duplicate_share([]))


def test_pairwise_overlap_by_hand() -> None:
    # pairs: |AB ∩ BC| = 1 of 2; |AB ∩ ABCD| = 2·2/6; |BC ∩ ABCD| = 2·2/6
    assert g.pairwise_overlap(["AB", "BC", "ABCD"]) == pytest.approx((1 / 2 + 2 / 3 + 2 / 3) / 3)
    assert g.pairwise_diversity(["AB", "BC", "ABCD"]) == pytest.approx(1 - (1 / 2 + 2 / 3 + 2 / 3) / 3)
    assert g.pairwise_overlap(["AB", "", "BA"]) == 1
    assert math.isnan(g.pairwise_overlap(["AB", ""]))


def test_mean_overlap_by_hand_has_the_scale_of_the_pairwise_one() -> None:
    assert g.mean_overlap(["AB"], ["BC", "ABCD", ""]) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert math.isnan(g.mean_overlap([], ["A"]))
    assert math.isnan(g.mean_overlap(["A"], []))


def test_copies_of_the_average_overlap_more_and_vary_less_than_real_cells() -> None:
    rng = np.random.default_rng(0)
    weights = np.arange(40, 0, -1) / np.arange(40, 0, -1).sum()
    real = [rng.choice(40, 10, replace=False, p=weights) for _ in range(40)]
    mean_profile = [np.arange(10)] * 40
    assert g.mean_overlap(mean_profile, real) > g.pairwise_overlap(real)
    assert g.pairwise_diversity(mean_profile) == pytest.approx(0)
    assert g.pairwise_diversity(real) > 0.3


def test_a_neighbor_vote_that_is_tied_goes_to_the_nearest() -> None:
    real, labels = [[0.0], [1.0], [2.0], [3.0]], ["b", "a", "a", "b"]
    assert g.nearest_labels(real, labels, [[0.2], [1.2]], k=2).tolist() == ["b", "a"]  # 0.2: b at 0.2, a at 0.8
    assert g.nearest_labels(real, labels, [[1.6]], k=99).tolist() == ["a"]


def test_knn_type_agreement_follows_the_type() -> None:
    rng = np.random.default_rng(1)
    real = np.r_[rng.normal(0, 1, (50, 3)), rng.normal(8, 1, (50, 3))]
    types = ["a"] * 50 + ["b"] * 50
    generated = rng.normal(8, 1, (20, 3))
    assert g.knn_type_agreement(real, types, generated, ["b"] * 20) == 1
    assert g.knn_type_agreement(real, types, generated, ["a"] * 20) == 0
    assert math.isnan(g.knn_type_agreement(real, types, np.empty((0, 3)), []))
    with pytest.raises(ValueError, match=r"one label each, found 0 and 0 labels"):
        g.nearest_labels(np.empty((0, 3)), [], generated)


def test_a_cell_is_not_its_own_neighbor_nor_is_a_copy_of_it() -> None:
    real, labels, cells = [[0.0], [0.0], [1.0], [5.0]], ["a", "a", "b", "c"], ["x", "x", "y", "z"]
    found = {k: g.nearest_labels(real, labels, real, k=k, identities=(cells, cells)).tolist() for k in (1, 2, 3)}
    assert g.nearest_labels(real, labels, real, k=1).tolist() == labels
    assert found[1] == ["b", "b", "a", "b"]  # by hand: 0 → 1, 1 → 0, 5 → 1
    assert found[2] == ["b", "b", "a", "b"]  # 0 and its copy → 1, 5: a tie, the nearest; 1 → 0, 0; 5 → 1, 0: a tie
    assert found[3] == ["b", "b", "a", "a"]  # 5 → 1, 0, 0
    others = g.nearest_labels(real, labels, [[0.0], [5.0]], k=1, identities=(cells, ["new", "z"]))
    assert others.tolist() == ["a", "b"]
    assert g.nearest_labels([[0.0], [0.0]], ["a", "a"], [[0.0]], identities=(["x", "x"], ["x"])).tolist() == [None]
    with pytest.raises(ValueError, match="one identity for each reference and each query, found 4 for 4 and 1 for 2"):
        g.nearest_labels(real, labels, [[0.0], [1.0]], identities=(cells, ["x"]))


def test_cells_among_themselves_say_nothing_of_labels_without_information() -> None:
    rng = np.random.default_rng(0)
    real, types, cells = rng.normal(size=(1000, 6)), rng.integers(0, 8, 1000).astype(str), np.arange(1000)
    assert g.knn_type_agreement(real, types, real, types) > 0.3
    assert g.knn_type_agreement(real, types, real, types, identities=(cells, cells)) == pytest.approx(1 / 8, abs=0.03)
