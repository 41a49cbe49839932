"""embed, gene-embeddings: cells or genes and a model in, vectors out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cytoglot.cli import options as opt
from cytoglot.cli.apply import load_for_cells
from cytoglot.cli.output import check_output, show

Pooling = Literal["mean", "last", "sentence"]
Precision = Literal["auto", "float32", "bfloat16"]

HiddenLayer = Annotated[
    int, typer.Option("--hidden-layer", help="0: token vectors, 1: first layer, …, -1: last layer.")
]
Dtype = Annotated[
    Precision, typer.Option("--dtype", help="Of the computation; auto: float32 on a CPU, bfloat16 on CUDA.")
]
BatchTokens = Annotated[
    int | None,
    typer.Option("--batch-tokens", min=1, help="Most tokens of a batch.", show_default="as the device allows"),
]


def embed_command(
    source: opt.Source,
    model: opt.Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="h5ad: the cells with vectors in obsm; parquet: the vectors alone.")
    ],
    key_added: Annotated[str, typer.Option("--key-added", help="Name in obsm.")] = "X_cytoglot",
    hidden_layer: HiddenLayer = -1,
    pooling: Annotated[
        Pooling, typer.Option("--pooling", help="Mean of all tokens, the last one, or the mean of the genes' tokens.")
    ] = "mean",
    dtype: Dtype = "auto",
    batch_tokens: BatchTokens = None,
    chunk_cells: opt.ChunkCells = None,
    checkpoint: Annotated[
        bool, typer.Option("--checkpoint", help="MODEL is any Hugging Face model: rank the file's own genes.")
    ] = False,
    templates: opt.Templates = None,
    context: opt.Context = None,
    layer: opt.Layer = None,
    gene_column: opt.GeneColumn = None,
    gene_mapping: opt.GeneMapping = None,
    duplicates: opt.DuplicateGenes = "sum",
    min_overlap: opt.MinOverlap = 0.3,
    overwrite: opt.Overwrite = False,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
) -> None:
    """Write a vector for each cell.

    Files may be larger than memory. The same command resumes an interrupted run.
    """
    check_output(output, suffixes=(".h5ad", ".parquet"), overwrite=overwrite or dry_run, inputs=[source])
    from cytoglot.applications.embed_file import CHUNK_CELLS, embed_file, takes_vectors
    from cytoglot.applications.embedding import embed
    from cytoglot.applications.forecast import forecast_cells
    from cytoglot.applications.outputs import record_name
    from cytoglot.applications.vector_files import KEY
    from cytoglot.data.datasets import resolve_source
    from cytoglot.data.whole_file import whole_file
    from cytoglot.lm.model.language_model import set_threads

    set_threads(threads)
    metadata = opt.parse_context(context)
    genes = opt.gene_options(gene_column, gene_mapping, duplicates)
    found = resolve_source(source)
    cell_model = load_for_cells(
        model,
        found,
        () if checkpoint else None,
        context=metadata,
        templates=templates,
        device=device,
        layer=layer,
        genes=genes,
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
        copies = output.suffix == ".h5ad"
        forecast = forecast_cells(cell_model, found, copies_cells=copies, layer=layer, gene_options=genes, **options)
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
            overwrite=overwrite,
            **options,
        )
        show(asdict(summary), as_json=json)
        return
    file = whole_file(source, layer=layer, genes=genes)
    result = file.adata
    reading: dict[str, Any] = {"layer": file.layer, "gene_options": file.genes}
    embed(result, cell_model, key_added=key_added, output=output, **reading, **options)
    record = result.uns["cytoglot"][record_name("embedding", key_added, KEY)]
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


def gene_embeddings_command(
    model: opt.Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="h5ad: genes by dimensions; parquet: a row for each gene.")
    ],
    source: Annotated[
        str | None, typer.Argument(help="Cells to average over, for contextual vectors.", show_default="static vectors")
    ] = None,
    hidden_layer: HiddenLayer = -1,
    dtype: Dtype = "auto",
    batch_tokens: BatchTokens = None,
    context: opt.Context = None,
    layer: opt.Layer = None,
    gene_column: opt.GeneColumn = None,
    gene_mapping: opt.GeneMapping = None,
    duplicates: opt.DuplicateGenes = "sum",
    min_overlap: opt.MinOverlap = 0.3,
    overwrite: opt.Overwrite = False,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    json: opt.Json = False,
) -> None:
    """Write a vector for each gene of a model.

    It is the input vector of the gene or, where cells are given, the mean of its hidden states over them.
    """
    check_output(output, suffixes=(".h5ad", ".parquet"), overwrite=overwrite, inputs=[] if source is None else [source])
    from cytoglot.applications.gene_vectors import gene_embeddings, write_gene_table
    from cytoglot.cell_model.load import load_cell_model
    from cytoglot.data.datasets import resolve_source
    from cytoglot.data.write import write_h5ad
    from cytoglot.lm.model.language_model import set_threads

    set_threads(threads)
    metadata = opt.parse_context(context)
    genes = opt.gene_options(gene_column, gene_mapping, duplicates)
    result = gene_embeddings(
        load_cell_model(model, device=device),
        "static" if source is None else "contextual",
        cells=None if source is None else resolve_source(source),
        layer=layer,
        gene_options=genes,
        context=metadata,
        min_overlap=min_overlap,
        hidden_layer=hidden_layer,
        dtype=dtype,
        batch_tokens=batch_tokens,
    )
    if output.suffix == ".parquet":
        write_gene_table(result, output)
    else:
        write_h5ad(result, output)
    about = result.uns["cytoglot"]["gene_vectors"]
    show({"genes": result.n_obs, "dimensions": result.n_vars, **about, "output": output}, as_json=json)
