"""The same test cells, damaged as files in the wild are: what is left of accuracy, and of honest confidence."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from cytoglot.benchmark.cells import BenchmarkCells, check_counts, fewer_reads
from cytoglot.benchmark.protocols.annotation import fold_rows
from cytoglot.benchmark.protocols.base import PROTOCOLS, Maker, Outcome, Protocol, judged_cells, predict
from cytoglot.data.hvg import select_hvg


@PROTOCOLS.register("damage")
class Damage(Protocol):
    """Methods are fitted on good cells, and take the damaged ones for cells of the same kind.

    log twice: ln(1 + ·) of log-normalized values; base 2: another base of the logarithm; target sum 1e6; 10 % and 30 %
    of the reads; variable genes alone: all others are 0; another chemistry: a random third of the genes is 0.
    """

    folds: int = 5
    n_folds_used: int = 1
    """the first folds only"""
    n_variable: int = 500

    def splits(self, cells: BenchmarkCells, seed: int) -> list[str]:
        """Return the numbers of the folds used; an InputError where the cells hold no counts."""
        check_counts(cells.adata, what="damaged cells")
        return [str(number) for number in range(min(self.n_folds_used, self.folds))]

    def run(self, cells: BenchmarkCells, maker: Maker, split: str, seed: int) -> Outcome:
        """Fit on the training cells of a fold, and label its test cells after each damage."""
        train, validation, test = fold_rows(cells, "cell", self.folds, seed)[int(split)]
        training = cells.take(train)
        method = maker.classifier(seed, new_cells=True).fit(
            training, cells.labels[train], cells.take(validation), cells.labels[validation]
        )
        tables = []
        for condition, damaged in self._damaged(cells.take(test), training, seed).items():
            tables.append(
                judged_cells(
                    cells,
                    test,
                    predict(method, damaged),
                    method.labels,
                    training_labels=cells.labels[train],
                    condition=condition,
                )
            )
        return Outcome(cells=pd.concat(tables, ignore_index=True))

    def _damaged(self, test: AnnData, training: AnnData, seed: int) -> dict[str, AnnData]:
        counts = csr_matrix(test.X, dtype=np.float64)
        total_n = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1e-9)

        def cells(matrix: csr_matrix) -> AnnData:
            return AnnData(matrix.astype(np.float32), obs=test.obs.copy(), var=test.var.copy())

        def scaled(target: float) -> csr_matrix:
            found = counts.copy()
            found.data *= np.repeat(target / total_n, np.diff(found.indptr))
            return found

        def only(kept_g: np.ndarray) -> csr_matrix:
            found = counts @ csr_matrix((kept_g.astype(float), (range(len(kept_g)), range(len(kept_g)))))
            found.eliminate_zeros()
            return csr_matrix(found)

        variable = test.var_names.isin(select_hvg(training, n_top=self.n_variable))
        detected = np.random.default_rng([seed, 9]).random(test.n_vars) > 1 / 3
        return {
            "untouched": test,
            "log twice": cells(scaled(1e4).log1p().log1p()),
            "base 2": cells(scaled(1e4).log1p() / np.log(2)),
            "target sum 1e6": cells(scaled(1e6).log1p()),
            "30 % of the reads": fewer_reads(test, 0.3, seed=seed),
            "10 % of the reads": fewer_reads(test, 0.1, seed=seed),
            f"{self.n_variable} variable genes": cells(only(variable)),
            "two thirds of the genes": cells(only(detected)),
        }
