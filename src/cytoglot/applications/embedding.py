"""Cells as vectors: hidden states of a cell's prompt, pooled; for an AnnData in memory, or from file to file.

Axes: n cells, d embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cytoglot.applications.outputs import add_record, check_target, result_of
from cytoglot.cell_model.load import MIN_OVERLAP, CellModel, CellPooling, VocabularyOverlap
from cytoglot.data.genes.options import DEFAULT_GENES, GeneOptions
from cytoglot.lm.embedding.embed import Precision, checked_layer
from cytoglot.tasks.task import check_context

if TYPE_CHECKING:
    from anndata import AnnData

KEY = "X_cytoglot"


def embed(
    adata: AnnData,
    model: CellModel,
    *,
    layer: str | None = None,
    gene_options: GeneOptions = DEFAULT_GENES,
    context: Mapping[str, str] | None = None,
    key_added: str = KEY,
    min_overlap: float = MIN_OVERLAP,
    hidden_layer: int = -1,
    pooling: CellPooling = "mean",
    dtype: Precision = "auto",
    batch_tokens: int | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Write a vector for every cell into `adata`: `obsm[key_added]`, float32 of shape (n_cells, d).

    The body of the model alone is run (no output layer), and no deeper than asked; a cell's vector does not depend on
    which cells it is batched with. Labels are neither needed nor read. A record is in `uns["cytoglot"]["embedding"]`,
    for another key than the default in `uns["cytoglot"]["embedding_KEY"]`. What an earlier call wrote under the same
    key is replaced.

    A cell without one gene of the model gets the zero vector; the record counts such cells (`cells_without_genes`).

    Parameters
    ----------
    layer
        Matrix to rank: "X", "raw" or the name of a layer; None finds it.
    hidden_layer, pooling, dtype, batch_tokens
        Which hidden state (0: the token vectors, -1: the last), how its tokens are pooled ("mean", "last", or
        "sentence": the genes alone), what to compute with: see `CellModel.embeddings`.
    key_added
        Name in `obsm`.
    copy
        As in `cytoglot.annotate`.

    Raises
    ------
    InputError, VocabularyMismatchError
        The matrix cannot be read, the genes are not those of the model, there is no such layer or pooling, or
        `key_added` cannot be used or is taken by data that cytoglot did not write.
    """
    check_context(context)
    name = check_target(adata, "embedding", key_added, default=KEY, writes={"obsm": [key_added]}, copy=copy)
    sentences, overlap = model.sentences(adata, layer=layer, gene_options=gene_options, min_overlap=min_overlap)
    embedding_nd = model.embeddings(
        sentences, context=context, layer=hidden_layer, pooling=pooling, dtype=dtype, batch_tokens=batch_tokens
    )
    empty = np.diff(sentences.offsets) == 0
    embedding_nd[empty] = 0
    result = result_of(adata, copy=copy)
    result.obsm[key_added] = embedding_nd
    record = embedding_record(model, overlap, key_added=key_added, hidden_layer=hidden_layer, pooling=pooling)
    add_record(result, name, {**record, "cells_without_genes": int(empty.sum())})
    return result if copy else None


def embedding_record(
    model: CellModel, overlap: VocabularyOverlap, *, key_added: str, hidden_layer: int, pooling: CellPooling
) -> dict[str, str | int]:
    """Return what `uns["cytoglot"]["embedding"]` says: values that every AnnData format can store."""
    pooled = {"mean": "mean over real tokens", "last": "last token", "sentence": "mean over the tokens of the genes"}
    layer = checked_layer(model.lm, hidden_layer)
    n_layers = checked_layer(model.lm, -1)
    which = "last hidden state" if layer == n_layers else f"hidden state {layer} of {n_layers}"
    return {
        "key": key_added,
        "pooling": f"{pooled[pooling]}, {which}",
        "hidden_layer": layer,
        "overlap": str(overlap),
    }


@dataclass(frozen=True, kw_only=True)
class ModelEmbedder:
    """A cell model behind the `CellEmbedder` socket."""

    model: CellModel

    def embed(self, adata: AnnData) -> NDArray[np.float32]:
        """Return float32 of shape (n_cells, d); `adata` is not changed."""
        sentences, _ = self.model.sentences(adata)
        return self.model.embeddings(sentences)
