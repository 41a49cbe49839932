"""What a build is going to do, decided from the headers of its sources: genes, runs of cells, and what they rest on.

The plan lies in the folder of the unfinished corpus. Workers read it there; a build that goes on compares it with what
it would plan today.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from cytoglot.atomic import write_json
from cytoglot.corpus.format.folder import FORMAT_VERSION
from cytoglot.corpus.sources.expand import CorpusSource, expand, opened_source
from cytoglot.corpus.sources.genes import find_file, gene_tables
from cytoglot.corpus.sources.recipe import CorpusRecipe, SourceRecipe
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.data.schema import OBS_FIELDS
from cytoglot.errors import InputError
from cytoglot.manifest import changed_keys, fingerprint_bytes, fingerprint_file
from cytoglot.sentence.cell_sentence import RankSettings, gene_id_dtype

logger = logging.getLogger(__name__)

#: Raised when the same recipe, seed and inputs would give other bytes than before.
BUILD_VERSION = 2
PLAN = "plan.json"
_CHUNK_VALUES, _CHUNK_CELLS = 1 << 22, 8192


class Span(NamedTuple):
    """A run of cells of one source: what one task ranks."""

    source: int
    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class PlannedSource:
    """What the header of a source says."""

    recipe: SourceRecipe
    fingerprint: str
    stamp: str
    """`CorpusSource.stamp` when the plan was made"""
    n_cells: int
    n_values: int
    is_counts: bool
    messages: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its name."""
        return self.recipe.label

    @property
    def values_per_cell(self) -> float:
        """Stored values of a cell, on average; at least 1."""
        return max(self.n_values / max(self.n_cells, 1), 1.0)

    @property
    def chunk_cells(self) -> int:
        """Cells that are read at a time."""
        return int(np.clip(_CHUNK_VALUES // self.values_per_cell, 64, _CHUNK_CELLS))


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """Everything that decides the bytes of a corpus, and where the sources lie."""

    recipe: CorpusRecipe
    base: str
    """folder that paths of the recipe are relative to; decides nothing"""
    seed: int
    sources: tuple[PlannedSource, ...]
    skipped: Mapping[str, str]
    """source → why it is left out"""
    vocabulary: GeneVocabulary
    inputs: Mapping[str, str]
    """table that the recipe names → fingerprint"""
    version: int = BUILD_VERSION

    @property
    def settings(self) -> RankSettings:
        """How cells are ranked."""
        return self.recipe.cells.rank_settings(self.seed)

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """Runs of cells of about `shard_ids` ranked ids at most."""
        spans: list[Span] = []
        for number, source in enumerate(self.sources):
            n = source.n_cells
            n_spans = max(1, math.ceil(n * self.ids_per_cell(source) / self.recipe.shard_ids))
            edges = np.linspace(0, n, min(n_spans, max(n, 1)) + 1).round().astype(int).tolist()
            spans += [Span(number, first, last) for first, last in pairwise(edges)]
        return tuple(spans)

    @property
    def span_sources(self) -> list[str]:
        """Name of the source of each span."""
        return [self.sources[span.source].name for span in self.spans]

    @cached_property
    def key(self) -> str:
        """16 hex digits that change with anything that decides the bytes."""
        return fingerprint_bytes(repr(part).encode() for part in self.decisive().items())

    def opened(self, number: int) -> CorpusSource:
        """Return a source, open; it stays so until another one is asked for.

        Raises
        ------
        InputError
            It cannot be opened, or is not what it was when the plan was made.
        """
        planned = self.sources[number]
        source = opened_source(planned.recipe, self.recipe.genes, self.base)
        is_untouched = bool(planned.stamp) and source.stamp == planned.stamp  # else its content is hashed again
        if not is_untouched and source.fingerprint != planned.fingerprint:
            raise InputError(
                f"source {planned.name!r} was changed while the corpus was built (fingerprint {planned.fingerprint} → "
                f"{source.fingerprint}); build again when it is finished"
            )
        return source

    def ids_per_cell(self, source: PlannedSource) -> float:
        """Return about how many genes a sentence of the source has, at most."""
        return min(source.values_per_cell, self.recipe.cells.top_genes or math.inf)

    def piece_schema(self, metadata_columns: Sequence[str]) -> pa.Schema:
        """Return the Arrow schema of what a span leaves for a shard; metadata are codes into values of the corpus."""
        ids = pa.list_(pa.field("element", pa.from_numpy_dtype(gene_id_dtype(len(self.vocabulary))), nullable=False))
        fields = [("cell_id", pa.string()), ("gene_ids", ids), ("n_expressed", pa.int32()), ("group", pa.int32())]
        fields += [("key", pa.uint64()), ("row", pa.uint32()), *((name, pa.int32()) for name in metadata_columns)]
        return pa.schema(fields)

    def decisive(self) -> dict[str, Any]:
        """Return all that decides the bytes, as plain JSON values."""
        return {
            "version": [self.version, FORMAT_VERSION],
            "recipe": self.recipe.model_dump(mode="json"),
            "seed": self.seed,
            "sources": {source.name: source.fingerprint for source in self.sources},
            "skipped": sorted(self.skipped),
            "vocabulary": self.vocabulary.fingerprint,
            "inputs": dict(self.inputs),
        }

    def write(self, work: Path) -> None:
        """Keep the plan for the workers and for a build that goes on."""
        value = {
            "decisive": self.decisive(),
            "base": self.base,
            "sources": [asdict(s) | {"recipe": s.recipe.model_dump(mode="json")} for s in self.sources],
            "skipped": dict(self.skipped),
            "vocabulary": self.vocabulary.to_dict(),
        }
        write_json(work / PLAN, value)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> BuildPlan:
        """Read what `write` wrote."""
        decisive = value["decisive"]
        return cls(
            recipe=CorpusRecipe(**decisive["recipe"]),
            base=value["base"],
            seed=decisive["seed"],
            sources=TypeAdapter(tuple[PlannedSource, ...]).validate_python(value["sources"]),
            skipped=value["skipped"],
            vocabulary=GeneVocabulary.from_dict(value["vocabulary"]),
            inputs=decisive["inputs"],
            version=decisive["version"][0],
        )


@lru_cache(maxsize=2)
def load_plan(work: str, key: str) -> BuildPlan:
    """Return the plan that lies in a folder; `key` says which one is expected."""
    plan = BuildPlan.from_dict(json.loads((Path(work) / PLAN).read_text(encoding="utf-8")))
    if plan.key != key:
        raise InputError(f"{work} was changed by another build; run one build at a time in a folder")
    return plan


def make_plan(
    recipe: CorpusRecipe, base: Path, *, seed: int, skip_bad: bool, known_bad: Mapping[str, str] | None = None
) -> BuildPlan:
    """Open every source and decide what to do; no expression is read but for the test of a matrix's state.

    The last source is left open, for the work that follows: `close_sources` closes it.

    Parameters
    ----------
    known_bad
        Sources that were found to be damaged while they were read, and why.

    Raises
    ------
    InputError
        A source is missing, damaged or of another namespace and `skip_bad` is False, or no good source is left.
    """
    skipped = dict(known_bad or {})
    sources, symbols = [], set[str]()
    for source in expand(recipe, base):
        if source.label in skipped:
            continue
        try:
            opened = opened_source(source, recipe.genes, base)
            sources.append(
                PlannedSource(
                    recipe=source,
                    fingerprint=opened.fingerprint,
                    stamp=opened.stamp,
                    n_cells=opened.n_cells,
                    n_values=int(opened.n_values),
                    is_counts=bool(opened.is_counts),
                    messages=tuple(opened.messages),
                )
            )
            symbols.update(opened.symbols)
        except InputError as error:
            if not skip_bad:
                raise
            skipped[source.label] = str(error)
    for name, reason in skipped.items():
        logger.warning("source %r is left out: %s", name, reason.removeprefix(f"source {name!r}: "))
    if not sources:
        raise InputError(f"none of {len(skipped)} sources can be read; the last: {list(skipped.values())[-1]}")
    given = gene_tables(recipe.genes, base).vocabulary
    return BuildPlan(
        recipe=recipe,
        base=str(base),
        seed=seed,
        sources=tuple(sources),
        skipped=skipped,
        vocabulary=GeneVocabulary(tuple(sorted(symbols)) if given is None else given),
        inputs=_inputs(recipe, base),
    )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what has changed between two `decisive`, in words; `old` may lack parts that are then not compared."""
    found = []
    if "version" in old and list(old["version"]) != list(new["version"]):
        found.append("it was written by another version of cytoglot")
    if old["seed"] != new["seed"]:
        found.append(f"seed {old['seed']} → {new['seed']}")
    found += [f"recipe {name}" for name in changed_keys(old["recipe"], new["recipe"])]
    for part, word in (("sources", "source"), ("inputs", "table")):
        for name in dict.fromkeys([*old[part], *new[part]]):
            before, after = (side[part].get(name, "absent") for side in (old, new))
            if before != after:
                found.append(f"{word} {name!r}: fingerprint {before} → {after}")
    if not found and old["vocabulary"] != new["vocabulary"]:
        found.append(f"gene vocabulary: fingerprint {old['vocabulary']} → {new['vocabulary']}")
    return found


def canonical_columns(names: set[str]) -> list[str]:
    """Return names of metadata in one order: that of the schema, then by name."""
    order = list(OBS_FIELDS)
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def _inputs(recipe: CorpusRecipe, base: Path) -> dict[str, str]:
    """Return the fingerprint of every table that the recipe names."""
    named = {
        "genes.vocabulary": recipe.genes.vocabulary,
        "genes.hgnc": recipe.genes.hgnc,
        "genes.orthologs": recipe.genes.orthologs,
        "cell_types.ontology": recipe.cell_types.ontology,
        "cell_types.markers": recipe.cell_types.markers,
        **{f"templates.{task}": path for task, path in recipe.templates.items() if Path(path).suffix},
        **{f"gene_sets.{i}": entry.path for i, entry in enumerate(recipe.gene_sets)},
        **{f"abstract of {s.label}": s.abstract for s in recipe.sources if (s.abstract or "").endswith(".txt")},
    }
    found = {name: find_file(path, base) for name, path in named.items() if path is not None}
    absent = [f"{name}: {path}" for name, path in found.items() if not path.is_file()]
    if absent:
        raise InputError(f"the recipe names files that do not exist: {'; '.join(absent)}")
    return {name: fingerprint_file(path) for name, path in found.items()}
