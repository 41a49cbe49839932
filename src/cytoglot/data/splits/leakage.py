"""What training, validation and test cells share that they should not: donors, batches, identical cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cytoglot.data.schema import GROUP_FIELDS, group_values, recognize_obs
from cytoglot.data.splits.assignment import PARTS
from cytoglot.data.splits.split import Split
from cytoglot.errors import InputError
from cytoglot.hashing import NO_HASH, cell_hashes

_PAIRS = (("train", "validation"), ("train", "test"), ("validation", "test"))


def leakage_report(
    obs: pd.DataFrame, split: Split, matrix: Any = None, *, part: NDArray[np.object_] | None = None
) -> dict[str, Any]:
    """Say what the parts of a split share that they should not.

    Parameters
    ----------
    obs
        The cells, in the order of the rows of `matrix`.
    split
        Cells of `obs` that it does not know are counted, and otherwise left out.
    matrix
        Expression, (n, g), any sparse or dense matrix; when given, cells with the same values in two parts are found
        by a hash of the row. Cells without any expressed gene are left out: they are equal for want of content.
    part
        Part of each cell, "" for none, where names do not tell it (`data.splits.matching.match_cells`).

    Returns
    -------
    dict
        Plain JSON: `cells` per part, `not_in_split`, `columns` (for each recognized field: the column, its number of
        values and, for each pair of parts, the values in both), `shared_groups` (the same for `schema.GROUP_FIELDS`
        alone, pairs that share something), `identical_cells` (pairs of parts → number; None without a matrix),
        `identical_examples` (at most 20 pairs of ids), `clean` (no group and no content shared).
    """
    part = split.part_of(obs.index) if part is None else part
    columns: dict[str, dict[str, Any]] = {}
    for field, column in recognize_obs(obs).items():
        values = group_values(obs, column)
        found: dict[str, set[str]] = {name: set(values[part == name].dropna()) for name in PARTS}
        columns[field] = {
            "column": column,
            "n_values": int(values.nunique()),
            "shared": {f"{a}/{b}": sorted(found[a] & found[b]) for a, b in _PAIRS},
        }
    shared = {f: c["shared"] for f, c in columns.items() if f in GROUP_FIELDS and any(c["shared"].values())}
    identical: dict[str, int] | None = None
    examples: list[list[str]] = []
    if matrix is not None:
        if matrix.shape[0] != len(obs):
            raise InputError(f"matrix must have one row per cell: {len(obs)} cells, found {matrix.shape[0]} rows")
        frame = pd.DataFrame({"cell": obs.index.astype(str), "part": part, "hash": cell_hashes(matrix)})
        frame, identical = frame[(frame["hash"] != NO_HASH) & (frame["part"] != "")], {}
        for a, b in _PAIRS:
            first = frame[frame["part"] == a].drop_duplicates("hash")
            both = frame[frame["part"] == b].merge(first, on="hash", suffixes=("_b", "_a"))
            identical[f"{a}/{b}"] = len(both)
            examples += both[["cell_a", "cell_b"]].to_numpy().tolist()
    return {
        "split_by": split.by,
        "cells": {name: int((part == name).sum()) for name in PARTS},
        "not_in_split": int((part == "").sum()),
        "columns": columns,
        "shared_groups": shared,
        "identical_cells": identical,
        "identical_examples": examples[:20],
        "clean": not shared and not any((identical or {}).values()),
    }
