"""embed, gene-vectors: cells or genes and a model in, vectors out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from cytoglot.cli.apply import MinOverlap, Model, Templates, load_for_cells, write_h5ad
from cytoglot.cli.cells import (
    DuplicateGenes,
    GeneColumn,
    GeneMapping,
    Source,
    gene_options,
    open_source,
    whole_file,
)
from cytoglot.cli.output import (
    Anew,
    ChunkCells,
    Context,
    Device,
    DryRun,
    Json,
    Layer,
    Seed,
    Threads,
    check_output,
    parse_context,
    quiet_for_json,
    show,
)

if TYPE_CHECKING:
    from anndata import AnnData

    from cytoglot.cell_model.load import CellModel
    from cytoglot.data.genes.options import GeneOptions
    from cytoglot.data.genes.vocabulary import GeneVocabulary
    from cytoglot.lm.embedding.embed import Precision

HiddenLayer = Annotated[
    int, typer.Option("--hidden-layer", help="Hidden state: 0 the token vectors, 1 the first layer, …, -1 the last.")
]
Dtype = Annotated[
    str, typer.Option("--dtype", help="auto (float32 on a CPU, bfloat16 on CUDA), float32 or bfloat16 to compute with.")
]
BatchTokens = Annotated[
    int | None, typer.Option("--batch-tokens", min=1, help="Most tokens of a batch; default: what suits the device.")
]


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("embed")(embed_command)
    app.command("gene-vectors")(gene_vectors_command)


def embed_command(
    source: Source,
    model: Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="h5ad: the cells with vectors in obsm; parquet: the vectors alone.")
    ],
    key_added: Annotated[str, typer.Option("--key-added", help="Name in obsm.")] = "X_cytoglot",
    hidden_layer: HiddenLayer = -1,
    pooling: Annotated[
        str, typer.Option("--pooling", help="mean of all tokens, last token, or sentence: the genes' tokens alone.")
    ] = "mean",
    dtype: Dtype = "auto",
    batch_tokens: BatchTokens = None,
    chunk_cells: ChunkCells = None,
    checkpoint: Annotated[
        bool, typer.Option("--checkpoint", help="The model has no cytoglot.json: rank the file's own genes.")
    ] = False,
    templates: Templates = None,
    context: Context = None,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    gene_mapping: GeneMapping = None,
    duplicates: DuplicateGenes = "sum",
    min_overlap: MinOverlap = 0.3,
    anew: Anew = False,
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Write a vector for every cell, of a file of any size (nothing here is random: the seed changes nothing)."""
    from cytoglot.applications.embed_file import CHUNK_CELLS, SUFFIXES, embed_file, takes_vectors, write_vectors
    from cytoglot.applications.embedding import embed
    from cytoglot.atomic import atomic_path
    from cytoglot.cell_model.load import check_pooling
    from cytoglot.data.datasets import resolve_source
    from cytoglot.lm.model.language_model import set_threads

    check_output(output, suffixes=SUFFIXES)
    quiet_for_json(as_json=json)
    set_threads(threads)
    check_pooling(pooling)
    metadata = parse_context(context)
    genes = gene_options(gene_column, gene_mapping, duplicates)
    found = resolve_source(source)
    cell_model = load_for_cells(
        model,
        lambda: _vocabulary(source, layer, genes),
        () if checkpoint else None,
        context=metadata,
        templates=templates,
        device=device,
    )
    options: dict[str, Any] = {
        "context": metadata,
        "min_overlap": min_overlap,
        "hidden_layer": hidden_layer,
        "pooling": pooling,
        "dtype": dtype,
        "batch_tokens": batch_tokens,
    }
    if dry_run:
        forecast = _forecast(cell_model, found, output, layer=layer, gene_options=genes, **options)
        show(forecast | {"output": output}, as_json=json)
        return
    if isinstance(found, Path) and (output.suffix == ".parquet" or takes_vectors(found)):
        summary = embed_file(
            found,
            output,
            cell_model,
            layer=layer,
            gene_options=genes,
            key_added=key_added,
            chunk_cells=chunk_cells or CHUNK_CELLS,
            overwrite=anew,
            **options,
        )
        show(summary.to_dict(), as_json=json)
        return
    file = whole_file(source, layer=layer, genes=genes)
    result = embed(
        file.adata, cell_model, layer=file.layer, gene_options=file.genes, key_added=key_added, copy=False, **options
    )
    record = result.uns["cytoglot"]["embedding"]
    if output.suffix == ".parquet":
        with atomic_path(output) as path:
            vectors_nd = result.obsm[key_added]
            write_vectors(path, result.obs_names.to_numpy(), [vectors_nd], record, n_d=vectors_nd.shape[1])
    else:
        write_h5ad(result, output)
    show(
        {
            "cells": result.n_obs,
            "dimensions": result.obsm[key_added].shape[1],
            "key": key_added,
            "overlap": record["overlap"],
            "cells_without_genes": record["cells_without_genes"],
            "output": output,
        },
        as_json=json,
    )


