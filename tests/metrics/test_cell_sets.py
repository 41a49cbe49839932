"""Measures of sets of cells: values worked out by hand, chance for one population, and what a copy or a shift does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu
from sklearn.linear_model import Ridge

from cytoglot.metrics import cell_sets as c

G = 60


def draws(n: int, seed: int, *, length: int = 15, shift: float = 0.0) -> list[np.ndarray]:
    """Cells of independent genes; a shift makes the first ten more frequent."""
    rng = np.random.default_rng(seed)
    log_weight = np.linspace(2, 0, G) + shift * (np.arange(G) < 10)
    return [np.argsort(-(log_weight + rng.gumbel(size=G)))[:length] for _ in range(n)]


def test_rank_weights_and_presence_by_hand() -> None:
    sentences = [np.array([2, 0, 1]), np.array([], dtype=np.int64), np.array([3])]
    weights = c.rank_weights(sentences, 4).toarray()
    assert weights == pytest.approx(np.array([[1 / np.log2(3), 0.5, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]))
    assert c.presence(sentences, 4).toarray().tolist() == [[1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert c.rank_weights([], 4).shape == (0, 4)


def test_share_below_is_mann_whitney_with_ties_by_half() -> None:
    assert c.share_below([1, 2], [2, 3]) == (1 + 1 + 0.5 + 1) / 4
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 8, 30), rng.integers(2, 9, 20)
    assert c.share_below(first, second) == pytest.approx(mannwhitneyu(second, first).statistic / 600)
    assert math.isnan(c.share_below([], [1]))
    assert math.isnan(c.share_below([1], []))


def test_a_classifier_cannot_tell_two_halves_of_a_population() -> None:
    values = [
        c.c2st_auc({"a": draws(40, s), "b": draws(40, s + 1)}, {"a": draws(40, s + 2), "b": draws(40, s + 3)}, G)
        for s in range(0, 80, 4)
    ]
    assert np.mean(values) == pytest.approx(0.5, abs=0.03)


def test_a_classifier_tells_disjoint_sets_and_something_of_a_shift() -> None:
    real = {"a": draws(30, 0), "b": draws(30, 1)}
    disjoint = {name: [words + G for words in cells] for name, cells in real.items()}
    assert c.c2st_auc(disjoint, real, 2 * G) == 1
    slight, strong = ({name: draws(30, 5, shift=shift) for name in real} for shift in (0.7, 2.0))
    assert 0.55 < c.c2st_auc(slight, real, G) < c.c2st_auc(strong, real, G) < 1


def test_types_numbers_and_lengths_tell_a_classifier_nothing() -> None:
    # The generated cells are mostly of one type, the real ones of the other, and shorter.
    generated = {"a": draws(90, 0, shift=3.0), "b": draws(20, 1)}
    real = {"a": draws(20, 2, shift=3.0, length=8), "b": draws(90, 3, length=8)}
    values = [c.c2st_auc(generated, real, G, seed=seed) for seed in range(10)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.1)


def test_the_two_sample_test_is_set_by_its_seed_and_silent_on_few_cells() -> None:
    generated, real = {"a": draws(30, 0), "b": draws(4, 1)}, {"a": draws(30, 2, shift=1.0), "b": draws(30, 3)}
    found = c.c2st_auc_by_type(generated, real, G, seed=3)
    assert list(found) == ["a", "b"]
    assert math.isnan(found["b"])
    assert found == pytest.approx(c.c2st_auc_by_type(generated, real, G, seed=3), nan_ok=True)
    assert found["a"] != c.c2st_auc_by_type(generated, real, G, seed=4)["a"]
    assert c.c2st_auc(generated, real, G, seed=3) == found["a"]
    assert math.isnan(c.c2st_auc({"b": generated["b"]}, real, G))
    assert math.isnan(c.c2st_auc({}, {}, G))


def test_out_of_fold_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x_ng, target_n, fold_n = rng.normal(size=(30, 50)), rng.choice([-1.0, 1.0], 30), np.arange(30) % 3
    found = c._out_of_fold_scores(x_ng @ x_ng.T, target_n, fold_n)
    for fold in range(3):
        fitted = x_ng[fold_n != fold]
        strength = c._RIDGE * ((fitted - fitted.mean(axis=0)) ** 2).sum() / len(fitted)
        ridge = Ridge(alpha=strength).fit(fitted, target_n[fold_n != fold])
        expected = ridge.predict(x_ng[fold_n == fold]) - ridge.intercept_ - fitted.mean(axis=0) @ ridge.coef_
        assert found[fold_n == fold] == pytest.approx(expected)


def test_energy_distance_by_hand() -> None:
    # {0, 1} and {1, 2}: the mean distance between the sets is 1, within them 1/2 with the cell itself, 1 without
    first, second = [[0.0], [1.0]], [[1.0], [2.0]]
    assert c.energy_distance(first, second, unbiased=False) == pytest.approx(1)
    assert c.energy_distance(first, second) == pytest.approx(0)
    assert math.isnan(c.energy_distance([[0.0]], second))
    assert c.energy_distance([[0.0]], second, unbiased=False) == pytest.approx(2 * 1.5 - 0.5)
    assert math.isnan(c.energy_distance(np.empty((0, 1)), second, unbiased=False))


def test_energy_distance_of_one_population_is_zero_in_the_mean_and_sees_a_narrower_one() -> None:
    rng = np.random.default_rng(0)
    same = [c.energy_distance(rng.normal(size=(20, 3)), rng.normal(size=(20, 3))) for _ in range(200)]
    biased = [c.energy_distance(*rng.normal(size=(2, 20, 3)), unbiased=False) for _ in range(50)]
    narrow = [c.energy_distance(0.3 * rng.normal(size=(20, 3)), rng.normal(size=(20, 3))) for _ in range(50)]
    assert np.mean(same) == pytest.approx(0, abs=0.02)
    assert min(biased) > 0
    assert np.mean(narrow) > 0.2


def test_coverage_by_hand() -> None:
    real = [[0.0], [1.0], [3.0], [7.0]]  # the nearest other real cell is 1, 1, 2 and 4 away
    assert c.coverage([[0.5]], real, k=1) == 0.5
    assert c.coverage([[5.0]], real, k=1) == 0.5  # 2 from the third, 2 from the fourth
    assert c.coverage([[0.5], [5.0]], real, k=1) == 1
    assert c.coverage([[5.0]], real, k=9) == 1  # cut to 3, where neighborhoods reach to 7, 6, 4 and 7
    assert math.isnan(c.coverage(np.empty((0, 1)), real))
    assert math.isnan(c.coverage([[1.0]], [[1.0]]))


def test_coverage_of_one_population_is_as_published_and_a_narrow_one_covers_less() -> None:
    rng = np.random.default_rng(0)
    n, k = 40, 3
    chance = math.prod((n - i) / (2 * n - i) for i in range(1, k + 1))  # Naeem et al. 2020, lemma 2
    same = [c.coverage(*rng.normal(size=(2, n, 2)), k=k) for _ in range(200)]
    assert np.mean(same) == pytest.approx(1 - chance, abs=0.01)
    assert c.coverage(0.1 * rng.normal(size=(n, 2)), rng.normal(size=(n, 2)), k=k) < 0.4


def test_memorized_share_by_hand() -> None:
    training = np.array([[0.0], [1.0], [3.0]])  # own distances 1, 1, 2
    assert c.nearest_distances(training, training, are_references=True).tolist() == [1, 1, 2]
    assert c.memorized_share(np.array([[3.0], [4.5], [8.0]]), training) == (3 + 1 + 0) / 9  # 0, 1.5 and 5 away
    assert c.memorized_share(np.array([[2.0]]), training) == (0.5 + 0.5 + 1) / 3  # 1 away: two ties
    assert math.isnan(c.memorized_share(training, training[:1]))
    assert math.isnan(c.memorized_share(training[:0], training))


def test_copies_are_memorized_fresh_cells_are_not_and_unlike_ones_are_far() -> None:
    training, fresh, unlike = draws(200, 0), draws(200, 1), [words[::-1] + 20 for words in draws(200, 2)]
    weights = [c.rank_weights(each, 2 * G) for each in (training, fresh, unlike)]
    assert c.memorized_share(weights[0][:50], weights[0]) == 1
    assert c.memorized_share(weights[1], weights[0]) == pytest.approx(0.5, abs=0.06)
    assert c.memorized_share(weights[2], weights[0]) < 0.1


def test_nats_per_word_is_a_mean_over_cells() -> None:
    assert c.nats_per_word([6.0, 4.0, 0.0], [2, 4, 0]) == (3 + 1) / 2
    assert math.isnan(c.nats_per_word([0.0], [0]))
