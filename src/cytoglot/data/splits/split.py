"""Which cell is for training, validation or test, stored by cell id and, where it is known, by content."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cytoglot.data.splits.assignment import PARTS, Part
from cytoglot.data.splits.content import CellContent
from cytoglot.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which cell belongs to which part. The ids of each part are kept in sorted order.

    Raises
    ------
    InputError
        A cell is in two parts or twice in one, or there is no training cell.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    by: str
    """"cell" or the column whose groups were kept whole"""
    seed: int
    fractions: tuple[float, float, float]
    """asked for; what whole groups allow is in the parts themselves"""
    warnings: tuple[str, ...] = ()
    content: CellContent | None = None
    """what each cell holds, in the order of `ids`; None in the splits of models written before it was kept"""

    def __post_init__(self) -> None:
        for part in PARTS:
            object.__setattr__(self, part, tuple(sorted(getattr(self, part))))
        if len(self.ids) != len(self._part_of_cell):
            twice = sorted(name for name, n in Counter(self.ids).items() if n > 1)
            raise InputError(
                f"the parts of a split must be disjoint; {len(twice)} cells occur twice, first {twice[0]!r}"
            )
        if not self.train:
            raise InputError("a split needs at least one training cell, found none")
        if self.content is not None and len(self.content) != len(self.ids):
            raise InputError(f"expected the content of {len(self.ids)} cells of a split, found {len(self.content)}")

    @cached_property
    def _part_of_cell(self) -> dict[str, Part]:
        return {cell: part for part in PARTS for cell in self.cells(part)}

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all cells: those of training cells, then validation and test, each sorted."""
        return (*self.train, *self.validation, *self.test)

    def cells(self, part: Part) -> tuple[str, ...]:
        """Return the cell ids of one part, sorted."""
        ids: tuple[str, ...] = getattr(self, part)
        return ids

    def part_of(self, obs_names: Sequence[str] | pd.Index) -> NDArray[np.object_]:
        """Return the part of each cell, "" for a cell that the split does not know."""
        return np.array([self._part_of_cell.get(str(name), "") for name in obs_names], dtype=object)

    def mask(self, obs_names: Sequence[str] | pd.Index, part: Part) -> NDArray[np.bool_]:
        """Return which of the cells are in `part`; a cell that the split does not know is in none."""
        return np.asarray(self.part_of(obs_names) == part, dtype=bool)

    def check_complete(self, obs_names: Sequence[str] | pd.Index) -> None:
        """Raise `InputError` unless the split holds exactly these cells."""
        names = {str(name) for name in obs_names}
        absent, foreign = names - self._part_of_cell.keys(), self._part_of_cell.keys() - names
        if absent or foreign:
            raise InputError(
                f"the split must hold exactly the {len(names)} cells given, but {len(absent)} of them are not in it "
                f"and {len(foreign)} of its cells are not among them; split these cells anew"
            )

    def with_content(self, obs_names: Sequence[str] | pd.Index, content: CellContent) -> Split:
        """Return the split with the content of its cells; `content` is that of the cells `obs_names`.

        The content of a cell that is not among them stays unknown: its name alone will tell it.
        """
        rows = pd.Index(obs_names).astype(str).get_indexer(pd.Index(self.ids))
        return replace(self, content=content.take(rows))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "content"}
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        return plain if self.content is None else {**plain, "content": self.content.to_dict()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Split:
        """Read what `to_dict` wrote.

        Raises
        ------
        InputError
            A key is missing or unknown, or the parts overlap.
        """
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}
        try:
            if values.get("content") is not None:
                values["content"] = CellContent.from_dict(values["content"])
            return cls(**values)
        except (TypeError, KeyError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"not a stored split: {str(error).removeprefix('Split.__init__() ')}") from error
