"""Which other cells a cell is related to: the control of a treated cell, the neighbors of a cell in a tissue.

Axes: n cells, m pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from cytoglot.errors import InputError, nearest_names

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True)
class Relation:
    """For each cell the ids of others, the heaviest first; those of cell i are at `offsets[i]` to `offsets[i + 1]`."""

    offsets: NDArray[np.int64]
    """(n + 1,)"""
    cell_ids: NDArray[np.object_]
    """(m,)"""
    weights: NDArray[np.float32]
    """(m,) the larger, the closer"""

    def __len__(self) -> int:
        return len(self.offsets) - 1


def relation_of_lists(others: Sequence[Sequence[str]], weights: Sequence[Sequence[float]] | None = None) -> Relation:
    """Return a relation from the ids of each cell's others; without weights their order is their rank."""
    given = [[1 / rank for rank in range(1, len(ids) + 1)] for ids in others] if weights is None else weights
    order = [sorted(range(len(ids)), key=lambda i, w=w: -w[i]) for ids, w in zip(others, given, strict=True)]  # type: ignore[misc]
    return Relation(
        _offsets([len(ids) for ids in others]),
        np.array([ids[i] for ids, places in zip(others, order, strict=True) for i in places], dtype=object),
        np.array([w[i] for w, places in zip(given, order, strict=True) for i in places], dtype=np.float32),
    )


def read_relations(adata: AnnData, names: Iterable[str]) -> dict[str, Relation]:
    """Return the named relations of an AnnData; those that it does not have are left out.

    A relation is a matrix in `obsp`, whose entry (i, j) is the weight of cell j for cell i and 0 for none; or a column
    of `obs` with the name of one other cell, empty for none.

    Raises
    ------
    InputError
        A column names a cell that is not there, or the names of the cells are not unique.
    """
    found = {}
    for name in names:
        if name in adata.obsp:
            entries, ids = sp.csr_matrix(adata.obsp[name]).tocoo(), adata.obs_names.astype(str).to_numpy(object)
            stays = (entries.data > 0) & (entries.row != entries.col)
            row, column, weight = entries.row[stays], entries.col[stays], entries.data[stays]
            order = np.lexsort((column, -weight, row))
            found[name] = Relation(
                _offsets(np.bincount(row, minlength=len(ids))), ids[column[order]], weight[order].astype(np.float32)
            )
        elif name in adata.obs.columns:
            found[name] = _of_column(adata, name)
    if found and not adata.obs_names.is_unique:
        raise InputError(
            f"expected cells with names of their own where {' and '.join(found)} relates them, found repeated names; "
            "call adata.obs_names_make_unique() before the relation is made"
        )
    return found


def _of_column(adata: AnnData, name: str) -> Relation:
    values = adata.obs[name]
    is_there = (values.notna() & (values.astype(object).astype(str).str.strip() != "")).to_numpy(bool)
    ids = values[is_there].astype(str).to_numpy(object)
    absent = [cell for cell in ids.tolist() if cell not in adata.obs_names]
    if absent:
        raise InputError(
            f"obs[{name!r}] must name other cells of the data, found {absent[0]!r}, which is none of them "
            f"({nearest_names(absent[0], adata.obs_names[:1000].astype(str))}); leave it empty where there is none"
        )
    return Relation(_offsets(is_there), ids, np.ones(len(ids), np.float32))


def _offsets(n_others: ArrayLike) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(n_others)]).astype(np.int64)
