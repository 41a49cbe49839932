"""A column of many cells as codes of cleaned labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cytoglot.data.schema import UNLABELED


def label_codes(
    values: pd.Categorical, *, not_values: frozenset[str] = UNLABELED
) -> tuple[NDArray[np.int32], list[str]]:
    """Return codes (n,), −1 where there is no label, and the labels they stand for.

    Labels are stripped; those that are then the same become one, and those in `not_values` (in lower case) none. Labels
    that no cell has are left out. Only the categories are looked at as text, never the cells.
    """
    name_of_category = [str(category).strip() for category in values.categories]
    codes = values.codes
    used = np.bincount(codes[codes >= 0], minlength=len(name_of_category)) > 0
    is_label = [bool(u) and name.lower() not in not_values for name, u in zip(name_of_category, used, strict=True)]
    names = sorted({name for name, is_one in zip(name_of_category, is_label, strict=True) if is_one})
    number = {name: i for i, name in enumerate(names)}
    to_label = np.array(
        [number[n] if is_one else -1 for n, is_one in zip(name_of_category, is_label, strict=True)] + [-1], np.int32
    )
    return to_label[codes], names  # a code of -1 takes the last
