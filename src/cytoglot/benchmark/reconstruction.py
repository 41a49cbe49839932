"""The model's own rank curve on held-out cells, as rows and as the points of the report's two plots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from cytoglot.benchmark.results import ResultRow
from cytoglot.cell_model.load import CellModel
from cytoglot.data.normalize import log_normalize
from cytoglot.data.readers.read import matrix_state_of
from cytoglot.metrics.uncertainty import bootstrap_function
from cytoglot.sentence.cell_sentence import CellSentences
from cytoglot.sentence.curve_score import evaluate_curve
from cytoglot.sentence.rank_curve import predict_words

if TYPE_CHECKING:
    from anndata import AnnData

_MAX_POINTS = 4000


def curve_on_cells(
    model: CellModel, adata: AnnData, sentences: CellSentences, rows: NDArray[np.int64], *, seed: int
) -> tuple[list[ResultRow], dict[str, Any]]:
    """Judge the curve on the cells of `rows`, which it was not fitted on.

    Returns
    -------
    tuple
        R² of the expressed genes with an interval over cells, and {"curves": rows, "points": a sample of words}.
    """
    curve, held_out = model.rank_curve, sentences[rows]
    log_ng = _log_over_vocabulary(model, adata)[rows]
    scores = evaluate_curve(curve, held_out, log_ng, held_out=True, genes="model", seed=seed)
    predicted_w = predict_words(curve, held_out)
    observed_w = np.asarray(log_ng[held_out.cells(), held_out.gene_ids.astype(np.int64)]).ravel()
    some = np.random.default_rng([seed, 8]).permutation(len(predicted_w))[:_MAX_POINTS]
    points = {
        "log_rank": np.log10(held_out.ranks()[some]).round(4).tolist(),
        "expression": observed_w[some].round(4).tolist(),
        "predicted": predicted_w[some].round(4).tolist(),
        "observed": observed_w[some].round(4).tolist(),
    }
    return [_r2_row(held_out, observed_w, predicted_w, seed)], {"curves": scores, "points": points}


def _r2_row(
    sentences: CellSentences, observed_w: NDArray[np.floating], predicted_w: NDArray[np.floating], seed: int
) -> ResultRow:
    """R² from four sums of each cell, so that cells can be resampled."""
    n = len(sentences)
    cell_w = sentences.cells()
    columns = (np.ones_like(observed_w), observed_w, observed_w**2, (observed_w - predicted_w) ** 2)
    sums_nk = np.stack([np.bincount(cell_w, column, minlength=n) for column in columns], axis=1)

    def r2(chosen: NDArray[np.int64]) -> float:
        count, total, squares, errors = sums_nk[chosen].sum(axis=0)
        spread = squares - total**2 / max(count, 1)
        return float(1 - errors / spread) if spread > 0 else float("nan")

    return ResultRow.of("reconstruction", "cytoglot", "r2_expressed", bootstrap_function(r2, n, seed=seed))


def _log_over_vocabulary(model: CellModel, adata: AnnData) -> csr_matrix:
    """Return log10(1 + counts per 10,000) in the order of the model's genes; genes that the data lack are 0."""
    log_ng = log_normalize(csr_matrix(adata.X), matrix_state_of(adata), base=10.0)
    columns = adata.var_names.get_indexer(list(model.spec.vocabulary.symbols))
    placed = csr_matrix(
        (np.ones((columns >= 0).sum(), dtype=np.float32), (columns[columns >= 0], np.flatnonzero(columns >= 0))),
        shape=(adata.n_vars, len(columns)),
    )
    return csr_matrix(log_ng @ placed)
