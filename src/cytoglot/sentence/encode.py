"""Cells → cell sentences: the expressed genes of each cell from highest to lowest.

Ranking counts equals ranking normalized log values, so nothing is normalized and nothing dense is made. Unlike the
original :cite:p:`levine2024cell2sentence`, which shuffles ties with a global seed so that a sentence depends on the
cell's row, every tie rule here depends on the cell alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.data.readers.cell_rows import blocks, cell_rows, cells_per_block
from cytoglot.data.readers.stream import CellStream, open_cells
from cytoglot.errors import InputError, VocabularyMismatchError
from cytoglot.sentence.cell_sentence import CellSentences, RankSettings, TieRule, gene_id_dtype
from cytoglot.sentence.ranker import RankedBlock, Ranker, rates_of_blocks

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

logger = logging.getLogger(__name__)

_EVERY_GENE = RankSettings()

#: (g,) rates in the order of the sentences' vocabulary, or rates by gene name.
TieRates = NDArray[np.floating] | Mapping[str, float]


def encode(
    source: AnnData | CellStream | str | Path,
    *,
    genes: GeneVocabulary | Sequence[str] | None = None,
    top_genes: int | None = None,
    ties: TieRule = RankSettings.ties,
    seed: int = 0,
    layer: str | None = None,
    tie_rates: TieRates | None = None,
) -> CellSentences:
    """Return the cell sentences of an AnnData, a file that `cytoglot.read` takes, or an open `CellStream`.

    Parameters
    ----------
    source
        Counts or log-normalized values, with the same result (scaled ones are refused): the matrix is found by the
        order of `cytoglot.read`. A file is read chunk by chunk; nothing is changed in an AnnData.
    genes
        Make sentences of these genes alone, in this vocabulary order (HVGs, or the vocabulary of a model). Genes that
        the cells lack count as not expressed.
    top_genes
        Keep this many genes of a cell at most; None keeps all that are above 0.
    ties
        Who goes first among equal values. "symbol": a fixed hash of the gene's name, the same in every cell, file and
        version. "order": vocabulary order. "random": a hash of `seed`, the cell's id and the gene's name, so the row
        plays no part. "rare_first", "common_first": by `tie_rates`, equal rates by gene name.
    seed
        For `ties="random"`.
    layer
        "X", "raw" or a layer, to read that matrix and no other.
    tie_rates
        Share of the training cells that express each gene: an array (g,) over the vocabulary of the sentences, or by
        gene name. None with a rule that needs them: those of these cells, kept in the result for later cells.

    Returns
    -------
    CellSentences
        A cell that expresses nothing has an empty sentence.

    Raises
    ------
    InputError
        A value is NaN, infinite or below 0 (cell and gene are named), only a scaled matrix is there, or rates are bad.
    VocabularyMismatchError
        None of `genes` is among the genes of the cells.

    Examples
    --------
    >>> import cytoglot as cg
    >>> sentences = cg.encode(cg.load_dataset("pbmc68k_reduced"), top_genes=3)
    >>> sentences.words(0)
    ['FTL', 'CD74', 'AIF1']
    """
    started = time.perf_counter()
    settings = RankSettings(top_genes=top_genes, ties=ties, seed=seed)
    # a stream that was open before stays open
    with nullcontext(source) if isinstance(source, CellStream) else open_cells(source, layer=layer) as cells:
        ranker = ranker_for(cells, genes=genes, settings=settings, tie_rates=tie_rates)
        ranked = (ranked for _, ranked in ranked_chunks(cells, ranker))
        sentences = _joined(ranker, ranked, cells.cell_ids)
    seconds = time.perf_counter() - started
    logger.info(
        "%d cells (%d empty) made sentences in %.1f s; %s", len(sentences), sentences.n_empty, seconds, cells.message
    )
    return sentences


def encode_matrix(
    matrix: Any,
    vocabulary: GeneVocabulary,
    *,
    cell_ids: Sequence[str] | NDArray[Any] | pd.Index | None = None,
    settings: RankSettings = _EVERY_GENE,
    tie_rates: TieRates | None = None,
) -> CellSentences:
    """Return the cell sentences of a bare matrix, one column for each gene of `vocabulary`.

    Parameters
    ----------
    matrix
        (n, g) scipy sparse, dense or dask, of any integer, float or boolean type; counts or log-normalized. Columns of
        a sparse row may be in any order, repeated ones are summed, stored zeros count as zeros.
    cell_ids
        (n,) names; None numbers the rows, which with ties="random" makes a sentence depend on its row.
    settings
        Genes to keep and tie rule.
    tie_rates
        As in `encode`, but not taken from the matrix: without them "rare_first" and "common_first" are refused.

    Raises
    ------
    InputError
        The shape does not fit, a value is NaN, infinite or below 0 (the first is named), or rates are missing.

    Notes
    -----
    Memory: the result and about 100 MB; the matrix is neither copied nor changed.
    """
    ranker = Ranker(vocabulary, settings, tie_rates=tie_rates_for(vocabulary, tie_rates))
    rows = cell_rows(matrix)
    n_cells = rows.shape[0]
    ids = np.array([str(name) for name in (range(n_cells) if cell_ids is None else cell_ids)], dtype=object)
    if ids.shape != (n_cells,):
        raise InputError(f"expected one cell id for each of {n_cells} rows, found {ids.shape}")
    ranked = (ranker.rank(block, ids[cells]) for cells, block in blocks(rows, cells_per_block(rows)))
    return _joined(ranker, ranked, ids)


def ranked_chunks(
    cells: CellStream, ranker: Ranker, *, chunk_cells: int | None = None, first_cell: int = 0
) -> Iterator[tuple[slice, RankedBlock]]:
    """Yield positions and ranked genes of the cells from `first_cell` on; None: as many as are best read at once."""
    chunk_cells = cells.cells_per_block if chunk_cells is None else chunk_cells
    for place, block in cells.chunks(chunk_cells, first_cell=first_cell, checked=False):
        yield place, ranker.rank(block, cells.cell_ids[place])


def ranker_for(
    cells: CellStream,
    *,
    genes: GeneVocabulary | Sequence[str] | None,
    settings: RankSettings,
    tie_rates: TieRates | None,
) -> Ranker:
    """Return the ranker for these cells; reads them once where tie rates are needed and not given."""
    vocabulary, gene_of_column = restrict(cells.vocabulary, genes)
    rates = tie_rates_for(vocabulary, tie_rates)
    if rates is None and settings.needs_tie_rates:
        logger.info("ties=%r without tie_rates: taking the detection rates of these cells", settings.ties)
        chunks = (block for _, block in cells.chunks(cells.cells_per_block, checked=False))
        rates = rates_of_blocks(chunks, len(cells.vocabulary))
        if gene_of_column is not None:
            of_genes, kept = np.zeros(len(vocabulary), np.float32), gene_of_column >= 0
            of_genes[gene_of_column[kept]] = rates[kept]
            rates = of_genes
    return Ranker(
        vocabulary, settings, tie_rates=rates, gene_of_column=gene_of_column, column_names=cells.vocabulary.symbols
    )


def restrict(
    columns: GeneVocabulary, genes: GeneVocabulary | Sequence[str] | None
) -> tuple[GeneVocabulary, NDArray[np.int32] | None]:
    """Return the vocabulary of `genes` and the gene of each column (-1: left out); None where all are kept as they are.

    Raises
    ------
    VocabularyMismatchError
        No column is one of `genes`.
    """
    if genes is None:
        return columns, None
    wanted = genes if isinstance(genes, GeneVocabulary) else GeneVocabulary(tuple(genes), columns.namespace)
    if wanted.symbols == columns.symbols:
        return wanted, None
    gene_of_column = wanted.index_of(columns.symbols)
    n_found = int(np.count_nonzero(gene_of_column >= 0))
    if n_found == 0:
        raise VocabularyMismatchError(
            f"none of {len(wanted)} genes ({', '.join(wanted.symbols[:3])}, ...) is among the {len(columns)} of the "
            f"cells ({', '.join(columns.symbols[:3])}, ...); check species and kind of name (symbols or Ensembl ids)"
        )
    if n_found < len(wanted):
        logger.info(
            "%d of %d genes are not among the cells' and count as not expressed", len(wanted) - n_found, len(wanted)
        )
    return wanted, gene_of_column


def tie_rates_for(vocabulary: GeneVocabulary, rates: TieRates | None) -> NDArray[np.floating] | None:
    """Return rates in the order of the vocabulary; rates by name must name every gene (`InputError` otherwise)."""
    if rates is None or not isinstance(rates, Mapping):
        return rates
    missing = [symbol for symbol in vocabulary.symbols if symbol not in rates]
    if missing:
        raise InputError(
            f"tie_rates name {len(rates)} genes but lack {len(missing)} of the vocabulary's {len(vocabulary)}, such as "
            f"{missing[0]!r}; pass genes= to make sentences of the genes that the rates cover"
        )
    return np.array([rates[symbol] for symbol in vocabulary.symbols], dtype=np.float32)


def _joined(ranker: Ranker, ranked: Iterable[RankedBlock], cell_ids: NDArray[np.object_]) -> CellSentences:
    gene_ids = GrowingArray(gene_id_dtype(len(ranker.vocabulary)))
    lengths, n_expressed = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    for block in ranked:
        gene_ids.extend(block.gene_ids)
        lengths.append(block.lengths)
        n_expressed.append(block.n_expressed)
    whole = RankedBlock(
        lengths=np.concatenate(lengths), gene_ids=gene_ids.finished(), n_expressed=np.concatenate(n_expressed)
    )
    return ranker.sentences(whole, cell_ids)


class GrowingArray:
    """An array that grows in place, so that joining blocks never holds the result twice."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._values, self._length = np.empty(0, dtype), 0

    def extend(self, values: NDArray[Any]) -> None:
        """Append values."""
        end = self._length + len(values)
        if end > len(self._values):
            # untouched pages cost nothing and the system moves large blocks without a copy
            self._values.resize(max(end, len(self._values) * 3 // 2), refcheck=False)
        self._values[self._length : end] = values
        self._length = end

    def finished(self) -> NDArray[Any]:
        """Return the array; nothing may be appended afterwards."""
        self._values.resize(self._length, refcheck=False)
        return self._values
