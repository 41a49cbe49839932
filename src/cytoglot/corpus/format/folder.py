"""A corpus on disk: what is in the folder, and how it is opened and written.

corpus.json              what is in it and what made it; written last, so a folder without it is unfinished
vocabulary.json          the genes that the ids stand for
splits.json              which donors, batches or studies are in which part
train/shard-00000.parquet, validation/…, test/…
gene_sets.parquet, cell_type_terms.parquet, …   records that are no cells, if any; orthologs.parquet
rank_curve.json          rank → expression, fitted on training cells, if the sources hold counts
templates/               wordings of another model for some tasks, if the recipe names files of them
    README.md                the data set card
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import TypeAdapter

from cytoglot.atomic import atomic_path, write_json
from cytoglot.corpus.format.shard_file import CellBlock, ShardFile, row_group_edges, shard_schema, write_shard
from cytoglot.corpus.format.templates import reworded_tasks
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError
from cytoglot.sentence.cell_sentence import RankSettings
from cytoglot.tasks.record import CellTypeTerm, GeneSet, Record
from cytoglot.tasks.record_source import TableSource, record_sources
from cytoglot.tasks.task import Task

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
FORMAT_VERSION = 2
DESCRIPTION, VOCABULARY, SPLITS = "corpus.json", "vocabulary.json", "splits.json"
ORTHOLOGS = "orthologs.parquet"
RANK_CURVE, CARD = "rank_curve.json", "README.md"


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """What the description says of a shard."""

    file: str
    """path within the corpus"""
    part: Part
    n_cells: int
    n_groups: int
    n_ids: int
    """ranked gene ids"""
    bytes: int
    sha256: str
    relations: Mapping[str, int] = field(default_factory=dict)
    """relation → cells that have related ones"""


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """What the description says of a source."""

    name: str
    organism: str = ""
    study: str = ""
    title: str = ""
    abstract: str = ""
    licence: str = ""
    fingerprint: str = ""
    n_cells: int = 0
    """cells of the source"""
    n_kept: int = 0
    """cells in the corpus"""
    removed: Mapping[str, int] = field(default_factory=dict)
    """reason → cells that were left out"""
    messages: tuple[str, ...] = ()
    """what was done to its genes"""


@dataclass(frozen=True, kw_only=True)
class CorpusDescription:
    """The content of `corpus.json`. Nothing in it depends on time, machine or number of workers."""

    seed: int
    settings: RankSettings
    """how cells were ranked"""
    genes: int
    shards: tuple[ShardInfo, ...]
    sources: tuple[SourceInfo, ...]
    metadata_columns: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    """metadata column → value → cells, most frequent first; columns of many values such as donors included"""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    """table that the recipe names → its fingerprint"""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """source → why it was left out"""
    versions: Mapping[str, str] = field(default_factory=dict)
    """of the packages that decide the bytes"""

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any byte of any shard."""
        return hashlib.sha256("\n".join(shard.sha256 for shard in self.shards).encode()).hexdigest()[:16]

    def total(self, what: Literal["n_cells", "n_groups", "n_ids", "bytes"], part: Part | None = None) -> int:
        """Return a sum over the shards, of one part or of all."""
        return sum(getattr(shard, what) for shard in self.shards if part in (None, shard.part))

    def count(self, what: str, part: Part) -> int:
        """Return the cells of a part, its cell groups, or the cells that have others in a relation."""
        fields: dict[str, Literal["n_cells", "n_groups"]] = {"cells": "n_cells", "cell_groups": "n_groups"}
        if what in fields:
            return self.total(fields[what], part)
        return sum(shard.relations.get(what, 0) for shard in self.shards if shard.part == part)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "format_version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "cells": {part: self.total("n_cells", part) for part in PARTS},
            "cell_groups": {part: self.total("n_groups", part) for part in PARTS},
            "ranked_ids": self.total("n_ids"),
            **asdict(self),
            "settings": self.settings.to_dict(),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> CorpusDescription:
        """Read what `to_dict` wrote."""
        return TypeAdapter(cls).validate_python(value)  # what can be worked out from the rest is not read


