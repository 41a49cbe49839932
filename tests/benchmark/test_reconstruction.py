"""The model's rank curve on held-out cells, by an independent computation."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData
from sklearn.metrics import r2_score

from cytoglot.benchmark.reconstruction import curve_on_cells
from cytoglot.cell_model.load import CellModel
from cytoglot.data.readers.read import read

ROWS = np.arange(0, 240, 6)


def test_r2_is_that_of_the_words(tiny_model: CellModel, cells: AnnData) -> None:
    adata = read(cells)
    sentences, _ = tiny_model.sentences(adata)
    row, content = curve_on_cells(tiny_model, adata, sentences, ROWS, seed=0)
    counts = cells.X.toarray()[ROWS]
    log_ng = np.log10(1 + 1e4 * counts / counts.sum(axis=1, keepdims=True))
    by_name = dict(zip(cells.var_names, log_ng.T, strict=True))
    observed, predicted = [], []
    for i, cell in enumerate(ROWS):
        words = sentences.words(int(cell))
        n = np.array([len(words)])
        ids = sentences.ids(int(cell)).astype(np.int64)
        ranks = np.arange(1, len(words) + 1)
        observed += [by_name[word][i] for word in words]
        predicted += tiny_model.rank_curve.predict(ranks, ids, np.repeat(n, len(words))).tolist()
    assert row.value == pytest.approx(r2_score(observed, predicted), abs=1e-4)
    assert (row.metric, row.n, row.unit) == ("r2_expressed", len(ROWS), "cell")
    assert row.low < row.value < row.high
    assert len(content["points"]["observed"]) == min(4000, len(observed))


def test_the_order_of_the_columns_of_a_file_changes_nothing(tiny_model: CellModel, cells: AnnData) -> None:
    values = []
    for adata in (read(cells), read(cells[:, ::-1].copy())):
        row, _ = curve_on_cells(tiny_model, adata, tiny_model.sentences(adata)[0], ROWS, seed=0)
        values.append(row.value)
    assert values[0] == pytest.approx(values[1], abs=1e-3)  # depth is summed in another order
