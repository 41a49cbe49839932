"""Share out cells, or whole groups of cells, so that every part looks like the whole.

Nothing here depends on the order of the rows: cells go by a hash of their id, groups by their sorted names.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")

#: seeded greedy orders that are tried; the most even result is kept.
N_GREEDY_ORDERS = 32

#: of its fraction, that a study gives to a part even when other studies gave too much.
LEAST_SHARE = 0.25


def _cell_order(strata: pd.Series, seed: int) -> pd.DataFrame:
    """Return the cells ordered by label and then by a hash that depends on the seed and the cell id alone."""
    key = f"cytoglot split {seed}".encode()
    hashes = [hashlib.blake2b(str(cell).encode(), digest_size=16, key=key).hexdigest() for cell in strata.index]
    return pd.DataFrame({"stratum": strata.astype(str), "hash": hashes}).sort_values(["stratum", "hash"])


def assign_cells(strata: pd.Series, fractions: tuple[float, float, float], seed: int) -> pd.Series:
    """Return the part of each cell; every label is divided by `fractions`, its first cell trains, totals stay right."""
    ordered = _cell_order(strata, seed)
    part = pd.Series("train", index=strata.index, dtype=object)
    owed = np.zeros(len(PARTS))  # what rounding kept from a part in the labels before; keeps the totals right
    for _, cells in ordered.groupby("stratum", sort=True):
        wanted = np.asarray(fractions) * len(cells)
        counts = np.floor(wanted + 1e-9).astype(int)
        priority = np.where(wanted > 0, wanted - counts + owed, -np.inf)
        if counts[0] == 0:
            priority[0] = np.inf  # a label's first cell is for training: it cannot be tested without
        for winner in np.argsort(-priority, kind="stable")[: len(cells) - counts.sum()]:
            counts[winner] += 1
        owed += wanted - counts
        part[cells.index] = np.repeat(np.array(PARTS, dtype=object), counts)
    return part


def deal_cells(strata: pd.Series, n_folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each cell; the folds of a label, and of all cells, differ in size by at most one."""
    ordered = _cell_order(strata, seed)
    dealt = pd.Series(np.arange(len(ordered)) % n_folds, index=ordered.index)  # deals on from label to label
    return dealt.reindex(strata.index).to_numpy(dtype=np.int64)


def count_labels(groups: pd.Series, strata: pd.Series) -> pd.DataFrame:
    """Return the number of cells per group (rows, sorted) and label (columns)."""
    table = pd.crosstab(groups.astype(object), strata.astype(object), dropna=True)
    return table.sort_index().sort_index(axis=1)


def share_groups(
    table: pd.DataFrame, fractions: tuple[float, float, float], seed: int, held: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.int64], bool]:
    """Return the part of each group of one study, as a code into `PARTS`; every part gets one where there are enough.

    With fewer groups than three parts the first trains and the second tests, and validation cells are to be drawn from
    the group that trains: then the second value is True.

    Parameters
    ----------
    table
        Cells of each group (rows) by what every part should hold alike (columns): labels, or files.
    held
        (3,) cells that the parts have of other studies: what they got too much or too little of is made up for.
    """
    wanted = [part for part, fraction in enumerate(fractions) if fraction > 0]
    is_carved = 0 < len(table) < len(wanted) == len(PARTS)
    wanted = ([PARTS.index("train"), PARTS.index("test")] if is_carved else wanted)[: len(table)]
    if not wanted:
        return np.empty(0, np.int64), False
    fraction = np.array([fractions[part] for part in wanted])
    shares = fraction = fraction / fraction.sum()
    if held is not None:
        # A part that got too much still gets some, since each study is to be in every part.
        owed = (held[wanted].sum() * fraction - held[wanted]) / float(table.to_numpy().sum())
        shares = np.clip(fraction + owed, LEAST_SHARE * fraction, None)
    return np.array(wanted)[assign_groups(table, shares / shares.sum(), seed)], is_carved


def assign_groups(table: pd.DataFrame, shares: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    """Share out groups so that each part gets its share of every label and of all cells; no part stays empty.

    Greedy: groups go from large to small, in `N_GREEDY_ORDERS` seeded jitters of that order, each to the part where it
    lowers the unevenness most; the cheapest outcome wins. Unevenness is the chi-square distance between the shares
    asked for and those of a label that the parts hold; the cost is its mean over labels, and the total as one more,
    plus 1 for each part that lacks the label: a part without it says nothing about it.
    """
    counts = table.to_numpy(dtype=np.float64)
    counts = np.column_stack([counts, counts.sum(axis=1)])
    counts = counts[:, counts.sum(axis=0) > 0] / counts.sum(axis=0)[counts.sum(axis=0) > 0]  # shares of each label
    size = counts[:, -1]
    rng = np.random.default_rng(seed)
    best, best_cost = np.zeros(len(table), dtype=np.int64), np.inf
    for _ in range(N_GREEDY_ORDERS):
        order = np.argsort(-size * rng.uniform(0.5, 1.5, size=len(size)), kind="stable")
        held = np.zeros((len(shares), counts.shape[1]))
        assigned = np.full(len(counts), -1, dtype=np.int64)
        is_used = np.zeros(len(shares), dtype=bool)
        n_left = len(order)
        for group in order:
            empty = np.flatnonzero(~is_used)
            allowed = empty if len(empty) >= n_left else np.arange(len(shares))
            before = (held[allowed] - shares[allowed, None]) ** 2
            after = (held[allowed] + counts[group] - shares[allowed, None]) ** 2
            gain = ((before - after) / shares[allowed, None]).sum(axis=1)
            chosen = allowed[int(np.argmax(gain))]
            assigned[group], is_used[chosen] = chosen, True
            held[chosen] += counts[group]
            n_left -= 1
        unevenness = (((held - shares[:, None]) ** 2) / shares[:, None]).sum(axis=0)
        absent = (held == 0).sum(axis=0)
        cost = float((unevenness + absent).mean())
        if cost < best_cost - 1e-12:
            best, best_cost = assigned, cost
    return best
