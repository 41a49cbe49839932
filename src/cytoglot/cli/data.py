"""audit, encode, decode, reconstruct, import-c2s: cells and sentences, no model."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cytoglot.atomic import check_output_folder
from cytoglot.cli.cells import DuplicateGenes, GeneColumn, GeneMapping, Source, gene_options, open_source
from cytoglot.cli.output import (
    Anew,
    Device,
    DryRun,
    Json,
    Layer,
    Seed,
    Threads,
    check_output,
    quiet_for_json,
    show,
)
from cytoglot.data.genes.options import AS_NAMED, GeneOptions
from cytoglot.errors import InputError
from cytoglot.sentence.cell_sentence import TieRule

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData
    from numpy.typing import NDArray

    from cytoglot.sentence.cell_sentence import RankSettings

logger = logging.getLogger(__name__)


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("audit")(audit_command)
    app.command("encode")(encode_command)
    app.command("decode")(decode_command)
    app.command("reconstruct")(reconstruct_command)
    app.command("import-c2s")(import_c2s_command)


def audit_command(
    source: Source,
    label: Annotated[str | None, typer.Option("--label", help="Column of obs with the cell types.")] = None,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    gene_mapping: GeneMapping = None,
    duplicates: DuplicateGenes = "sum",
    json: Json = False,
    seed: Seed = 0,
) -> None:
    """Say what a file holds, what is wrong with it, and the fix for each finding."""
    from cytoglot.data.audit import audit
    from cytoglot.data.datasets import resolve_source

    quiet_for_json(as_json=json)
    genes = gene_options(gene_column, gene_mapping, duplicates)
    report = audit(resolve_source(source), label=label, layer=layer, gene_options=genes)
    if json:
        show(report.to_dict(), as_json=True)
    else:
        typer.echo(report.to_text())


def encode_command(
    source: Source,
    output: Annotated[Path, typer.Option("-o", "--output", help="Parquet file to write.")],
    top_genes: Annotated[int | None, typer.Option("--top-genes", min=1, help="Words of a sentence at most.")] = None,
    hvg: Annotated[
        int | None,
        typer.Option(
            "--hvg", min=1, help="Rank only this many highly variable genes, chosen on all cells of the file."
        ),
    ] = None,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    gene_mapping: GeneMapping = None,
    duplicates: DuplicateGenes = "sum",
    ties: Annotated[TieRule | None, typer.Option("--ties", help="Order of genes with one count.")] = None,
    tie_rates: Annotated[
        Path | None, typer.Option("--tie-rates", help="Model folder or encoded Parquet whose rates order the ties.")
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Write the sentences as text too.")] = False,
    chunk_cells: Annotated[int | None, typer.Option("--chunk-cells", min=1, help="Cells in memory at a time.")] = None,
    anew: Anew = False,
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Turn cells into ranked genes; memory is bounded by the chunk, a killed run goes on where it stopped.

    No model runs here: --device is taken for the sake of scripts and changes nothing.
    """
    from cytoglot.data.datasets import resolve_source
    from cytoglot.data.readers.read import read
    from cytoglot.sentence.cell_sentence import RankSettings

    quiet_for_json(as_json=json)
    check_output(output, suffixes=(".parquet",))
    _set_numba_threads(threads)
    settings = RankSettings(top_genes=top_genes, ties=ties or RankSettings().ties, seed=seed)
    rates = _tie_rates(tie_rates)
    genes = gene_options(gene_column, gene_mapping, duplicates)
    if dry_run:
        show(_forecast(source, layer, genes, settings, text=text) | {"output": output, "dry_run": True}, as_json=json)
        return
    found = resolve_source(source)
    if isinstance(found, Path):
        from cytoglot.sentence.encode_file import encode_file

        summary = encode_file(
            found,
            output,
            settings=settings,
            genes=_genes_of(rates) if hvg is None else None,
            hvg=hvg,
            tie_rates=rates,
            layer=layer,
            gene_options=genes,
            chunk_cells=chunk_cells,
            text=text,
            overwrite=anew,
        )
        counts = {"cells": summary.cells, "genes": summary.genes, "empty_cells": summary.empty_cells}
    else:
        adata = read(found, layer=layer, **genes.keywords)
        counts = _encode_in_memory(adata, output, settings, hvg=hvg, tie_rates=rates, text=text)
    show(counts | {"output": output}, as_json=json)


