"""Plackett–Luce: against enumeration, against its own draws, and where there is little to fit."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from cytoglot.errors import InputError
from cytoglot.sentence.plackett_luce import fit_plackett_luce, plackett_luce_draw, plackett_luce_nats

WEIGHTS = np.array([0.4, 0.3, 0.2, 0.06, 0.04])


@pytest.mark.parametrize("length", [1, 3, 5])
def test_the_probabilities_of_all_sentences_of_a_length_add_up_to_one(length):
    total = sum(np.exp(-plackett_luce_nats(WEIGHTS, np.array(ids))) for ids in permutations(range(5), length))
    assert total == pytest.approx(1)


def test_a_sentence_has_the_probability_of_its_draws_by_hand():
    assert plackett_luce_nats(WEIGHTS, np.array([1, 0])) == pytest.approx(-np.log(0.3 * 0.4 / 0.7))
    assert plackett_luce_nats(WEIGHTS * 7, np.array([1, 0])) == pytest.approx(-np.log(0.3 * 0.4 / 0.7))
    assert plackett_luce_nats(WEIGHTS, np.array([], dtype=int)) == 0


def test_draws_follow_the_weights():
    rng = np.random.default_rng(0)
    found = {}
    for _ in range(20_000):
        ids = tuple(plackett_luce_draw(WEIGHTS, 2, rng).tolist())
        found[ids] = found.get(ids, 0) + 1
    for ids in permutations(range(5), 2):
        expected = 20_000 * np.exp(-plackett_luce_nats(WEIGHTS, np.array(ids)))
        assert abs(found.get(ids, 0) - expected) < 5 * np.sqrt(expected) + 1, ids
    assert sorted(plackett_luce_draw(WEIGHTS, 5, rng).tolist()) == [0, 1, 2, 3, 4]


def test_a_fit_finds_the_weights_that_drew_the_cells():
    rng = np.random.default_rng(1)
    true = rng.dirichlet(np.full(40, 0.5)) + 1e-3
    true /= true.sum()
    cells = [plackett_luce_draw(true, 15, rng) for _ in range(4000)]
    fitted = fit_plackett_luce(cells, 40)
    assert fitted.weights_g.sum() == pytest.approx(1)
    assert np.abs(np.log(fitted.weights_g / true)).max() < 0.15
    best = sum(plackett_luce_nats(fitted.weights_g, ids) for ids in cells)
    for gene in (0, 7, 31):  # the likelihood falls on either side
        for factor in (0.9, 1.1):
            other = fitted.weights_g.copy()
            other[gene] *= factor
            assert sum(plackett_luce_nats(other, ids) for ids in cells) > best - 0.5


def test_a_type_with_one_cell_stays_near_its_parent_and_a_gene_without_cells_has_a_weight():
    rng = np.random.default_rng(2)
    everything = fit_plackett_luce([plackett_luce_draw(WEIGHTS, 3, rng) for _ in range(500)], 6 - 1)
    one = fit_plackett_luce([np.array([4, 3])], 5, parent=everything)
    assert np.abs(np.log(one.weights_g / everything.weights_g)).max() < 1
    assert one.weights_g[4] > everything.weights_g[4]
    unseen = fit_plackett_luce([np.array([0, 1]), np.array([1, 0])], 3)
    assert 0 < unseen.weights_g[2] < unseen.weights_g[0]


def test_nothing_to_fit_is_the_parent_or_refused():
    parent = fit_plackett_luce([np.array([0, 1])], 3)
    assert fit_plackett_luce([np.array([], dtype=int)], 3, parent=parent) is parent
    with pytest.raises(InputError, match="at least one cell with a gene, found none"):
        fit_plackett_luce([], 3)


def test_sentences_of_all_genes_do_not_divide_by_nothing():
    rng = np.random.default_rng(3)
    fitted = fit_plackett_luce([rng.permutation(4) for _ in range(50)], 4)
    assert np.isfinite(fitted.weights_g).all()
    assert fitted.weights_g.min() > 0.1
