"""The cells of a file or an AnnData as chunks of sentences over a model's genes, whatever their number."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cytoglot.cell_model.load import MIN_OVERLAP, CellModel, VocabularyOverlap
from cytoglot.data.genes.options import DEFAULT_GENES, GeneOptions
from cytoglot.data.readers.stream import CellStream, open_cells
from cytoglot.sentence.cell_sentence import CellSentences, RankSettings
from cytoglot.sentence.encode import ranked_chunks, ranker_for
from cytoglot.sentence.ranker import Ranker

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SentenceStream:
    """Sentences of the cells of a stream, made a chunk at a time."""

    cells: CellStream
    ranker: Ranker
    overlap: VocabularyOverlap
    chunk_cells: int

    @property
    def cell_ids(self) -> NDArray[np.object_]:
        """Names of the cells, shape (n,)."""
        return self.cells.cell_ids

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.cells.n_cells

    def chunks(self, first_cell: int = 0) -> Iterator[CellSentences]:
        """Yield the sentences of the cells from `first_cell` on, `chunk_cells` at a time.

        They are those of `CellModel.sentences`, whatever the chunks.
        """
        ranked = ranked_chunks(self.cells, self.ranker, chunk_cells=self.chunk_cells, first_cell=first_cell)
        return (self.ranker.sentences(block, self.cell_ids[place]) for place, block in ranked)


@contextmanager
def open_sentences(
    model: CellModel,
    source: AnnData | str | Path,
    *,
    layer: str | None = None,
    gene_options: GeneOptions = DEFAULT_GENES,
    min_overlap: float = MIN_OVERLAP,
    chunk_cells: int = 1024,
) -> Iterator[SentenceStream]:
    """Open cells for a model; of a file `obs`, the names of genes and one chunk are in memory.

    Raises
    ------
    VocabularyMismatchError
        The cells have fewer than `min_overlap` of the model's genes.
    InputError
        As for `cytoglot.read`.
    """
    with open_cells(source, layer=layer, **gene_options.keywords) as cells:
        overlap = model.overlap_with(cells.vocabulary, min_overlap=min_overlap)
        logger.info("%s", overlap)
        # whole sentences, as `CellModel.sentences` makes them: a view may drop genes before the cut
        settings = RankSettings(ties=model.spec.ranking.ties, seed=model.spec.ranking.seed)
        ranker = ranker_for(cells, genes=model.spec.vocabulary, settings=settings, tie_rates=model.spec.tie_rates_g)
        yield SentenceStream(cells=cells, ranker=ranker, overlap=overlap, chunk_cells=chunk_cells)
