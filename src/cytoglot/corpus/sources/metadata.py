"""What a source says of its cells, in canonical fields: values tidied, missing ones filled in from the recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from cytoglot.corpus.sources.recipe import SourceRecipe
from cytoglot.data.schema import recognize_obs, tidied, value_texts
from cytoglot.errors import InputError, nearest_names

_PRIMARY = "is_primary_data"
_TRUE = frozenset({"true", "1", "1.0", "yes"})

#: Column of obs, first cell, last cell → the values of these cells, with the index 0, 1, …
ReadColumn = Callable[[str, int, int], pd.Series]


class CorpusSource(Protocol):
    """Cells of one source of a corpus, in a fixed order, read by spans. A context manager.

    Every error while reading is an `InputError` that begins with the name of the source. Cells are numbered from 0 to
    `n_cells`, those included that `kept` leaves out.
    """

    name: str
    path: str
    """the file or folder, or the address of a SOMA experiment"""
    n_cells: int
    n_values: int
    """stored values of all cells; an estimate where they would have to be read to be counted"""
    stamp: str
    """changes whenever the file is written to, cheaper to know than the fingerprint; "" where there is none"""
    symbols: tuple[str, ...]
    """harmonized, unique, in the order of the columns of the blocks"""
    messages: tuple[str, ...]
    """what was read and what was done about it"""
    is_counts: bool
    """whether the values are integer counts; their logs rank as well"""

    @property
    def fingerprint(self) -> str:
        """It changes with the content, not with the recipe (but for the query of Census)."""
        ...

    def metadata(self, first: int, last: int) -> pd.DataFrame:
        """Return the canonical fields of the cells `first:last`, as categoricals of text, NaN where unknown."""
        ...

    def cell_ids(self, first: int, last: int) -> NDArray[np.object_]:
        """Return the names of the cells `first:last` as the source has them."""
        ...

    def kept(self, first: int, last: int) -> NDArray[np.bool_]:
        """Return which of the cells `first:last` the recipe wants (primary data, `keep`)."""
        ...

    def blocks(self, first: int, last: int, chunk_cells: int) -> Iterator[sparse.csr_matrix]:
        """Yield the values of the cells `first:last`, `chunk_cells` at a time; columns follow `symbols`."""
        ...

    def close(self) -> None:
        """Close files and delete temporary ones."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Put the name of the source before the message of an `InputError` that comes from inside."""
    try:
        yield
    except InputError as error:
        start = f"source {source!r}: "
        if str(error).startswith(start):
            raise
        raise InputError(start + str(error)) from error


@dataclass(kw_only=True)
class CellFields:
    """The canonical fields of a table of cells and the cells that a recipe wants."""

    recipe: SourceRecipe
    columns: Mapping[str, str]
    """canonical field → column"""
    keep: Mapping[str, list[str]]
    """column → values"""
    primary: str | None
    """the column that marks primary data"""
    read: ReadColumn
    _tidied: dict[str, tuple[pd.Index, pd.Categorical]] = field(default_factory=dict)
    """field → categories as they were found, and the tidied value of each"""

    def metadata(self, first: int, last: int) -> pd.DataFrame:
        """Return the canonical fields of the cells `first:last`; see `CorpusSource`."""
        constants = {"organism": self.recipe.organism, **self.recipe.metadata}
        n_cells = last - first
        frame = {}
        for name in dict.fromkeys([*self.columns, *constants]):
            if name in self.columns:
                column = self.read(self.columns[name], first, last)
                if isinstance(column.dtype, pd.CategoricalDtype):
                    known = self._tidied.get(name)  # categories are tidied once, not for each span
                    if known is None or known[0] is not column.cat.categories:
                        known = (column.cat.categories, tidied(name, column.cat.categories))
                        self._tidied[name] = known
                    values = known[1].take(column.cat.codes.to_numpy(), allow_fill=True)
                else:
                    codes, found = pd.factorize(column)
                    values = tidied(name, found).take(codes, allow_fill=True)
            else:
                values = pd.Categorical([None] * n_cells)
            frame[name] = values if name not in constants else _filled(values, constants[name])
        return pd.DataFrame(frame, index=pd.RangeIndex(n_cells))

    def kept(self, first: int, last: int) -> NDArray[np.bool_]:
        """Return which of the cells `first:last` are wanted."""
        wanted = np.ones(last - first, dtype=bool)
        if self.primary is not None and self.recipe.primary_only:
            wanted &= _is_one_of(self.read(self.primary, first, last), _TRUE, lower=True)
        for column, values in self.keep.items():
            wanted &= _is_one_of(self.read(column, first, last), frozenset(values))
        return wanted


def cell_fields(recipe: SourceRecipe, columns: Sequence[str], read: ReadColumn) -> CellFields:
    """Decide which column of a table is which field.

    Fields are recognized by the names of the columns; `columns` of the recipe come first. `keep` names columns of the
    table or canonical fields.

    Raises
    ------
    InputError
        The recipe names a column that the table lacks, or wants a value that a categorical column never has.
    """
    found = recognize_obs(pd.DataFrame(columns=list(columns)))
    for name, column in recipe.columns.items():
        if column not in columns:
            raise InputError(_absent(f"columns: {name}", column, columns))
        found[name] = column
    keep = {}
    for column, values in recipe.keep.items():
        real = column if column in columns else found.get(column)
        if real is None:
            raise InputError(_absent("keep", column, columns))
        sample = read(real, 0, 0)
        if isinstance(sample.dtype, pd.CategoricalDtype):  # others would have to be read to tell
            known = value_texts(sample.cat.categories)
            for value in values:
                if value not in known:
                    near = nearest_names(value, known)
                    raise InputError(f"keep wants {real} {value!r}, which no cell has; {near}")
        keep[real] = values
    primary = next((c for c in columns if c.lower() == _PRIMARY), None)
    return CellFields(recipe=recipe, columns=found, keep=keep, primary=primary, read=read)


def _absent(what: str, column: str, columns: Sequence[str]) -> str:
    listed = ", ".join(repr(c) for c in columns[:20]) or "none"
    near = nearest_names(column, columns)
    return f"{what} names the column {column!r}, which obs lacks; its columns are {listed} ({near})"


def _filled(values: pd.Categorical, constant: str) -> pd.Categorical:
    if constant not in values.categories:
        values = values.add_categories([constant])
    code = values.categories.tolist().index(constant)
    return pd.Categorical.from_codes(np.where(values.codes < 0, code, values.codes), categories=values.categories)


def _is_one_of(values: pd.Series, wanted: frozenset[str], *, lower: bool = False) -> NDArray[np.bool_]:
    codes, found = pd.factorize(values)
    texts = value_texts(found)
    if pd.api.types.is_float_dtype(found.dtype):  # a recipe may name 1.0 as the column has it, whose text is 1
        wanted = wanted | {value.removesuffix(".0") for value in wanted}
    is_wanted = np.array([(text.lower() if lower else text) in wanted for text in texts] + [False], dtype=bool)
    return is_wanted[codes]  # −1, a missing value, is the last
