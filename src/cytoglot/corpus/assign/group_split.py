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
from cytoglot.data.splits.assignment import PARTS, Part, assign_groups
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.hashing import hash_text

logger = logging.getLogger(__name__)

BY_CELL, HELD_OUT = "cell", "held out"
TRAIN, VALIDATION, TEST = range(3)
_UNKNOWN = -1

_TOLERANCE = 0.05
"""of the cells, by which a part may miss its fraction before a warning says so"""
_LEAST_SHARE = 0.25
"""of its fraction, that a study gives to a part even when other studies gave too much"""


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
    studies, names = counts.study_of_source, settings.held_out_sources
    for name in names:
        if name not in studies and name not in studies.values():
            raise UnknownNameError("held-out source", name, sorted({*studies, *studies.values()}))
    held_out = {source for source, study in studies.items() if source in names or study in names}
    if studies and held_out == set(studies):
        raise InputError(f"expected at least one source to train on, found all {len(studies)} held out; hold out fewer")
    columns = dict.fromkeys(sorted(counts.n_cells), BY_CELL)
    for source in columns:
        siblings = [s for s, study in studies.items() if study == studies[source]]
        for column in GROUP_FIELDS if settings.by == "auto" else (settings.by,):
            cells = sum((counts.units[s].get(column, Counter()) for s in siblings), Counter[str]())
            if counts.units[source].get(column) and 2 <= len(cells) < cells.total():
                columns[source] = column
                break
    columns |= dict.fromkeys(columns.keys() & held_out, HELD_OUT)
    units, validation_from_train, held = _share_out(counts, columns, settings.fractions, seed)
    without = {s: counts.n_cells[s] - counts.units[s][column].total() for s, column in columns.items()
               if column not in (BY_CELL, HELD_OUT)}  # fmt: skip
    without = {source: n for source, n in without.items() if n}
    warnings = _warnings(columns, validation_from_train, without)
    found = held / max(held.sum(), 1)
    if held.any() and np.abs(found - settings.fractions).max() > _TOLERANCE:
        got, wanted = (" / ".join(f"{100 * share:.0f} %" for share in shares) for shares in (found, settings.fractions))
        warnings.append(
            f"whole donors or batches give {got} of the cells to training, validation and test, where {wanted} were "
            "asked for: studies of few donors have one in every part"
        )
    for warning in warnings:
        logger.warning(warning)
    return SplitDecision(
        by=settings.by,
        seed=seed,
        fractions=settings.fractions,
        columns=columns,
        studies={source: studies[source] for source in columns},
        units=units,
        validation_from_train=validation_from_train,
        without_unit=without,
        warnings=tuple(warnings),
    )


def _share_out(
    counts: UnitCounts, columns: Mapping[str, str], fractions: tuple[float, float, float], seed: int
) -> tuple[dict[str, Part], tuple[str, ...], NDArray[np.float64]]:
    """Return the part of each unit, the studies whose validation cells are drawn by cell, and the cells of each part.

    The cells (3,) are those of sources with units; by cell the fractions are met anyway, and held-out cells are extra.
    """
    held = np.zeros(len(PARTS))
    cells_of: dict[str, dict[str, Counter[str]]] = {}  # study → source → unit → cells
    for source, column in columns.items():
        if column not in (BY_CELL, HELD_OUT):
            cells_of.setdefault(counts.study_of_source[source], {})[source] = counts.units[source][column]
            held[TRAIN] += counts.n_cells[source] - counts.units[source][column].total()
    tables = {study: pd.DataFrame(of_source).fillna(0).sort_index() for study, of_source in cells_of.items()}
    units: dict[str, Part] = {}
    validation_from_train = []
    for study in sorted(tables, key=lambda study: (len(tables[study]), study)):
        siblings = [source for source in columns if counts.study_of_source[source] == study]
        used = {columns[source] for source in siblings} - {BY_CELL, HELD_OUT}
        tested = {
            unit
            for source in siblings
            if columns[source] == HELD_OUT
            for column in used
            for unit in counts.units[source].get(column, ())
        } & set(tables[study].index)
        free = tables[study].drop(index=sorted(tested))
        wanted = [part for part in range(len(PARTS)) if fractions[part] > 0]
        is_carved = 0 < len(free) < len(wanted) == len(PARTS)
        if is_carved:
            validation_from_train.append(study)
            wanted = [TRAIN, TEST] if len(free) > 1 else [TRAIN]
        elif len(free) == 1:  # all others are held out
            wanted = [TRAIN]
        chosen = np.empty(0, np.int64)
        if len(free):
            n_cells = float(free.to_numpy().sum())
            fraction = np.array(fractions)[wanted] / sum(fractions[part] for part in wanted)
            # What parts are owed so far; one that got too much still gets some, as each study is to be in every part.
            due = (held[wanted].sum() + n_cells) * fraction - held[wanted]
            shares = np.clip(due / n_cells, _LEAST_SHARE * fraction, None)
            chosen = np.array(wanted)[assign_groups(free, shares / shares.sum(), hash_text(f"{seed}\0{study}"))]
        cells = np.bincount(chosen, weights=free.to_numpy().sum(axis=1), minlength=len(PARTS))
        drawn = cells[TRAIN] * fractions[VALIDATION] / (1 - fractions[TEST]) if is_carved else 0.0
        held += cells + np.array([-drawn, drawn, 0.0])
        units |= {unit_name(study, unit): PARTS[TEST] for unit in tested}
        units |= {unit_name(study, unit): PARTS[part] for unit, part in zip(free.index, chosen, strict=True)}
    return dict(sorted(units.items())), tuple(sorted(validation_from_train)), held


def _warnings(
    columns: Mapping[str, str], validation_from_train: Sequence[str], without: Mapping[str, int]
) -> list[str]:
    by_cell = [source for source, column in columns.items() if column == BY_CELL]
    warnings = []
    if by_cell:
        warnings.append(
            f"split by cell, because no column tells several donors, batches or data sets apart: {', '.join(by_cell)}; "
            "their test cells come from the donors that train, so scores on them are flattering"
        )
    if validation_from_train:
        warnings.append(
            f"too few donors or batches for three parts in {', '.join(validation_from_train)}: their validation cells "
            "are drawn from the training donors, so validation scores are flattering"
        )
    warnings += [
        f"source {source!r}: {n} cells without a {columns[source]} (missing, doublet or ambiguous) are training cells"
        for source, n in without.items()
    ]
    return warnings
