"""Genes as vectors: what the model brings along for each (static), or makes of it in cells (contextual).

Axes: g genes, d embedding dimensions.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from anndata import AnnData

from cytoglot.atomic import atomic_path
from cytoglot.cell_model.load import MIN_OVERLAP, CellModel, as_cell_model
from cytoglot.data.genes.options import DEFAULT_GENES, GeneOptions
from cytoglot.errors import InputError, VocabularyMismatchError
from cytoglot.lm.embedding.embed import Precision, checked_layer, in_precision
from cytoglot.lm.embedding.word_vectors import WordVectorMeans, static_word_vectors
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.progress import progress_bar

logger = logging.getLogger(__name__)

GeneVectorKind = Literal["static", "contextual"]
CHUNK_CELLS = 256


def gene_embeddings(
    model: CellModel | LanguageModel | str | Path,
    kind: GeneVectorKind = "static",
    *,
    cells: AnnData | str | Path | None = None,
    genes: Sequence[str] | None = None,
    layer: str | None = None,
    gene_options: GeneOptions = DEFAULT_GENES,
    context: Mapping[str, str] | None = None,
    min_overlap: float = MIN_OVERLAP,
    hidden_layer: int = -1,
    dtype: Precision = "auto",
    batch_tokens: int | None = None,
    chunk_cells: int = CHUNK_CELLS,
) -> AnnData:
    """Return genes x dimensions as an AnnData, ready for `scanpy.pp.neighbors`.

    `X` is float32 of shape (g, d), `obs_names` are the genes, `obs["n_occurrences"]` tells in how many cells each was
    seen (contextual alone), `uns["cytoglot"]["gene_vectors"]` says how they were made.

    Parameters
    ----------
    model
        A cell model, or its folder or name on the hub.
    kind
        "static": the model's input vectors; a gene of several tokens has their mean. "contextual": the mean hidden
        state of the gene's tokens over all cells whose sentence holds it. A causal model has read only the genes above
        it, so a vector owes much to where in the ranking the gene stands.
    cells
        An AnnData or a file of any size, read in chunks; needed by "contextual".
    genes
        Which genes, in which order; None takes all that the model's sentences may hold.
    layer, gene_options, context, min_overlap, hidden_layer, dtype, batch_tokens
        As in `cytoglot.embed`; for "contextual".
    chunk_cells
        Cells in memory at a time.

    Returns
    -------
    AnnData
        Genes that occur in no cell are rows of NaN with `n_occurrences` 0; they are counted in
        `uns["cytoglot"]["gene_vectors"]["n_absent"]`.

    Raises
    ------
    InputError
        An unknown kind, contextual vectors without cells, or cells that cannot be read.
    VocabularyMismatchError
        A gene is not one of the model's, or the cells lack the model's genes.

    Examples
    --------
    >>> import cytoglot as cg
    >>> cg.gene_embeddings("model").shape
    (119, 32)
    """
    if kind not in get_args(GeneVectorKind):
        raise InputError(f"kind must be static or contextual, found {kind!r}")
    model = as_cell_model(model)
    vocabulary = model.spec.vocabulary
    symbols = list(vocabulary.symbols if genes is None else genes)
    rows = np.asarray(vocabulary.index_of(symbols), dtype=np.int64)
    unknown = [gene for gene, row in zip(symbols, rows, strict=True) if row < 0]
    if unknown:
        raise VocabularyMismatchError(
            f"expected genes of the model, found {len(unknown)} of {len(rows)} that it does not know, such as "
            f"{unknown[0]!r}; it knows {', '.join(vocabulary.symbols[:3])}, …"
        )
    about: dict[str, str | int] = {"kind": kind}
    obs = pd.DataFrame(index=pd.Index(symbols, dtype=object))
    if kind == "static":
        vector_gd = static_word_vectors(model.lm, symbols)
    else:
        if cells is None:
            raise InputError("contextual vectors are means over cells; pass cells=, an AnnData or the path of a file")
        means = WordVectorMeans(
            lm=in_precision(model.lm, dtype),
            n_words=len(vocabulary),
            layer=checked_layer(model.lm, hidden_layer),
            batch_tokens=batch_tokens,
        )
        with model.open_sentences(
            cells, layer=layer, gene_options=gene_options, min_overlap=min_overlap, chunk_cells=chunk_cells
        ) as stream:
            about |= {"hidden_layer": means.layer, "n_cells": stream.cells.n_cells, "overlap": str(stream.overlap)}
            with progress_bar(total=stream.cells.n_cells, description="gene vectors", unit="cell") as bar:
                for sentences in stream.chunks():
                    prompts = model.cell_prompts(sentences, context=context)
                    means.add(
                        [prompt.text for prompt in prompts],
                        [vocabulary.index_of(prompt.record.genes) for prompt in prompts],
                        [prompt.gene_spans for prompt in prompts],
                    )
                    bar.update(len(prompts))
        logger.info("%s", means.tally)
        vector_gd, counts_g = means.means()[rows], means.counts_w[rows]
        obs["n_occurrences"] = counts_g
        about["n_absent"] = n_absent = int((counts_g == 0).sum())
        if n_absent:
            logger.warning("%d of %d genes are in no cell: their vectors are NaN", n_absent, len(symbols))
    var = pd.DataFrame(index=pd.Index([f"d{i}" for i in range(vector_gd.shape[1])], dtype=object))
    return AnnData(X=vector_gd, obs=obs, var=var, uns={"cytoglot": {"gene_vectors": about}})


def write_gene_table(genes: AnnData, output: str | Path) -> None:
    """Write what `gene_embeddings` returned as Parquet: `gene`, `n_occurrences` (contextual) and `vector`, atomically.

    The vector of a gene that occurs in no cell is null.
    """
    vector_gd = np.asarray(genes.X, dtype=np.float32)
    seen_g = ~np.isnan(vector_gd).all(axis=1)
    columns: dict[str, pa.Array] = {"gene": pa.array(genes.obs_names.to_list(), type=pa.string())}
    if "n_occurrences" in genes.obs:
        columns["n_occurrences"] = pa.array(genes.obs["n_occurrences"].to_numpy())
    columns["vector"] = pa.FixedSizeListArray.from_arrays(
        pa.array(vector_gd.reshape(-1)), vector_gd.shape[1], mask=pa.array(~seen_g)
    )
    table = pa.table(columns).replace_schema_metadata({"cytoglot": json.dumps(genes.uns["cytoglot"]["gene_vectors"])})
    with atomic_path(output) as path:
        pq.write_table(table, path)