def decode_command(
    source: Annotated[Path, typer.Argument(help="Encoded Parquet, or a text file with one sentence per line.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="AnnData file to write.")],
    model: Annotated[Path | None, typer.Option("--model", help="Model folder: its vocabulary and rank curve.")] = None,
    curves: Annotated[
        Path | None, typer.Option("--curves", help="Folder of `cytoglot reconstruct`: its genes and rank curves.")
    ] = None,
    curve: Annotated[str, typer.Option("--curve", help="Kind of curve taken from --curves.")] = "gene_lines_length",
    repeated: Annotated[
        Literal["mean", "first"], typer.Option("--repeated", help="Repeated genes: mean or first position.")
    ] = "mean",
    json: Json = False,
    seed: Seed = 0,
) -> None:
    """Turn sentences back into expression through a rank curve (nothing is random: the seed changes nothing)."""
    from cytoglot.applications.decoding import decode_file

    quiet_for_json(as_json=json)
    check_output(output, suffixes=(".h5ad",))
    summary = decode_file(source, output, model=model, curves=curves, curve=curve, repeated=repeated)
    show(asdict(summary), as_json=json)


def reconstruct_command(
    source: Source,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    hvg: Annotated[
        int | None, typer.Option("--hvg", min=1, help="Judge sentences of highly variable genes too.")
    ] = None,
    label: Annotated[str | None, typer.Option("--label", help="Column that the split is stratified by.")] = None,
    split_by: Annotated[str, typer.Option("--split-by", help="auto, cell, or a column kept whole.")] = "auto",
    layer: Layer = None,
    gene_column: GeneColumn = None,
    gene_mapping: GeneMapping = None,
    duplicates: DuplicateGenes = "sum",
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Fit rank curves on training cells, judge them on held-out cells, draw both plots.

    No model runs here: --device is taken for the sake of scripts and changes nothing.
    """
    from cytoglot.applications.reconstruction import reconstruct
    from cytoglot.data.datasets import resolve_source
    from cytoglot.sentence.cell_sentence import RankSettings

    quiet_for_json(as_json=json)
    check_output_folder(output, written_by="reconstruct", mark="curves.json")
    genes = gene_options(gene_column, gene_mapping, duplicates)
    _set_numba_threads(threads)
    if dry_run:
        forecast = _forecast(source, layer, genes, RankSettings(), text=False)
        # two passes over the file, each encodes and fits or scores; plots and tables are all that is written
        forecast |= {"seconds": round(8 * forecast["seconds"] + 10, 1), "disk_mb": 2.0}
        show(forecast | {"output": output, "dry_run": True}, as_json=json)
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
    output: Annotated[Path, typer.Option("-o", "--output", help="Parquet file to write.")],
    json: Json = False,
    seed: Seed = 0,
) -> None:
    """Read a cell2sentence Arrow data set into sentences of ours (nothing is random)."""
    from cytoglot.corpus.sources.import_c2s import import_c2s

    quiet_for_json(as_json=json)
    check_output(output, suffixes=(".parquet",))
    show(asdict(import_c2s(folder, output)), as_json=json)


def _set_numba_threads(threads: int | None) -> None:
    if threads is not None:
        import numba

        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))


def _encode_in_memory(
    adata: AnnData,
    output: Path,
    settings: RankSettings,
    *,
    hvg: int | None,
    tie_rates: dict[str, float] | None,
    text: bool,
) -> dict[str, int]:
    """A data set of the registry is small and comes loaded, with its labels; `adata` is what `read` made of it."""
    from cytoglot.data.hvg import select_hvg
    from cytoglot.data.readers.stream import open_cells
    from cytoglot.sentence.encode import encode
    from cytoglot.sentence.parquet import write_sentences

    genes = _genes_of(tie_rates) if hvg is None else select_hvg(adata, n_top=hvg)
    with open_cells(adata, **AS_NAMED.keywords) as cells:
        sentences = encode(
            cells,
            genes=genes,
            top_genes=settings.top_genes,
            ties=settings.ties,
            seed=settings.seed,
            tie_rates=tie_rates,
        )
    write_sentences(sentences, output, text=text)
    return {"cells": len(sentences), "genes": len(sentences.vocabulary), "empty_cells": sentences.n_empty}


def _tie_rates(path: Path | None) -> dict[str, float] | None:
    """Read gene → detection rate from a model folder or from an encoded file."""
    if path is None:
        return None
    rates: NDArray[np.float32] | None
    if path.is_dir():
        from cytoglot.cell_model.spec import CellModelSpec

        spec = CellModelSpec.load(path)
        names, rates = spec.vocabulary.symbols, spec.tie_rates_g
    else:
        from cytoglot.sentence.parquet import read_sentences

        sentences = read_sentences(path)
        names, rates = sentences.vocabulary.symbols, sentences.tie_rates
    if rates is None:
        raise InputError(f"--tie-rates {path} holds no tie rates; encode it with --ties rare_first or common_first")
    return dict(zip(names, rates.tolist(), strict=True))


def _genes_of(tie_rates: dict[str, float] | None) -> list[str] | None:
    """A gene without a rate has no place among its equals, so sentences are made of the genes that have one."""
    if tie_rates is None:
        return None
    logger.info("sentences are made of the %d genes that have a tie rate", len(tie_rates))
    return list(tie_rates)


def _forecast(
    source: str, layer: str | None, genes: GeneOptions, settings: RankSettings, *, text: bool
) -> dict[str, Any]:
    """Encode a first chunk and multiply."""
    import time

    import numpy as np
    from scipy import sparse

    from cytoglot.sentence.encode import encode_matrix
    from cytoglot.sentence.ranker import detection_rates

    with open_source(source, layer=layer, genes=genes) as cells:
        no_cells = sparse.csr_matrix((0, len(cells.vocabulary)), dtype=np.float32)
        _, chunk = next(cells.chunks(2000), (None, no_cells))
        rates = detection_rates(chunk) if settings.needs_tie_rates else None
        encode_matrix(chunk, cells.vocabulary, settings=settings, tie_rates=rates)  # compiles
        started = time.perf_counter()
        sentences = encode_matrix(chunk, cells.vocabulary, settings=settings, tie_rates=rates)
        seconds = (time.perf_counter() - started) / max(len(sentences), 1)
        words = len(sentences.gene_ids) / max(len(sentences), 1)
        return {
            "cells": cells.n_cells,
            "genes": len(cells.vocabulary),
            "seconds": round(seconds * cells.n_cells * (4 if text else 2) + 2, 1),
            "memory_mb": round(300 + 20_000 * chunk.nnz / max(chunk.shape[0], 1) * 12 / 1e6),
            "disk_mb": round(cells.n_cells * words * (4.5 if text else 1.6) / 1e6, 1),
        }
