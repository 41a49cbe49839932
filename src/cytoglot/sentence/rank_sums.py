"""The sums from which rank curves are fitted, gathered chunk by chunk.

Notation: x = log10(rank), rank 1 for the most expressed gene; l = log10(number of expressed genes of the cell);
y = log10(1 + counts per 10,000). Memory depends on the numbers of genes and ranks, never on the number of cells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from cytoglot.errors import InputError, VocabularyMismatchError
from cytoglot.sentence.cell_sentence import CellSentences

#: Monomials of x and l that the polynomial curves are made of.
TERMS = ("1", "x", "x2", "x3", "l", "xl")
#: Sentences are binned by length on this many bins per factor of ten.
_BINS_PER_DECADE = 20
_BLOCK_WORDS = 500_000


class RankSums:
    """Sums over (cell, gene) pairs of expressed genes, for the curves of all genes.

    Attributes
    ----------
    term_products
        Σ f fᵀ over `TERMS`, (6, 6), and `term_targets`, Σ f y, (6,).
    n_br, y_br
        Number of pairs and Σ y by bin of the sentence's length and by rank (column 0 is rank 1).
    """

    def __init__(self) -> None:
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

    @property
    def mean_x(self) -> float:
        """Return the mean of x over all pairs."""
        return float(self.term_products[0, 1] / max(self.n_pairs, 1))

    @property
    def variance_x(self) -> float:
        """Return the variance of x over all pairs."""
        return float(self.term_products[1, 1] / max(self.n_pairs, 1) - self.mean_x**2)

    def add(self, ranks: ArrayLike, n_expressed: ArrayLike, expression: NDArray[np.floating]) -> None:
        """Add pairs; three aligned flat arrays, `n_expressed` being that of the pair's cell."""
        rank, n_genes = np.asarray(ranks, dtype=np.int64), np.asarray(n_expressed, dtype=np.int64)
        for block in word_blocks(rank.size):
            n_here, y = n_genes[block], expression[block].astype(np.float64)
            length = np.log10(n_here)
            terms = term_values(np.log10(rank[block]), length)
            f = np.stack([terms[term] for term in TERMS], axis=1)
            self.term_products += f.T @ f
            self.term_targets += f.T @ y
            self.smallest = min(self.smallest, float(y.min()))
            self.shortest = min(self.shortest, float(n_here.min()))
            self.longest = max(self.longest, float(n_here.max()))

            bins = (length * _BINS_PER_DECADE).astype(np.int64)
            # the tables grow as longer cells and lower ranks come
            wanted = np.maximum(self.n_br.shape, (bins.max() + 1, rank[block].max()))
            more = [(0, int(n)) for n in wanted - self.n_br.shape]
            self.n_br, self.y_br = np.pad(self.n_br, more), np.pad(self.y_br, more)
            place, shape = bins * self.n_br.shape[1] + rank[block] - 1, self.n_br.shape
            self.n_br += np.bincount(place, minlength=self.n_br.size).reshape(shape)
            self.y_br += np.bincount(place, weights=y, minlength=self.n_br.size).reshape(shape)

    def length_of_bins(self) -> NDArray[np.float64]:
        """Return l at the middle of each bin of lengths."""
        return (np.arange(self.n_br.shape[0]) + 0.5) / _BINS_PER_DECADE


class ResidualSums:
    """Sums per gene of what a curve of all genes leaves over, r, for the line of each gene.

    `sums_kg` holds, per gene, n, ΣX, ΣX², Σr and ΣXr with X = x - `centre`; (5, g).
    """

    def __init__(self, n_genes: int, *, centre: float) -> None:
        self.centre = centre
        self.sums_kg = np.zeros((5, n_genes))

    def add(self, ranks: NDArray[np.integer], gene_ids: NDArray[np.integer], residual: NDArray[np.floating]) -> None:
        """Add pairs; three aligned flat arrays."""
        n_genes = self.sums_kg.shape[1]
        for block in word_blocks(ranks.size):
            x, r = np.log10(ranks[block]) - self.centre, residual[block].astype(np.float64)
            for k, values in enumerate((np.ones_like(x), x, x * x, r, x * r)):
                self.sums_kg[k] += np.bincount(gene_ids[block], weights=values, minlength=n_genes)


def word_blocks(n_words: int) -> Iterator[slice]:
    """Return slices that cover `n_words` words, small enough that twenty temporary columns stay under 100 MB."""
    return (slice(start, start + _BLOCK_WORDS) for start in range(0, n_words, _BLOCK_WORDS))


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


def expression_of_words(sentences: CellSentences, log_matrix: csr_matrix) -> NDArray[np.float32]:
    """Return the expression of every word, (w,).

    Raises
    ------
    InputError
        A sentence holds a gene that is zero in the matrix: the two are not of the same cells.
    """
    log_matrix = canonical(log_matrix)
    position = positions_in(sentences, log_matrix)
    if (position < 0).any():
        word = int(np.flatnonzero(position < 0)[0])
        gene = sentences.vocabulary.symbols[int(sentences.gene_ids[word])]
        cell = sentences.cell_ids[sentences.cells()[word]]
        raise InputError(
            f"expected the expression of the cells that the sentences were made from, found {gene} of cell {cell!r} "
            f"to be 0 in the matrix but in the sentence; pass matching rows"
        )
    return np.asarray(log_matrix.data[position], dtype=np.float32)


def hash_uniform(cell_ids: ArrayLike, seed: int) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each cell id, the same in every run and every order of the rows."""
    key = f"rank curve {seed}".encode()
    ids = np.asarray(cell_ids, dtype=object)
    digests = b"".join(hashlib.blake2b(str(cell).encode(), digest_size=4, key=key).digest() for cell in ids)
    return np.frombuffer(digests, dtype="<u4") / 2.0**32