def gene_vectors_command(
    model: Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="h5ad: genes by dimensions; parquet: a row for each gene.")
    ],
    source: Annotated[
        str | None, typer.Argument(help="Cells to average over (contextual vectors); none: the model's static vectors.")
    ] = None,
    hidden_layer: HiddenLayer = -1,
    dtype: Dtype = "auto",
    batch_tokens: BatchTokens = None,
    context: Context = None,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    gene_mapping: GeneMapping = None,
    duplicates: DuplicateGenes = "sum",
    min_overlap: MinOverlap = 0.3,
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Write a vector for every gene of a model: its input vector, or the mean of its hidden states over cells."""
    from cytoglot.applications.gene_vectors import gene_embeddings, write_gene_table
    from cytoglot.cell_model.load import load_cell_model
    from cytoglot.data.datasets import resolve_source
    from cytoglot.lm.model.language_model import set_threads

    check_output(output, suffixes=(".h5ad", ".parquet"))
    quiet_for_json(as_json=json)
    set_threads(threads)
    metadata = parse_context(context)
    genes = gene_options(gene_column, gene_mapping, duplicates)
    result = gene_embeddings(
        load_cell_model(model, device=device),
        "static" if source is None else "contextual",
        cells=None if source is None else resolve_source(source),
        layer=layer,
        gene_options=genes,
        context=metadata,
        min_overlap=min_overlap,
        hidden_layer=hidden_layer,
        dtype=cast("Precision", dtype),
        batch_tokens=batch_tokens,
    )
    if output.suffix == ".parquet":
        write_gene_table(result, output)
    else:
        write_h5ad(result, output)
    about = result.uns["cytoglot"]["gene_vectors"]
    show({"genes": result.n_obs, "dimensions": result.n_vars, **about, "output": output}, as_json=json)


def _vocabulary(source: str, layer: str | None, genes: GeneOptions) -> GeneVocabulary:
    with open_source(source, layer=layer, genes=genes) as cells:
        return cells.vocabulary


def _forecast(
    model: CellModel,
    source: AnnData | Path,
    output: Path,
    *,
    layer: str | None,
    gene_options: GeneOptions,
    min_overlap: float,
    hidden_layer: int,
    **options: Any,
) -> dict[str, Any]:
    """Measure the model on a few cells and multiply."""
    import time

    from cytoglot.cell_model.sentence_stream import open_sentences
    from cytoglot.lm.embedding.embed import n_dimensions

    n_some = 32
    with open_sentences(
        model, source, layer=layer, gene_options=gene_options, min_overlap=min_overlap, chunk_cells=n_some
    ) as stream:
        some, started = next(stream.chunks(), None), time.perf_counter()
        if some is not None:
            model.embeddings(some, layer=hidden_layer, **options)  # the first time compiles and warms up
            started = time.perf_counter()
            model.embeddings(some, layer=hidden_layer, **options)
        per_cell = (time.perf_counter() - started) / max(1, min(n_some, stream.n_cells))
    vectors_mb = stream.n_cells * n_dimensions(model.lm) * 4 / 1e6
    copied_mb = source.stat().st_size / 1e6 if isinstance(source, Path) and output.suffix == ".h5ad" else 0.0
    weights_mb = sum(p.numel() * p.element_size() for p in model.lm.model.parameters()) / 1e6
    return {
        "cells": stream.n_cells,
        "seconds": round(per_cell * stream.n_cells, 1),
        "memory_mb": round(weights_mb + 700),
        "disk_mb": round(copied_mb + 2 * vectors_mb, 1),
        "overlap": str(stream.overlap),
        "dry_run": True,
    }
