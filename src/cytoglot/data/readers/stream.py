"""Cells in chunks: the same matrix, genes and state as `read` gives, with memory bounded by the chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from cytoglot.data.genes.options import GeneOptions
from cytoglot.data.genes.vocabulary import Duplicates, GeneVocabulary, ResolvedGenes, collapse_columns
from cytoglot.data.normalize import MatrixState, check_values
from cytoglot.data.readers.cell_rows import CellRows, cell_rows, cells_per_block
from cytoglot.data.readers.formats import CellStore, readable, store_for
from cytoglot.data.readers.matrix_choice import Selection, check_cell_names, select
from cytoglot.data.readers.obs_table import CellNames, MemoryObs, ObsTable
from cytoglot.errors import InputError


class CellStream:
    """Cells of a file or an AnnData, handed out in order as CSR chunks over one vocabulary. A context manager.

    Only `obs`, the gene names and one chunk are in memory, whatever the size of the file; `obs` too stays on disk where
    the stream was made from a table on disk and nobody asks for it. Files stored by cells (CSR, dense, 10x HDF5) are
    read once. CSC files and matrix.mtx are sorted by cell into temporary files first: one more pass, and about three
    times the bytes of their values on disk until `close`.
    """

    def __init__(self, store: CellStore, rows: CellRows, selection: Selection) -> None:
        self.cells: ObsTable = store.cells
        self.genes: ResolvedGenes = selection.genes
        self.state: MatrixState = selection.state
        self.source: str = selection.candidate.source
        self.message = selection.message
        self.path = store.path
        self._store, self._rows = store, rows

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.cells.n_cells

    @property
    def n_values(self) -> int:
        """Number of stored values of the file's matrix, columns that are dropped included; an estimate if dense."""
        return self._rows.n_values

    @property
    def cells_per_block(self) -> int:
        """Cells that are best read at once: few where they express many genes, 8,192 at most."""
        return cells_per_block(self._rows)

    @cached_property
    def cell_ids(self) -> NDArray[np.object_]:
        """Names of all cells as str, shape (n,)."""
        with readable(self.path):
            return self.cells.names(0, self.n_cells)

    @property
    def obs(self) -> pd.DataFrame:
        """The whole table of cells; a stream that was opened without it reads it when it is first looked at."""
        return self._store.obs

    @property
    def vocabulary(self) -> GeneVocabulary:
        """Genes of the chunks' columns, in order."""
        return self.genes.vocabulary

    def chunks(
        self,
        chunk_cells: int = 4096,
        *,
        first_cell: int = 0,
        last_cell: int | None = None,
        checked: bool = True,
    ) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        """Yield positions and values of `chunk_cells` cells at a time, of `first_cell:last_cell`.

        The last chunk may be shorter.

        Columns follow `vocabulary`; duplicated columns are summed or dropped as `genes.report` says. The chunk may
        share the memory of an AnnData and must not be changed. `checked=False` is for a reader that finds faulty values
        and repeated columns itself, as the ranking does: a chunk then comes as it is stored where no column moves.

        Raises
        ------
        InputError
            A value is NaN, infinite or negative (cell and gene are named), or the file is damaged there.
        """
        if chunk_cells < 1:
            raise InputError(f"expected chunk_cells of at least 1, found {chunk_cells}")
        names = np.array([*self.vocabulary.symbols, "(dropped column)"], dtype=object)
        gene_names, is_identity = list(names[self.genes.column_gene]), self.genes.is_identity  # −1 is the last
        last_cell = self.n_cells if last_cell is None else min(last_cell, self.n_cells)
        for start in range(first_cell, last_cell, chunk_cells):
            cells = slice(start, min(start + chunk_cells, last_cell))
            with readable(self.path):
                block = self._rows.rows(cells.start, cells.stop)
            if checked:
                cell_names = CellNames(self.cells, cells.start, cells.stop)
                check_values(block, cell_names=cell_names, gene_names=gene_names, what=self.source)
            if checked or not is_identity:
                block = collapse_columns(block, self.genes.column_gene, len(self.vocabulary))
            yield cells, block
            del block  # else two chunks are in memory while the next is read

    def close(self) -> None:
        """Close the file and delete temporary files; the stream cannot be read afterwards."""
        self._rows.close()
        self._store.close()

    def __enter__(self) -> CellStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_cells(
    source: AnnData | str | Path,
    *,
    layer: str | None = None,
    gene_column: str | None = None,
    gene_mapping: Mapping[str, str] | None = None,
    duplicates: Duplicates = "sum",
    spill_folder: str | Path | None = None,
) -> CellStream:
    """Open a file of cells, or an AnnData in memory, backed or of dask arrays, for reading in chunks.

    Matrix and genes are chosen as by `read`. The state is tested on up to 2,048 cells in evenly spaced runs, and every
    chunk is checked for NaN, infinite and negative values as it comes. An AnnData is not changed. Temporary files (CSC
    and matrix.mtx alone) go to `spill_folder`.

    Raises
    ------
    InputError
        As for `read`.
    """
    folder = None if spill_folder is None else Path(spill_folder)
    store = store_for(source, spill_folder=folder)
    try:
        with readable(store.path):
            check_cell_names(store.obs)
            genes = GeneOptions(column=gene_column, mapping=gene_mapping, duplicates=duplicates)
            selection = select(store.candidates, store.obs.index, layer=layer, genes=genes)
            rows = cell_rows(selection.candidate.matrix, spill_folder=folder)
    except BaseException:
        store.close()
        raise
    # the table has been read, to compare the names of the cells: it is not read again
    return CellStream(replace(store, cells=MemoryObs(store.obs)), rows, selection)
