"""Cell types of held-out cells: of folds within a data set, or of a donor or batch that training never saw."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from cytoglot.benchmark.cells import BenchmarkCells, halves_of_reads
from cytoglot.benchmark.protocols.base import PROTOCOLS, Maker, Outcome, Protocol, judged_cells, predict
from cytoglot.data.splits.splitting import folds
from cytoglot.errors import InputError

Rows = NDArray[np.int64]


@PROTOCOLS.register("annotation")
class Annotation(Protocol):
    """Folds of cells, stratified by label: each cell is tested once.

    Of a replicate it is the ceiling: what the method says of one half of a test cell's reads when it has learned the
    label of the other half.
    """

    has_ceiling: ClassVar[bool] = True
    folds: int = 5
    by: Literal["cell", "group"] = "cell"
    """what is kept whole"""

    def splits(self, cells: BenchmarkCells, seed: int) -> list[str]:
        """Return the numbers of the folds."""
        return [str(number) for number in range(len(fold_rows(cells, self.by, self.folds, seed)))]

    def run(self, cells: BenchmarkCells, maker: Maker, split: str, seed: int) -> Outcome:
        """Fit on the training cells of a fold, choose on its validation cells, and label its test cells."""
        train, validation, test = fold_rows(cells, self.by, self.folds, seed)[int(split)]
        if maker.method.role == "replicate":
            first, second = halves_of_reads(cells.adata, seed=seed)
            known = np.concatenate([train, validation, test])
            method = maker.classifier(seed, new_cells=True).fit(first[known].copy(), cells.labels[known])
            probability_nl = method.predict_proba(second[test].copy())
        else:
            method = maker.classifier(seed).fit(
                cells.take(train),
                cells.labels[train],
                cells.take(validation) if len(validation) else None,
                cells.labels[validation],
            )
            probability_nl = predict(method, cells.take(test))
        table = judged_cells(cells, test, probability_nl, method.labels, training_labels=cells.labels[train])
        return Outcome(cells=table)


@PROTOCOLS.register("leave_group_out")
class LeaveGroupOut(Annotation):
    """Each donor or batch (or, of many, each fold of them) is tested by methods that never saw it."""

    by: Literal["cell", "group"] = "group"

    def splits(self, cells: BenchmarkCells, seed: int) -> list[str]:
        """Return the numbers of the folds; an InputError without groups."""
        if cells.groups is None:
            raise InputError(f"{cells.name} names no column of groups, so no group can be left out")
        if len(set(cells.groups)) < 2:
            raise InputError(f"column {cells.unit!r} has one group alone; to leave one out takes two")
        return super().splits(cells, seed)


@lru_cache(maxsize=8)
def fold_rows(cells: BenchmarkCells, by: str, n_folds: int, seed: int) -> list[tuple[Rows, Rows, Rows]]:
    """Return rows of training, validation and test cells of each fold; a tenth of the rest is for validation."""
    splits = folds(cells.obs(), by=by, label="label", n_folds=n_folds, seed=seed)
    names = cells.adata.obs_names
    return [
        (
            np.flatnonzero(split.mask(names, "train")),
            np.flatnonzero(split.mask(names, "validation")),
            np.flatnonzero(split.mask(names, "test")),
        )
        for split in splits
    ]
