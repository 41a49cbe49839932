"""Cells as the mean of their genes' vectors: vectors counted from training cells, or read from any table.

Axes: n cells, g genes, d dimensions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags
from scipy.sparse.linalg import svds

from cytoglot.benchmark.embedders.base import EMBEDDERS
from cytoglot.benchmark.embedders.expression import LogExpression
from cytoglot.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData


def positive_pmi(presence_ng: csr_matrix, *, negatives: float = 1.0) -> csr_matrix:
    """Return max(PMI − ln `negatives`, 0) of genes found in one cell, shape (g, g), symmetric, without a diagonal.

    A cell is one context: C = BᵀB for presence B, without its diagonal; PMI = ln(C_ij · N / (C_i · C_j)) with N the sum
    of C (Levy and Goldberg 2014). Pairs that never meet, of PMI −∞, are 0.
    """
    presence = csr_matrix((np.ones(presence_ng.nnz), presence_ng.indices, presence_ng.indptr), shape=presence_ng.shape)
    together = (presence.T @ presence).tocsr()
    together.setdiag(0)
    together.eliminate_zeros()
    total_g = np.asarray(together.sum(axis=1)).ravel()
    coo = together.tocoo()
    pmi = np.log(coo.data * total_g.sum() / (total_g[coo.row] * total_g[coo.col])) - np.log(negatives)
    kept = pmi > 0
    return csr_matrix((pmi[kept], (coo.row[kept], coo.col[kept])), shape=together.shape)


def mean_gene_vectors(matrix_ng: csr_matrix, vectors_gd: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the mean of the genes' vectors weighted by the cell's values, shape (n, d); zeros without expression."""
    total_n = np.asarray(matrix_ng.sum(axis=1)).ravel()
    weights = diags(np.divide(1.0, total_n, out=np.zeros(len(total_n)), where=total_n > 0)) @ matrix_ng
    return np.asarray(weights @ vectors_gd, dtype=np.float32)


@EMBEDDERS.register("sppmi")
class SppmiVectors:
    """Gene vectors U√S of the shifted positive PMI of training cells, averaged per cell by log expression.

    Parameters
    ----------
    n_components
        Most dimensions.
    n_genes
        Genes of a cell that count as present: the highest of it, of equal ones the first names.
    negatives
        The shift is its logarithm.
    min_cells
        Genes present in fewer training cells have no vector.
    seed
        Of the start of the decomposition.
    """

    def __init__(
        self, *, n_components: int = 64, n_genes: int = 200, negatives: float = 1.0, min_cells: int = 5, seed: int = 0
    ) -> None:
        self.n_components, self.n_genes, self.negatives = n_components, n_genes, negatives
        self.min_cells, self.seed = min_cells, seed
        self._expression = LogExpression()

    def fit(self, train: AnnData) -> Self:
        """Count which genes meet in training cells, and decompose the counts."""
        matrix_ng = self._expression.fit(train).matrix(train)
        by_name_g = np.argsort(np.argsort(self._expression.genes.astype(str).to_numpy(), kind="stable"))
        columns, starts = [], [0]
        for start, end in zip(matrix_ng.indptr[:-1], matrix_ng.indptr[1:], strict=True):
            genes, values = matrix_ng.indices[start:end], matrix_ng.data[start:end]
            columns.append(genes[np.lexsort((by_name_g[genes], -values))[: self.n_genes]])
            starts.append(starts[-1] + len(columns[-1]))
        indices = np.concatenate(columns) if columns else np.zeros(0, dtype=np.int64)
        presence = csr_matrix((np.ones(len(indices)), indices, starts), shape=matrix_ng.shape)
        frequent = np.flatnonzero(np.asarray(presence.sum(axis=0)).ravel() >= self.min_cells)
        if len(frequent) < 3:
            raise InputError(f"{len(frequent)} genes are in {self.min_cells} training cells; gene vectors need 3")
        pmi = positive_pmi(presence[:, frequent], negatives=self.negatives)
        k = max(1, min(self.n_components, len(frequent) - 1))
        start_g = np.random.default_rng(self.seed).standard_normal(len(frequent))
        u, s, _ = svds(pmi, k=k, v0=start_g)
        self.gene_vectors_gd = np.zeros((len(self._expression.genes), k))
        self.gene_vectors_gd[frequent] = u[:, ::-1] * np.sqrt(s[::-1])
        self._has_vector_g = np.isin(np.arange(len(self._expression.genes)), frequent)
        return self

    def embed(self, adata: AnnData) -> NDArray[np.float32]:
        """Return float32 of shape (n_cells, n_components)."""
        matrix_ng = self._expression.matrix(adata)
        return mean_gene_vectors(matrix_ng[:, self._has_vector_g], self.gene_vectors_gd[self._has_vector_g])


@EMBEDDERS.register("gene_table")
class GeneTable:
    """Vectors of genes from a file (of their texts, of a foundation model), averaged per cell by log expression.

    The form of GenePT and scELMo: the genes' vectors are fixed, the cell only weighs them.

    Parameters
    ----------
    path
        A Parquet, CSV or TSV file (by its suffix, which `.gz` may follow): genes in the first column or the index,
        numbers in all others. `cytoglot gene-embeddings` writes one.
    seed
        Not used; every embedder has one.
    """

    def __init__(self, *, path: str | Path, seed: int = 0) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"the table of gene vectors {path} does not exist; pass a Parquet, CSV or TSV file")
        separator = "\t" if ".tsv" in self.path.suffixes else ","
        frame = pd.read_parquet(path) if self.path.suffix == ".parquet" else pd.read_csv(path, sep=separator)
        if not pd.api.types.is_numeric_dtype(frame.iloc[:, 0]):
            frame = frame.set_index(frame.columns[0])
        numbers = frame.select_dtypes("number")
        if not numbers.shape[1] or not np.isfinite(numbers.to_numpy(dtype=np.float64)).all():
            raise InputError(f"{path} holds no finite numbers beside the names of genes")
        self._vectors = numbers[~frame.index.duplicated()]
        self._expression = LogExpression()

    def fit(self, train: AnnData) -> Self:
        """Keep the training genes that have a vector; an InputError where fewer than 3 have."""
        known = [str(gene) for gene in train.var_names if gene in self._vectors.index]
        if len(known) < 3:
            raise InputError(
                f"{len(known)} of {train.n_vars} genes are in {self.path}, which has names such as "
                f"{', '.join(map(repr, self._vectors.index[:3]))}; pass vectors of the same gene names"
            )
        self._expression.fit(train, known)
        self._vectors_gd = self._vectors.loc[self._expression.genes].to_numpy(dtype=np.float64)
        return self

    def embed(self, adata: AnnData) -> NDArray[np.float32]:
        """Return float32 of shape (n_cells, d)."""
        return mean_gene_vectors(self._expression.matrix(adata), self._vectors_gd)
