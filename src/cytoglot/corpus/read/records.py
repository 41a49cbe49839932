"""Rows of a corpus as the cells that records are made of, and the tables of records that are no cells.

Whatever is random about an example is a hash of the seed, the epoch and the record, so it depends neither on the order
of reading nor on the number of workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytoglot.corpus.format.folder import Corpus, Part, ShardInfo
from cytoglot.corpus.format.shard_file import CellBlock, ShardFile
from cytoglot.data.relations import Relation
from cytoglot.sentence.augment import AugmentSettings, tie_order, training_view
from cytoglot.tasks.record import CellRecord
from cytoglot.tasks.record_source import CellsSource, Draws, TableSource, record_sources
from cytoglot.tasks.segments import Genes


class RecordReader:
    """Makes records of what a corpus holds.

    Parameters
    ----------
    augment
        Cells are seen in a random view (genes dropped, ranks jittered, the end cut off); None for the sentence itself.
    """

    def __init__(self, corpus: Corpus, *, seed: int = 0, augment: AugmentSettings | None = None) -> None:
        self.corpus, self.seed, self.augment = corpus, seed, augment
        self.names = corpus.vocabulary.names
        self.orthologs = corpus.orthologs
        self.ortholog_names = np.append(self.names, "")  # −1, no ortholog, is the last one
        self.gene_species = {source.name: source.organism for source in corpus.description.sources}
        self.abstracts = {s.name: s.abstract.strip() for s in corpus.description.sources if s.abstract.strip()}
        self._shard: tuple[str, _ShardCells] | None = None

    def open(self, block: CellBlock, shard: ShardInfo | None = None) -> BlockRecords:
        """Return the cells of a block; those of its shard, if that is given, can be related to them."""
        return BlockRecords(self, block, shard)

    def read(self, place: RowGroup) -> BlockRecords:
        """Read the cells of a row group."""
        return self.open(read_row_group(self.corpus, place), place.shard)

    def table(self, unit: str, part: Part) -> list[Any]:
        """Return the records of a unit that is a table of the corpus."""
        return self.corpus.table(unit, part)

    def shard_cells(self, shard: ShardInfo) -> _ShardCells:
        """Return all cells of a shard by their ids; the last one is kept, since a shard is read as a whole."""
        if self._shard is None or self._shard[0] != shard.file:
            self._shard = shard.file, _ShardCells(self, shard)
        return self._shard[1]


class BlockRecords:
    """The cells of a block: what records are made of (see `cytoglot.tasks.record_source.Cells`)."""

    def __init__(self, reader: RecordReader, block: CellBlock, shard: ShardInfo | None) -> None:
        self._reader, self._block, self._shard = reader, block, shard
        self._cell_ids: list[str] = block.cell_ids.to_pylist()
        self.sources = _texts(block, "source")
        """(n,) source of each cell"""
        self._columns = [(name, _texts(block, name)) for name in block.metadata_columns]
        self._relations: dict[str, Relation] = {}

    def __len__(self) -> int:
        return len(self._block)

    @cached_property
    def _offsets(self) -> list[int]:
        return self._block.offsets.tolist()

    @property
    def group(self) -> NDArray[np.int32]:
        """(n,) number of the cell group, −1 for none."""
        return self._block.group

    @cached_property
    def n_genes(self) -> NDArray[np.int64]:
        """(n,) ranked genes of each cell."""
        return np.diff(self._block.offsets)

    def draws(self, row: int, unit: str = "cell", *, epoch: int = 0, visit: int = 0) -> Draws:
        """Return the random choices of a visit to the record of a row."""
        return Draws(self._reader.seed, epoch, visit, unit, self.sources[row], self._cell_ids[row])

    def cell(self, row: int, draws: Draws, *, top_genes: int | None = None) -> CellRecord:
        """Return the record of a cell, with `top_genes` genes at most and what is known of its metadata.

        It has no `ortholog_genes` if it is told in the genes of another species than its own.
        """
        reader, cell_id = self._reader, self._cell_ids[row]
        whole: NDArray[np.integer] = self._block.gene_ids[self._offsets[row] : self._offsets[row + 1]]
        ids = whole if reader.augment is None else training_view(whole, draws.rng(cell_id), reader.augment)
        if reader.augment is not None and self._block.tied is not None:
            # What is learned to be written must not have an order where the cell has none, nor lose the same genes
            # of equal expression each time to the cut.
            tied = self._block.tied[self._offsets[row] : self._offsets[row + 1]]
            whole = whole[tie_order(tied, draws.rng("ties"))]
        ids, whole = ids[:top_genes], whole[:top_genes]
        metadata = self.metadata(row)
        orthologs: Genes | tuple[()] = ()
        # Some data sets give mouse cells in human symbols; what to call the other species of such a cell is unclear.
        if reader.orthologs is not None and metadata.get("organism") in (
            None, reader.gene_species.get(self.sources[row] or "")
        ):  # fmt: skip
            orthologs = Genes(reader.orthologs[ids], reader.ortholog_names)
        return CellRecord(
            genes=Genes(ids, reader.names),
            metadata=metadata,
            cell_id=cell_id,
            ortholog_genes=orthologs,
            variant=draws("variant"),
            whole_genes=None if reader.augment is None else Genes(whole, reader.names),
        )

    def metadata(self, row: int) -> dict[str, str]:
        """Return what is known of a cell; nothing blank."""
        return {name: text for name, texts in self._columns if (text := texts[row]) is not None}

    def abstract(self, row: int) -> str:
        """Return the abstract of the study that a cell is from."""
        return self._reader.abstracts.get(self.sources[row] or "", "")

    def rows_with(self, relation: str) -> NDArray[np.int64]:
        """Return the rows of the cells that have related ones, whether these are in the corpus or not."""
        return np.flatnonzero(np.diff(self._related(relation).offsets) > 0)

    def related(self, relation: str, row: int, draws: Draws, *, top_genes: int | None = None) -> tuple[CellRecord, ...]:
        """Return the related cells of the shard, the heaviest first."""
        table = self._related(relation)
        others = table.cell_ids[table.offsets[row] : table.offsets[row + 1]].tolist()
        found: list[CellRecord] = []
        for cell_id in others:
            key = self.sources[row], cell_id
            here = self._rows.get(key)
            place = (self, here) if here is not None else None
            if place is None and self._shard is not None:
                place = self._reader.shard_cells(self._shard).find(*key)
            if place is not None:
                found.append(place[0].cell(place[1], draws, top_genes=top_genes))
        return tuple(found)

    def _related(self, relation: str) -> Relation:
        if relation not in self._relations:
            self._relations[relation] = self._block.related(relation)
        return self._relations[relation]

    @cached_property
    def _rows(self) -> dict[tuple[str | None, str], int]:
        return {pair: row for row, pair in enumerate(zip(self.sources, self._cell_ids, strict=True))}


class _ShardCells:
    """Where each cell of a shard is; its row groups are read when one of their cells is asked for."""

    def __init__(self, reader: RecordReader, shard: ShardInfo) -> None:
        self._reader, self._shard = reader, shard
        self._places: dict[tuple[str | None, str], tuple[int, int]] = {}
        self._opened: dict[int, BlockRecords] = {}
        with reader.corpus.open(shard) as file:
            for number in range(file.n_row_groups):
                block = file.row_group(number, columns=("cell_id", "source"))
                pairs = zip(_texts(block, "source"), block.cell_ids.to_pylist(), strict=True)
                self._places.update({pair: (number, row) for row, pair in enumerate(pairs)})

    def find(self, source: str | None, cell_id: str) -> tuple[BlockRecords, int] | None:
        """Return the block and the row of a cell; None if it is not in the shard."""
        place = self._places.get((source, cell_id))
        if place is None:
            return None
        number, row = place
        if number not in self._opened:
            with self._reader.corpus.open(self._shard) as file:
                self._opened[number] = self._reader.open(file.row_group(number))
        return self._opened[number], row


def units_of_cells() -> list[str]:
    """Return the units whose records are made of cells."""
    return [unit for unit, source in record_sources.items() if isinstance(source, CellsSource)]


def units_of_tables() -> list[str]:
    """Return the units whose records are the rows of tables."""
    return [unit for unit, source in record_sources.items() if isinstance(source, TableSource)]


def source_of_cells(unit: str) -> CellsSource:
    """Return how the records of a unit are made of cells."""
    source = record_sources[unit]
    assert isinstance(source, CellsSource), f"{unit} is not made of cells"
    return source


def _texts(block: CellBlock, column: str) -> list[str | None]:
    """Return the text of each row, None where it is unknown or blank."""
    codes, texts = block.values(column)
    values = np.array([*(text if text.strip() else None for text in texts), None], dtype=object)  # code −1 is the last
    return values[codes].tolist()


@dataclass(frozen=True)
class RowGroup:
    """Where some cells of a corpus are."""

    shard: ShardInfo
    number: int
    n_cells: int


@lru_cache(maxsize=8)
def _cells_of_row_groups(folder: str, fingerprint: str, files: tuple[str, ...]) -> list[list[int]]:
    found = []
    for name in files:
        with ShardFile(Path(folder) / name) as file:
            found.append(file.row_group_cells)
    return found


def row_groups(corpus: Corpus, part: Part) -> tuple[RowGroup, ...]:
    """Return all row groups of a part, in the order of the shards; only the ends of the files are read."""
    shards = corpus.shards(part)
    files = tuple(shard.file for shard in shards)
    cells = _cells_of_row_groups(str(corpus.folder), corpus.description.fingerprint, files)
    return tuple(
        RowGroup(shard, number, n)
        for shard, counts in zip(shards, cells, strict=True)
        for number, n in enumerate(counts)
    )


def read_row_group(corpus: Corpus, place: RowGroup) -> CellBlock:
    """Read a row group."""
    with corpus.open(place.shard) as file:
        return file.row_group(place.number)
