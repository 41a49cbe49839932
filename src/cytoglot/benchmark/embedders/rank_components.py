"""Ranks → normal scores → telling genes → principal components: a cell sentence without a model and without parameters.

After the parameter-free representations of `arXiv 2602.16696` and scTOP. We differ in that genes are chosen without
labels, by the variance of their scores, so that an embedding never sees a label.
Axes: n cells, g genes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import ndtri
from scipy.stats import rankdata
from sklearn.decomposition import PCA

from cytoglot.benchmark.embedders.base import EMBEDDERS
from cytoglot.benchmark.embedders.expression import gene_columns
from cytoglot.data.plain_matrix import plain_matrix

if TYPE_CHECKING:
    from anndata import AnnData

_BLOCK = 512
"""cells whose dense scores are held at once"""


def normal_scores(matrix_ng: csr_matrix) -> NDArray[np.float32]:
    """Return the normal quantile of each gene's rank within its cell, shape (n, g).

    Equal values, zeros too, share their mean rank r; the score is that of (r − ½) / g. Any increasing change of the
    values of a cell (a logarithm, another depth) changes nothing.
    """
    ranks_ng = rankdata(np.asarray(matrix_ng.toarray(), dtype=np.float64), axis=1)
    return np.asarray(ndtri((ranks_ng - 0.5) / matrix_ng.shape[1]), dtype=np.float32)


@EMBEDDERS.register("rank_pca")
class RankComponents:
    """Principal components of the normal scores of ranks, of the genes whose scores vary most among training cells.

    Parameters
    ----------
    n_components, n_top
        Most components and genes.
    seed
        Of the start of the iteration, which changes signs at most.
    """

    def __init__(self, *, n_components: int = 50, n_top: int = 2000, seed: int = 0) -> None:
        self.n_components, self.n_top, self.seed = n_components, n_top, seed

    def fit(self, train: AnnData) -> Self:
        """Choose genes and components among training cells alone."""
        self._genes = train.var_names
        total_g, squares_g = np.zeros(train.n_vars), np.zeros(train.n_vars)
        for scores in self._blocks(train):
            total_g += scores.sum(axis=0, dtype=np.float64)
            squares_g += np.square(scores, dtype=np.float64).sum(axis=0)
        variance_g = squares_g / train.n_obs - (total_g / train.n_obs) ** 2
        # Of equal variances the first name, so that the order of the file does not choose.
        by_name_g = np.argsort(train.var_names.astype(str).to_numpy(), kind="stable")
        self._chosen = np.sort(by_name_g[np.argsort(-variance_g[by_name_g], kind="stable")[: self.n_top]])
        scores_ng = self._scores(train)
        n_components = max(1, min(self.n_components, min(scores_ng.shape) - 1))
        self._pca = PCA(n_components, svd_solver="arpack", random_state=self.seed).fit(scores_ng)
        return self

    def embed(self, adata: AnnData) -> NDArray[np.float32]:
        """Return float32 of shape (n_cells, n_components).

        Raises
        ------
        VocabularyMismatchError
            The cells lack a training gene.
        """
        if not adata.n_obs:
            return np.zeros((0, self._pca.n_components_), dtype=np.float32)
        return np.asarray(self._pca.transform(self._scores(adata)), dtype=np.float32)

    def _scores(self, adata: AnnData) -> NDArray[np.float32]:
        blocks = [scores[:, self._chosen] for scores in self._blocks(adata)]
        return np.concatenate(blocks)

    def _blocks(self, adata: AnnData) -> Iterator[NDArray[np.float32]]:
        columns = gene_columns(adata, self._genes)
        matrix_ng = csr_matrix(plain_matrix(adata.X))
        for start in range(0, adata.n_obs, _BLOCK):
            yield normal_scores(matrix_ng[start : start + _BLOCK][:, columns])
