"""Rows of a corpus → records, and the random numbers that belong to them.

Whatever is random about an example is a hash of the seed, the epoch and the record, so it depends neither on the order
of reading nor on the number of workers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytoglot.corpus.format.folder import Corpus, Part, ShardInfo
from cytoglot.corpus.format.shard_file import NO_GROUP, CellBlock, ShardFile
from cytoglot.corpus.read.gene_characters import MAX_CHARACTERS, characters_of
from cytoglot.errors import InputError
from cytoglot.sentence.augment import AugmentSettings, training_view
from cytoglot.tasks.record import CellGroup, CellRecord, CellTypeTerm, GeneSet, Unit

CELL_UNITS: tuple[Unit, ...] = ("cell", "cell_group")
TABLE_UNITS: tuple[Unit, ...] = ("gene_set", "cell_type_term")

Key = tuple[int, ...]
"""the random numbers of one visit to one record, each below 2³²; who uses which is written here"""
VARIANT, TASK, WORDING, REPEAT, METADATA = 0, 1, 2, 3, 4
TASK_TRIES = (14, 15)


def draw(*key: object) -> Key:
    """Return 16 numbers below 2³² from a hash of the key: the random choices of one example."""
    text = "\0".join(map(str, key)).encode()
    return struct.unpack("<16I", blake2b(text, digest_size=64).digest())


class RecordReader:
    """Makes records of what a corpus holds.

    Parameters
    ----------
    characters
        Genes are written as the private characters of `gene_characters` instead of by name.
    augment
        Cells are seen in a random view (genes dropped, ranks jittered, the end cut off); None for the sentence itself.
    """

    def __init__(
        self, corpus: Corpus, *, seed: int = 0, characters: bool = False, augment: AugmentSettings | None = None
    ) -> None:
        if characters and len(corpus.vocabulary) > MAX_CHARACTERS:
            raise InputError(f"{len(corpus.vocabulary)} genes are more than the {MAX_CHARACTERS} private characters")
        self._corpus, self._seed, self._characters, self._augment = corpus, seed, characters, augment
        self._names = corpus.vocabulary.names
        self._orthologs = corpus.orthologs
        self._gene_species = {source.name: source.organism for source in corpus.description.sources}
        self._abstracts = {s.name: s.abstract.strip() for s in corpus.description.sources if s.abstract.strip()}

    def open(self, block: CellBlock) -> BlockRecords:
        """Return the records of a block."""
        return BlockRecords(self, block)

    def table(self, unit: Unit, part: Part) -> list[GeneSet] | list[CellTypeTerm]:
        """Return the gene sets or the cell types of a part, with genes as this reader writes them."""
        if unit == "gene_set":
            return [replace(s, genes=self._written(s.genes)) for s in self._corpus.gene_sets(part)]
        return [replace(t, markers=self._written(t.markers)) for t in self._corpus.cell_type_terms(part)]

    def words(self, gene_ids: NDArray[np.integer]) -> tuple[str, ...]:
        """Return each gene as it is written in a record."""
        return tuple(characters_of(gene_ids)) if self._characters else tuple(self._names[gene_ids].tolist())

    def _written(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Genes that are not in the vocabulary are written by name in either case."""
        if not self._characters:
            return names
        ids = self._corpus.vocabulary.index_of(names)
        return tuple(name if i < 0 else characters_of(np.array([i])) for name, i in zip(names, ids, strict=True))


