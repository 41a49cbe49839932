"""annotate, embed, generate: a model and cells in, an AnnData file out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cytoglot.cli.output import (
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
from cytoglot.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

    from cytoglot.cell_model.load import CellModel

Model = Annotated[str, typer.Option("--model", help="Model folder, or a checkpoint by name (then --labels).")]
Output = Annotated[Path, typer.Option("-o", "--output", help="AnnData file to write.")]
MinOverlap = Annotated[float, typer.Option("--min-overlap", help="Least share of the model's genes in the data.")]


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("annotate")(annotate_command)
    app.command("embed")(embed_command)
    app.command("generate")(generate_command)


def annotate_command(
    source: Annotated[str, typer.Argument(help="AnnData file or data set name.")],
    model: Model,
    output: Output,
    labels: Annotated[Path | None, typer.Option("--labels", help="Closed set of labels, one per line.")] = None,
    context: Context = None,
    threshold: Annotated[float | None, typer.Option("--threshold", min=0, max=1, help="Unassigned below this.")] = None,
    views: Annotated[int | None, typer.Option("--views", min=1, help="Augmented views averaged.")] = None,
    method: Annotated[str, typer.Option("--method", help="score (exact) or generate (free answer).")] = "score",
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Labels listed for each cell.")] = 3,
    layer: Layer = None,
    min_overlap: MinOverlap = 0.3,
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Give every cell a type, with probabilities."""
    from cytoglot.applications.annotation import KEY, UNASSIGNED, annotate

    _prepare(output, threads, json)
    given = _read_labels(labels)
    adata = _read(source, layer)
    cell_model = _model(model, adata, given, parse_context(context), device)
    if dry_run:
        _forecast(cell_model, adata, output, passes=views or cell_model.spec.views, as_json=json)
        return
    result = annotate(
        adata,
        cell_model,
        labels=given,
        context=parse_context(context),
        threshold=threshold,
        views=views,
        top_k=top_k,
        method=_method(method),
        min_overlap=min_overlap,
        seed=seed,
        copy=False,
    )
    _write(result, output)
    counts = result.obs[KEY].value_counts()
    show(
        {
            "cells": result.n_obs,
            "unassigned": int(counts.get(UNASSIGNED, 0)),
            "cell_types": [{"cell_type": str(name), "cells": int(n)} for name, n in counts.items() if n],
            "labels_without_ontology_term": result.uns["cytoglot"]["annotation"]["labels_without_ontology_term"],
            "overlap": result.uns["cytoglot"]["annotation"]["overlap"],
            "output": output,
        },
        as_json=json,
    )


