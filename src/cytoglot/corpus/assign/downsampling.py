"""How many cells of each label a corpus keeps, and which.

Two looks at the metadata decide it with little memory. The first counts the cells of each label in 256 ranges of their
keys (`CapCounts`), which gives the targets; the second reads the keys of the one range in which a label's limit falls
(`CapLimits`). The cells of a label with the smallest keys stay, exactly as many as wanted.

Caps are decided over all cells before the split and regardless of it, so a label loses the same share in every part.
Cells without a label are never capped. Labels come as `CorpusSource.metadata` gives them: categoricals of tidy text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cytoglot.corpus.assign.cell_keys import salted
from cytoglot.corpus.sources.recipe import CapRecipe

N_BINS = 256
_BIN_SHIFT = np.uint64(56)
_LAST_KEY = 2**64 - 1


@dataclass
class CapCounts:
    """Cells of each label, by range of their keys. Filled span by span, in any order."""

    purpose: str = "caps"
    """what the keys are salted with; counts for another limit take another"""
    bins: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """label → (256,) cells by the first eight bits of the salted key"""
    n_unlabelled: int = 0

    def add(self, values: pd.Categorical, keys: NDArray[np.uint64]) -> None:
        """Count (n,) cells with their labels and keys (as `cell_keys` gives them)."""
        labelled = values.codes >= 0
        used, codes = np.unique(values.codes[labelled], return_inverse=True)
        bins = (salted(keys[labelled], self.purpose) >> _BIN_SHIFT).astype(np.int64)
        cells = np.bincount(codes * N_BINS + bins, minlength=len(used) * N_BINS)
        for name, counts in zip(values.categories[used], cells.reshape(len(used), N_BINS), strict=True):
            self.bins[name] = self.bins[name] + counts if name in self.bins else counts
        self.n_unlabelled += int((~labelled).sum())

    def merge(self, other: CapCounts) -> None:
        """Add what another worker counted."""
        for name, counts in other.bins.items():
            self.bins[name] = self.bins[name] + counts if name in self.bins else counts
        self.n_unlabelled += other.n_unlabelled

    @property
    def cells(self) -> dict[str, int]:
        """Cells of each label, by name."""
        return {name: int(self.bins[name].sum()) for name in sorted(self.bins)}


def cap_targets(cells: Mapping[str, int], settings: CapRecipe) -> dict[str, int]:
    """Return how many cells of each label to keep, never more than there are and never none.

    With a temperature t and the median m of the labels' numbers of cells, a label of c cells keeps min(c, m (c/m)**t),
    rounded: labels up to the median stay whole, and what the others keep is in proportion to c**t. 1 keeps all, 0
    brings every label down to the median. With the smallest number in place of the median, t would act on all labels
    alike, and one label of three cells would empty a balanced corpus. `max_cells` is applied to the result.
    """
    if not cells:
        return {}
    n = np.array(list(cells.values()), np.float64)
    wanted = n
    if settings.temperature is not None:
        middle = float(np.median(n))
        wanted = np.minimum(n, middle * (n / middle) ** settings.temperature)
    if settings.max_cells is not None:
        wanted = np.minimum(wanted, settings.max_cells)
    targets = np.rint(wanted).astype(np.int64)
    return dict(zip(cells, targets.tolist(), strict=True))


class CapLimits:
    """The second look: which key is the last that stays, for each label that has more cells than its target.

    Where `needed` is False no label has, and the look can be left out. Filled span by span, in any order.
    """

    def __init__(self, counts: CapCounts, targets: Mapping[str, int]) -> None:
        self.purpose = counts.purpose
        self.bin_of_label: dict[str, int] = {}
        self.rest_of_label: dict[str, int] = {}  # cells to keep within that bin, at least one
        self.keys_of_label: defaultdict[str, list[NDArray[np.uint64]]] = defaultdict(list)
        for name, target in targets.items():
            up_to = np.cumsum(counts.bins[name])
            if target < up_to[-1]:
                self.bin_of_label[name] = int(np.searchsorted(up_to, target))
                self.rest_of_label[name] = target - int(np.append(0, up_to)[self.bin_of_label[name]])

    @property
    def needed(self) -> bool:
        """Whether any label has to lose cells."""
        return bool(self.bin_of_label)

    def add(self, values: pd.Categorical, keys: NDArray[np.uint64]) -> None:
        """Look at (n,) cells with their labels and keys."""
        codes, names = values.codes, values.categories
        shuffled = salted(keys, self.purpose)
        boundary = np.array([self.bin_of_label.get(name, -1) for name in names] + [-1])  # the last is for no label
        near = np.flatnonzero((shuffled >> _BIN_SHIFT).astype(np.int64) == boundary[codes])
        for code in np.unique(codes[near]).tolist():
            self.keys_of_label[names[code]].append(shuffled[near[codes[near] == code]])

    def merge(self, other: CapLimits) -> None:
        """Add what another worker saw."""
        for name, keys in other.keys_of_label.items():
            self.keys_of_label[name].extend(keys)

    def finish(self) -> CellCaps:
        """Return the caps, when every cell that was counted has been seen."""
        last_key = {}
        for name, found in self.keys_of_label.items():
            place = self.rest_of_label[name] - 1
            last_key[name] = int(np.partition(np.concatenate(found), place)[place])
        return CellCaps(purpose=self.purpose, last_key=last_key)


@dataclass(frozen=True, kw_only=True)
class CellCaps:
    """Which cells stay."""

    purpose: str = "caps"
    last_key: Mapping[str, int] = field(default_factory=dict)
    """label → largest salted key that stays; labels that lose no cell are absent"""

    def keep(self, values: pd.Categorical, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return (n,) which cells stay, of their labels and keys.

        Exact for the cells that were counted. (Two cells of one label and one key, see `cell_keys`, stay or go as one.)
        """
        if not self.last_key:
            return np.ones(len(keys), bool)
        last = np.array([self.last_key.get(name, _LAST_KEY) for name in values.categories] + [_LAST_KEY], np.uint64)
        return salted(keys, self.purpose) <= last[values.codes]
