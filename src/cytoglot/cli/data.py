"""audit, encode, decode, reconstruct, import-c2s: cells and sentences, no model."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from cytoglot.cli import options as opt
from cytoglot.cli.output import check_folder, check_output, show
from cytoglot.engines import set_numba_threads
from cytoglot.errors import InputError

logger = logging.getLogger(__name__)

TieRule = Literal["symbol", "order", "random", "rare_first", "common_first"]


def audit_command(
    source: opt.Source,
    label: Annotated[str | None, typer.Option("--label", help="Column of obs with the cell types.")] = None,
    layer: opt.Layer = None,
    gene_column: opt.GeneColumn = None,
    gene_mapping: opt.GeneMapping = None,
    duplicates: opt.DuplicateGenes = "sum",
    json: opt.Json = False,
) -> None:
    """Check a file: what it holds, what is wrong, how to fix it."""
    from cytoglot.data.audit import audit
    from cytoglot.data.datasets import resolve_source

    genes = opt.gene_options(gene_column, gene_mapping, duplicates)
    report = audit(resolve_source(source), label=label, layer=layer, gene_options=genes)
    if json:
        show(report.to_dict(), as_json=True)
    else:
        typer.echo(report.to_text())


def encode_command(
    source: opt.Source,
    output: opt.Parquet,
    top_genes: Annotated[
        int | None, typer.Option("--top-genes", min=1, help="Longest sentence.", show_default="all expressed genes")
    ] = None,
    hvg: Annotated[
        int | None,
        typer.Option("--hvg", min=1, help="Rank only so many highly variable genes of the file.", show_default="all"),
    ] = None,
    layer: opt.Layer = None,
    gene_column: opt.GeneColumn = None,
    gene_mapping: opt.GeneMapping = None,
    duplicates: opt.DuplicateGenes = "sum",
    ties: Annotated[TieRule, typer.Option("--ties", help="Order of genes with equal counts.")] = "symbol",
    tie_rates: Annotated[
        Path | None, typer.Option("--tie-rates", help="Model folder or encoded Parquet whose rates order the ties.")
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Write the sentences as text too.")] = False,
    chunk_cells: opt.ChunkCells = None,
    overwrite: opt.Overwrite = False,
    threads: opt.Threads = None,
    seed: opt.Seed = 0,
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
) -> None:
    """Write the ranked genes of each cell.

    Files may be larger than memory. The same command resumes an interrupted run.
    """
    check_output(output, suffixes=(".parquet",), overwrite=overwrite or dry_run, inputs=[source])
    from cytoglot.applications.forecast import forecast_encoding
    from cytoglot.data.datasets import resolve_source
    from cytoglot.data.genes.options import AS_NAMED
    from cytoglot.data.hvg import select_hvg
    from cytoglot.data.readers.read import read
    from cytoglot.data.readers.stream import open_cells
    from cytoglot.sentence.cell_sentence import RankSettings
    from cytoglot.sentence.encode import encode
    from cytoglot.sentence.encode_file import encode_file
    from cytoglot.sentence.parquet import write_sentences

    if threads is not None:
        set_numba_threads(threads)
    found = resolve_source(source)
    settings = RankSettings(top_genes=top_genes, ties=ties, seed=seed)
    rates = None if tie_rates is None else _tie_rates(tie_rates)
    # A gene without a rate has no place among its equals, so sentences are made of the genes that have one.
    wanted = None if rates is None or hvg is not None else list(rates)
    if wanted is not None:
        logger.info("sentences are made of the %d genes that have a tie rate", len(wanted))
    genes = opt.gene_options(gene_column, gene_mapping, duplicates)
    if dry_run:
        forecast = forecast_encoding(found, settings=settings, text=text, layer=layer, gene_options=genes)
        show(forecast | {"output": output}, as_json=json)
        return
    if isinstance(found, Path):
        summary = encode_file(
            found,
            output,
            settings=settings,
            genes=wanted,
            hvg=hvg,
            tie_rates=rates,
            layer=layer,
            gene_options=genes,
            chunk_cells=chunk_cells,
            text=text,
            overwrite=overwrite,
        )
        counts = {"cells": summary.cells, "genes": summary.genes, "empty_cells": summary.empty_cells}
    else:
        # A data set of the registry is small and comes loaded.
        adata = read(found, layer=layer, **genes.keywords)
        with open_cells(adata, **AS_NAMED.keywords) as cells:
            sentences = encode(
                cells,
                genes=wanted if hvg is None else select_hvg(adata, n_top=hvg),
                top_genes=top_genes,
                ties=settings.ties,
                seed=seed,
                tie_rates=rates,
            )
        write_sentences(sentences, output, text=text)
        counts = {"cells": len(sentences), "genes": len(sentences.vocabulary), "empty_cells": sentences.n_empty}
    show(counts | {"output": output}, as_json=json)


def decode_command(
    source: Annotated[Path, typer.Argument(help="Encoded Parquet, or a text file with one sentence per line.")],
    output: opt.H5ad,
    model: Annotated[Path | None, typer.Option("--model", help="Model folder: its genes and rank curve.")] = None,
    curves: Annotated[
        Path | None, typer.Option("--curves", help="Folder of `cytoglot reconstruct`: its genes and rank curves.")
    ] = None,
    curve: Annotated[str, typer.Option("--curve", help="Kind of curve taken from --curves.")] = "gene_lines_length",
    repeated: Annotated[
        Literal["mean", "first"], typer.Option("--repeated", help="Repeated genes: mean or first position.")
    ] = "mean",
    overwrite: opt.Overwrite = False,
    json: opt.Json = False,
) -> None:
    """Turn sentences back into expression."""
    check_output(output, suffixes=(".h5ad",), overwrite=overwrite, inputs=[source])
    from cytoglot.applications.decoding import decode_file

    summary = decode_file(source, output, model=model, curves=curves, curve=curve, repeated=repeated)
    show(asdict(summary), as_json=json)


def reconstruct_command(
    source: opt.Source,
    output: opt.Folder,
    hvg: Annotated[
        int | None, typer.Option("--hvg", min=1, help="Also measure sentences of so many highly variable genes.")
    ] = None,
    label: Annotated[str | None, typer.Option("--label", help="Column that the split is stratified by.")] = None,
    split_by: Annotated[str, typer.Option("--split-by", help="auto, cell, or a column kept whole.")] = "auto",
    layer: opt.Layer = None,
    gene_column: opt.GeneColumn = None,
    gene_mapping: opt.GeneMapping = None,
    duplicates: opt.DuplicateGenes = "sum",
    overwrite: opt.Overwrite = False,
    threads: opt.Threads = None,
    seed: opt.Seed = 0,
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
) -> None:
    """Measure how well ranks give expression back, with plots.

    Rank curves are fitted on training cells and measured on held-out cells.
    """
    check_folder(output, written_by="reconstruct", mark="curves.json", overwrite=overwrite or dry_run)
    from cytoglot.applications.forecast import forecast_encoding
    from cytoglot.applications.reconstruction import reconstruct
    from cytoglot.data.datasets import resolve_source
    from cytoglot.sentence.cell_sentence import RankSettings

    genes = opt.gene_options(gene_column, gene_mapping, duplicates)
    if threads is not None:
        set_numba_threads(threads)
    if dry_run:
        forecast = forecast_encoding(
            resolve_source(source), settings=RankSettings(), text=False, layer=layer, gene_options=genes
        )
        # two passes over the file, each encodes and fits or scores; plots and tables are all that is written
        forecast |= {"seconds": round(8 * forecast["seconds"] + 10, 1), "disk_mb": 2.0}
        show(forecast | {"output": output}, as_json=json)
        return
    result = reconstruct(
        resolve_source(source),
        hvg=hvg,
        out=output,
        label=label,
        split_by=split_by,
        layer=layer,
        gene_options=genes,
        seed=seed,
    )
    show({"curves": result.curves, "output": output}, as_json=json)


def import_c2s_command(
    folder: Annotated[Path, typer.Argument(help="Folder that cell2sentence's save_to_disk wrote.")],
    output: opt.Parquet,
    overwrite: opt.Overwrite = False,
    json: opt.Json = False,
) -> None:
    """Convert a cell2sentence Arrow data set."""
    check_output(output, suffixes=(".parquet",), overwrite=overwrite)
    from cytoglot.corpus.sources.import_c2s import import_c2s

    show(asdict(import_c2s(folder, output)), as_json=json)


def _tie_rates(path: Path) -> dict[str, float]:
    """Read gene → detection rate from a model folder or from an encoded file."""
    from cytoglot.cell_model.spec import CellModelSpec
    from cytoglot.sentence.parquet import read_sentences

    if path.is_dir():
        spec = CellModelSpec.load(path)
        names, rates = spec.vocabulary.symbols, spec.tie_rates_g
    else:
        sentences = read_sentences(path)
        names, rates = sentences.vocabulary.symbols, sentences.tie_rates
    if rates is None:
        raise InputError(f"--tie-rates {path} holds no tie rates; encode it with --ties rare_first or common_first")
    return dict(zip(names, rates.tolist(), strict=True))
