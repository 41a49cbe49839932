"""Cells for a command: what its SOURCE argument means, read for work or kept whole for writing back."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cytoglot.data.genes.options import AS_NAMED, GeneOptions, read_gene_mapping
from cytoglot.errors import UnknownNameError

if TYPE_CHECKING:
    from anndata import AnnData

    from cytoglot.data.genes.vocabulary import Duplicates
    from cytoglot.data.readers.read import CellStream

logger = logging.getLogger(__name__)

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
    from cytoglot.data.readers.read import open_cells, stream_adata

    found = resolve_source(source)
    return (
        open_cells(found, layer=layer, **genes.keywords)
        if isinstance(found, Path)
        else stream_adata(found, layer=layer, **genes.keywords)
    )


def whole_file(source: str, *, layer: str | None, genes: GeneOptions) -> WholeFile:
    """Load a file as it is stored, every layer and column included, so that it can be written back with additions.

    10x output, and files of which a part cannot be read, come through `cytoglot.read`.

    Raises
    ------
    InputError
        The file is missing or damaged, or none of its matrices can be used.
    """
    from cytoglot.data.datasets import resolve_source
    from cytoglot.data.readers.formats import open_store
    from cytoglot.data.readers.read import read

    found = resolve_source(source)
    stored = partial(WholeFile, layer=layer, genes=genes)
    if not isinstance(found, Path):
        return stored(adata=found)
    with open_store(found) as store:
        stored_as_anndata = store.is_anndata
    if stored_as_anndata:
        try:
            return stored(adata=_as_stored(found))
        except (OSError, KeyError, TypeError, ValueError, NotImplementedError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            logger.warning("%s cannot be kept whole (%s): other layers are left out", found, reason)
    return WholeFile(adata=read(found, layer=layer, **genes.keywords), layer=None, genes=AS_NAMED)


def _as_stored(path: Path) -> AnnData:
    import anndata

    with warnings.catch_warnings():
        # about old formats, which are mended, and repeated gene names, which are resolved when the cells are ranked
        warnings.simplefilter("ignore")
        return anndata.read_zarr(path) if path.is_dir() else anndata.read_h5ad(path)
