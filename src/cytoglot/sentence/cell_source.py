"""Where the cells of sentences come from, all seen alike: their ids, their genes, and CSR blocks in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cytoglot.data.genes.vocabulary import GeneVocabulary, ResolvedGenes, collapse_columns
from cytoglot.data.readers.matrix_choice import Candidate, Verdict, candidates_of, sample_positions, select, verdict_on
from cytoglot.data.readers.stream import CellStream, open_cells, stream_adata
from cytoglot.sentence.matrix_blocks import csr_blocks

if TYPE_CHECKING:
    import scipy.sparse as sp
    from anndata import AnnData

#: Cells of a block of a file: 2,000 expressed genes each are 130 MB.
CHUNK_CELLS = 8192


@dataclass(frozen=True, kw_only=True)
class CellSource:
    """Cells that can be gone through as often as needed."""

    vocabulary: GeneVocabulary
    """genes of the blocks' columns"""
    cell_ids: NDArray[np.object_]
    message: str
    """which matrix is read, and in what state"""
    blocks_from: Callable[[int], Iterator[sp.csr_matrix]]

    def blocks(self, first_cell: int = 0) -> Iterator[sp.csr_matrix]:
        """Yield the cells from `first_cell` on as CSR blocks, which must not be changed."""
        return self.blocks_from(first_cell)


@contextmanager
def open_source(
    source: AnnData | CellStream | str | Path, *, layer: str | None, chunk_cells: int = CHUNK_CELLS
) -> Iterator[CellSource]:
    """Open a file, an AnnData or a stream; a stream that was open before stays open.

    The matrix is chosen as by `cytoglot.read`; of a matrix in memory too only 2,048 cells are tested for that, because
    the ranking itself finds every value that cannot be ranked.
    """
    if isinstance(source, CellStream):
        yield _of_stream(source, chunk_cells)
    elif isinstance(source, (str, Path)):
        with open_cells(source, layer=layer) as stream:
            yield _of_stream(stream, chunk_cells)
    else:
        yield _of_adata(source, layer, chunk_cells)


def _of_stream(stream: CellStream, chunk_cells: int) -> CellSource:
    return CellSource(
        vocabulary=stream.vocabulary,
        cell_ids=_texts(stream.obs.index),
        message=stream.message,
        blocks_from=lambda first_cell: (block for _, block in stream.chunks(chunk_cells, first_cell=first_cell)),
    )


def _of_adata(adata: AnnData, layer: str | None, chunk_cells: int) -> CellSource:
    candidates = candidates_of(adata)
    if any(not _is_in_memory(candidate.matrix) for candidate in candidates):
        return _of_stream(stream_adata(adata, layer=layer), chunk_cells)
    known = {candidate.source: _sampled_verdict(candidate, adata) for candidate in candidates}
    selection = select(
        candidates, adata.obs, layer=layer, gene_column=None, gene_mapping=None, duplicates="sum", known=known
    )
    matrix, genes = selection.candidate.matrix, selection.genes
    return CellSource(
        vocabulary=genes.vocabulary,
        cell_ids=_texts(adata.obs_names),
        message=selection.message,
        blocks_from=lambda first_cell: _gene_blocks(matrix[first_cell:] if first_cell else matrix, genes),
    )


def _gene_blocks(matrix: Any, genes: ResolvedGenes) -> Iterator[sp.csr_matrix]:
    for block in csr_blocks(matrix):
        yield block if genes.is_identity else collapse_columns(block, genes.column_gene, len(genes.vocabulary))


def _sampled_verdict(candidate: Candidate, adata: AnnData) -> Verdict:
    cells = sample_positions(adata.n_obs)
    return verdict_on(
        candidate.matrix[cells],
        cell_names=[str(name) for name in adata.obs_names[cells]],
        gene_names=candidate.var.index,
    )


def _is_in_memory(matrix: Any) -> bool:
    return isinstance(matrix, np.ndarray) or type(matrix).__module__.split(".")[0] == "scipy"


def _texts(index: Any) -> NDArray[np.object_]:
    return np.asarray(index.astype(str), dtype=object)
