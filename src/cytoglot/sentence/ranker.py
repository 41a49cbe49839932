"""Expression of any type → ranked gene ids: the checks, the threads and the memory around the compiled kernel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from numpy.typing import NDArray

from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.data.readers.cell_rows import blocks, cell_rows, cells_per_block
from cytoglot.errors import InputError
from cytoglot.hashing import hash_texts
from cytoglot.sentence import kernels
from cytoglot.sentence.cell_sentence import CellSentences, RankSettings, gene_id_dtype
from cytoglot.sentence.threads import for_each_run

_NO_COLUMNS = np.empty(0, np.int32)
_NO_HASH = np.empty(0, np.uint64)


@dataclass(frozen=True, kw_only=True)
class RankedBlock:
    """Ranked genes of some cells, as in `CellSentences`."""

    lengths: NDArray[np.int64]
    gene_ids: NDArray[np.uint16] | NDArray[np.uint32]
    n_expressed: NDArray[np.int32]


class Ranker:
    """Ranks blocks of cells of one vocabulary by one rule.

    Parameters
    ----------
    vocabulary
        The genes that sentences are made of.
    settings
        How many genes, and the tie rule.
    tie_rates
        (g,) detection rates, for rare_first and common_first only.
    gene_of_column
        int32 (n_columns,) gene id of each column of the matrices, -1 for columns to leave out; None where columns are
        the genes of the vocabulary.
    column_names
        Names of the columns for error messages; None for the vocabulary's.
    """

    def __init__(
        self,
        vocabulary: GeneVocabulary,
        settings: RankSettings,
        *,
        tie_rates: NDArray[np.floating] | None = None,
        gene_of_column: NDArray[np.int32] | None = None,
        column_names: Sequence[str] | None = None,
    ) -> None:
        self.vocabulary, self.settings = vocabulary, settings
        self.tie_rates = checked_tie_rates(tie_rates, vocabulary) if settings.needs_tie_rates else None
        self._gene_of_column = gene_of_column
        self._column_names = vocabulary.symbols if column_names is None else column_names
        self._tie_rule, self._tie_rank, self._gene_hash = kernels.TIES_BY_ORDER, np.empty(0, np.uint32), _NO_HASH
        if settings.ties == "symbol":
            self._tie_rule, self._tie_rank = kernels.TIES_BY_RANK, _ranks_by_symbol(vocabulary)
        elif self.tie_rates is not None:
            self._tie_rule = kernels.TIES_BY_RANK
            # equal rates by symbol, never by place
            rates_g = self.tie_rates if settings.ties == "rare_first" else -self.tie_rates
            self._tie_rank = _ranks(np.lexsort((np.array(vocabulary.symbols), rates_g)))
        elif settings.ties == "random":
            self._tie_rule = kernels.TIES_BY_HASH
            self._gene_hash = _hashes(vocabulary.names, seed=0)

    def rank(self, block: sp.csr_matrix, cell_ids: NDArray[np.object_]) -> RankedBlock:
        """Rank the cells of a CSR matrix; it is not changed, and beside the result memory is bounded.

        Columns in any order, repeated columns (summed, as scipy reads them) and stored zeros change nothing.

        Raises
        ------
        InputError
            The number of columns does not fit, or a value is NaN, infinite or below 0: the first is named by cell and
            gene.
        """
        n_columns = len(self._column_names) if self._gene_of_column is None else len(self._gene_of_column)
        if block.shape[1] != n_columns:
            raise InputError(f"expected a matrix with one column for each of {n_columns} genes, found {block.shape[1]}")
        n_stored = np.diff(block.indptr).astype(np.int64)
        bound = np.minimum(n_stored, self.settings.top_genes or len(self.vocabulary))
        starts = np.zeros(len(bound) + 1, np.int64)
        np.cumsum(bound, out=starts[1:])
        ranked = np.empty(int(starts[-1]), gene_id_dtype(len(self.vocabulary)))
        lengths, n_expressed = np.zeros(len(bound), np.int64), np.zeros(len(bound), np.int32)
        cell_hash = _hashes(cell_ids, seed=self.settings.seed) if len(self._gene_hash) else _NO_HASH

        def rank_rows(matrix: sp.csr_matrix, begin: int, end: int, rows: slice) -> None:
            """Rank rows of a matrix, which are `rows` of the block."""
            columns, keys, largest_key = _columns_and_keys(matrix, begin, end)
            kernels.rank_rows(
                matrix.indptr[begin : end + 1].astype(np.int64),
                columns,
                keys,
                largest_key,
                _NO_COLUMNS if self._gene_of_column is None else self._gene_of_column,
                len(self.vocabulary),
                self._tie_rule,
                self._tie_rank,
                cell_hash[rows],
                self._gene_hash,
                self.settings.top_genes or 0,
                starts[rows],
                ranked,
                lengths[rows],
                n_expressed[rows],
            )

        for_each_run(block.indptr, lambda begin, end: rank_rows(block, begin, end, slice(begin, end)))
        for row in np.flatnonzero(lengths < 0).tolist():
            # The kernel refused the row: it is ranked in its plain form, unless it holds what cannot be ranked.
            mended = sp.csr_matrix(block[[row]])  # a copy
            mended.sum_duplicates()
            mended.data = mended.data + mended.dtype.type(0)  # -0.0 becomes 0.0
            refuse_bad_values(mended, cell_ids[[row]].tolist(), self._column_names)
            rank_rows(mended, 0, 1, slice(row, row + 1))
        n_words = int(lengths.sum())
        if n_words < len(ranked):  # stored zeros left gaps between the rows
            kernels.close_gaps(ranked, starts, lengths)
            ranked.resize(n_words, refcheck=False)  # gives the rest of the memory back without a copy
        return RankedBlock(lengths=lengths, gene_ids=ranked, n_expressed=n_expressed)

    def sentences(self, ranked: RankedBlock, cell_ids: NDArray[np.object_]) -> CellSentences:
        """Return what `rank` made of these cells as sentences."""
        return CellSentences(
            cell_ids=cell_ids,
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(ranked.lengths)]),
            gene_ids=ranked.gene_ids,
            n_expressed=ranked.n_expressed,
            vocabulary=self.vocabulary,
            settings=self.settings,
            tie_rates=self.tie_rates,
        )


def detection_rates(matrix: Any) -> NDArray[np.float32]:
    """Return the share of cells in which each gene is above 0, float32 of shape (g,); 0 everywhere without cells.

    Takes what `encode_matrix` takes; stored zeros count as zeros.

    Raises
    ------
    InputError
        A value is NaN, infinite or below 0.
    """
    rows = cell_rows(matrix)
    return rates_of_blocks((block for _, block in blocks(rows, cells_per_block(rows))), rows.shape[1])


def rates_of_blocks(blocks: Iterable[sp.csr_matrix], n_genes: int) -> NDArray[np.float32]:
    """Return `detection_rates` of the CSR blocks of a matrix."""
    n_cells, cells_of_gene = 0, np.zeros(n_genes, np.int64)
    for block in blocks:
        if not block.has_canonical_format:  # a column stored twice would be counted twice
            block = block.copy()
            block.sum_duplicates()
        n_cells += block.shape[0]
        cells_of_gene += _cells_of_gene(block)
    return (cells_of_gene / max(n_cells, 1)).astype(np.float32)


def _cells_of_gene(block: sp.csr_matrix) -> NDArray[np.int64]:
    counts: list[NDArray[np.int64]] = []

    def count(begin: int, end: int) -> None:
        columns, keys, largest_key = _columns_and_keys(block, begin, end)
        here = np.zeros(block.shape[1], np.int64)
        if kernels.count_expressed(columns, keys, largest_key, here):
            rows = np.arange(begin, end)
            genes = np.arange(block.shape[1]).astype(str).tolist()
            refuse_bad_values(block[begin:end], rows.astype(str).tolist(), genes)
            here = np.bincount(columns[block[begin:end].data > 0], minlength=block.shape[1])  # -0.0 is not above 0
        counts.append(here)

    for_each_run(block.indptr, count)
    return np.sum(counts, axis=0) if counts else np.zeros(block.shape[1], np.int64)


def checked_tie_rates(rates: NDArray[np.floating] | None, vocabulary: GeneVocabulary) -> NDArray[np.float32]:
    """Return the rates as float32 (g,), or raise `InputError` where they are absent or do not fit the vocabulary."""
    if rates is None:
        raise InputError(
            "ties='rare_first' and 'common_first' need tie_rates, the share of training cells that express each gene; "
            "pass detection_rates(training matrix) or the rates saved with the training sentences"
        )
    rates_g = np.asarray(rates, dtype=np.float32)
    if rates_g.shape != (len(vocabulary),):
        raise InputError(f"tie_rates must have shape ({len(vocabulary)},), one rate a gene, found {rates_g.shape}")
    bad = np.flatnonzero(~((rates_g >= 0) & (rates_g <= 1)))
    if len(bad):
        raise InputError(
            f"tie_rates must lie between 0 and 1, found {rates_g[bad[0]]} for {vocabulary.symbols[bad[0]]} and "
            f"{len(bad) - 1} more outside"
        )
    return rates_g


def refuse_bad_values(block: sp.csr_matrix, cell_ids: Sequence[str], column_names: Sequence[str]) -> None:
    """Raise `InputError` naming the cell and gene of the first value that is NaN, infinite or below 0."""
    is_bad = ~((block.data >= 0) & (block.data < np.inf)) if block.dtype.kind == "f" else block.data < 0
    places = np.flatnonzero(is_bad)
    if not len(places):
        return
    row = int(np.searchsorted(block.indptr, places[0], side="right")) - 1
    raise InputError(
        f"expression must be finite and at least 0, found {block.data[places[0]]} in cell {cell_ids[row]!r}, gene "
        f"{column_names[block.indices[places[0]]]!r}; pass counts or log-normalized values, for example layer='counts'"
    )


def _columns_and_keys(
    block: sp.csr_matrix, begin: int, end: int
) -> tuple[NDArray[Any], NDArray[Any], np.unsignedinteger]:
    """Return the columns of some rows, and their values as unsigned integers of the same order with their largest."""
    stored = slice(int(block.indptr[begin]), int(block.indptr[end]))
    columns = block.indices[stored]
    if columns.dtype not in (np.int32, np.int64):
        columns = columns.astype(np.int64)
    keys, largest_key = as_keys(block.data[stored])
    return _writeable(columns), _writeable(keys), largest_key


def as_keys(values: NDArray[Any]) -> tuple[NDArray[np.uint32] | NDArray[np.uint64], np.unsignedinteger]:
    """Return unsigned integers in the order of `values` (a view where the type allows) and the largest valid one.

    The bits of a float ≥ 0 rise with its value; NaN, infinity, negative numbers and -0.0 come out above the largest.
    """
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind == "b" or (kind == "u" and size < 8):
        return values.astype(np.uint32, copy=False), np.uint32(0xFFFFFFFF)
    if kind == "u":
        return values, np.uint64(0xFFFFFFFFFFFFFFFF)
    if kind == "i" and size < 8:
        return values.astype(np.int32, copy=False).view(np.uint32), np.uint32(0x7FFFFFFF)
    if kind == "i":
        return values.view(np.uint64), np.uint64(0x7FFFFFFFFFFFFFFF)
    if size == 4:
        return values.view(np.uint32), np.uint32(0x7F7FFFFF)
    return values.astype(np.float64, copy=False).view(np.uint64), np.uint64(0x7FEFFFFFFFFFFFFF)


def _writeable(values: NDArray[Any]) -> NDArray[Any]:
    # numba compiles anew for read-only arrays; those are rare (memory maps), and a task's slice is small
    return np.require(values, requirements=["C", "W"])


@lru_cache(maxsize=16)  # a file is ranked in many blocks, over one vocabulary
def _ranks_by_symbol(vocabulary: GeneVocabulary) -> NDArray[np.uint32]:
    """Return the place of each gene among tied ones by the hash of its symbol.

    A hash and not the alphabet: the alphabet would keep whole families (IGHV..., RPL..., ZNF...) or cut them away.
    """
    return _ranks(np.argsort(_hashes(vocabulary.names, seed=0), kind="stable"))


def _ranks(order: NDArray[np.intp]) -> NDArray[np.uint32]:
    ranks = np.empty(len(order), np.uint32)
    ranks[order] = np.arange(len(order), dtype=np.uint32)
    return ranks


def _hashes(texts: NDArray[np.object_], *, seed: int) -> NDArray[np.uint64]:
    array = pa.array(texts, pa.large_string())
    _, offsets, data = array.buffers()
    text = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    return hash_texts(
        _writeable(np.frombuffer(offsets, np.int64)[: len(array) + 1]),
        _writeable(text),
        np.uint64(seed % (1 << 64)),
    )
