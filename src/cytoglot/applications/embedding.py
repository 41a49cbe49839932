"""Cells as vectors: hidden states of a cell's prompt, pooled; for an AnnData in memory, or from file to file.

Axes: n cells, d embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cytoglot.applications.embed_file import embed_file, takes_vectors
from cytoglot.applications.outputs import add_record, cells_to_change, check_suffix, check_target, result_of
from cytoglot.applications.vector_files import KEY, SUFFIXES, embedding_record, write_vectors
from cytoglot.atomic import atomic_path
from cytoglot.cell_model.load import MIN_OVERLAP, CellModel, CellPooling, as_cell_model
from cytoglot.data.datasets import resolve_source
from cytoglot.data.genes.options import DEFAULT_GENES, GeneOptions
from cytoglot.data.write import write_h5ad
from cytoglot.lm.embedding.embed import Precision
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.tasks.task import check_context

if TYPE_CHECKING:
    from anndata import AnnData


def embed(
    adata: AnnData | str | Path,
    model: CellModel | LanguageModel | str | Path,
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
    output: str | Path | None = None,
    overwrite: bool = False,
) -> AnnData | None:
    """Write a vector for every cell into `adata`: `obsm[key_added]`, float32 of shape (n_cells, d).

    The body of the model alone is run (no output layer), and no deeper than asked; a cell's vector does not depend on
    which cells it is batched with. Labels are neither needed nor read. A record is in `uns["cytoglot"]["embedding"]`,
    for another key than the default in `uns["cytoglot"]["embedding_KEY"]`. What an earlier call wrote under the same
    key is replaced.

    A cell without one gene of the model gets the zero vector; the record counts such cells (`cells_without_genes`).

    Parameters
    ----------
    adata
        Cells, or the path of a file of them, which needs `copy=True` or `output`.
    model
        A cell model or its folder; or any causal language model (`cytoglot.load_model`, or its folder or name), which
        reads the genes of the cells.
    layer
        Matrix to rank: "X", "raw" or the name of a layer; None finds it.
    gene_options
        How columns become genes: see `cytoglot.read`.
    context
        Metadata for the prompts, such as {"organism": "human", "tissue": "blood"}.
    key_added
        Name in `obsm`.
    min_overlap
        Cells with fewer than this share of the model's genes, 0 to 1, are refused.
    hidden_layer
        Which hidden state: 0 the token vectors, 1 the first layer, …, -1 the last.
    pooling
        "mean" over all tokens of the prompt, its "last" token, or "sentence": the mean over the tokens of the genes.
    dtype
        What to compute with: "float32", "bfloat16", or "auto": float32 on a CPU and bfloat16 on CUDA.
    batch_tokens
        Most tokens of a batch; None: what suits the device.
    copy
        As in `cytoglot.annotate`.
    output
        A file to write to as well: an h5ad of the cells with their vectors, or a Parquet file of the vectors. Of a path
        with an output and without `copy`, a chunk of cells is in memory at a time (`embed_file`).
    overwrite
        Begin anew where an interrupted run of other settings has left parts of `output`.

    Returns
    -------
        None, or with `copy` the changed copy.

    Raises
    ------
    InputError, VocabularyMismatchError
        The matrix cannot be read, the genes are not those of the model, there is no such layer or pooling, or
        `key_added` cannot be used or is taken by data that cytoglot did not write.

    Examples
    --------
    >>> import cytoglot as cg
    >>> adata = cg.read("cells.h5ad")
    >>> cg.embed(adata, "model")
    >>> adata.obsm["X_cytoglot"].shape
    (240, 32)
    """
    check_context(context)
    suffix = None if output is None else Path(output).suffix
    check_suffix(output, SUFFIXES)
    if isinstance(adata, (str, Path)) and output is not None and not copy:
        source = resolve_source(adata)
        if isinstance(source, Path) and (suffix == ".parquet" or takes_vectors(source)):
            embed_file(
                source,
                output,
                as_cell_model(model, labels=(), cells=source, layer=layer, gene_options=gene_options),
                layer=layer,
                gene_options=gene_options,
                context=context,
                key_added=key_added,
                min_overlap=min_overlap,
                hidden_layer=hidden_layer,
                pooling=pooling,
                dtype=dtype,
                batch_tokens=batch_tokens,
                overwrite=overwrite,
            )
            return None
    file = cells_to_change(adata, copy=copy, output=output, layer=layer, genes=gene_options)
    cells = file.adata
    reading: dict[str, Any] = {"layer": file.layer, "gene_options": file.genes}
    model = as_cell_model(model, labels=(), cells=cells, **reading)
    name = check_target(cells, "embedding", key_added, default=KEY, writes={"obsm": [key_added]}, copy=copy)
    sentences, overlap = model.sentences(cells, min_overlap=min_overlap, **reading)
    embedding_nd = model.embeddings(
        sentences, context=context, layer=hidden_layer, pooling=pooling, dtype=dtype, batch_tokens=batch_tokens
    )
    empty = np.diff(sentences.offsets) == 0
    embedding_nd[empty] = 0
    result = result_of(cells, copy=copy and cells is adata)
    result.obsm[key_added] = embedding_nd
    record = embedding_record(model, overlap, key_added=key_added, hidden_layer=hidden_layer, pooling=pooling)
    record["cells_without_genes"] = int(empty.sum())
    add_record(result, name, record)
    if output is not None and suffix == ".parquet":
        with atomic_path(output) as path:
            write_vectors(path, result.obs_names.to_numpy(), [embedding_nd], record, n_d=embedding_nd.shape[1])
    elif output is not None:
        write_h5ad(result, output)
    return result if copy else None


@dataclass(frozen=True, kw_only=True)
class ModelEmbedder:
    """A cell model behind the `CellEmbedder` socket."""

    model: CellModel

    def embed(self, adata: AnnData) -> NDArray[np.float32]:
        """Return float32 of shape (n_cells, d); `adata` is not changed."""
        sentences, _ = self.model.sentences(adata)
        return self.model.embeddings(sentences)
