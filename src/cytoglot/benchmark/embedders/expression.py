"""ln(1 + counts per 10,000): of all training genes, or of the most variable ones as an embedding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from cytoglot.benchmark.embedders.base import EMBEDDERS
from cytoglot.data.hvg import Flavor, select_hvg
from cytoglot.data.normalize import log_normalize, matrix_state
from cytoglot.errors import VocabularyMismatchError

if TYPE_CHECKING:
    from anndata import AnnData


def gene_columns(adata: AnnData, genes: pd.Index) -> NDArray[np.intp]:
    """Return where in the cells each of the training genes is.

    Raises
    ------
    VocabularyMismatchError
        The cells lack one.
    """
    columns = adata.var_names.get_indexer(genes)
    if (columns < 0).any():
        raise VocabularyMismatchError(
            f"{int((columns < 0).sum())} of the {len(genes)} genes of the training cells are not in these cells, such "
            f"as {genes[columns < 0][0]!r}; read both with the same options"
        )
    return np.asarray(columns)


class LogExpression:
    """Log-normalized values of the training genes, in their order, whatever the order in other cells.

    What the training matrix holds (counts, logs of some base) is tested once, and other cells are taken for the same.
    Each cell is normalized over all of its genes, also where only some are returned.
    """

    def fit(self, train: AnnData, genes: Sequence[str] | None = None) -> Self:
        """Keep the names of the training genes (or of `genes` among them) and the state of the matrix."""
        self._state = matrix_state(train.X)
        self.genes = train.var_names if genes is None else train.var_names[train.var_names.isin(genes)]
        return self

    def matrix(self, adata: AnnData) -> csr_matrix:
        """Return float32 of shape (n_cells, n_genes), sparse.

        Raises
        ------
        VocabularyMismatchError
            The cells lack a training gene.
        """
        matrix_ng = log_normalize(adata.X, self._state, base=math.e)
        if adata.var_names.equals(self.genes):
            return matrix_ng
        return matrix_ng[:, gene_columns(adata, self.genes)]


@EMBEDDERS.register("hvg")
class HvgExpression:
    """ln(1 + counts per 10,000) of the most variable genes of the training cells.

    Parameters
    ----------
    n_top
        How many genes; all where there are fewer.
    flavor
        How they are chosen: see `cytoglot.data.hvg.select_hvg`.
    """

    def __init__(self, *, n_top: int = 2000, flavor: Flavor = "pearson_residuals", seed: int = 0) -> None:
        self.n_top, self.flavor = n_top, flavor
        self._expression = LogExpression()

    def fit(self, train: AnnData) -> Self:
        """Choose the genes among training cells alone."""
        self._expression.fit(train, select_hvg(train, n_top=self.n_top, flavor=self.flavor))
        return self

    def matrix(self, adata: AnnData) -> csr_matrix:
        """Return what `embed` returns, sparse."""
        return self._expression.matrix(adata)

    def embed(self, adata: AnnData) -> NDArray[np.float32]:
        """Return float32 of shape (n_cells, n_genes)."""
        return np.asarray(self.matrix(adata).toarray(), dtype=np.float32)
