"""The table of cells, read by columns and spans: what a file of millions of cells says of a few thousand of them.

Names of cells are strings, and two million of them are more memory than any matrix chunk; so nothing is read before it
is asked for, and nothing but the categories of a column is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, overload

import anndata
import h5py
import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray

from cytoglot.errors import InputError


class ObsTable(Protocol):
    """Columns and names of n cells."""

    n_cells: int
    columns: tuple[str, ...]

    def names(self, first: int, last: int) -> NDArray[np.object_]:
        """Return the names of the cells `first:last` as str."""
        ...

    def column(self, name: str, first: int, last: int) -> pd.Series:
        """Return the values of a column for the cells `first:last`, with the index 0, 1, …; KeyError if there is none.

        A categorical column comes with all of its categories.
        """
        ...

    def frame(self) -> pd.DataFrame:
        """Return the whole table."""
        ...


class MemoryObs:
    """A table that is in memory."""

    def __init__(self, obs: pd.DataFrame) -> None:
        self._obs = obs
        self.n_cells = len(obs)
        self.columns = tuple(str(column) for column in obs.columns)

    def names(self, first: int, last: int) -> NDArray[np.object_]:
        """Return the names of the cells `first:last` as str."""
        return np.array([str(name) for name in self._obs.index[first:last]], dtype=object)

    def column(self, name: str, first: int, last: int) -> pd.Series:
        """Return the values of a column for the cells `first:last`; of two columns of one name the first."""
        if name not in self.columns:
            raise KeyError(name)
        return self._obs.iloc[first:last, self.columns.index(name)].reset_index(drop=True)

    def frame(self) -> pd.DataFrame:
        """Return the table itself."""
        return self._obs


class GroupObs:
    """The table of an AnnData on disk: a group of HDF5 or zarr."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self._index = group[group.attrs["_index"]]
        self.n_cells = _length(self._index)
        self.columns = tuple(str(column) for column in group.attrs["column-order"])
        self._categories: dict[str, pd.Index] = {}
        for column in self.columns:
            n = _length(group[column])
            if n != self.n_cells:
                raise InputError(
                    f"obs does not fit together: {self.n_cells} cells, but column {column!r} has {n} values"
                )

    def names(self, first: int, last: int) -> NDArray[np.object_]:
        """Read the names of the cells `first:last`."""
        return _texts(_slice(self._index, first, last))

    def column(self, name: str, first: int, last: int) -> pd.Series:
        """Read the values of a column for the cells `first:last`."""
        element = self._group[name]
        if element.attrs.get("encoding-type") == "categorical":
            codes = np.asarray(element["codes"][first:last])
            if name not in self._categories:
                self._categories[name] = pd.Index(np.asarray(anndata.io.read_elem(element["categories"])))
            categories = self._categories[name]
            if codes.size and not (codes.min() >= -1 and codes.max() < len(categories)):
                raise InputError(
                    f"obs[{name!r}] is damaged: expected codes from -1 to {len(categories) - 1}, found {codes.min()} "
                    f"to {codes.max()}; write or download the file again"
                )
            return pd.Series(pd.Categorical.from_codes(codes, categories=categories))
        return pd.Series(_slice(element, first, last))

    def frame(self) -> pd.DataFrame:
        """Read the whole table."""
        return anndata.io.read_elem(self._group)


def is_by_columns(group: Any) -> bool:
    """Whether `GroupObs` can read a group: a data frame as anndata has written it since 0.8."""
    return (
        group.attrs.get("encoding-type") == "dataframe"
        and str(group.attrs.get("encoding-version")) == "0.2.0"
        and "_index" in group.attrs
        and "column-order" in group.attrs
    )


class CellNames(Sequence[str]):
    """Names of the cells `first:last` of a table, read when they are looked at; a block is kept for the next look."""

    _BLOCK = 256

    def __init__(self, table: ObsTable, first: int = 0, last: int | None = None) -> None:
        self._table, self._first = table, first
        self._last = table.n_cells if last is None else last
        self._block: tuple[int, NDArray[np.object_]] = (-1, np.empty(0, dtype=object))

    def __len__(self) -> int:
        return self._last - self._first

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        number, offset = divmod(self._first + at % len(self), self._BLOCK)
        if self._block[0] != number:
            start = number * self._BLOCK
            self._block = (number, self._table.names(start, min(start + self._BLOCK, self._table.n_cells)))
        return str(self._block[1][offset])


def _length(element: Any) -> int:
    if not isinstance(element, h5py.Group | zarr.Group):
        return int(element.shape[0])
    part = next((name for name in ("codes", "values") if name in element), None)
    # encodings that are not known here are read whole, and their length is that of the frame
    return int(element[part].shape[0]) if part is not None else len(anndata.io.read_elem(element))


def _slice(element: Any, first: int, last: int) -> Any:
    """Values of a plain or nullable array as a pandas object or numpy array; missing are NA."""
    if not isinstance(element, h5py.Group | zarr.Group):
        array = np.asarray(element[first:last])
        return array if array.dtype.kind in "biuf" else _texts(array)
    if "values" in element and "mask" in element:
        values = pd.Series(_slice(element["values"], first, last)).astype(object)
        return values.mask(np.asarray(element["mask"][first:last], dtype=bool))
    return pd.Series(anndata.io.read_elem(element)[first:last]).reset_index(drop=True)


def _texts(values: Any) -> NDArray[np.object_]:
    decoded = [value.decode() if isinstance(value, bytes) else str(value) for value in np.asarray(values).tolist()]
    texts = np.empty(len(decoded), dtype=object)
    texts[:] = decoded
    return texts
