"""Genes that go together within types: by hand, against numpy, and 0 for genes drawn on their own."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cytoglot.metrics import coexpression as x

G = 40


def linked(n: int, seed: int, *, strength: float, length: int = 12) -> list[np.ndarray]:
    """Cells in which the first ten genes rise and fall together."""
    rng = np.random.default_rng(seed)
    state = strength * rng.normal(size=(n, 1)) * (np.arange(G) < 10)
    return list(np.argsort(-(state + rng.gumbel(size=(n, G))), axis=1)[:, :length])


def test_products_are_those_of_presence_less_the_mean_of_the_type() -> None:
    cells = {"a": [np.array([0, 1]), np.array([2])], "b": [np.array([1])], "c": []}
    found = x.within_type_products(cells, ["b", "a", "c"], np.array([0, 1, 2]), 4)
    half = np.array([[0.5, 0.5, -0.5], [0.5, 0.5, -0.5], [-0.5, -0.5, 0.5]])  # ± 1/2 in both cells of "a"
    assert found == pytest.approx(np.stack([np.zeros((3, 3)), half, np.zeros((3, 3))]))


def test_correlations_are_compared_over_pairs_of_genes_that_vary_in_both() -> None:
    rng = np.random.default_rng(0)
    first, second = (np.cov(rng.normal(size=(5, 30))) for _ in range(2))
    first[0] = first[:, 0] = 0
    above = np.triu_indices(4, k=1)
    correlations = [(m[1:, 1:] / np.sqrt(np.outer(np.diag(m)[1:], np.diag(m)[1:])))[above] for m in (first, second)]
    assert x.correlation_agreement(first, second) == pytest.approx(np.corrcoef(*correlations)[0, 1])
    assert math.isnan(x.correlation_agreement(first[:3, :3], second[:3, :3]))
    assert math.isnan(x.correlation_agreement(np.eye(4), np.eye(4)))


def test_the_most_variable_genes_are_those_of_about_half_of_the_cells() -> None:
    # gene 0 is in all cells, 1 in half of each type, 2 in one of four of "a", 3 tells the types apart
    cells = {"a": [np.array([0, 1]), np.array([0, 1]), np.array([0, 2]), np.array([0])]}
    cells["b"] = [np.append(words, 3) for words in cells["a"]]
    assert x.most_variable_genes(cells, 5).tolist() == [1, 2]
    assert x.most_variable_genes(cells, 5, n_top=1).tolist() == [1]
    assert x.most_variable_genes({"a": []}, 5).tolist() == []


def test_linked_genes_are_seen_and_independent_ones_agree_with_nothing() -> None:
    real = {"a": linked(900, 0, strength=2.0)}
    again, weaker, alone = ({"a": linked(900, s, strength=strength)} for s, strength in ((1, 2.0), (2, 0.5), (3, 0.0)))
    agreement = [x.coexpression_agreement(each, real, G) for each in (again, weaker, alone)]
    assert agreement[0] > 0.8
    assert agreement[0] > agreement[1] > agreement[2] + 0.2
    assert agreement[2] == pytest.approx(0, abs=0.15)
    assert x.coexpression_agreement(real, real, G) == pytest.approx(1)


def test_differences_between_types_are_no_coexpression() -> None:
    def cells(seed: int) -> dict[str, list[np.ndarray]]:
        apart = linked(200, seed + 1, strength=0.0)
        return {"a": linked(200, seed, strength=0.0), "b": [(words + 20) % G for words in apart]}

    assert x.coexpression_agreement(cells(0), cells(2), G) == pytest.approx(0, abs=0.15)
    assert math.isnan(x.coexpression_agreement({"a": linked(9, 0, strength=1)}, {"b": linked(9, 0, strength=1)}, G))


def test_the_first_component_is_that_of_a_singular_value_decomposition() -> None:
    real = {"a": linked(50, 0, strength=1.5), "b": linked(30, 1, strength=1.0), "c": linked(1, 2, strength=1.0)}
    present = {name: x.presence(cells, G).toarray() for name, cells in real.items()}
    centered = np.concatenate([each - each.mean(axis=0) for each in present.values()])
    expected = np.linalg.svd(centered)[2][0]
    found = x.first_within_type_component(real, G)
    assert abs(found @ expected) == pytest.approx(1)
    assert x.spread_along(real, ["c", "b"], found)[1] == pytest.approx(np.var(present["b"] @ expected, ddof=1))
    assert math.isnan(x.spread_along(real, ["c", "b"], found)[0])


def test_the_variance_ratio_is_one_for_real_cells_and_small_for_independent_genes() -> None:
    real, again = ({"a": linked(900, s, strength=1.5), "b": linked(900, s + 9, strength=1.5)} for s in (0, 1))
    alone = {name: linked(300, 5, strength=0.0) for name in real}
    training = {name: linked(300, 7, strength=1.5) for name in real}
    assert x.component_variance_ratio(again, real, training, G) == pytest.approx(1, abs=0.15)
    assert x.component_variance_ratio(alone, real, training, G) < 0.35


def test_without_variance_there_is_no_component_and_no_ratio() -> None:
    same = {"a": [np.array([0, 1])] * 5}
    assert x.first_within_type_component(same, G).tolist() == [0] * G
    assert x.first_within_type_component({}, G).tolist() == [0] * G
    assert math.isnan(x.component_variance_ratio(same, same, same, G))
    assert math.isnan(x.coexpression_agreement(same, same, G))
