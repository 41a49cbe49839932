"""What a model expects of a cell type: for every gene how likely it is, at which rank and how much expressed.

Nothing is read off one sampled cell: ranks are expectations over all sentences that the model can write
(`cytoglot.lm.generation.rank_expectation`), and go to expression through the model's rank curve.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cytoglot.applications.generation import check_generation, draw_lengths
from cytoglot.cell_model.load import CellModel, as_cell_model
from cytoglot.errors import InputError
from cytoglot.lm.generation.rank_expectation import answer_ranks
from cytoglot.lm.generation.sampling import Sampling
from cytoglot.lm.model.language_model import LanguageModel

logger = logging.getLogger(__name__)

_LENGTHS_DRAWN = 1024


def expected_expression(
    model: CellModel | LanguageModel | str | Path,
    cell_type: str | None = None,
    *,
    n: int = 64,
    n_genes: int | None = None,
    n_lengths: int = 8,
    interval: float = 0.9,
    temperature: float | None = None,
    top_p: float = 1.0,
    context: Mapping[str, str] | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> pd.DataFrame:
    """Return one row per gene of the model's vocabulary, in its order.

    Columns: `gene`; `p_present`, the probability that a cell's sentence names the gene; `rank_mean`, its mean rank in
    sentences that do (1 = first; missing for a gene that none can name), and `rank_low` to `rank_high`, where the rank
    lies in the central `interval` of those; `expression_mean`, `expression_low`, `expression_high`, the same for
    log10(1 + counts per 10,000) by the rank curve over all sentences, 0 in those without the gene, as `decode` has it;
    `p_present_error`, `rank_error` and `expression_error`, the standard errors of the three means, which more samples
    make smaller (intervals stay: they are of cells, not of our knowledge of the mean).

    Parameters
    ----------
    model
        A cell model, or its folder or name on the hub.
    cell_type
        One of the model's labels; None is cells of any type.
    n
        Sentences sampled along which next-gene probabilities are read, at least 2 for each length.
    n_genes
        Words of each sentence. By default lengths as of the type's training cells, in `n_lengths` equally likely steps.
    n_lengths
        Number of those lengths.
    interval
        Share of cells, between 0 and 1, that the columns `…_low` to `…_high` span.
    temperature, top_p, context
        As in `generate`: the expectation is over the cells that it would write.
    batch_size
        Most sentences sampled at the same time.
    seed
        Of the sampling.

    Raises
    ------
    UnknownNameError
        The model has no such label.
    InputError
        A number is out of range, or the model has no rank curve.

    Examples
    --------
    >>> import cytoglot as cg
    >>> table = cg.expected_expression("model", "type A", n=2, n_genes=10)
    >>> list(table.columns[:3])
    ['gene', 'p_present', 'rank_mean']
    """
    model = as_cell_model(model)
    check_generation(model, cell_type, n, n_genes)
    if n_lengths < 1 or not 0 < interval < 1:
        raise InputError(f"need n_lengths of at least 1 and an interval in (0, 1), found {n_lengths} and {interval}")
    lengths = np.array([n_genes])
    if n_genes is None:  # the middles of equally likely steps of the lengths of sentences
        drawn = draw_lengths(model, cell_type, _LENGTHS_DRAWN, seed=seed)
        middles = (np.arange(n_lengths) + 0.5) / n_lengths
        lengths = np.quantile(drawn, middles, method="nearest").astype(np.int64)
    prompts, formats = model.generation_prompts(cell_type, lengths, context=context)
    values_prw = _values(model, lengths)
    used = model.spec.calibration.generation_temperature if temperature is None else temperature
    ranks = answer_ranks(
        model.lm,
        prompts,
        formats,
        sampling=Sampling(temperature=used, top_p=top_p, seed=seed),
        n_samples=max(2, -(-n // len(lengths))),
        values_prw=values_prw,
        batch_size=batch_size,
    )
    rank_low, rank_high = ranks.rank_interval(interval)
    expression_low, expression_high = ranks.value_interval(values_prw, interval)
    logger.info("expected expression of %s from %d sentences", cell_type or "any type", ranks.n_samples * len(lengths))
    return pd.DataFrame(
        {
            "gene": list(ranks.words),
            "p_present": ranks.present_w,
            "rank_mean": ranks.rank_w,
            "rank_low": rank_low,
            "rank_high": rank_high,
            "expression_mean": ranks.value_w,
            "expression_low": expression_low,
            "expression_high": expression_high,
            "p_present_error": ranks.present_error_w,
            "rank_error": ranks.rank_error_w,
            "expression_error": ranks.value_error_w,
        }
    )


def _values(model: CellModel, lengths: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the expression of every gene at every rank of a sentence of each length, shape (lengths, ranks, genes)."""
    n_ranks, n_genes = int(lengths.max()), len(model.spec.vocabulary)
    n_expressed = np.maximum(1, np.round(lengths * model.spec.expressed_per_word))
    rank_rw = np.repeat(np.arange(1, n_ranks + 1), n_genes)
    gene_rw = np.tile(np.arange(n_genes), n_ranks)
    curve = model.rank_curve
    tables = [curve.predict(rank_rw, gene_rw, np.full(len(rank_rw), number)) for number in n_expressed]
    return np.stack(tables).reshape(len(lengths), n_ranks, n_genes)
