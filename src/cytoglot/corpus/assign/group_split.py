"""Training, validation and test cells of many sources: whole donors, batches or data sets in one part.

A unit is a value of the column that a source is split by, within its study: a donor in two files of one study is one
unit. Only numbers of cells are needed, so the split is decided before any cell is read. Sources in which no column
tells units apart are split by cell, and a warning says so.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cytoglot.corpus.assign.cell_keys import salted, uniform
from cytoglot.corpus.sources.recipe import SplitRecipe
from cytoglot.data.schema import GROUP_FIELDS
from cytoglot.data.splits.assignment import PARTS, Part, share_groups
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.hashing import hash_text

logger = logging.getLogger(__name__)

BY_CELL, HELD_OUT = "cell", "held out"
TRAIN, VALIDATION, TEST = range(3)
_UNKNOWN = -1

_TOLERANCE = 0.05
"""of the cells, by which a part may miss its fraction before a warning says so"""


@dataclass
class UnitCounts:
    """Cells of each source by donor, batch and data set. Filled span by span, in any order."""

    study_of_source: dict[str, str] = field(default_factory=dict)
    n_cells: Counter[str] = field(default_factory=Counter)
    """source → cells"""
    units: dict[str, dict[str, Counter[str]]] = field(default_factory=dict)
    """source → column → unit → cells"""

    def add(self, source: str, study: str, columns: Mapping[str, pd.Categorical], n_cells: int) -> None:
        """Count `n_cells` cells of a source; of `columns` those of `GROUP_FIELDS` are looked at.

        Values are tidy, as `CorpusSource.metadata` gives them: a doublet's donor is missing.
        """
        self.study_of_source[source] = study or source
        self.n_cells[source] += n_cells
        of_column = self.units.setdefault(source, {})
        for column in GROUP_FIELDS:
            if column in columns:
                used, cells = np.unique(columns[column].codes, return_counts=True)
                names = columns[column].categories[used[used >= 0]]
                of_column.setdefault(column, Counter()).update(dict(zip(names, cells[used >= 0].tolist(), strict=True)))

    def merge(self, other: UnitCounts) -> None:
        """Add what another worker counted."""
        self.study_of_source |= other.study_of_source
        self.n_cells.update(other.n_cells)
        for source, columns in other.units.items():
            mine = self.units.setdefault(source, {})  # also of a source in which no column tells units apart
            for column, cells in columns.items():
                mine.setdefault(column, Counter()).update(cells)


@dataclass(frozen=True, kw_only=True)
class SplitDecision:
    """Which unit is in which part; written down once, and read by whatever places cells."""

    by: str
    seed: int
    fractions: tuple[float, float, float]
    """asked for"""
    columns: Mapping[str, str]
    """source → the column whose values stay whole, "cell", or "held out" """
    studies: Mapping[str, str]
    """source → study"""
    units: Mapping[str, Part]
    """study, a tab, and the value of the column → part"""
    validation_from_train: tuple[str, ...] = ()
    """studies with too few units: their validation cells are drawn from the training units"""
    without_unit: Mapping[str, int] = field(default_factory=dict)
    """source → cells of no unit, which train"""
    warnings: tuple[str, ...] = ()

    def part_of(self, source: str, columns: Mapping[str, pd.Categorical], keys: NDArray[np.uint64]) -> NDArray[np.int8]:
        """Return (n,) codes into `PARTS`, of the columns and keys of some cells of a source.

        Raises
        ------
        InputError
            A unit was not there when the split was decided.
        """
        column = self.columns[source]
        if column == HELD_OUT:
            return np.full(len(keys), TEST, np.int8)
        if column == BY_CELL:
            return self._drawn(keys, self.fractions)
        study = self.studies[source]
        values = columns[column]
        parts = [self.units.get(unit_name(study, value)) for value in values.categories]
        of_unit = [_UNKNOWN if part is None else PARTS.index(part) for part in parts]
        part = np.array([*of_unit, TRAIN], np.int8)[values.codes]  # a code of -1 takes the last
        if (part == _UNKNOWN).any():
            new = values[int(np.argmax(part == _UNKNOWN))]
            raise InputError(
                f"source {source!r} has changed since the split was decided: {column} {new!r} is new; "
                "build the corpus again in another folder"
            )
        if study in self.validation_from_train:
            drawn = self._drawn(keys, (self.fractions[0], self.fractions[1], 0.0))
            part = np.where(part == TRAIN, drawn, part)
        return part

    def _drawn(self, keys: NDArray[np.uint64], fractions: tuple[float, float, float]) -> NDArray[np.int8]:
        edges = np.cumsum(fractions)
        edges /= edges[-1]  # exactly 1, where the sum of the fractions may stop short of it
        return np.searchsorted(edges, uniform(salted(keys, "split")), side="right").astype(np.int8)


def unit_name(study: str, value: str) -> str:
    """Return the name of a unit in `SplitDecision.units`."""
    return f"{study}\t{value}"


def decide_splits(counts: UnitCounts, settings: SplitRecipe, seed: int) -> SplitDecision:
    """Decide the part of every unit.

    A source is split by the first of donor, batch and data set (or by the column asked for) in which its study has at
    least two units that are not all single cells. Studies go from few units to many, and each makes up for what those
    before it gave too much or too little, so that the fractions are met over all cells as far as whole units allow; a
    warning says so where they are missed by much. In a study with as many units as there are parts, every part gets
    one, and is spread over the study's sources. With two units for three parts one trains, one tests, and validation
    cells are drawn from the one that trains.

    Cells without a unit (missing, doublet, ambiguous) train. Some may be of donors that are tested, so where that
    matters they are to be filtered away before; as test cells they would be of donors that train.

    A source that is held out is tested whole, and so are its units in other sources of the study.

    Raises
    ------
    InputError
        A source held out is unknown, or all are held out.
    """
    studies, held_out = counts.study_of_source, set[str]()
    for name in settings.held_out_sources:
        found = {source for source, study in studies.items() if name in (source, study)}
        if not found:
            raise UnknownNameError("held-out source", name, sorted({*studies, *studies.values()}))
        held_out |= found
    if studies and held_out == set(studies):
        raise InputError(f"expected at least one source to train on, found all {len(studies)} held out; hold out fewer")
    columns = {s: HELD_OUT if s in held_out else _column_of(counts, s, settings.by) for s in sorted(counts.n_cells)}
    by_unit = {source: column for source, column in columns.items() if column not in (BY_CELL, HELD_OUT)}
    without = {s: counts.n_cells[s] - counts.units[s][column].total() for s, column in by_unit.items()}
    cells_of_study: dict[str, dict[str, Counter[str]]] = {}
    for source, column in by_unit.items():
        cells_of_study.setdefault(studies[source], {})[source] = counts.units[source][column]
    tables = {study: pd.DataFrame(cells).fillna(0).sort_index() for study, cells in cells_of_study.items()}

    # Cells of each part, of sources with units: by cell the fractions are met anyway, and held-out cells are extra.
    held = np.array([float(sum(without.values())), 0.0, 0.0])
    units: dict[str, Part] = {}
    validation_from_train = []
    for study, table in sorted(tables.items(), key=lambda item: (len(item[1]), item[0])):
        used = {by_unit[source] for source in table.columns}
        also_held_out = [counts.units[source] for source in held_out if studies[source] == study]
        tested = {unit for found in also_held_out for column in used for unit in found.get(column, ())}
        free = table.drop(index=table.index.intersection(sorted(tested)))
        chosen, is_carved = share_groups(free, settings.fractions, hash_text(f"{seed}\0{study}"), held)
        cells = np.bincount(chosen, weights=free.to_numpy().sum(axis=1), minlength=len(PARTS))
        if is_carved:
            validation_from_train.append(study)
            drawn = cells[TRAIN] * settings.fractions[VALIDATION] / (1 - settings.fractions[TEST])
            cells += np.array([-drawn, drawn, 0.0])
        held += cells
        parts = dict(zip(free.index, (PARTS[part] for part in chosen), strict=True))
        units |= {unit_name(study, unit): parts.get(unit, PARTS[TEST]) for unit in table.index}
    warnings = _warnings(columns, sorted(validation_from_train), without, held, settings.fractions)
    for warning in warnings:
        logger.warning(warning)
    return SplitDecision(
        by=settings.by,
        seed=seed,
        fractions=settings.fractions,
        columns=columns,
        studies={source: studies[source] for source in columns},
        units=dict(sorted(units.items())),
        validation_from_train=tuple(sorted(validation_from_train)),
        without_unit={source: n for source, n in without.items() if n},
        warnings=tuple(warnings),
    )


def _column_of(counts: UnitCounts, source: str, by: str) -> str:
    siblings = [s for s, study in counts.study_of_source.items() if study == counts.study_of_source[source]]
    for column in GROUP_FIELDS if by == "auto" else (by,):
        cells = sum((counts.units[s].get(column, Counter()) for s in siblings), Counter[str]())
        if counts.units[source].get(column) and 2 <= len(cells) < cells.total():
            return column
    return BY_CELL


def _warnings(
    columns: Mapping[str, str],
    validation_from_train: Sequence[str],
    without: Mapping[str, int],
    held: NDArray[np.float64],
    fractions: tuple[float, float, float],
) -> list[str]:
    by_cell = [source for source, column in columns.items() if column == BY_CELL]
    warnings = []
    if by_cell:
        warnings.append(
            f"split by cell, because no column tells several donors, batches or data sets apart: {', '.join(by_cell)}; "
            "their test cells come from the training donors and score higher than cells of new donors would"
        )
    if validation_from_train:
        warnings.append(
            f"too few donors or batches for three parts in {', '.join(validation_from_train)}: their validation cells "
            "are drawn from the training donors and score higher than cells of new donors would"
        )
    warnings += [
        f"source {source!r}: {n} cells without a {columns[source]} (missing, doublet or ambiguous) are training cells"
        for source, n in without.items()
        if n
    ]
    shares = held / max(held.sum(), 1)
    if held.any() and np.abs(shares - fractions).max() > _TOLERANCE:
        found, asked = (" / ".join(f"{100 * share:.0f} %" for share in shown) for shown in (shares, fractions))
        warnings.append(
            f"whole donors or batches give {found} of the cells to training, validation and test, where {asked} were "
            "asked for: studies of few donors have one in every part"
        )
    return warnings
