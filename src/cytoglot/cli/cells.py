"""Cells for a command: what its SOURCE argument means, read for work or kept whole for writing back."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from anndata import AnnData

    from cytoglot.data.read import CellStream

logger = logging.getLogger(__name__)

Source = Annotated[str, typer.Argument(help="AnnData file, 10x file or folder, or the name of a data set.")]


def open_source(source: str, *, layer: str | None) -> CellStream:
    """Open the cells of a file or data set in chunks."""
    from cytoglot.data.datasets import resolve_source
    from cytoglot.data.read import open_cells, stream_adata

    found = resolve_source(source)
    return open_cells(found, layer=layer) if isinstance(found, Path) else stream_adata(found, layer=layer)


def whole_file(source: str, *, layer: str | None) -> AnnData:
    """Load a file as it is stored, every layer and column included, so that it can be written back with additions.

    10x output, and files of which a part cannot be read, come through `cytoglot.read`.

    Raises
    ------
    InputError
        The file is missing or damaged, or none of its matrices can be used.
    """
    from cytoglot.data.datasets import resolve_source
    from cytoglot.data.formats import open_store
    from cytoglot.data.read import read

    found = resolve_source(source)
    if not isinstance(found, Path):
        return found
    with open_store(found) as store:
        stored_as_anndata = store.is_anndata
    if not stored_as_anndata:
        return read(found, layer=layer)
    try:
        return _as_stored(found)
    except (OSError, KeyError, TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        logger.warning("%s cannot be kept whole (%s): other layers are left out", found, " ".join(str(error).split()))
        return read(found, layer=layer)


def _as_stored(path: Path) -> AnnData:
    import anndata

    with warnings.catch_warnings():
        # about old formats, which are mended, and repeated gene names, which are resolved when the cells are ranked
        warnings.simplefilter("ignore")
        return anndata.read_zarr(path) if path.is_dir() else anndata.read_h5ad(path)
