"""Cells for a command: what its SOURCE argument means, read for work or kept whole for writing back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cytoglot.data.genes.options import AS_NAMED, GeneOptions, read_gene_mapping
from cytoglot.errors import UnknownNameError

if TYPE_CHECKING:
    from anndata import AnnData

    from cytoglot.data.genes.vocabulary import Duplicates
    from cytoglot.data.readers.stream import CellStream

Source = Annotated[str, typer.Argument(help="AnnData file, 10x file or folder, or the name of a data set.")]
GeneColumn = Annotated[
    str | None, typer.Option("--gene-column", help="Column of var with the gene names; var_names: as they stand.")
]
GeneMapping = Annotated[
    Path | None, typer.Option("--gene-mapping", help="TSV or CSV of two columns: name in the file, name wanted.")
]
DuplicateGenes = Annotated[
    str, typer.Option("--duplicates", help="Columns of the same gene: sum (of counts; else first), first or error.")
]

DUPLICATES = ("sum", "first", "error")


def gene_options(column: str | None, mapping: Path | None, duplicates: str) -> GeneOptions:
    """Read what `--gene-column`, `--gene-mapping` and `--duplicates` say.

    Raises
    ------
    InputError
        The mapping cannot be read.
    UnknownNameError
        There is no such policy for duplicates.
    """
    if duplicates not in DUPLICATES:
        raise UnknownNameError("policy for --duplicates", duplicates, DUPLICATES)
    return GeneOptions(
        column=column,
        mapping=None if mapping is None else read_gene_mapping(mapping),
        duplicates=cast("Duplicates", duplicates),
    )


@dataclass(frozen=True, kw_only=True)
class WholeFile:
    """The cells of a file to write back, and what is still to be said to read its matrix."""

    adata: AnnData
    layer: str | None
    genes: GeneOptions


def open_source(source: str, *, layer: str | None, genes: GeneOptions) -> CellStream:
    """Open the cells of a file or data set in chunks."""
    from cytoglot.data.datasets import resolve_source
    from cytoglot.data.readers.stream import open_cells

    return open_cells(resolve_source(source), layer=layer, **genes.keywords)


def whole_file(source: str, *, layer: str | None, genes: GeneOptions) -> WholeFile:
    """Load a file as it is stored, every layer and column included, so that it can be written back with additions.

    10x output comes through `cytoglot.read`.

    Raises
    ------
    InputError
        The file is missing or damaged, or none of its matrices can be used.
    """
    from cytoglot.data.datasets import resolve_source
    from cytoglot.data.readers.formats import open_store, readable
    from cytoglot.data.readers.read import read

    found = resolve_source(source)
    if not isinstance(found, Path):
        return WholeFile(adata=found, layer=layer, genes=genes)
    with open_store(found) as store, readable(found):
        if store.read_whole is not None:
            return WholeFile(adata=store.read_whole(), layer=layer, genes=genes)
    return WholeFile(adata=read(found, layer=layer, **genes.keywords), layer=None, genes=AS_NAMED)
