"""Gene vectors from co-expression."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from cytoglot.errors import InputError
from cytoglot.training.supervised.word_vectors import co_expression_vectors


def _two_programmes(n: int = 200) -> csr_matrix:
    """Genes 0-4 rise together in half of the cells, genes 5-9 in the other half."""
    rng = np.random.default_rng(0)
    expression = rng.poisson(0.3, size=(n, 10)).astype(np.float32)
    expression[: n // 2, :5] += rng.poisson(3, size=(n // 2, 5))
    expression[n // 2 :, 5:] += rng.poisson(3, size=(n // 2, 5))
    return csr_matrix(np.log1p(expression))


def test_genes_of_one_programme_have_near_vectors() -> None:
    vectors = co_expression_vectors(_two_programmes(), rank=1, seed=0)[:, 0]
    assert np.sign(vectors[:5]).std() == 0
    assert np.sign(vectors[5:]).std() == 0
    assert np.sign(vectors[0]) != np.sign(vectors[9])


def test_mean_of_a_cells_vectors_tells_its_programme() -> None:
    matrix = _two_programmes()
    vectors = co_expression_vectors(matrix, rank=2, seed=0)
    centred = vectors - vectors.mean(axis=0)
    means = np.array([centred[row.indices].mean(axis=0)[0] for row in matrix])
    assert abs(np.mean(means[:100] > 0) - np.mean(means[100:] > 0)) > 0.7


def test_rank_is_cut_to_what_the_matrix_has() -> None:
    assert co_expression_vectors(_two_programmes(), rank=64, seed=0).shape == (10, 9)


def test_one_cell_tells_nothing_of_genes() -> None:
    with pytest.raises(InputError, match="at least 2 training cells and genes to start from, found 1 and 10"):
        co_expression_vectors(_two_programmes()[:1], rank=4, seed=0)
