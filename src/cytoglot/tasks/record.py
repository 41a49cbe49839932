"""What a task may know of the thing that it asks about: a cell, several cells, a gene set, a cell type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

Unit = Literal["cell", "cell_group", "gene_set", "cell_type_term"]
"""what one example is about"""

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """A cell: its genes, highest first, and its metadata under canonical names."""

    genes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """`cell_type`, `organism`, `tissue`, `disease`, …; what is not known is absent"""
    cell_id: str = ""
    num_genes: int | None = None
    """length of the sentence to write, for a record without genes; else the number of `genes`"""
    ortholog_genes: tuple[str, ...] = ()
    """one symbol of another species for each of `genes`, empty where there is no one-to-one ortholog; or nothing"""
    variant: int = 0
    """which of a task's random choices about this record is made, such as the genes that a masking task hides"""

    def __post_init__(self) -> None:
        _check_metadata(self.metadata, f"cell {self.cell_id!r}")
        if self.genes and self.num_genes not in (None, len(self.genes)):
            raise ValueError(f"cell {self.cell_id!r}: {len(self.genes)} genes, but num_genes says {self.num_genes}")
        if self.ortholog_genes and len(self.ortholog_genes) != len(self.genes):
            n_genes, n_orthologs = len(self.genes), len(self.ortholog_genes)
            raise ValueError(f"cell {self.cell_id!r}: {n_genes} genes, but {n_orthologs} ortholog_genes, one for each")

    @property
    def key(self) -> str:
        """What the choice of a template hangs on: the cell's id."""
        return self.cell_id

    def cut(self, top_genes: int) -> CellRecord:
        """Return the record with `top_genes` genes at most."""
        shorter = self.num_genes if self.num_genes is None else min(self.num_genes, top_genes)
        orthologs = self.ortholog_genes[:top_genes]
        return replace(self, genes=self.genes[:top_genes], ortholog_genes=orthologs, num_genes=shorter)

    @property
    def longest(self) -> int:
        """Number of genes of the longest sentence in the record."""
        return len(self.genes)


@dataclass(frozen=True, kw_only=True)
class CellGroup:
    """Several cells of one donor and tissue; what is true of all of them is the group's metadata."""

    cells: tuple[CellRecord, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """`organism`, `tissue`, `abstract`, …: what all cells share"""
    group_id: str = ""
    num_cells: int | None = None
    """number of cells to write, for a record without cells; else the number of `cells`"""
    num_genes: int | None = None
    """genes of each cell to write, for a record without cells"""
    variant: int = 0

    def __post_init__(self) -> None:
        _check_metadata(self.metadata, f"cell group {self.group_id!r}")
        if self.cells and self.num_cells not in (None, len(self.cells)):
            raise ValueError(f"group {self.group_id!r}: {len(self.cells)} cells, but num_cells says {self.num_cells}")

    @property
    def key(self) -> str:
        """What the choice of a template hangs on: the group's id."""
        return self.group_id

    def cut(self, top_genes: int) -> CellGroup:
        """Return the group with `top_genes` genes in each cell at most."""
        return replace(self, cells=tuple(cell.cut(top_genes) for cell in self.cells))

    @property
    def longest(self) -> int:
        """Number of genes of the longest sentence in the record."""
        return max((len(cell.genes) for cell in self.cells), default=0)


@dataclass(frozen=True, kw_only=True)
class GeneSet:
    """A named set of genes, such as a pathway; the order of the genes is that of its file."""

    name: str
    """as a person would write it: "interferon gamma response"
    """
    genes: tuple[str, ...] = ()
    collection: str = ""
    """where it comes from: "hallmark", "reactome", …"""
    num_genes: int | None = None
    """number of genes to list, for a record without genes"""
    metadata: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    variant: int = 0

    @property
    def key(self) -> str:
        """What the choice of a template hangs on: collection and name."""
        return f"{self.collection}:{self.name}"

    def cut(self, top_genes: int) -> GeneSet:
        """Return the set with the first `top_genes` genes."""
        return replace(self, genes=self.genes[:top_genes])

    @property
    def longest(self) -> int:
        """Number of genes of the longest list in the record."""
        return len(self.genes)


@dataclass(frozen=True, kw_only=True)
class CellTypeTerm:
    """A term of the Cell Ontology with its definition and, where known, marker genes."""

    label: str
    definition: str = ""
    term_id: str = ""
    synonyms: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    """best supported first"""
    metadata: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    variant: int = 0

    @property
    def key(self) -> str:
        """What the choice of a template hangs on: the term's id, or its label without one."""
        return self.term_id or self.label

    def cut(self, top_genes: int) -> CellTypeTerm:
        """Return the term with the first `top_genes` markers."""
        return replace(self, markers=self.markers[:top_genes])

    @property
    def longest(self) -> int:
        """Number of genes of the longest list in the record."""
        return len(self.markers)


Record = CellRecord | CellGroup | GeneSet | CellTypeTerm


def _check_metadata(metadata: Mapping[str, str], what: str) -> None:
    blank = [key for key, value in metadata.items() if not isinstance(value, str) or not value.strip()]
    if blank:
        raise ValueError(f"{what}: metadata must be non-empty texts, leave out {blank} if unknown")