def embed_command(
    source: Annotated[str, typer.Argument(help="AnnData file or data set name.")],
    model: Model,
    output: Output,
    key_added: Annotated[str, typer.Option("--key-added", help="Name in obsm.")] = "X_cytoglot",
    context: Context = None,
    layer: Layer = None,
    min_overlap: MinOverlap = 0.3,
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Write a vector for every cell into obsm (nothing here is random: the seed changes nothing)."""
    from cytoglot.applications.embedding import embed

    _prepare(output, threads, json)
    adata = _read(source, layer)
    cell_model = _model(model, adata, (), parse_context(context), device)
    if dry_run:
        _forecast(cell_model, adata, output, passes=1, as_json=json)
        return
    result = embed(
        adata, cell_model, context=parse_context(context), key_added=key_added, min_overlap=min_overlap, copy=False
    )
    _write(result, output)
    show(
        {
            "cells": result.n_obs,
            "dimensions": result.obsm[key_added].shape[1],
            "key": key_added,
            "overlap": result.uns["cytoglot"]["embedding"]["overlap"],
            "output": output,
        },
        as_json=json,
    )


def generate_command(
    model: Model,
    output: Output,
    cell_type: Annotated[str | None, typer.Option("--cell-type", help="A label of the model; none: any type.")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Cells to write.")] = 10,
    n_genes: Annotated[int | None, typer.Option("--n-genes", min=1, help="Genes of each sentence.")] = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="Of the sampling.")] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0, max=1, help="Nucleus of the sampling.")] = 1.0,
    context: Context = None,
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Write new cells of a type: every word a valid gene, none twice, with reconstructed expression."""
    from cytoglot.applications.generation import generate
    from cytoglot.cell_model.load import load_model

    _prepare(output, threads, json)
    cell_model = load_model(model, device=device)
    if dry_run:
        words = n_genes or int(max((q[2] for q in cell_model.spec.words_per_label.values()), default=100))
        show({"cells": n, "tokens": n * words, "output": output, "dry_run": True}, as_json=json)
        return
    result = generate(
        cell_model,
        cell_type,
        n=n,
        n_genes=n_genes,
        temperature=temperature,
        top_p=top_p,
        context=parse_context(context),
        seed=seed,
    )
    _write(result, output)
    lengths = [len(text.split()) for text in result.obs["cell_sentence"]]
    show(
        {
            "cells": result.n_obs,
            "cell_type": cell_type or "any",
            "invalid_genes": 0,
            "repeated_genes": 0,
            "mean_genes": sum(lengths) / len(lengths),
            "first_genes": result.obs["cell_sentence"].iloc[0].split()[:10],
            "output": output,
        },
        as_json=json,
    )


def _prepare(output: Path, threads: int | None, as_json: bool) -> None:  # noqa: FBT001
    from cytoglot.lm.load import set_threads

    check_output(output, suffixes=(".h5ad",))
    quiet_for_json(as_json=as_json)
    set_threads(threads)


def _read(source: str, layer: str | None) -> AnnData:
    from cytoglot.data.datasets import resolve_source
    from cytoglot.data.read import read

    return read(resolve_source(source), layer=layer)


def _model(
    name: str, adata: AnnData, labels: tuple[str, ...] | None, context: dict[str, str], device: str
) -> CellModel:
    """Load a model folder of ours, or any checkpoint when labels are given."""
    from cytoglot.cell_model.load import is_model_folder, load_checkpoint, load_model
    from cytoglot.data.genes import GeneVocabulary

    if labels is None or is_model_folder(name):
        return load_model(name, device=device)
    vocabulary = GeneVocabulary(symbols=tuple(adata.var_names.astype(str)))
    return load_checkpoint(name, vocabulary, labels=labels, context=context, device=device)


def _read_labels(path: Path | None) -> tuple[str, ...] | None:
    if path is None:
        return None
    if not path.is_file():
        raise InputError(f"--labels {path} does not exist; pass a text file with one label per line")
    labels = tuple(
        dict.fromkeys(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    )
    if len(labels) < 2:
        raise InputError(f"--labels {path} must hold at least two labels, one per line, found {len(labels)}")
    return labels


def _method(name: str) -> Literal["score", "generate"]:
    if name == "score":
        return "score"
    if name == "generate":
        return "generate"
    raise InputError(f"--method must be score or generate, found {name!r}")


def _write(adata: AnnData, output: Path) -> None:
    from cytoglot.atomic import atomic_path

    with atomic_path(output) as path:
        adata.write_h5ad(path, compression="gzip")


def _forecast(model: CellModel, adata: AnnData, output: Path, *, passes: int, as_json: bool) -> None:
    """Measure the model on a few cells and multiply."""
    import time

    some = adata[: min(32, adata.n_obs)]
    started = time.perf_counter()
    sentences, overlap = model.sentences(some)
    model.embeddings(sentences)
    per_cell = (time.perf_counter() - started) / max(some.n_obs, 1)
    result: dict[str, Any] = {
        "cells": adata.n_obs,
        "seconds": round(per_cell * adata.n_obs * passes, 1),
        "memory_mb": round(sum(p.numel() for p in model.lm.model.parameters()) * 4 / 1e6 + adata.X.data.nbytes / 1e6),
        "disk_mb": round(adata.X.data.nbytes / 3e6, 1),
        "overlap": str(overlap),
        "output": output,
        "dry_run": True,
    }
    show(result, as_json=as_json)
