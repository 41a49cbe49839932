"""Bootstrap intervals over cells or over groups of cells (donors, batches), of single values and paired differences.

Most metrics are a function of sums over cells: accuracy of the number of hits, F1 of three counts per label. Such an
`AdditiveStatistic` is resampled by one matrix product for all resamples at once, for groups on the sums of each group.
Axes: n cells, u units (cells or groups), k columns of a statistic, r resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
_BLOCK_VALUES = 4_000_000
"""weights held at once (32 MB), whatever the number of cells and resamples"""


@dataclass(frozen=True, kw_only=True)
class AdditiveStatistic:
    """A metric as `combine(sum of rows over the cells)`."""

    rows_nk: Floats
    combine: Callable[[Floats], Floats]
    """sums of shape (…, k) → values of shape (…); undefined values are NaN"""

    @property
    def value(self) -> float:
        """The metric over all cells; NaN without cells."""
        if not len(self.rows_nk):
            return float("nan")
        return float(self.combine(self.rows_nk.sum(axis=0)))


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with the percentile interval of its bootstrap."""

    value: float
    low: float
    high: float
    n: int
    """number of cells"""
    unit: str
    """what was resampled: "cell", "donor", …"""
    n_units: int
    n_resamples: int
    level: float
    n_undefined: int = 0
    """resamples in which the metric is undefined; they are left out of the interval"""


