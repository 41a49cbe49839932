"""Types that training never saw: whether a method knows what it does not know."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cytoglot.benchmark.cells import BenchmarkCells
from cytoglot.benchmark.protocols.annotation import fold_rows
from cytoglot.benchmark.protocols.base import PROTOCOLS, Maker, Outcome, Protocol, judged_cells, predict
from cytoglot.errors import InputError


@PROTOCOLS.register("open_set")
class OpenSet(Protocol):
    """Each label in turn is taken out of training; its test cells are new, those of other labels known.

    A cell is known as far as `known` of the classifier says so, else by its largest probability.
    """

    folds: int = 5
    """the test cells are those of the first fold"""
    min_cells: int = 20
    """labels with fewer cells are not left out"""

    def splits(self, cells: BenchmarkCells, seed: int) -> list[str]:
        """Return the labels that are left out in turn."""
        counts = pd.Series(cells.labels).value_counts()
        names = sorted(counts.index[counts >= self.min_cells])
        if len(names) < 3:
            raise InputError(f"{cells.name} has {len(names)} labels of {self.min_cells} cells; an open set needs 3")
        return names

    def run(self, cells: BenchmarkCells, maker: Maker, split: str, seed: int) -> Outcome:
        """Fit without one label, and say of every test cell how surely its type is known."""
        train, validation, test = fold_rows(cells, "cell", self.folds, seed)[0]
        train, validation = (rows[cells.labels[rows] != split] for rows in (train, validation))
        # The cells of the label left out are all new to the method.
        test = np.union1d(test, np.flatnonzero(cells.labels == split))
        method = maker.classifier(seed).fit(
            cells.take(train), cells.labels[train], cells.take(validation), cells.labels[validation]
        )
        asked = cells.take(test)
        probability_nl = predict(method, asked)
        known = getattr(method, "known", None)
        score_n = probability_nl.max(axis=1) if known is None else known(asked)
        table = judged_cells(
            cells,
            test,
            probability_nl,
            method.labels,
            training_labels=cells.labels[train],
            known=np.asarray(score_n, dtype=np.float64),
        )
        return Outcome(cells=table)
