"""The model's own rank curve on held-out cells, as rows and as the points of the report's two plots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from cytoglot.benchmark.results import OURS, ResultRow
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
) -> tuple[ResultRow, dict[str, Any]]:
    """Judge the curve on the cells of `rows`, which it was not fitted on.

    Returns
    -------
    tuple
        R² of the expressed genes with an interval over cells, and {"curves": rows, "points": a sample of words}.
    """
    curve, held_out = model.rank_curve, sentences[rows]
    # log10(1 + counts per 10,000) in the order of the model's genes; genes that the data lack are 0
    log_ng = log_normalize(csr_matrix(adata.X), matrix_state_of(adata), base=10.0)[rows]
    columns = adata.var_names.get_indexer(list(model.spec.vocabulary.symbols))
    known = np.flatnonzero(columns >= 0)
    placed = csr_matrix((np.ones(len(known), np.float32), (columns[known], known)), shape=(adata.n_vars, len(columns)))
    log_ng = csr_matrix(log_ng @ placed)
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
    # R² from four sums of each cell, so that cells can be resampled
    columns_w = (np.ones_like(observed_w), observed_w, observed_w**2, (observed_w - predicted_w) ** 2)
    cell_w, n = held_out.cells(), len(held_out)
    sums_nk = np.stack([np.bincount(cell_w, column, minlength=n) for column in columns_w], axis=1)

    def r2(chosen: NDArray[np.int64]) -> float:
        count, total, squares, errors = sums_nk[chosen].sum(axis=0)
        spread = squares - total**2 / max(count, 1)
        return float(1 - errors / spread) if spread > 0 else float("nan")

    row = ResultRow.of("reconstruction", OURS, "r2_expressed", bootstrap_function(r2, n, seed=seed))
    return row, {"curves": scores, "points": points}
