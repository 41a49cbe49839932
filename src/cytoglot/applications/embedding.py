"""Cells as vectors: the mean last hidden state over the real tokens of a cell's prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cytoglot.cell_model.load import MIN_OVERLAP, CellModel
from cytoglot.data.gene_options import DEFAULT_GENES, GeneOptions

if TYPE_CHECKING:
    from anndata import AnnData


def embed(
    adata: AnnData,
    model: CellModel,
    *,
    layer: str | None = None,
    gene_options: GeneOptions = DEFAULT_GENES,
    context: Mapping[str, str] | None = None,
    key_added: str = "X_cytoglot",
    min_overlap: float = MIN_OVERLAP,
    copy: bool = True,
) -> AnnData:
    """Return `adata` with `obsm[key_added]`, float32 of shape (n_cells, d), and a record in `uns["cytoglot"]`.

    The body of the model alone is run (no output layer); a cell's vector does not depend on which cells it is batched
    with. Labels are neither needed nor read. `copy=False` writes into `adata` itself.

    Raises
    ------
    InputError, VocabularyMismatchError
        The matrix cannot be read, or the genes are not those of the model.
    """
    sentences, overlap = model.sentences(adata, layer=layer, gene_options=gene_options, min_overlap=min_overlap)
    embedding_nd = model.embeddings(sentences, context=context)
    result = adata.copy() if copy else adata
    result.obsm[key_added] = embedding_nd
    record = {"key": key_added, "pooling": "mean over real tokens, last hidden state", "overlap": str(overlap)}
    result.uns["cytoglot"] = {**result.uns.get("cytoglot", {}), "embedding": record}
    return result


@dataclass(frozen=True, kw_only=True)
class ModelEmbedder:
    """A cell model behind the `CellEmbedder` socket."""

    model: CellModel

    def embed(self, adata: AnnData) -> NDArray[np.float32]:
        """Return float32 of shape (n_cells, d); `adata` is not changed."""
        sentences, _ = self.model.sentences(adata)
        return self.model.embeddings(sentences)
