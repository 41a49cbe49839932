"""Vectors that are there already: of `obsm`, of a file, or of an embedder whose vectors do not depend on the fold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cytoglot.benchmark.embedders.base import EMBEDDERS, checked_vectors
from cytoglot.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData


class Precomputed:
    """The vector of each cell, looked up by the name of the cell.

    Parameters
    ----------
    names, vectors_nd
        Names of cells, all different, and their vectors.
    source
        Where they come from, for messages.
    sees_all_cells
        Whether they were computed from the test cells too.

    Raises
    ------
    InputError
        Names repeat.
    CytoglotError
        A vector holds NaN, or their number is not that of the names.
    """

    def __init__(
        self,
        names: pd.Index | NDArray[np.object_],
        vectors_nd: NDArray[np.floating],
        *,
        source: str,
        sees_all_cells: bool = False,
    ) -> None:
        self._names, self._source, self.sees_all_cells = pd.Index(names).astype(str), source, sees_all_cells
        if not self._names.is_unique:
            repeated = self._names[self._names.duplicated()]
            raise InputError(f"{source} has {len(repeated)} cells twice, such as {str(repeated[0])!r}")
        self._vectors_nd = checked_vectors(vectors_nd, len(self._names), name=source)

    def embed(self, adata: AnnData) -> NDArray[np.float32]:
        """Return float32 of shape (n_cells, d); an InputError where a cell has no vector."""
        rows = self._names.get_indexer(adata.obs_names.astype(str))
        if (rows < 0).any():
            raise InputError(
                f"{self._source} has no vector for {int((rows < 0).sum())} of {adata.n_obs} cells, such as "
                f"{str(adata.obs_names[rows < 0][0])!r}; its cells have names such as {str(self._names[0])!r}"
            )
        return self._vectors_nd[rows]


@EMBEDDERS.register("file")
class VectorFile:
    """Vectors of cells from a Parquet file, found by the name of the cell, in whatever order they are.

    Parameters
    ----------
    path
        Written by `cytoglot embed -o FILE.parquet` or by any tool: names in a column `cell_id` or in the index, numbers
        in all other columns, or one column of lists.
    seed
        Not used; every embedder has one.
    """

    def __init__(self, *, path: str | Path, seed: int = 0) -> None:
        if not Path(path).is_file():
            raise InputError(f"the file of vectors {path} does not exist; pass a Parquet file")
        frame = pd.read_parquet(path)
        named = next((column for column in ("cell_id", "cell", "index") if column in frame), None)
        frame = frame if named is None else frame.set_index(named)
        lists = [column for column in frame if len(frame) and isinstance(frame[column].iloc[0], (list, np.ndarray))]
        vectors_nd = np.stack(frame[lists[0]].to_list()) if lists else frame.select_dtypes("number").to_numpy()
        self._found = Precomputed(frame.index, vectors_nd, source=str(path))

    def embed(self, adata: AnnData) -> NDArray[np.float32]:
        """Return float32 of shape (n_cells, d); an InputError where a cell has no vector."""
        return self._found.embed(adata)


@EMBEDDERS.register("obsm")
class ObsmVectors:
    """A matrix of `obsm` of the cells themselves; how it came there is not known, so it may have seen all cells.

    Parameters
    ----------
    key
        Its name.
    seed
        Not used; every embedder has one.
    """

    sees_all_cells = True

    def __init__(self, *, key: str, seed: int = 0) -> None:
        self.key = key

    def embed(self, adata: AnnData) -> NDArray[np.float32]:
        """Return float32 of shape (n_cells, d); an InputError without such a matrix."""
        if self.key not in adata.obsm:
            known = ", ".join(map(repr, adata.obsm)) or "none"
            raise InputError(f"there is no obsm[{self.key!r}]; these cells have {known}")
        return checked_vectors(np.asarray(adata.obsm[self.key]), adata.n_obs, name=f"obsm[{self.key!r}]")

    def fit(self, train: AnnData) -> Self:
        """Check that the matrix is there."""
        self.embed(train)
        return self
