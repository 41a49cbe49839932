"""The sums from which every rank curve is fitted, gathered in one pass over the cells, chunk by chunk.

Notation: x = log10(rank), rank 1 for the most expressed gene; l = log10(number of expressed genes of the cell);
y = log10(1 + counts per 10,000). Memory depends on the numbers of genes and ranks, never on the number of cells.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from cytoglot.errors import InputError, VocabularyMismatchError
from cytoglot.sentence.cell_sentence import CellSentences

#: Monomials of x and l that the polynomial curves are made of.
TERMS = ("1", "x", "x2", "x3", "l", "xl")
#: Per-gene sums: the monomials above times 1 and times x, and y times both.
_GENE_TERMS = ("1", "x", "x2", "x3", "x4", "l", "xl", "x2l", "y", "xy")
_TIMES_X = {"1": "x", "x": "x2", "x2": "x3", "x3": "x4", "l": "xl", "xl": "x2l", "y": "xy"}
#: Sentences are binned by length on this many bins per factor of ten.
_BINS_PER_DECADE = 20


class RankSums:
    """Sums over (cell, gene) pairs of expressed genes.

    Attributes
    ----------
    gene_sums_kg
        Σ of each `_GENE_TERMS` per gene, float64.
    term_products
        Σ f fᵀ over `TERMS`, (6, 6), and `term_targets`, Σ f y, (6,).
    n_br, y_br
        Number of pairs and Σ y by bin of the sentence's length and by rank (column 0 is rank 1).
    """

    def __init__(self, n_genes: int) -> None:
        self.gene_sums_kg = np.zeros((len(_GENE_TERMS), n_genes))
        self.term_products = np.zeros((len(TERMS), len(TERMS)))
        self.term_targets = np.zeros(len(TERMS))
        self.n_br = np.zeros((1, 1), dtype=np.int64)
        self.y_br = np.zeros((1, 1))
        self.smallest = np.inf
        self.shortest, self.longest = np.inf, 0.0

    @property
    def n_pairs(self) -> int:
        """Return the number of (cell, gene) pairs summed."""
        return int(self.n_br.sum())

    @property
    def max_rank(self) -> int:
        """Return the largest rank seen, 0 where nothing was added."""
        seen = np.flatnonzero(self.n_br.sum(axis=0))
        return int(seen[-1]) + 1 if seen.size else 0

    def gene_sum(self, term: str, *, times_x: bool = False) -> NDArray[np.float64]:
        """Return Σ term (times x) of every gene, (g,)."""
        return self.gene_sums_kg[_GENE_TERMS.index(_TIMES_X[term] if times_x else term)]

    def add(
        self, ranks: ArrayLike, gene_ids: NDArray[np.integer], n_expressed: ArrayLike, expression: NDArray[np.floating]
    ) -> None:
        """Add pairs; four aligned flat arrays, `n_expressed` being that of the pair's cell."""
        rank, n_genes = np.asarray(ranks, dtype=np.int64), np.asarray(n_expressed, dtype=np.int64)
        y = np.asarray(expression, dtype=np.float64)
        if not y.size:
            return
        x, length = np.log10(rank), np.log10(n_genes)
        terms = term_values(x, length)
        self._add_per_gene({**terms, "x4": x**4, "x2l": x * x * length, "y": y, "xy": x * y}, gene_ids)
        f = np.stack([terms[term] for term in TERMS], axis=1)
        self.term_products += f.T @ f
        self.term_targets += f.T @ y
        self._add_per_rank(rank, length, y)
        self.smallest = min(self.smallest, float(y.min()))
        self.shortest, self.longest = min(self.shortest, float(n_genes.min())), max(self.longest, float(n_genes.max()))

    def _add_per_gene(self, values: dict[str, NDArray[np.float64]], gene_ids: NDArray[np.integer]) -> None:
        n_genes = self.gene_sums_kg.shape[1]
        for k, term in enumerate(_GENE_TERMS):
            self.gene_sums_kg[k] += np.bincount(gene_ids, weights=values[term], minlength=n_genes)

    def _add_per_rank(self, rank: NDArray[np.int64], length: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        bins = (length * _BINS_PER_DECADE).astype(np.int64)
        self._grow(int(bins.max()) + 1, int(rank.max()))
        n_bins, n_ranks = self.n_br.shape
        cell = bins * n_ranks + rank - 1
        self.n_br += np.bincount(cell, minlength=n_bins * n_ranks).reshape(n_bins, n_ranks)
        self.y_br += np.bincount(cell, weights=y, minlength=n_bins * n_ranks).reshape(n_bins, n_ranks)

    def _grow(self, n_bins: int, n_ranks: int) -> None:
        missing = max(0, n_bins - self.n_br.shape[0]), max(0, n_ranks - self.n_br.shape[1])
        if any(missing):
            self.n_br = np.pad(self.n_br, ((0, missing[0]), (0, missing[1])))
            self.y_br = np.pad(self.y_br, ((0, missing[0]), (0, missing[1])))

    def __add__(self, other: RankSums) -> RankSums:
        total = RankSums(self.gene_sums_kg.shape[1])
        for part in (self, other):
            total._grow(*part.n_br.shape)
            n_bins, n_ranks = part.n_br.shape
            total.n_br[:n_bins, :n_ranks] += part.n_br
            total.y_br[:n_bins, :n_ranks] += part.y_br
            total.gene_sums_kg += part.gene_sums_kg
            total.term_products += part.term_products
            total.term_targets += part.term_targets
            total.smallest = min(total.smallest, part.smallest)
            total.shortest, total.longest = min(total.shortest, part.shortest), max(total.longest, part.longest)
        return total

    def length_of_bins(self) -> NDArray[np.float64]:
        """Return l at the middle of each bin of lengths."""
        return (np.arange(self.n_br.shape[0]) + 0.5) / _BINS_PER_DECADE


def term_values(x: NDArray[np.float64], length: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return each of `TERMS` for aligned x = log10(rank) and l = log10(n_expressed)."""
    one = np.ones_like(x)
    return {"1": one, "x": x, "x2": x * x, "x3": x * x * x, "l": length * one, "xl": x * length}


def expressed_of_words(sentences: CellSentences) -> NDArray[np.int64]:
    """Return the `n_expressed` of each word's cell, (w,)."""
    return np.repeat(sentences.n_expressed.astype(np.int64), sentences.lengths)


def positions_in(sentences: CellSentences, log_matrix: csr_matrix) -> NDArray[np.int64]:
    """Return where in `log_matrix.data` the value of each word lies, -1 where the matrix holds no value.

    Raises
    ------
    VocabularyMismatchError
        The matrix does not have one row per sentence and one column per gene of the vocabulary.
    """
    expected = (len(sentences), len(sentences.vocabulary))
    if log_matrix.shape != expected:
        raise VocabularyMismatchError(
            f"expected an expression matrix of {expected[0]} cells x {expected[1]} genes to go with the sentences, "
            f"found {log_matrix.shape[0]} x {log_matrix.shape[1]}; pass the matrix that the sentences were made from, "
            f"with the columns of their vocabulary"
        )
    if not sentences.gene_ids.size or not log_matrix.nnz:
        return np.full(sentences.gene_ids.size, -1, dtype=np.int64)
    # Sampling a matrix of positions: scipy looks the pairs up in C by binary search.
    numbered = csr_matrix(
        (np.arange(1, log_matrix.nnz + 1), log_matrix.indices, log_matrix.indptr), shape=log_matrix.shape
    )
    return np.asarray(numbered[sentences.cells(), sentences.gene_ids.astype(np.int32)]).ravel() - 1


def canonical(log_matrix: csr_matrix) -> csr_matrix:
    """Return the matrix with sorted indices and no stored zeros, copied only where that must be changed."""
    matrix = csr_matrix(log_matrix)
    if matrix.has_canonical_format and (matrix.data != 0).all():
        return matrix
    matrix = matrix.copy()
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def collect_sums(
    sentences: CellSentences, log_matrix: csr_matrix, into: tuple[RankSums, RankSums], *, seed: int = 0
) -> None:
    """Add a chunk of training cells to `into`: four fifths of the cells to the first, the rest to the second.

    A cell's side depends on the seed and its id alone. Curves are fitted on the sum of both; the strength of the
    shrinkage is chosen on the second with curves fitted on the first.

    Raises
    ------
    InputError
        A sentence holds a gene that is zero in the matrix: the two are not of the same cells.
    """
    log_matrix = canonical(log_matrix)
    position = positions_in(sentences, log_matrix)
    rows, ranks, n_expressed = sentences.cells(), sentences.ranks(), expressed_of_words(sentences)
    if (position < 0).any():
        word = int(np.flatnonzero(position < 0)[0])
        gene, cell = sentences.vocabulary.symbols[int(sentences.gene_ids[word])], sentences.cell_ids[rows[word]]
        raise InputError(
            f"expected the expression of the cells that the sentences were made from, found {gene} of cell {cell!r} "
            f"to be 0 in the matrix but in the sentence; pass matching rows"
        )
    y = log_matrix.data[position]
    second = hash_uniform(sentences.cell_ids, seed)[rows] >= 0.8
    for sums, chosen in zip(into, (~second, second), strict=True):
        sums.add(ranks[chosen], sentences.gene_ids[chosen], n_expressed[chosen], y[chosen])


def hash_uniform(cell_ids: ArrayLike, seed: int) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each cell id, the same in every run and every order of the rows."""
    key = f"rank curve {seed}".encode()
    ids = np.asarray(cell_ids, dtype=object)
    digests = b"".join(hashlib.blake2b(str(cell).encode(), digest_size=4, key=key).digest() for cell in ids)
    return np.frombuffer(digests, dtype="<u4") / 2.0**32
