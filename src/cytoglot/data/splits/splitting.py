"""Training, validation and test cells: whole donors or batches on one side, labels spread evenly, stored by cell id.

A split depends on the cell ids, their groups and labels and the seed, never on the order of the rows. Group splits are
found by seeded greedy assignment; cell splits by a hash of the cell id within each label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cytoglot.data.schema import group_columns, group_values, labels, unlike_in_spelling
from cytoglot.data.splits.assignment import PARTS, assign_cells, assign_groups, count_labels, deal_cells, share_groups
from cytoglot.data.splits.split import Split
from cytoglot.errors import InputError

#: of training, validation and test cells, unless a caller names others.
FRACTIONS = (0.7, 0.1, 0.2)

#: leave-one-group-out up to this many groups, group k-fold above.
MAX_LEAVE_ONE_OUT = 10

#: folds with at least this many training groups give a whole one to validation; fewer would lose too much training.
MIN_GROUPS_FOR_GROUP_VALIDATION = 5


def split_cells(
    obs: pd.DataFrame,
    *,
    by: str = "auto",
    label: str | None = None,
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
) -> Split:
    """Split all cells of `obs` into training, validation and test cells; its `warnings` say what to know of it.

    Parameters
    ----------
    obs
        One row per cell, unique index of cell ids.
    by
        "auto": the first of donor, batch and study (`schema.GROUP_FIELDS`) that has at least two groups and, where a
        label is given, at least one label in two of them; else cells, with a warning. "cell": each cell for itself. A
        column: its groups stay whole; with fewer groups than parts the validation cells are taken from the training
        groups, and a warning says so. Cells without a group (`schema.NOT_A_GROUP`) are training cells.
    label
        The column by which the parts should look alike. Cells without a label count as one more label.
    fractions
        Of training, validation and test cells; sums to 1, validation and test may be 0. Without test cells, fewer than
        `MIN_GROUPS_FOR_GROUP_VALIDATION` groups give validation cells and no whole group.
    seed
        Another seed gives other cells; with few groups the evenest choice is often the same (use `folds` for more).

    Raises
    ------
    InputError
        The index has duplicates, a column is absent, the fractions are no fractions, a column has fewer than two
        groups, or there are fewer cells than parts.
    """
    _check(obs, fractions)
    strata = _strata(obs, label)
    groups, warnings = _choose_groups(obs, by, strata)
    if groups is None:
        part = assign_cells(strata, fractions, seed)
    elif not fractions[2]:
        part, said = _split_rest(groups, strata, np.zeros(len(obs), dtype=bool), fractions, seed)
        warnings += said
    else:
        part, said = _split_by_group(groups, strata, fractions, seed)
        warnings += said
    warnings += _label_warnings(strata, part)
    return _make_split(part, groups, seed=seed, fractions=fractions, warnings=warnings)


def folds(
    obs: pd.DataFrame,
    *,
    by: str = "auto",
    label: str | None = None,
    n_folds: int = 5,
    seed: int = 0,
    validation: float = 0.1,
) -> list[Split]:
    """Return splits in which each cell is a test cell exactly once; fold i has the seed `seed + i`.

    By a column with at most `MAX_LEAVE_ONE_OUT` groups each group is left out once, whatever `n_folds`; with more, the
    groups are shared out among `n_folds` even folds. Cells without a group are training cells in every fold. The share
    `validation` of the remaining cells is set aside as whole groups where at least `MIN_GROUPS_FOR_GROUP_VALIDATION`
    remain, else by cell, which the warnings then say. `by` and `label` are as in `split_cells`.

    Raises
    ------
    InputError
        As `split_cells`; also for fewer than two folds or fewer cells than folds.
    """
    _check(obs, (1.0 - validation, validation, 0.0))
    if n_folds < 2 or n_folds > len(obs):
        raise InputError(f"n_folds must lie between 2 and the number of cells ({len(obs)}), found {n_folds}")
    strata = _strata(obs, label)
    groups, warnings = _choose_groups(obs, by, strata)
    if groups is None:
        fold_of_cell = deal_cells(strata, n_folds, seed)
    else:
        table = count_labels(groups, strata)
        if len(table) <= MAX_LEAVE_ONE_OUT:
            fold_of_group = np.arange(len(table), dtype=np.int64)
        else:
            n_folds = min(n_folds, len(table))
            fold_of_group = assign_groups(table, np.full(n_folds, 1 / n_folds), seed)
        # a cell without a group is tested in no fold
        by_group = dict(zip(table.index, fold_of_group, strict=True))
        fold_of_cell = groups.map(by_group).fillna(-1).to_numpy(dtype=np.int64)
    made = []
    for number in range(int(fold_of_cell.max()) + 1):
        in_test = fold_of_cell == number
        part, said = _split_rest(groups, strata, in_test, (1.0 - validation, validation, 0.0), seed + number)
        said += _label_warnings(strata, part)
        share = float(in_test.mean())
        fractions = ((1 - share) * (1 - validation), (1 - share) * validation, share)
        made.append(_make_split(part, groups, seed=seed + number, fractions=fractions, warnings=warnings + said))
    return made


def check_fractions(fractions: Sequence[float]) -> None:
    """Refuse what are no fractions of training, validation and test cells."""
    if (
        len(fractions) != len(PARTS)
        or any(not 0 <= f <= 1 for f in fractions)
        or not math.isclose(sum(fractions), 1.0, abs_tol=1e-6)
        or not fractions[0]
    ):
        raise InputError(
            f"fractions must be three numbers from 0 to 1 that sum to 1, the first above 0; found {tuple(fractions)}"
        )


# Choosing what is kept whole


def _check(obs: pd.DataFrame, fractions: tuple[float, float, float]) -> None:
    if not obs.index.is_unique:
        repeated = obs.index[obs.index.duplicated()]
        raise InputError(
            f"cell ids must be unique, found {len(repeated)} repeated ones, first {str(repeated[0])!r}; "
            "call adata.obs_names_make_unique() first"
        )
    check_fractions(fractions)
    n_parts = sum(f > 0 for f in fractions)
    if len(obs) < n_parts:
        raise InputError(f"{len(obs)} cells cannot be split into {n_parts} parts; pass more cells or fewer parts")


def _strata(obs: pd.DataFrame, label: str | None) -> pd.Series:
    if label is None:
        return pd.Series("", index=obs.index, dtype=object)
    return labels(obs, label).where(lambda s: s.notna(), "")


def _choose_groups(obs: pd.DataFrame, by: str, strata: pd.Series) -> tuple[pd.Series | None, list[str]]:
    """Return the group of each cell under the name of its column, None to split by cell, and what to warn of."""
    if by == "cell":
        return None, []
    if by != "auto":
        groups = group_values(obs, by)
        if groups.nunique() < 2:
            raise InputError(
                f"a split by {by!r} needs at least two groups, found {groups.nunique()}; choose another column or "
                "by='cell'"
            )
        return groups, _without_group(groups)
    warnings: list[str] = []
    for column in group_columns(obs):
        groups = group_values(obs, column)
        n_groups, is_labelled = groups.nunique(), groups.notna() & (strata != "")
        if n_groups < 2:
            reason = f"it has {n_groups} group{'' if n_groups == 1 else 's'}"
        elif n_groups == groups.notna().sum():
            reason = "each of its groups is a single cell"
        elif is_labelled.any() and groups[is_labelled].groupby(strata[is_labelled]).nunique().max() < 2:
            reason = "no label occurs in two of its groups"
        else:
            return groups, warnings + _without_group(groups)
        warnings.append(f"column {column!r} was not used for the split: {reason}")
    warnings.append(
        "split by cell: no donor, batch or study column has several usable groups, so training, validation and test "
        "cells share donors, and scores are higher than on cells of new donors"
    )
    return None, warnings


def _label_warnings(strata: pd.Series, part: pd.Series) -> list[str]:
    labelled = strata[strata != ""]
    in_train = set(labelled[part == "train"])
    unseen = sorted(set(labelled[part == "test"]) - in_train)
    said = [f"{len(unseen)} labels of the test cells have no training cell: {', '.join(unseen[:10])}"] if unseen else []
    names = sorted(set(labelled))
    alike = {tuple(sorted(pair)) for pair in unlike_in_spelling(names, names).items()}
    if alike:
        shown = "; ".join(f"{a!r} and {b!r}" for a, b in sorted(alike)[:5])
        said.append(f"labels that differ in spelling alone are kept apart: {shown}; rename one of them if they are one")
    return said


def _make_split(
    part: pd.Series,
    groups: pd.Series | None,
    *,
    seed: int,
    fractions: tuple[float, float, float],
    warnings: list[str],
) -> Split:
    ids = part.index.astype(str)
    train, validation, test = (tuple(ids[(part == name).to_numpy()]) for name in PARTS)
    split = Split(
        train=train,
        validation=validation,
        test=test,
        by="cell" if groups is None else str(groups.name),
        seed=seed,
        fractions=fractions,
        warnings=tuple(dict.fromkeys(warnings)),
    )
    split.check_complete(part.index)
    return split


# Groups


def _split_by_group(
    groups: pd.Series, strata: pd.Series, fractions: tuple[float, float, float], seed: int
) -> tuple[pd.Series, list[str]]:
    table = count_labels(groups, strata)
    parts, is_carved = share_groups(table, fractions, seed)
    part_of_group = dict(zip(table.index, (PARTS[part] for part in parts), strict=True))
    part = groups.map(part_of_group).where(groups.notna(), "train").astype(object)
    if not is_carved:
        return part, []
    train = (part == "train").to_numpy()
    share = fractions[1] / (fractions[0] + fractions[1])
    carved = assign_cells(strata[train], (1 - share, share, 0.0), seed)
    warning = (
        f"{len(table)} groups for three parts: validation cells are taken from the training groups, "
        "so they score higher than cells of new groups would"
    )
    return carved.reindex(part.index).where(train, part).astype(object), [warning]


def _split_rest(
    groups: pd.Series | None,
    strata: pd.Series,
    in_test: NDArray[np.bool_],
    fractions: tuple[float, float, float],
    seed: int,
) -> tuple[pd.Series, list[str]]:
    """Split what is not tested into training and validation cells."""
    part = pd.Series("test", index=strata.index, dtype=object)
    rest = ~in_test
    n_groups = 0 if groups is None else groups[rest].nunique()
    if groups is not None and n_groups >= MIN_GROUPS_FOR_GROUP_VALIDATION and fractions[1] > 0:
        part[rest] = _split_by_group(groups[rest], strata[rest], fractions, seed)[0].to_numpy()
        return part, []
    part[rest] = assign_cells(strata[rest], fractions, seed).to_numpy()
    if groups is None or not fractions[1]:
        return part, []
    warning = (
        f"{n_groups} training groups are too few to set whole ones aside: validation cells are taken from them, "
        "so they score higher than cells of new groups would"
    )
    return part, [warning]


def _without_group(groups: pd.Series) -> list[str]:
    n = int(groups.isna().sum())
    return [f"{n} cells without a group (missing, doublet or ambiguous) are training cells"] if n else []