@dataclass(frozen=True)
class Corpus:
    """A finished corpus, opened for reading; shards are read when they are asked for."""

    folder: Path
    description: CorpusDescription
    vocabulary: GeneVocabulary

    def shards(self, part: Part) -> list[ShardInfo]:
        """Return the shards of a part, in order."""
        return [shard for shard in self.description.shards if shard.part == part]

    def open(self, shard: ShardInfo) -> ShardFile:
        """Open a shard for reading."""
        return ShardFile(self.folder / shard.file)

    def blocks(self, part: Part) -> Iterable[CellBlock]:
        """Yield the row groups of a part, in order."""
        for shard in self.shards(part):
            with self.open(shard) as file:
                for number in range(file.n_row_groups):
                    yield file.row_group(number)

    def source(self, name: str) -> SourceInfo:
        """Return what is known of a source."""
        return self._sources[name]

    def labels(self, column: str) -> tuple[str, ...]:
        """Return the values of a metadata column in the whole corpus, most frequent first; () for an unknown column."""
        return tuple(self.description.counts.get(column, {}))

    def count(self, column: str, part: Part) -> dict[str, int]:
        """Return value → cells of a part, most frequent first; reads that one column of its shards."""
        counts = Counter[str]()
        for shard in self.shards(part) if column in self.description.metadata_columns else []:
            table = pq.read_table(self.folder / shard.file, columns=[column])
            for row in pc.value_counts(table[column].combine_chunks().cast(pa.string())).to_pylist():
                if row["values"] is not None:
                    counts[row["values"]] += row["counts"]
        return most_frequent_first(counts)

    def table(self, unit: str, part: Part) -> list[Any]:
        """Return the records of a unit whose records are the rows of a table; none if the corpus has no such table."""
        source = record_sources[unit]
        assert isinstance(source, TableSource), f"{unit} is no table"
        file = self.folder / f"{source.table}.parquet"
        rows = _read(file).to_pylist() if file.is_file() else []
        return [source.record(row) for row in rows if row["part"] == part]

    def gene_sets(self, part: Part) -> list[GeneSet]:
        """Return the gene sets of a part."""
        return self.table("gene_set", part)

    def cell_type_terms(self, part: Part) -> list[CellTypeTerm]:
        """Return the Cell Ontology terms of a part."""
        return self.table("cell_type_term", part)

    @cached_property
    def orthologs(self) -> NDArray[np.int32] | None:
        """(g,) gene id of each gene's one-to-one ortholog in the other species, −1 for none; None without a table."""
        if not (self.folder / ORTHOLOGS).is_file():
            return None
        table = _read(self.folder / ORTHOLOGS)
        ortholog_g = np.full(len(self.vocabulary), -1, np.int32)
        ortholog_g[table["gene_id"].to_numpy()] = table["ortholog_id"].to_numpy()
        return ortholog_g

    @cached_property
    def rank_curve(self) -> dict[str, Any] | None:
        """The curve from rank to expression as `RankCurve.to_dict` gives it, or None."""
        file = self.folder / RANK_CURVE
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    @cached_property
    def templates_of_tasks(self) -> dict[str, Task[Any, Any]]:
        """Tasks that are asked in other wordings than those of this package, as the recipe says."""
        return reworded_tasks(self.description.recipe.get("templates", {}), self.folder)

    @cached_property
    def splits(self) -> dict[str, Any]:
        """What `splits.json` holds."""
        return _json(self.folder / SPLITS)

    @cached_property
    def _sources(self) -> dict[str, SourceInfo]:
        return {source.name: source for source in self.description.sources}


def is_corpus(folder: str | Path) -> bool:
    """Tell whether a path is the folder of a finished corpus."""
    return (Path(folder) / DESCRIPTION).is_file()