class BlockRecords:
    """Cells and cell groups of one block as records."""

    def __init__(self, reader: RecordReader, block: CellBlock) -> None:
        self._reader, self._block = reader, block
        self._cell_ids: list[str] = block.cell_ids.to_pylist()
        self._offsets: list[int] = block.offsets.tolist()
        self.sources = _texts(block, "source")
        """(n,) source of each cell"""
        self._columns = [(name, _texts(block, name)) for name in block.metadata_columns]

    def __len__(self) -> int:
        return len(self._block)

    @cached_property
    def groups(self) -> list[tuple[int, int]]:
        """First row and the row after the last of each cell group, in order."""
        group = self._block.group
        if len(group) == 0:
            return []
        edges = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(group)]
        return [(first, last) for first, last in pairwise(edges) if group[first] != NO_GROUP]

    def cell_draw(self, row: int, *, epoch: int = 0, visit: int = 0) -> Key:
        """Return the random numbers of a visit to a cell."""
        return draw(self._reader._seed, epoch, visit, self.sources[row], self._cell_ids[row])

    def group_draw(self, group: int, *, epoch: int = 0, visit: int = 0) -> Key:
        """Return the random numbers of a visit to a cell group."""
        row = self.groups[group][0]
        return draw(self._reader._seed, epoch, visit, "group", self.sources[row], self._cell_ids[row])

    def cell(self, row: int, key: Key, *, top_genes: int | None = None) -> CellRecord:
        """Return the record of a cell, with `top_genes` genes at most and what is known of its metadata."""
        ids = self._ids(row, key, top_genes)
        metadata = self.metadata(row)
        return CellRecord(
            genes=self._reader.words(ids),
            metadata=metadata,
            cell_id=self._cell_ids[row],
            ortholog_genes=self._orthologs(ids, self.sources[row], metadata.get("organism")),
            variant=key[VARIANT],
        )

    def _orthologs(self, ids: NDArray[np.integer], source: str | None, organism: str | None) -> tuple[str, ...]:
        """Return the ortholog of each gene, "" for none; nothing for a cell told in the genes of another species.

        Some data sets give mouse cells in human symbols; what to call the other species of such a cell is unclear.
        """
        reader = self._reader
        if reader._orthologs is None or organism not in (None, reader._gene_species.get(source or "")):
            return ()
        other_ids = reader._orthologs[ids]
        is_known = other_ids >= 0
        words = np.full(len(ids), "", object)
        words[is_known] = reader.words(other_ids[is_known])
        return tuple(words.tolist())

    def group(self, group: int, key: Key, *, top_genes: int | None = None) -> CellGroup:
        """Return the record of a cell group; its metadata are what all cells share, and the abstract of their study."""
        first, last = self.groups[group]
        known = [self.metadata(row) for row in range(first, last)]
        shared = {n: v for n, v in known[0].items() if all(other.get(n) == v for other in known[1:])}
        abstract = self._reader._abstracts.get(self.sources[first] or "")
        if abstract is not None and len(set(self.sources[first:last])) == 1:
            shared["abstract"] = abstract
        cells = tuple(
            CellRecord(
                genes=self._reader.words(self._ids(row, (*key, row - first), top_genes)),
                metadata=metadata,
                cell_id=self._cell_ids[row],
            )
            for row, metadata in zip(range(first, last), known, strict=True)
        )
        group_id = f"{self._cell_ids[first]}+{last - first - 1}"
        return CellGroup(cells=cells, metadata=shared, group_id=group_id, variant=key[VARIANT])

    def group_lengths(self, group: int) -> list[int]:
        """Return the ranked genes of each cell of a group."""
        first, last = self.groups[group]
        return [b - a for a, b in pairwise(self._offsets[first : last + 1])]

    def metadata(self, row: int) -> dict[str, str]:
        """Return what is known of a cell; nothing blank."""
        return {name: text for name, texts in self._columns if (text := texts[row]) is not None}

    def _ids(self, row: int, key: Key, top_genes: int | None) -> NDArray[np.integer]:
        ids: NDArray[np.integer] = self._block.gene_ids[self._offsets[row] : self._offsets[row + 1]]
        if self._reader._augment is not None:
            ids = training_view(ids, np.random.default_rng(key), self._reader._augment)
        return ids if top_genes is None else ids[:top_genes]


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
def _row_groups(folder: str, fingerprint: str, part: Part, shards: tuple[ShardInfo, ...]) -> tuple[RowGroup, ...]:
    found: list[RowGroup] = []
    for shard in shards:
        with ShardFile(Path(folder) / shard.file) as file:
            found += [RowGroup(shard, number, n) for number, n in enumerate(file.row_group_cells)]
    return tuple(found)


def row_groups(corpus: Corpus, part: Part) -> tuple[RowGroup, ...]:
    """Return all row groups of a part, in the order of the shards; only the ends of the files are read."""
    return _row_groups(str(corpus.folder), corpus.description.fingerprint, part, tuple(corpus.shards(part)))


def read_row_group(corpus: Corpus, place: RowGroup) -> CellBlock:
    """Read a row group."""
    with corpus.open(place.shard) as file:
        return file.row_group(place.number)
