"""AnnData → h5ad, the same way for every verb and command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cytoglot.atomic import atomic_path

if TYPE_CHECKING:
    from anndata import AnnData


def write_h5ad(adata: AnnData, output: str | Path) -> None:
    """Write a compressed h5ad, atomically."""
    with atomic_path(output) as path:
        fill_h5ad(adata, path)


def fill_h5ad(adata: AnnData, path: Path) -> None:
    """Write a compressed h5ad at a path that is given its name later."""
    import anndata

    # Nullable texts come from files that hold them, so whoever reads the result can read them.
    with anndata.settings.override(allow_write_nullable_strings=True):
        adata.write_h5ad(path, compression="gzip")
