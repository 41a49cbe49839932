"""What is decided from the metadata of all cells before one is ranked: caps, split, and values of the columns.

The metadata are gone through once, once more where a cap leaves cells out and twice more where a source has more cells
than its limit; what comes back from a span are counts, never cells.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import TypeAdapter

from cytoglot.atomic import write_json
from cytoglot.corpus.assign.cell_keys import cell_keys
from cytoglot.corpus.assign.downsampling import CapCounts, CapLimits, CellCaps, cap_targets
from cytoglot.corpus.assign.group_split import BY_CELL, HELD_OUT, SplitDecision, UnitCounts, decide_splits
from cytoglot.corpus.build.plan import BuildPlan, PlannedSource, Span, canonical_columns, load_plan
from cytoglot.corpus.format.folder import PARTS
from cytoglot.corpus.sources.expand import CorpusSource
from cytoglot.engines import Workers
from cytoglot.errors import InputError

logger = logging.getLogger(__name__)

DECISIONS = "decisions.json"
#: Ranked ids from which rank curves are fitted, about; more would not change them.
CURVE_IDS = 2_000_000
_SOURCE = "source"

Result = TypeVar("Result")


class Fault(NamedTuple):
    """What comes back from a span whose source cannot be read: the build may go on without the source."""

    source: str
    message: str


class BadSourcesError(InputError):
    """Some sources turned out to be unreadable while they were read; `faults` says which and why."""

    def __init__(self, faults: Mapping[str, str]) -> None:
        self.faults = dict(faults)
        super().__init__("; ".join(self.faults.values()))


class SpanTask(NamedTuple):
    """What a worker is told: where the plan lies, which one it is, and the number of the span."""

    work: str
    key: str
    number: int

    @property
    def plan(self) -> BuildPlan:
        """The plan."""
        return load_plan(self.work, self.key)


@dataclass(frozen=True, kw_only=True)
class SpanMap:
    """Calls a function on every span, on some workers."""

    plan: BuildPlan
    work: Path
    workers: Workers
    skip_bad: bool

    def __call__(self, function: Callable[[SpanTask], Result], description: str) -> Iterator[Result]:
        """Yield what the function returns for each span, in no order.

        Raises
        ------
        BadSourcesError
            Sources cannot be read: at once, or when all spans have been seen if they may be skipped.
        """
        tasks = [SpanTask(str(self.work), self.plan.key, number) for number in range(len(self.plan.spans))]
        weights = [span.last - span.first for span in self.plan.spans]
        faults: dict[str, str] = {}
        guarded = partial(_guarded, function)
        for found in self.workers.map(guarded, tasks, description=description, unit="cell", weights=weights):
            if not isinstance(found, Fault):
                yield found
                continue
            faults[found.source] = found.message
            if not self.skip_bad:
                break
        if faults:
            raise BadSourcesError(dict(sorted(faults.items())))


def _guarded(function: Callable[[SpanTask], Result], task: SpanTask) -> Result | Fault:
    try:
        return function(task)
    except InputError as error:
        return Fault(task.plan.sources[task.plan.spans[task.number].source].name, str(error))


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """What holds for all cells."""

    source_caps: CellCaps
    label_caps: CellCaps
    splits: SplitDecision
    values: Mapping[str, tuple[str, ...]]
    """metadata column → its values in all sources, sorted; codes in spills are places in it"""
    known: Mapping[str, tuple[str, ...]]
    """source → columns of which it has a value"""
    shards_of_part: tuple[int, int, int]
    curve_share: float
    """share of the training cells whose expression is kept for the rank curve"""


@lru_cache(maxsize=2)
def load_decisions(work: str, _key: str) -> Decisions:
    """Return the decisions that lie in a folder; `_key` is that of the plan."""
    return TypeAdapter(Decisions).validate_json((Path(work) / DECISIONS).read_bytes())


@dataclass(frozen=True, kw_only=True)
class SpanCells:
    """The cells of a span that the recipe wants. Axes: n of them."""

    rows: NDArray[np.int64]
    """(n,) rising rows of the source, from 0 for the first of the span"""
    keys: NDArray[np.uint64]
    metadata: Mapping[str, pd.Categorical]
    """canonical column → (n,) tidy texts"""
    removed: Mapping[str, int]
    """why → cells of the span that are not wanted"""


def wanted_cells(
    plan: BuildPlan, source: CorpusSource, span: Span, *, source_caps: CellCaps | None, label_caps: CellCaps | None
) -> SpanCells:
    """Return the cells of a span that the recipe keeps and the caps leave."""
    kept = source.kept(span.first, span.last)
    frame = source.metadata(span.first, span.last)
    rows, removed = np.flatnonzero(kept), {"not wanted by the recipe": int((~kept).sum())}
    keys = cell_keys(plan.seed, source.name, span.first, span.last)[rows]
    for reason, caps, column in (
        ("above max_cells of the source", source_caps, _SOURCE),
        ("above the cap", label_caps, plan.recipe.caps.per),
    ):
        labels = None
        if column == _SOURCE:
            labels = _constant(source.name, len(rows))
        elif column in frame.columns:
            labels = frame[column].array.take(rows)
        if caps is not None and labels is not None:
            stays = caps.keep(labels, keys)
            rows, keys, removed[reason] = rows[stays], keys[stays], int((~stays).sum())
    metadata = {str(name): frame[name].array.take(rows) for name in frame.columns}
    return SpanCells(rows=rows, keys=keys, metadata=metadata, removed={r: n for r, n in removed.items() if n})


def _constant(text: str, n_cells: int) -> pd.Categorical:
    categories: Any = [text]
    return pd.Categorical.from_codes(np.zeros(n_cells, np.int8), categories=categories)


@dataclass
class _Counts:
    """What the main look finds."""

    units: UnitCounts = field(default_factory=UnitCounts)
    caps: CapCounts = field(default_factory=CapCounts)
    sources: CapCounts = field(default_factory=lambda: CapCounts(purpose="max_cells"))
    values: dict[str, dict[str, set[str]]] = field(default_factory=dict)
    """source → column → values that a cell has"""

    def merge(self, other: _Counts) -> None:
        self.units.merge(other.units)
        self.caps.merge(other.caps)
        self.sources.merge(other.sources)
        for source, columns in other.values.items():
            for column, found in columns.items():
                self.values.setdefault(source, {}).setdefault(column, set()).update(found)


def decide(plan: BuildPlan, work: Path, over_spans: SpanMap) -> Decisions:
    """Go through the metadata of all cells, decide, and keep the decisions; those of an earlier run are taken over.

    Raises
    ------
    InputError
        A source cannot be read, or no cell is wanted.
    """
    if (work / DECISIONS).is_file():
        return load_decisions(str(work), plan.key)

    def counted(source_caps: CellCaps | None) -> _Counts:
        counts = _Counts()
        for found in over_spans(partial(_count, source_caps=source_caps), "count"):
            counts.merge(found)
        return counts

    counts = counted(None)
    most = {source.name: source.recipe.max_cells for source in plan.sources}
    wanted = {name: min(n, most[name] or n) for name, n in counts.sources.cells.items()}
    source_caps = _limits(over_spans, counts.sources, wanted, column=_SOURCE, source_caps=None)
    if source_caps.last_key:
        counts = counted(source_caps)
    if not sum(counts.units.n_cells.values()):
        raise InputError("no cell is left to build from; expected keep and primary_only to leave some, found none")
    labelled = counts.caps.cells
    targets = cap_targets(labelled, plan.recipe.caps)
    label_caps = _limits(over_spans, counts.caps, targets, column=plan.recipe.caps.per, source_caps=source_caps)

    splits = decide_splits(counts.units, plan.recipe.split, plan.seed)
    values: dict[str, set[str]] = {}
    for columns in counts.values.values():
        for column, texts in columns.items():
            values.setdefault(column, set()).update(texts)
    n_unlabelled = counts.caps.n_unlabelled
    share_left = (n_unlabelled + sum(targets.values())) / max(n_unlabelled + sum(labelled.values()), 1)
    ids = _ids_of_parts(plan, counts.units, splits) * share_left
    first, second, third = (max(1, math.ceil(round(n) / plan.recipe.shard_ids)) for n in ids)
    decisions = Decisions(
        source_caps=source_caps,
        label_caps=label_caps,
        splits=splits,
        values={name: tuple(sorted(values[name])) for name in canonical_columns(set(values))},
        known={source: tuple(canonical_columns(set(names))) for source, names in sorted(counts.values.items())},
        shards_of_part=(first, second, third),
        curve_share=min(1.0, CURVE_IDS / max(float(ids[0]), 1.0)),
    )
    write_json(work / DECISIONS, asdict(decisions))
    return decisions


def _ids_of_parts(plan: BuildPlan, units: UnitCounts, splits: SplitDecision) -> NDArray[np.float64]:
    """Return about how many ranked ids each part has before the caps."""
    ids = np.zeros(len(PARTS))
    for source in plan.sources:
        n_cells, column = units.n_cells[source.name], splits.columns.get(source.name)
        cells = np.zeros(len(PARTS))
        if column == HELD_OUT:
            cells[-1] = n_cells
        elif column in (BY_CELL, None):
            cells = n_cells * np.array(splits.fractions)
        else:
            for unit, n in units.units[source.name][column].items():
                cells[PARTS.index(splits.units[f"{splits.studies[source.name]}\t{unit}"])] += n
            cells[0] += n_cells - cells.sum()
        ids += cells * plan.ids_per_cell(source)
    return ids


def _limits(
    over_spans: SpanMap,
    counts: CapCounts,
    targets: Mapping[str, int],
    *,
    column: str,
    source_caps: CellCaps | None,
) -> CellCaps:
    limits = CapLimits(counts, targets)
    if limits.needed:
        empty = CapLimits(counts, targets)
        see = partial(_see_limits, empty=empty, column=column, source_caps=source_caps)
        for found in over_spans(see, "count"):
            limits.merge(found)
    return limits.finish()


def _count(task: SpanTask, source_caps: CellCaps | None) -> _Counts:
    plan, span = task.plan, task.plan.spans[task.number]
    planned = plan.sources[span.source]
    source = plan.opened(span.source)
    cells = wanted_cells(plan, source, span, source_caps=source_caps, label_caps=None)
    counts = _Counts()
    counts.units.add(planned.name, planned.recipe.study, cells.metadata, len(cells.rows))
    counts.sources.add(_constant(planned.name, len(cells.rows)), cells.keys)
    labels = cells.metadata.get(plan.recipe.caps.per)
    if labels is None:
        counts.caps.n_unlabelled += len(cells.rows)
    else:
        counts.caps.add(labels, cells.keys)
    values = counts.values.setdefault(planned.name, {})
    for name, column in cells.metadata.items():
        used = np.unique(column.codes)
        if used.max(initial=-1) >= 0:
            values[name] = set(column.categories[used[used >= 0]])
    return counts


def _see_limits(task: SpanTask, empty: CapLimits, column: str, source_caps: CellCaps | None) -> CapLimits:
    """Look at the keys of a span; `empty` is what nothing has been added to, a copy of which comes back."""
    plan, span = task.plan, task.plan.spans[task.number]
    planned: PlannedSource = plan.sources[span.source]
    cells = wanted_cells(plan, plan.opened(span.source), span, source_caps=source_caps, label_caps=None)
    limits = copy.deepcopy(empty)
    labels = _constant(planned.name, len(cells.rows)) if column == _SOURCE else cells.metadata.get(column)
    if labels is not None:
        limits.add(labels, cells.keys)
    return limits


def codes_of(
    columns: Mapping[str, pd.Categorical], values: Mapping[str, Sequence[str]]
) -> dict[str, NDArray[np.int32]]:
    """Return column → (n,) places of its values in those of the corpus, −1 where unknown or not a column of these."""
    found = {}
    for name, known in values.items():
        column = columns.get(name)
        if column is None:
            continue
        place = pd.Index(list(known)).get_indexer(column.categories)
        found[name] = np.append(place, -1).astype(np.int32)[column.codes]
    return found
