"""A file of cells as a source of a corpus. Memory does not grow with the number of cells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from cytoglot.corpus.sources.genes import GeneTables, find_file, renamed
from cytoglot.corpus.sources.metadata import cell_fields, naming
from cytoglot.corpus.sources.recipe import SourceRecipe
from cytoglot.data.genes.options import GeneOptions, read_gene_mapping
from cytoglot.data.readers.cell_rows import cell_rows
from cytoglot.data.readers.formats import CellStore, open_store, readable
from cytoglot.data.readers.matrix_choice import select
from cytoglot.data.readers.obs_table import CellNames
from cytoglot.data.readers.stream import CellStream
from cytoglot.manifest import file_stamp, fingerprint_file


class FileSource:
    """An open file of cells; see `CorpusSource`."""

    def __init__(self, recipe: SourceRecipe, *, path: Path, tables: GeneTables, base: Path) -> None:
        """Open the file, choose its matrix and read its gene names.

        Raises
        ------
        InputError
            The file cannot be read as cells, its genes are of another namespace, or the recipe names a column or
            value that it lacks. The message begins with the name of the source.
        """
        self.name, self.path = recipe.label, str(path)
        with naming(self.name):
            self._store = open_store(path)
            try:
                with readable(path):
                    self._fields = cell_fields(recipe, self._store.cells.columns, self._column)
                    self._stream, self.messages = _open_stream(self._store, recipe, tables, base)
                    self.n_values = self._stream.n_values
                    self.stamp = file_stamp(path)  # before the content is read: an edit after it is noticed
            except BaseException:
                self._store.close()
                raise
            self.n_cells = self._stream.n_cells
            self.symbols = self._stream.vocabulary.symbols
            self.is_counts = self._stream.state.kind == "counts"

    @cached_property
    def fingerprint(self) -> str:
        """Of all bytes of the file; computed when it is first asked for."""
        with naming(self.name), readable(Path(self.path)):
            return fingerprint_file(self.path)

    def metadata(self, first: int, last: int) -> pd.DataFrame:
        """Read the canonical fields of the cells `first:last`."""
        with naming(self.name):
            return self._fields.metadata(first, min(last, self.n_cells))

    def cell_ids(self, first: int, last: int) -> NDArray[np.object_]:
        """Read the names of the cells `first:last`."""
        with naming(self.name), readable(Path(self.path)):
            return self._store.cells.names(first, min(last, self.n_cells))

    def kept(self, first: int, last: int) -> NDArray[np.bool_]:
        """Read which of the cells `first:last` the recipe wants."""
        with naming(self.name):
            return self._fields.kept(first, min(last, self.n_cells))

    def blocks(self, first: int, last: int, chunk_cells: int) -> Iterator[sparse.csr_matrix]:
        """Yield the values of the cells `first:last`, `chunk_cells` at a time; they must not be changed."""
        with naming(self.name):
            for _, block in self._stream.chunks(chunk_cells, first_cell=first, last_cell=last):
                yield block
                del block

    def close(self) -> None:
        """Close the file and delete temporary files."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _column(self, name: str, first: int, last: int) -> pd.Series:
        with readable(Path(self.path)):
            return self._store.cells.column(name, first, last)


def _open_stream(
    store: CellStore, recipe: SourceRecipe, tables: GeneTables, base: Path
) -> tuple[CellStream, tuple[str, ...]]:
    """The cells over harmonized genes, and what was done."""
    mapping = None if recipe.gene_mapping is None else read_gene_mapping(find_file(recipe.gene_mapping, base))
    options = GeneOptions(column=recipe.gene_column, mapping=mapping)
    selection = select(store.candidates, CellNames(store.cells), layer=recipe.layer, genes=options)
    harmonized = tables.harmonized(selection.genes.vocabulary.symbols, organism=recipe.organism)
    genes = renamed(selection.genes, harmonized, can_sum=selection.state.kind == "counts")
    rows = cell_rows(selection.candidate.matrix)
    return CellStream(store, rows, replace(selection, genes=genes)), (selection.message, *harmonized.report.messages())