def open_corpus(folder: str | Path) -> Corpus:
    """Open the folder that `cytoglot corpus build` wrote.

    Raises
    ------
    InputError
        The folder is missing, unfinished or no corpus, its format is newer than this version, or a shard is missing.

    Examples
    --------
    >>> import cytoglot as cg
    >>> recipe = cg.corpus.CorpusRecipe(sources=[{"path": "pbmc68k_reduced"}])
    >>> _ = cg.corpus.build_corpus(recipe, "opened", overwrite=True)
    >>> len(cg.corpus.open_corpus("opened").vocabulary)
    765
    """
    folder = Path(folder)
    if not is_corpus(folder):
        state = "is an unfinished corpus; run the same build again, which goes on where it stopped"
        if not (folder / ".work").is_dir():
            state = f"is no corpus: it has no {DESCRIPTION}; write one with `cytoglot corpus build`"
        raise InputError(f"{folder} {state}")
    value = _json(folder / DESCRIPTION)
    if value.get("format_version", 0) > FORMAT_VERSION:
        raise InputError(
            f"{folder} has format {value['format_version']}, this version reads up to {FORMAT_VERSION}; update cytoglot"
        )
    description = CorpusDescription.from_dict(value)
    absent = [shard.file for shard in description.shards if not (folder / shard.file).is_file()]
    if absent:
        raise InputError(
            f"{folder} lacks {len(absent)} of its {len(description.shards)} shards, such as {absent[0]}; run the same "
            "build again, which makes the missing ones"
        )
    return Corpus(folder, description, GeneVocabulary.from_dict(_json(folder / VOCABULARY)))


