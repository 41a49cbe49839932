"""Where the records of a unit come from: rows of cells, with what relates them to other cells, or rows of a table.

A unit is what a task asks about. A new one is a `Record` and a source that is registered; whatever reads a corpus or a
file finds both by the name of the unit.
"""

from __future__ import annotations

import pkgutil
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from cytoglot.registry import Registry
from cytoglot.tasks.record import CellGroup, CellRecord, CellTypeTerm, GeneSet, Record

TWO_32 = 2.0**32
_LOW_64 = (1 << 64) - 1


class Draws:
    """The random choices of one example, each by its name: a hash of the key and the name, and of nothing else.

    So a choice depends neither on the order of reading nor on which other choices there are. Called with a name it
    returns a number below 2³²; any two names are independent of each other.
    """

    __slots__ = ("_factor", "_offset")

    def __init__(self, *key: object) -> None:
        text = "\0".join(map(str, key)).encode()
        self._factor, self._offset = struct.unpack("<QQ", blake2b(text, digest_size=16).digest())

    def __call__(self, *name: str) -> int:
        """Return a number below 2³² that belongs to this name."""
        # Multiply and add modulo 2⁶⁴, of which the upper half is kept: a tenth of the time of a hash for each name.
        return ((self._factor * _odd_number(name) + self._offset) & _LOW_64) >> 32

    def happens(self, probability: float, *name: str) -> bool:
        """Return whether something of this probability happens."""
        return self(*name) < probability * TWO_32

    def rng(self, name: str) -> np.random.Generator:
        """Return a generator of random numbers that belongs to this name."""
        return np.random.default_rng([self._factor, self._offset, zlib.crc32(name.encode())])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Draws) and (self._factor, self._offset) == (other._factor, other._offset)

    def __hash__(self) -> int:
        return hash((self._factor, self._offset))


@lru_cache(maxsize=1 << 12)
def _odd_number(name: tuple[str, ...]) -> int:
    return int.from_bytes(blake2b("\0".join(name).encode(), digest_size=8).digest(), "little") | 1


class Cells(Protocol):
    """Some cells that records are made of: those of a row group of a corpus, or of a file. Axis: n cells."""

    def __len__(self) -> int: ...

    @property
    def group(self) -> NDArray[np.integer]:
        """(n,) number of the cell group, −1 for none; the cells of a group are neighbors."""
        ...

    @property
    def n_genes(self) -> NDArray[np.integer]:
        """(n,) genes of each cell."""
        ...

    def cell(self, row: int, draws: Draws, *, top_genes: int | None = None) -> CellRecord:
        """Return a cell, with `top_genes` genes at most and what is known of its metadata."""
        ...

    def abstract(self, row: int) -> str:
        """Return the abstract of the study that a cell is from; empty if it has none."""
        ...

    def related(self, relation: str, row: int, draws: Draws, *, top_genes: int | None = None) -> tuple[CellRecord, ...]:
        """Return the cells that a relation leads to from this one, the heaviest first; those that are not here lack."""
        ...

    def rows_with(self, relation: str) -> NDArray[np.int64]:
        """Return the rows of the cells that have related ones, rising."""
        ...


class RecordSource(ABC):
    """How the records of a unit are read."""

    unit: ClassVar[str]
    """name of what a record is, such as "cell" or "gene_set": what `Task.unit` says"""
    is_of_cells: ClassVar[bool]
    """whether its records are made of cells, else of the rows of a table"""

    @property
    def words(self) -> str:
        """The unit in words."""
        return self.unit.replace("_", " ")


class CellsSource(RecordSource):
    """Records that are made of cells: each belongs to a row, by which it is counted, planned and visited."""

    is_of_cells = True
    relation: ClassVar[str | None] = None
    """the relation that leads to the other cells of a record; in a corpus a table of each shard, in an AnnData a matrix
    in `obsp` or a column of `obs` with the name of one other cell"""

    def rows(self, cells: Cells) -> NDArray[np.int64]:
        """Return the row that each record belongs to, rising."""
        assert self.relation is not None, f"{type(self).__name__} needs a relation or rows of its own"
        return cells.rows_with(self.relation)

    @property
    def counted_as(self) -> str:
        """What a corpus has counted where its records are counted: cells, cell groups or a relation."""
        assert self.relation is not None
        return self.relation

    @abstractmethod
    def record(self, cells: Cells, row: int, draws: Draws, *, top_genes: int | None = None) -> Record:
        """Return the record of a row, with `top_genes` genes in each of its cells at most."""

    def lengths(self, cells: Cells, row: int) -> Sequence[int]:
        """Return the genes of each cell of a record, as far as that is known before it is made."""
        return [int(cells.n_genes[row])]


