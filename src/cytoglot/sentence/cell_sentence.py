"""Ranked genes of many cells as two flat arrays, with the vocabulary that gives them their words.

Axes: n cells, g genes of the vocabulary, w words of all sentences together. Sentence i is
`gene_ids[offsets[i]:offsets[i + 1]]`, most expressed gene first. Two bytes a word for up to 65,536 genes; text is made
only when asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError, UnknownNameError, VocabularyMismatchError
from cytoglot.manifest import Manifest

if TYPE_CHECKING:
    import pyarrow as pa

TieRule = Literal["symbol", "order", "random", "rare_first", "common_first"]


@dataclass(frozen=True, kw_only=True)
class RankSettings:
    """How the genes of a cell are put in order."""

    top_genes: int | None = None
    """keep this many genes at most; None keeps all that are expressed"""
    ties: TieRule = "symbol"
    """who goes first among genes of equal expression: by a fixed hash of the symbol, vocabulary order, by a hash of
    (seed, cell id, gene), or the gene detected in fewer (rare_first) or more (common_first) training cells"""
    seed: int = 0
    """used by ties="random" only"""

    def __post_init__(self) -> None:
        if self.ties not in get_args(TieRule):
            raise UnknownNameError("tie rule", self.ties, get_args(TieRule))
        if self.top_genes is not None and self.top_genes < 1:
            raise InputError(f"top_genes must be at least 1, found {self.top_genes}; pass None to keep every gene")

    @property
    def needs_tie_rates(self) -> bool:
        """Return whether the rule looks at detection rates."""
        return self.ties in ("rare_first", "common_first")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class CellSentences:
    """Cell sentences of n cells; immutable. Slices, masks and index arrays give `CellSentences` again.

    Examples
    --------
    >>> import cytoglot as cg
    >>> sentences = cg.encode(cg.load_dataset("pbmc68k_reduced"), top_genes=3)
    >>> sentences[:2].text().to_pylist()
    ['FTL CD74 AIF1', 'FTL LST1 S100A4']
    """

    cell_ids: NDArray[np.object_]
    """(n,) names of the cells, str"""
    offsets: NDArray[np.int64]
    """(n + 1,) where each sentence starts in `gene_ids`"""
    gene_ids: NDArray[np.uint16] | NDArray[np.uint32]
    """(w,) places in the vocabulary"""
    n_expressed: NDArray[np.int32]
    """(n,) genes above 0 before the cut to `top_genes`"""
    vocabulary: GeneVocabulary
    settings: RankSettings
    tie_rates: NDArray[np.float32] | None = None
    """(g,) share of the training cells in which a gene was detected, where the tie rule used it"""
    manifest: Manifest | None = None

    def __post_init__(self) -> None:
        n = len(self.cell_ids)
        if len(self.offsets) != n + 1 or len(self.n_expressed) != n:
            raise InputError(
                f"{n} cell ids need {n + 1} offsets and {n} values of n_expressed, "
                f"found {len(self.offsets)} and {len(self.n_expressed)}"
            )
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.gene_ids) or np.any(np.diff(self.offsets) < 0):
            raise InputError(f"offsets must rise from 0 to {len(self.gene_ids)}, the number of gene ids")
        if self.gene_ids.dtype not in (np.uint16, np.uint32):
            raise InputError(f"gene ids must be uint16 or uint32, found {self.gene_ids.dtype}")
        if len(self.gene_ids) and int(self.gene_ids.max()) >= len(self.vocabulary):
            raise InputError(f"gene id {self.gene_ids.max()} is outside the vocabulary of {len(self.vocabulary)} genes")
        if self.tie_rates is not None and self.tie_rates.shape != (len(self.vocabulary),):
            raise InputError(f"tie_rates must have shape ({len(self.vocabulary)},), found {self.tie_rates.shape}")

    def __len__(self) -> int:
        return len(self.cell_ids)

    def __iter__(self) -> Iterator[list[str]]:
        return (self.words(cell) for cell in range(len(self)))

    @overload
    def __getitem__(self, key: int | np.integer) -> list[str]: ...
    @overload
    def __getitem__(self, key: slice | Sequence[int] | Sequence[bool] | NDArray[Any]) -> CellSentences: ...
    def __getitem__(
        self, key: int | np.integer | slice | Sequence[int] | Sequence[bool] | NDArray[Any]
    ) -> list[str] | CellSentences:
        if isinstance(key, (int, np.integer)):
            return self.words(int(key))
        cells = _cell_numbers(key, len(self))
        lengths = self.lengths[cells]
        return replace(
            self,
            cell_ids=self.cell_ids[cells],
            offsets=_offsets(lengths),
            gene_ids=self.gene_ids[_ragged_positions(self.offsets[cells], lengths)],
            n_expressed=self.n_expressed[cells],
        )

    def ids(self, cell: int) -> NDArray[np.uint16] | NDArray[np.uint32]:
        """Return a view of the gene ids of one cell, highest first; negative numbers count from the end."""
        n = len(self)
        if not -n <= cell < n:
            raise IndexError(f"cell {cell} is outside {n} cells")
        cell %= n
        return self.gene_ids[self.offsets[cell] : self.offsets[cell + 1]]

    def words(self, cell: int) -> list[str]:
        """Return the gene symbols of one cell, highest first; an empty cell gives an empty list."""
        symbols = self.vocabulary.symbols
        return [symbols[gene] for gene in self.ids(cell).tolist()]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) words of each sentence."""
        return np.diff(self.offsets)

    @property
    def n_empty(self) -> int:
        """Return the number of cells that express no gene."""
        return int(np.count_nonzero(self.lengths == 0))

    def ranks(self) -> NDArray[np.int32]:
        """Return the rank of each entry of `gene_ids` in its own cell, (w,), counted from 1."""
        starts = np.repeat(self.offsets[:-1], self.lengths)
        return (np.arange(1, len(self.gene_ids) + 1, dtype=np.int64) - starts).astype(np.int32)

    def cells(self) -> NDArray[np.int64]:
        """Return the number of the cell of each entry of `gene_ids`, (w,)."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def text(self, delimiter: str = " ") -> pa.StringArray | pa.LargeStringArray:
        """Return the sentences as Arrow strings of length n; an empty cell gives "".

        `LargeStringArray` where the text passes 2 GiB. The bytes are laid down by a compiled kernel: no Python string
        and no copy of the words is made in between.
        """
        from cytoglot.sentence.text import join_words

        return join_words(self.offsets, self.gene_ids, self.vocabulary.symbols, delimiter)

    def truncate(self, top_genes: int) -> CellSentences:
        """Return the first `top_genes` words of every sentence (all, where there are fewer)."""
        settings = replace(self.settings, top_genes=min(top_genes, self.settings.top_genes or top_genes))
        kept = np.minimum(self.lengths, top_genes)
        return replace(
            self,
            offsets=_offsets(kept),
            gene_ids=self.gene_ids[_ragged_positions(self.offsets[:-1], kept)],
            settings=settings,
        )


def concat(parts: Sequence[CellSentences]) -> CellSentences:
    """Join sentences of one vocabulary and one rule, in order.

    Raises
    ------
    InputError
        There is nothing to join, or settings or tie rates differ.
    VocabularyMismatchError
        The vocabularies differ.
    """
    if not parts:
        raise InputError("concat needs at least one part, found none")
    first = parts[0]
    for number, part in enumerate(parts[1:], start=1):
        if part.vocabulary.fingerprint != first.vocabulary.fingerprint:
            raise VocabularyMismatchError(
                f"part {number} speaks of other genes than part 0: {len(part.vocabulary)} genes "
                f"({part.vocabulary.fingerprint}) against {len(first.vocabulary)} ({first.vocabulary.fingerprint}); "
                "encode both with the same gene list"
            )
        if part.settings != first.settings:
            raise InputError(f"part {number} was ranked with {part.settings}, part 0 with {first.settings}")
        ours, theirs = first.tie_rates, part.tie_rates
        if ours is not theirs and (ours is None or theirs is None or not np.array_equal(ours, theirs)):
            raise InputError(
                f"part {number} was ranked with other tie rates than part 0; encode both with the same rates"
            )
    return replace(
        first,
        cell_ids=np.concatenate([part.cell_ids for part in parts]),
        offsets=_offsets(np.concatenate([part.lengths for part in parts])),
        gene_ids=np.concatenate([part.gene_ids for part in parts]),
        n_expressed=np.concatenate([part.n_expressed for part in parts]),
    )


def gene_id_dtype(n_genes: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    """Return the smallest type that holds every gene id."""
    return np.dtype(np.uint16) if n_genes <= 1 << 16 else np.dtype(np.uint32)


def _cell_numbers(key: slice | ArrayLike, n: int) -> NDArray[np.int64]:
    if isinstance(key, slice):
        return np.arange(n)[key]
    cells = np.asarray(key)
    if cells.dtype == bool:
        if cells.shape != (n,):
            raise IndexError(f"a mask over {n} cells must have shape ({n},), found {cells.shape}")
        return np.flatnonzero(cells)
    if cells.size == 0:
        return np.empty(0, np.int64)
    if cells.ndim != 1 or not np.issubdtype(cells.dtype, np.integer):
        raise TypeError(f"cells are picked by a slice, a mask or integers, found {cells.dtype} of {cells.ndim} axes")
    if cells.min() < -n or cells.max() >= n:
        raise IndexError(f"cell {cells.max() if cells.max() >= n else cells.min()} is outside {n} cells")
    return np.where(cells < 0, cells + n, cells).astype(np.int64)


def _offsets(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _ragged_positions(starts: NDArray[np.int64], lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return start, start + 1, ... of every run, one run after another."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - lengths), lengths)
