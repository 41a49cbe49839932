"""The cells of a file as they are stored, kept whole for writing them back with additions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cytoglot.data.genes.options import AS_NAMED, GeneOptions

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True, kw_only=True)
class WholeFile:
    """The cells of a file to write back, and what is still to be said to read its matrix."""

    adata: AnnData
    layer: str | None
    genes: GeneOptions


def whole_file(source: str | Path, *, layer: str | None, genes: GeneOptions) -> WholeFile:
    """Load a file as it is stored, every layer and column included, so that it can be written back with additions.

    10x output comes through `cytoglot.read`.

    Raises
    ------
    InputError
        The file is missing or damaged, or none of its matrices can be used.
    """
    from cytoglot.data.datasets import resolve_source  # what commands import must be light
    from cytoglot.data.readers.formats import open_store, readable
    from cytoglot.data.readers.read import read

    found = resolve_source(source)
    if not isinstance(found, Path):
        return WholeFile(adata=found, layer=layer, genes=genes)
    with open_store(found) as store, readable(found):
        if store.read_whole is not None:
            return WholeFile(adata=store.read_whole(), layer=layer, genes=genes)
    return WholeFile(adata=read(found, layer=layer, **genes.keywords), layer=None, genes=AS_NAMED)
