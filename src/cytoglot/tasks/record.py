"""What a task may know of the thing that it asks about: a cell, several cells, a gene set, a cell type, or its own.

A `Record` is an open protocol: a new kind derives from it and says where its genes are. A `RecordSource` says how
records of the kind are read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Record(ABC):
    """What one example is about."""

    metadata: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """canonical name → value of what is known; what is not known is absent"""
    variant: int = 0
    """which of a task's random choices about this record is made, such as the genes that a masking task hides"""

    def __post_init__(self) -> None:
        blank = [key for key, value in self.metadata.items() if not isinstance(value, str) or not value.strip()]
        if blank:
            raise ValueError(f"{self}: metadata must be non-empty texts, leave out {blank} if unknown")

    def __str__(self) -> str:
        """Return what the record is called in a message."""
        return f"{type(self).__name__} {self.key!r}"

    @property
    @abstractmethod
    def key(self) -> str:
        """What tells the record from others, and what the choice of a template hangs on."""

    @abstractmethod
    def lengths(self) -> tuple[int, ...]:
        """Return the number of genes of each list of genes in the record."""

    @abstractmethod
    def truncate(self, n_genes: int) -> Self:
        """Return the record with the first `n_genes` genes of each of its lists at most."""

    def whole(self) -> Self:
        """Return the record as it is, where it shows a random view of its cells: what is to be written has no noise."""
        return self

    @property
    def longest(self) -> int:
        """Number of genes of the longest list in the record."""
        return max(self.lengths(), default=0)

    def with_metadata(self, metadata: Mapping[str, str]) -> Self:
        """Return the record with other metadata, which are not checked again."""
        return self._changed(metadata=metadata)

    def with_variant(self, variant: int) -> Self:
        """Return the record with another variant."""
        return self._changed(variant=variant)

    def _changed(self, **values: Any) -> Self:
        """Return a copy; three times faster than `dataclasses.replace`, which a loader notices."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, **values)
        return other


@dataclass(frozen=True, kw_only=True)
class CellRecord(Record):
    """A cell: its genes, highest first, and its metadata: `cell_type`, `organism`, `tissue`, `disease`, …."""

    genes: Sequence[str] = ()
    cell_id: str = ""
    num_genes: int | None = None
    """length of the sentence to write, for a record without genes; else the number of `genes`"""
    ortholog_genes: Sequence[str] = ()
    """one symbol of another species for each of `genes`, empty where there is no one-to-one ortholog; or nothing"""
    whole_genes: Sequence[str] | None = None
    """the genes of the cell itself, where `genes` are a random view of them"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.genes) and self.num_genes not in (None, len(self.genes)):
            raise ValueError(f"{self}: {len(self.genes)} genes, but num_genes says {self.num_genes}")
        if len(self.ortholog_genes) not in (0, len(self.genes)):
            n_genes, n_orthologs = len(self.genes), len(self.ortholog_genes)
            raise ValueError(f"{self}: {n_genes} genes, but {n_orthologs} ortholog_genes, one for each")

    def __str__(self) -> str:
        return f"cell {self.cell_id!r}"

    @property
    def key(self) -> str:
        """The cell's id."""
        return self.cell_id

    def lengths(self) -> tuple[int, ...]:
        """Return the number of genes."""
        return (len(self.genes),)

    def truncate(self, n_genes: int) -> CellRecord:
        """Return the record with `n_genes` genes at most."""
        shorter = self.num_genes if self.num_genes is None else min(self.num_genes, n_genes)
        return self._changed(
            genes=self.genes[:n_genes],
            ortholog_genes=self.ortholog_genes[:n_genes],
            num_genes=shorter,
            whole_genes=None if self.whole_genes is None else self.whole_genes[:n_genes],
        )

    def whole(self) -> CellRecord:
        """Return the cell itself, without orthologs, where this is a random view of it."""
        if self.whole_genes is None:
            return self
        return self._changed(genes=self.whole_genes, whole_genes=None, ortholog_genes=())


@dataclass(frozen=True, kw_only=True)
class CellGroup(Record):
    """Several cells of one donor and tissue; what is true of all of them is the group's metadata, or of their study."""

    cells: tuple[CellRecord, ...] = ()
    group_id: str = ""
    num_cells: int | None = None
    """number of cells to write, for a record without cells; else the number of `cells`"""
    num_genes: int | None = None
    """genes of each cell to write, for a record without cells"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cells and self.num_cells not in (None, len(self.cells)):
            raise ValueError(f"{self}: {len(self.cells)} cells, but num_cells says {self.num_cells}")

    def __str__(self) -> str:
        return f"group {self.group_id!r}"

    @property
    def key(self) -> str:
        """The group's id."""
        return self.group_id

    def lengths(self) -> tuple[int, ...]:
        """Return the number of genes of each cell."""
        return tuple(len(cell.genes) for cell in self.cells)

    def truncate(self, n_genes: int) -> CellGroup:
        """Return the group with `n_genes` genes in each cell at most."""
        return self._changed(cells=tuple(cell.truncate(n_genes) for cell in self.cells))

    def whole(self) -> CellGroup:
        """Return the group with the cells themselves."""
        return self._changed(cells=tuple(cell.whole() for cell in self.cells))


@dataclass(frozen=True, kw_only=True)
class GeneSet(Record):
    """A named set of genes, such as a pathway; the order of the genes is that of its file."""

    name: str
    """as a person would write it: "interferon gamma response"
    """
    genes: Sequence[str] = ()
    collection: str = ""
    """where it comes from: "hallmark", "reactome", …"""
    num_genes: int | None = None
    """number of genes to list, for a record without genes"""

    @property
    def key(self) -> str:
        """Collection and name."""
        return f"{self.collection}:{self.name}"

    def lengths(self) -> tuple[int, ...]:
        """Return the number of genes."""
        return (len(self.genes),)

    def truncate(self, n_genes: int) -> GeneSet:
        """Return the set with the first `n_genes` genes."""
        return self._changed(genes=self.genes[:n_genes])


@dataclass(frozen=True, kw_only=True)
class CellTypeTerm(Record):
    """A term of the Cell Ontology with its definition and, where known, marker genes."""

    label: str
    definition: str = ""
    term_id: str = ""
    synonyms: tuple[str, ...] = ()
    markers: Sequence[str] = ()
    """best supported first"""

    @property
    def key(self) -> str:
        """The term's id, or its label without one."""
        return self.term_id or self.label

    def lengths(self) -> tuple[int, ...]:
        """Return the number of markers."""
        return (len(self.markers),)

    def truncate(self, n_genes: int) -> CellTypeTerm:
        """Return the term with the first `n_genes` markers."""
        return self._changed(markers=self.markers[:n_genes])