class TableSource(RecordSource):
    """Records that are rows of a table of the corpus."""

    is_of_cells = False
    table: ClassVar[str]
    """name of the file in the corpus, without `.parquet`; it has a column `part`"""
    kind: ClassVar[type[Record]]
    """what its records are"""
    columns: ClassVar[tuple[str, ...]]
    """fields of a record that are kept, texts or sequences of texts, in the order of the columns"""

    def record(self, row: Mapping[str, Any]) -> Record:
        """Return the record of a row."""
        given = {name: row[name] for name in self.columns}
        values: dict[str, Any] = {name: v if isinstance(v, str) else tuple(v) for name, v in given.items()}
        return self.kind(**values)

    def row(self, record: Any) -> dict[str, Any]:
        """Return the row of a record."""
        values = {name: getattr(record, name) for name in self.columns}
        return {name: v if isinstance(v, str) else list(v) for name, v in values.items()}


def modules_of_tasks() -> tuple[str, ...]:
    """Return every module beside this one: a new file is a new task or a new unit, without a list to extend."""
    return tuple(f"cytoglot.tasks.{module.name}" for module in pkgutil.iter_modules([str(Path(__file__).parent)]))


record_sources: Registry[RecordSource] = Registry("unit", modules_of_tasks())

S = TypeVar("S", bound=RecordSource)


def register_source(source: type[S]) -> type[S]:
    """File one instance of the class under the name of its unit."""
    record_sources.register(source.unit)(source())
    return source


@register_source
class CellSource(CellsSource):
    """Every cell."""

    unit = "cell"
    counted_as = "cells"

    def rows(self, cells: Cells) -> NDArray[np.int64]:
        """Return every row."""
        return np.arange(len(cells))

    def record(self, cells: Cells, row: int, draws: Draws, *, top_genes: int | None = None) -> CellRecord:
        """Return the cell."""
        return cells.cell(row, draws, top_genes=top_genes)


@register_source
class CellGroupSource(CellsSource):
    """Cells of one donor and tissue that stand together; a group belongs to the row of its first cell."""

    unit = "cell_group"
    counted_as = "cell_groups"

    def rows(self, cells: Cells) -> NDArray[np.int64]:
        """Return the first row of each group."""
        group = cells.group
        return np.flatnonzero((np.diff(group, prepend=-2) != 0) & (group >= 0))

    def record(self, cells: Cells, row: int, draws: Draws, *, top_genes: int | None = None) -> CellGroup:
        """Return the group; its metadata are what all cells share, and the abstract of their study."""
        last = self._last(cells, row)
        members = tuple(cells.cell(i, draws, top_genes=top_genes) for i in range(row, last))
        shared = dict(members[0].metadata)
        for member in members[1:]:
            shared = {name: value for name, value in shared.items() if member.metadata.get(name) == value}
        abstract = cells.abstract(row)
        if abstract and all(cells.abstract(i) == abstract for i in range(row + 1, last)):
            shared["abstract"] = abstract
        group_id = f"{members[0].cell_id}+{len(members) - 1}"
        return CellGroup(cells=members, metadata=shared, group_id=group_id, variant=draws("variant"))

    def lengths(self, cells: Cells, row: int) -> Sequence[int]:
        """Return the genes of each cell of the group."""
        return [int(n) for n in cells.n_genes[row : self._last(cells, row)]]

    def _last(self, cells: Cells, row: int) -> int:
        group = cells.group
        last = row + 1
        while last < len(group) and group[last] == group[row]:
            last += 1
        return last


@register_source
class GeneSetSource(TableSource):
    """Gene sets that the recipe of a corpus names."""

    unit, table, kind = "gene_set", "gene_sets", GeneSet
    columns = ("collection", "name", "genes")


@register_source
class CellTypeTermSource(TableSource):
    """Terms of the Cell Ontology."""

    unit, table, kind = "cell_type_term", "cell_type_terms", CellTypeTerm
    columns = ("term_id", "label", "definition", "synonyms", "markers")


def common_length(lengths: Sequence[int], total: int) -> int:
    """Return the largest k so that lists cut to k have `total` entries at most together."""
    left = total
    for n_done, length in enumerate(sorted(lengths)):
        n_left = len(lengths) - n_done
        if length * n_left > left:
            return left // n_left
        left -= length
    return max(lengths, default=0)
