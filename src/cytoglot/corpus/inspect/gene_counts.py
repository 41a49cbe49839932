"""Which genes the cells of each source express, and in how many cells of the corpus each gene is."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from cytoglot.corpus.inspect.scan import ScannedBlock


class GeneUse:
    """Counts of genes. Axes: s sources, g genes.

    Parameters
    ----------
    sources
        Names of the sources, in the order of the rows of `used_sg`.
    """

    def __init__(self, sources: list[str], n_genes: int) -> None:
        self._row = {name: i for i, name in enumerate(sources)}
        self.used_sg: NDArray[np.bool_] = np.zeros((len(sources), n_genes), bool)
        """whether any cell of the source has the gene in its sentence"""
        self.n_cells_g: NDArray[np.int64] = np.zeros(n_genes, np.int64)
        """cells with the gene in their sentences"""

    def update(self, seen: ScannedBlock) -> None:
        """Note the genes of a row group."""
        codes, names = seen.codes("source")
        rows = np.array([self._row[name] for name in names], np.int64)[codes]
        _note(seen.block.offsets, seen.block.gene_ids, rows, self.used_sg, self.n_cells_g)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _note(offsets, gene_ids, rows, used_sg, n_cells_g):
    for cell in range(len(rows)):
        for word in range(offsets[cell], offsets[cell + 1]):
            used_sg[rows[cell], gene_ids[word]] = True
            n_cells_g[gene_ids[word]] += 1
