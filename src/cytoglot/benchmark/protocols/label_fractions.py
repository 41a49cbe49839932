"""Few labels: the same test cells after training on a share of the labels, or on some cells of each type."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cytoglot.benchmark.cells import BenchmarkCells
from cytoglot.benchmark.protocols.annotation import Rows, fold_rows
from cytoglot.benchmark.protocols.base import PROTOCOLS, Maker, Outcome, Protocol, judged_cells, predict


@PROTOCOLS.register("label_fractions")
class LabelFractions(Protocol):
    """Nothing is chosen on validation cells, since their labels would be labels too."""

    folds: int = 5
    fractions: tuple[float, ...] = (0.01, 0.05, 0.1, 1.0)
    """shares of the labels of each type, at least one cell of it"""
    per_type: tuple[int, ...] = (5, 10, 50)
    """cells of each type, or all where there are fewer"""

    def splits(self, cells: BenchmarkCells, seed: int) -> list[str]:
        """Return the numbers of the folds."""
        return [str(number) for number in range(len(fold_rows(cells, "cell", self.folds, seed)))]

    def run(self, cells: BenchmarkCells, maker: Maker, split: str, seed: int) -> Outcome:
        """Fit on each share of the training labels of a fold, and label its test cells each time."""
        train, _, test = fold_rows(cells, "cell", self.folds, seed)[int(split)]
        asked = cells.take(test)
        tables = []
        for condition, rows in self._chosen(cells, train, seed).items():
            method = maker.classifier(seed).fit(cells.take(rows), cells.labels[rows])
            probability_nl = predict(method, asked)
            tables.append(
                judged_cells(
                    cells,
                    test,
                    probability_nl,
                    method.labels,
                    training_labels=cells.labels[rows],
                    condition=condition,
                )
            )
        return Outcome(cells=pd.concat(tables, ignore_index=True))

    def _chosen(self, cells: BenchmarkCells, train: Rows, seed: int) -> dict[str, Rows]:
        """Return condition → training rows. A smaller choice is part of every larger one."""
        shuffled = np.random.default_rng([seed, 5]).permutation(train)
        labels = pd.Series(cells.labels[shuffled])
        place_n = labels.groupby(labels).cumcount().to_numpy()
        count_n = labels.map(labels.value_counts()).to_numpy()
        found = {
            f"{share:.0%} of labels": np.sort(shuffled[place_n < np.maximum(1, share * count_n)])
            for share in self.fractions
        }
        return found | {f"{k} cells a type": np.sort(shuffled[place_n < k]) for k in self.per_type}