def bootstrap(
    statistic: AdditiveStatistic,
    *,
    groups: ArrayLike | None = None,
    unit: str = "cell",
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the value with its percentile bootstrap interval :cite:p:`efron1979bootstrap`.

    Parameters
    ----------
    groups
        The group of each cell, shape (n,). Whole groups are then drawn, because cells of one donor are not
        independent. With few groups the interval is too narrow rather than too wide: fewer than five say little.
    unit
        What the groups are called in the result.

    Returns
    -------
    Interval
        NaN bounds if there are fewer than two units: one donor tells nothing about donors.

    Raises
    ------
    ValueError
        `groups` has another length than the cells or holds missing values, or `level` is not between 0 and 1.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> hits = metrics.accuracy_statistic(["B", "T"] * 50, ["B", "B"] * 50)
    >>> found = metrics.bootstrap(hits, seed=0)
    >>> found.value, found.low < 0.5 < found.high
    (0.5, True)
    """
    sums_uk = _sums_of_units(statistic, groups)
    values = [statistic.combine(weights_ru @ sums_uk) for weights_ru in _resamples(len(sums_uk), n_resamples, seed)]
    return _interval(statistic.value, values, n=len(statistic.rows_nk), n_units=len(sums_uk), unit=unit, level=level)


def resampled_values(
    statistic: AdditiveStatistic, *, groups: ArrayLike | None = None, n_resamples: int = 2000, seed: int = 0
) -> Floats:
    """Return the values of a statistic in the resamples of `bootstrap`, shape (r,); empty with fewer than two units.

    Parameters
    ----------
    statistic, groups, n_resamples, seed
        As in `bootstrap`.
    """
    sums_uk = _sums_of_units(statistic, groups)
    values = [statistic.combine(weights_ru @ sums_uk) for weights_ru in _resamples(len(sums_uk), n_resamples, seed)]
    return np.concatenate(values) if values else np.empty(0)


def difference_statistic(ours: AdditiveStatistic, other: AdditiveStatistic) -> AdditiveStatistic:
    """Return `ours - other` on the same cells as one statistic, so that both are resampled together.

    Raises
    ------
    ValueError
        The two have different numbers of cells.
    """
    if len(ours.rows_nk) != len(other.rows_nk):
        raise ValueError(
            f"a paired difference needs the same cells, found {len(ours.rows_nk)} and {len(other.rows_nk)}"
        )
    k = ours.rows_nk.shape[1]

    def combine(sums: Floats) -> Floats:
        return np.asarray(ours.combine(sums[..., :k]) - other.combine(sums[..., k:]))

    return AdditiveStatistic(rows_nk=np.hstack([ours.rows_nk, other.rows_nk]), combine=combine)


def bootstrap_difference(
    ours: AdditiveStatistic,
    other: AdditiveStatistic,
    *,
    groups: ArrayLike | None = None,
    unit: str = "cell",
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return `ours - other` on the same cells with its interval; both are resampled together, so it is paired.

    Raises
    ------
    ValueError
        The two have different numbers of cells; otherwise as `bootstrap`.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> truth = ["B", "T"] * 50
    >>> ours, other = metrics.accuracy_statistic(truth, truth), metrics.accuracy_statistic(truth, ["B"] * 100)
    >>> metrics.bootstrap_difference(ours, other).value
    0.5
    """
    both = difference_statistic(ours, other)
    return bootstrap(both, groups=groups, unit=unit, n_resamples=n_resamples, level=level, seed=seed)


def bootstrap_function(
    function: Callable[[NDArray[np.int64]], float],
    n: int,
    *,
    groups: ArrayLike | None = None,
    unit: str = "cell",
    n_resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the interval of any function of cell indices; it is called once per resample, so it should be quick.

    Parameters
    ----------
    function
        Cell indices, with repeats, → value; NaN where it is undefined.

    Examples
    --------
    >>> import numpy as np
    >>> from cytoglot import metrics
    >>> values = np.arange(5.0)
    >>> metrics.bootstrap_function(lambda cells: float(np.median(values[cells])), 5).value
    2.0
    """
    codes = _unit_codes(n, groups)
    n_units = int(codes.max()) + 1 if n else 0
    members = [np.flatnonzero(codes == unit_code) for unit_code in range(n_units)] if groups is not None else None
    values = []
    for weights_ru in _resamples(n_units, n_resamples, seed):
        for weights_u in weights_ru.astype(np.int64):
            drawn = np.repeat(np.arange(n_units), weights_u)
            indices = drawn if members is None else np.concatenate([members[u] for u in drawn])
            values.append(np.float64(function(indices)))
    value = float(function(np.arange(n))) if n else float("nan")
    return _interval(value, [np.array(values)], n=n, n_units=n_units, unit=unit, level=level)


MIN_GROUPS = 5
"""groups among the test cells from which on whole groups are resampled"""


def interval_note(unit: str) -> str:
    """Return one sentence that says what intervals over a unit hold for."""
    if unit in ("cell", "record"):
        return (
            f"Intervals are over single {unit}s, since no column of donors, batches or data sets has {MIN_GROUPS} "
            f"groups among the test {unit}s: {unit}s of one donor count as independent, so the intervals are too "
            "narrow for new donors."
        )
    return f"Intervals are over whole groups of {unit}, each drawn with all of its cells."


def resampling_unit(
    columns: Mapping[str, ArrayLike], *, min_groups: int = MIN_GROUPS
) -> tuple[str, NDArray[np.object_] | None]:
    """Choose what to resample: the first column with at least `min_groups` values and none missing, else cells.

    Returns
    -------
    tuple
        The name and values of the column, or `("cell", None)`.

    Examples
    --------
    >>> from cytoglot import metrics
    >>> metrics.resampling_unit({"donor": ["a", "b", "a"]})
    ('cell', None)
    """
    for name, values in columns.items():
        series = pd.Series(np.asarray(values, dtype=object))
        if not series.isna().any() and series.nunique() >= min_groups:
            return name, series.to_numpy()
    return "cell", None


def _sums_of_units(statistic: AdditiveStatistic, groups: ArrayLike | None) -> Floats:
    if groups is None:
        return statistic.rows_nk
    codes = _unit_codes(len(statistic.rows_nk), groups)
    sums_uk = np.zeros((int(codes.max(initial=-1)) + 1, statistic.rows_nk.shape[1]))
    np.add.at(sums_uk, codes, statistic.rows_nk)
    return sums_uk


def _unit_codes(n: int, groups: ArrayLike | None) -> NDArray[np.int64]:
    if groups is None:
        return np.arange(n)
    codes, _ = pd.factorize(pd.Series(np.asarray(groups, dtype=object)))
    if len(codes) != n:
        raise ValueError(f"groups must have one value per cell: {n} cells, {len(codes)} groups")
    if (codes < 0).any():
        raise ValueError(f"groups must not be missing, found {int((codes < 0).sum())} of {n} missing")
    return np.asarray(codes, dtype=np.int64)


def _resamples(n_units: int, n_resamples: int, seed: int) -> Iterator[Floats]:
    """Yield blocks (r, u) of how often each unit was drawn."""
    if n_units < 2:
        return
    rng = np.random.default_rng(seed)
    block = max(1, min(n_resamples, _BLOCK_VALUES // n_units))
    for start in range(0, n_resamples, block):
        n_rows = min(block, n_resamples - start)
        drawn_ru = rng.integers(0, n_units, size=(n_rows, n_units))
        drawn_ru += np.arange(n_rows)[:, None] * n_units
        counts = np.bincount(drawn_ru.ravel(), minlength=n_rows * n_units)
        yield counts.reshape(n_rows, n_units).astype(np.float64)


def _interval(value: float, blocks: list[Any], *, n: int, n_units: int, unit: str, level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, found {level}")
    values = np.concatenate(blocks) if blocks else np.empty(0)
    defined = values[~np.isnan(values)]
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]) if len(defined) else (np.nan, np.nan)
    return Interval(
        value=value,
        low=float(low),
        high=float(high),
        n=n,
        unit=unit,
        n_units=n_units,
        n_resamples=len(values),
        level=level,
        n_undefined=len(values) - len(defined),
    )