class ShardCounts:
    """What is in a shard, counted as its blocks are written or read; `columns` are those whose values are counted."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.values: dict[str, Counter[str]] = {column: Counter() for column in columns}
        self._n_cells, self._n_ids, self._groups = 0, 0, set[int]()
        self._relations = Counter[str]()

    def passing(self, blocks: Iterable[CellBlock]) -> Iterator[CellBlock]:
        """Yield the blocks as they come, and count them."""
        for block in blocks:
            self._n_cells += len(block)
            self._n_ids += len(block.gene_ids)
            self._groups.update(block.group[block.group >= 0].tolist())
            for name in block.relations:
                self._relations[name] += int((np.diff(block.related(name).offsets) > 0).sum())
            for column in self.values.keys() & {"source", *block.metadata_columns}:
                codes, texts = block.values(column)
                n_of = np.bincount(codes[codes >= 0], minlength=len(texts)).tolist()
                self.values[column].update({text: n for text, n in zip(texts, n_of, strict=True) if n})
            yield block

    def described(self, folder: Path, file: str, part: Part) -> ShardInfo:
        """Return what the description says of the shard, with the checksum of its file."""
        with (folder / file).open("rb") as handle:
            checksum = hashlib.file_digest(handle, "sha256").hexdigest()
        return ShardInfo(
            file=file,
            part=part,
            n_cells=self._n_cells,
            n_groups=len(self._groups),
            n_ids=self._n_ids,
            bytes=(folder / file).stat().st_size,
            sha256=checksum,
            relations=dict(self._relations),
        )


def read_shard_counts(path: Path, columns: Sequence[str]) -> ShardCounts:
    """Return what is in a shard that has been written."""
    counts = ShardCounts(columns)
    with ShardFile(path) as shard:
        for _ in counts.passing(map(shard.row_group, range(shard.n_row_groups))):
            pass
    return counts


def most_frequent_first(counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts of values in the order in which a description has them."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def write_table(folder: Path, unit: str, records: Mapping[Part, Sequence[Record]]) -> None:
    """Write the records of every part of a unit whose records are the rows of a table."""
    source = record_sources[unit]
    assert isinstance(source, TableSource), f"{unit} is no table"
    rows = [source.row(record) | {"part": part} for part, found in records.items() for record in found]
    kinds = {True: pa.list_(pa.string()), False: pa.string()}
    schema = pa.schema([(name, kinds[isinstance(value, list)]) for name, value in (rows[0] if rows else {}).items()])
    with atomic_path(folder / f"{source.table}.parquet") as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), partial, compression="zstd")


def write_orthologs(folder: Path, ortholog_g: NDArray[np.integer]) -> None:
    """Write (g,) gene ids of orthologs, −1 for none."""
    known = np.flatnonzero(ortholog_g >= 0)
    table = pa.table({"gene_id": known.astype(np.int32), "ortholog_id": ortholog_g[known].astype(np.int32)})
    with atomic_path(folder / ORTHOLOGS) as partial:
        pq.write_table(table, partial, compression="zstd")


def write_corpus(
    folder: str | Path,
    cells: Mapping[Part, Sequence[CellBlock]],
    *,
    vocabulary: GeneVocabulary,
    settings: RankSettings | None = None,
    sources: Sequence[SourceInfo] = (),
    gene_sets: Mapping[Part, Sequence[GeneSet]] | None = None,
    terms: Mapping[Part, Sequence[CellTypeTerm]] | None = None,
    tables: Mapping[str, Mapping[Part, Sequence[Record]]] | None = None,
    orthologs: NDArray[np.integer] | None = None,
    rank_curve: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Corpus:
    """Write cells that are in memory as a corpus, one shard for each block, and open it.

    For tests and for cells that are sentences already; `cytoglot.corpus.build.build` is for files. The order of the
    cells is kept. `sources` default to the names in the blocks; `tables` are those of other units than gene sets and
    terms.

    Examples
    --------
    >>> import cytoglot as cg
    >>> from cytoglot.corpus.format.shard_file import make_block
    >>> sentences = cg.encode(cg.load_dataset("pbmc68k_reduced"), top_genes=50)
    >>> block = make_block(
    ...     cell_ids=sentences.cell_ids,
    ...     offsets=sentences.offsets,
    ...     gene_ids=sentences.gene_ids,
    ...     n_genes=len(sentences.vocabulary),
    ...     source=["blood"] * len(sentences),
    ...     metadata={},
    ... )
    >>> corpus = cg.corpus.write_corpus("written", {"train": [block]}, vocabulary=sentences.vocabulary)
    >>> len(corpus.vocabulary)
    765
    """
    folder = Path(folder)
    every = [block for blocks in cells.values() for block in blocks]
    columns = tuple(dict.fromkeys(name for block in every for name in block.metadata_columns))
    schema = shard_schema(
        len(vocabulary),
        columns,
        relations=tuple(dict.fromkeys(n for b in every for n in b.relations)),
        has_ties=bool(every) and all(b.tied is not None for b in every),
    )
    shards, values = [], {column: Counter[str]() for column in columns}
    for part, blocks in cells.items():
        for number, block in enumerate(blocks):
            file, counts = f"{part}/shard-{number:05d}.parquet", ShardCounts(columns)
            pieces = (block.slice(a, b) for a, b in pairwise(row_group_edges(block.group)))
            write_shard(folder / file, counts.passing(pieces), schema)
            shards.append(counts.described(folder, file, part))
            for column, found in counts.values.items():
                values[column].update(found)
    names = sorted({text for block in every for text in block.values("source")[1]})
    description = CorpusDescription(
        seed=seed,
        settings=settings or RankSettings(),
        genes=len(vocabulary),
        shards=tuple(shards),
        sources=tuple(sources) or tuple(SourceInfo(name=name) for name in names),
        metadata_columns=columns,
        counts={column: most_frequent_first(found) for column, found in values.items()},
    )
    for unit, records in {"gene_set": gene_sets, "cell_type_term": terms, **(tables or {})}.items():
        if records:
            write_table(folder, unit, records)
    if orthologs is not None:
        write_orthologs(folder, orthologs)
    if rank_curve is not None:
        write_json(folder / RANK_CURVE, rank_curve)
    write_json(folder / VOCABULARY, vocabulary.to_dict())
    write_json(folder / SPLITS, {"by": "given", "units": {}})
    write_json(folder / DESCRIPTION, description.to_dict())
    return open_corpus(folder)


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is damaged: {error}; build the corpus again") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}; build the corpus again") from error
