"""audit, encode, decode, reconstruct, import-c2s: cells and sentences, no model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from cytoglot.cli.output import DryRun, Json, Layer, Seed, Threads, check_output, quiet_for_json, show
from cytoglot.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cytoglot.sentence.cell_sentence import TieRule

TIE_RULES = ("order", "random", "rare_first", "common_first")
Source = Annotated[str, typer.Argument(help="AnnData file or data set name.")]


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
    json: Json = False,
    seed: Seed = 0,
) -> None:
    """Say what a file holds, what is wrong with it, and the fix for each finding."""
    from cytoglot.data.audit import audit
    from cytoglot.data.datasets import resolve_source

    quiet_for_json(as_json=json)
    report = audit(resolve_source(source), label=label)
    if json:
        show(report.to_dict(), as_json=True)
    else:
        typer.echo(report.to_text())


def encode_command(
    source: Source,
    output: Annotated[Path, typer.Option("-o", "--output", help="Parquet file to write.")],
    top_genes: Annotated[int | None, typer.Option("--top-genes", min=1, help="Words of a sentence at most.")] = None,
    hvg: Annotated[int | None, typer.Option("--hvg", min=1, help="Rank only this many highly variable genes.")] = None,
    layer: Layer = None,
    ties: Annotated[str | None, typer.Option("--ties", help=", ".join(TIE_RULES))] = None,
    tie_rates: Annotated[
        Path | None, typer.Option("--tie-rates", help="Model folder or encoded Parquet whose rates order the ties.")
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Write the sentences as text too.")] = False,
    chunk_cells: Annotated[int, typer.Option("--chunk-cells", min=1, help="Cells in memory at a time.")] = 20_000,
    threads: Threads = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Turn cells into ranked genes; memory is bounded by the chunk, a killed run goes on where it stopped."""
    from cytoglot.data.datasets import resolve_source
    from cytoglot.sentence.cell_sentence import RankSettings
    from cytoglot.sentence.encode_file import encode_file

    quiet_for_json(as_json=json)
    check_output(output, suffixes=(".parquet",))
    _set_numba_threads(threads)
    path = resolve_source(source)
    settings = RankSettings(top_genes=top_genes, ties=_tie_rule(ties), seed=seed)
    if dry_run:
        show(_forecast(path, layer, top_genes, text=text) | {"output": output, "dry_run": True}, as_json=json)
        return
    summary = encode_file(
        path,
        output,
        settings=settings,
        genes=_highly_variable(path, hvg, layer),
        tie_rates=_tie_rates(tie_rates),
        layer=layer,
        chunk_cells=chunk_cells,
        text=text,
    )
    show(
        {
            "cells": summary.cells,
            "genes": summary.genes,
            "empty_cells": summary.empty_cells,
            "output": output,
        },
        as_json=json,
    )


def decode_command(
    source: Annotated[Path, typer.Argument(help="Encoded Parquet, or a text file with one sentence per line.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="AnnData file to write.")],
    model: Annotated[Path | None, typer.Option("--model", help="Model folder: its vocabulary and rank curve.")] = None,
    repeated: Annotated[str, typer.Option("--repeated", help="Repeated genes: mean or first position.")] = "mean",
    json: Json = False,
    seed: Seed = 0,
) -> None:
    """Turn sentences back into expression through a rank curve (nothing is random: the seed changes nothing)."""
    from cytoglot.applications.reconstruction import decode_file

    quiet_for_json(as_json=json)
    check_output(output, suffixes=(".h5ad",))
    if repeated not in {"mean", "first"}:
        raise InputError(f"--repeated must be mean or first, found {repeated!r}")
    show(decode_file(source, output, model=model, repeated=cast("Any", repeated)), as_json=json)


def reconstruct_command(
    source: Source,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    hvg: Annotated[
        int | None, typer.Option("--hvg", min=1, help="Judge sentences of highly variable genes too.")
    ] = None,
    label: Annotated[str | None, typer.Option("--label", help="Column that the split is stratified by.")] = None,
    split_by: Annotated[str, typer.Option("--split-by", help="auto, cell, or a column kept whole.")] = "auto",
    layer: Layer = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Fit rank curves on training cells, judge them on held-out cells, draw both plots."""
    from cytoglot.applications.reconstruction import reconstruct
    from cytoglot.data.datasets import resolve_source

    quiet_for_json(as_json=json)
    result = reconstruct(
        resolve_source(source), hvg=hvg, out=output, label=label, split_by=split_by, layer=layer, seed=seed
    )
    show({"curves": result.curves, "output": output}, as_json=json)


def import_c2s_command(
    folder: Annotated[Path, typer.Argument(help="Folder that cell2sentence's save_to_disk wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Parquet file to write.")],
    json: Json = False,
    seed: Seed = 0,
) -> None:
    """Read a cell2sentence Arrow data set into sentences of ours (nothing is random)."""
    from cytoglot.corpus.import_c2s import import_c2s

    quiet_for_json(as_json=json)
    check_output(output, suffixes=(".parquet",))
    show(asdict(import_c2s(folder, output)), as_json=json)


def _tie_rule(name: str | None) -> TieRule:
    from cytoglot.sentence.cell_sentence import DEFAULT_TIES

    if name is None:
        return DEFAULT_TIES
    if name not in TIE_RULES:
        raise UnknownNameError("tie rule", name, TIE_RULES)
    return cast("TieRule", name)


def _set_numba_threads(threads: int | None) -> None:
    if threads is not None:
        import numba

        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))


def _highly_variable(path: Path, hvg: int | None, layer: str | None) -> list[str] | None:
    """Chosen on all cells of the file: for sentences that train a model, `cytoglot train` chooses on training cells."""
    if hvg is None:
        return None
    from cytoglot.data.hvg import select_hvg
    from cytoglot.data.read import read

    return select_hvg(read(path, layer=layer), n_top=hvg)


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
        from cytoglot.sentence.cell_sentence import CellSentences

        sentences = CellSentences.from_parquet(path)
        names, rates = sentences.vocabulary.symbols, sentences.tie_rates
    if rates is None:
        raise InputError(f"--tie-rates {path} holds no tie rates; encode it with --ties rare_first or common_first")
    return dict(zip(names, rates.tolist(), strict=True))


def _forecast(path: Path, layer: str | None, top_genes: int | None, *, text: bool) -> dict[str, Any]:
    """Encode a first chunk and multiply."""
    import time

    from cytoglot.data.read import open_cells
    from cytoglot.sentence.cell_sentence import RankSettings
    from cytoglot.sentence.encode import encode_matrix

    with open_cells(path, layer=layer) as cells:
        _, chunk = next(cells.chunks(2000))
        encode_matrix(chunk, cells.vocabulary, settings=RankSettings(top_genes=top_genes))  # compiles
        started = time.perf_counter()
        sentences = encode_matrix(chunk, cells.vocabulary, settings=RankSettings(top_genes=top_genes))
        seconds = time.perf_counter() - started
        per_cell = len(sentences.gene_ids) / max(len(sentences), 1)
        return {
            "cells": cells.n_cells,
            "genes": len(cells.vocabulary),
            "seconds": round((seconds / max(len(sentences), 1)) * cells.n_cells * (4 if text else 2) + 2, 1),
            "memory_mb": round(300 + 20_000 * chunk.nnz / max(chunk.shape[0], 1) * 12 / 1e6),
            "disk_mb": round(cells.n_cells * per_cell * (4.5 if text else 1.6) / 1e6, 1),
        }
