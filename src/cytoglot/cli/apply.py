"""annotate, generate: a model and cells in, an AnnData file out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cytoglot.cli import options as opt
from cytoglot.cli.output import check_output, show
from cytoglot.data.whole_file import whole_file
from cytoglot.data.write import write_h5ad as write_h5ad
from cytoglot.errors import InputError
from cytoglot.texts import read_text

if TYPE_CHECKING:
    from anndata import AnnData

    from cytoglot.cell_model.load import CellModel
    from cytoglot.data.genes.options import GeneOptions

Method = Literal["auto", "score", "head", "hybrid", "generate"]


def annotate_command(
    source: opt.Source,
    model: opt.Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="h5ad: the cells with labels; csv: labels and probabilities alone.")
    ],
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            help="File with one label per line. With it, MODEL may be any checkpoint.",
            show_default="of the model",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", metavar="COLUMN", help="Clusters in obs: add the majority label of each."),
    ] = None,
    context: opt.Context = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold", min=0, max=1, help="Unassigned below this probability.", show_default="of the model"
        ),
    ] = None,
    views: Annotated[
        int | None, typer.Option("--views", min=1, help="Augmented views averaged.", show_default="of the model")
    ] = None,
    method: Annotated[
        Method,
        typer.Option(
            "--method",
            help="Likelihood of every label, linear head on the sentence, their average, or a free answer.",
            show_default="lowest validation loss",
        ),
    ] = "auto",
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Labels listed for each cell.")] = 3,
    escape_labels: Annotated[
        bool, typer.Option("--escape-labels", help='Name the column of the label "T/NK" T%2FNK.')
    ] = False,
    chunk_cells: opt.ChunkCells = None,
    templates: opt.Templates = None,
    layer: opt.Layer = None,
    gene_column: opt.GeneColumn = None,
    gene_mapping: opt.GeneMapping = None,
    duplicates: opt.DuplicateGenes = "sum",
    min_overlap: opt.MinOverlap = 0.3,
    overwrite: opt.Overwrite = False,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    seed: opt.Seed = 0,
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
) -> None:
    """Label cells, with calibrated probabilities.

    The same command resumes an interrupted run.
    """
    check_output(output, suffixes=(".h5ad", ".csv"), overwrite=overwrite or dry_run, inputs=[source])
    given: tuple[str, ...] | None = None
    if labels is not None:
        if not labels.is_file():
            raise InputError(f"--labels {labels} does not exist; pass a text file with one label per line")
        given = tuple(dict.fromkeys(line.strip() for line in read_text(labels).splitlines() if line.strip()))
        if len(given) < 2:
            raise InputError(f"--labels {labels} must hold at least two labels, one per line, found {len(given)}")
    from cytoglot.applications.annotation import CHUNK_CELLS, KEY, UNASSIGNED, annotate
    from cytoglot.applications.forecast import forecast_cells
    from cytoglot.lm.model.language_model import set_threads

    set_threads(threads)
    metadata = opt.parse_context(context)
    file = whole_file(source, layer=layer, genes=opt.gene_options(gene_column, gene_mapping, duplicates))
    cell_model = load_for_cells(
        model,
        file.adata,
        given,
        context=metadata,
        templates=templates,
        device=device,
        layer=file.layer,
        genes=file.genes,
    )
    if dry_run:
        reading: dict[str, Any] = {"layer": file.layer, "gene_options": file.genes, "min_overlap": min_overlap}
        reading["copies_cells"] = output.suffix == ".h5ad"
        forecast = forecast_cells(cell_model, file.adata, passes=views or cell_model.spec.views, **reading)
        show(forecast | {"output": output}, as_json=json)
        return
    annotate(
        file.adata,
        cell_model,
        labels=given,
        by=by,
        context=metadata,
        layer=file.layer,
        gene_options=file.genes,
        threshold=threshold,
        views=views,
        top_k=top_k,
        method=method,
        min_overlap=min_overlap,
        seed=seed,
        escape_labels=escape_labels or output.suffix == ".csv",  # whose columns can have any name
        output=output,
        overwrite=overwrite,
        chunk_cells=chunk_cells or CHUNK_CELLS,
    )
    obs, record = file.adata.obs, file.adata.uns["cytoglot"]["annotation"]
    counts, clusters = obs[KEY].value_counts(), None
    if by is not None:
        in_cluster = obs[obs[f"{KEY}_majority_share"].notna()].groupby(by, observed=True)
        clusters = [
            {
                "cluster": str(name),
                "cells": len(some),
                "label": str(some[f"{KEY}_majority"].iloc[0]),
                "share": float(some[f"{KEY}_majority_share"].iloc[0]),
            }
            for name, some in in_cluster
        ]
    show(
        {
            "cells": file.adata.n_obs,
            "unassigned": int(counts.get(UNASSIGNED, 0)),
            "cells_without_genes": record["cells_without_genes"],
            "cell_types": [{"cell_type": str(name), "cells": int(n)} for name, n in counts.items() if n],
            "clusters": clusters,
            "labels_without_ontology_term": record["labels_without_ontology_term"],
            "overlap": record["overlap"],
            "output": output,
        },
        as_json=json,
    )


def generate_command(
    model: opt.Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="AnnData file to write; with --expected .csv or .parquet.")
    ],
    cell_type: Annotated[
        str | None, typer.Option("--cell-type", help="A label of the model.", show_default="any type")
    ] = None,
    n: opt.Number = 10,
    n_genes: Annotated[
        int | None, typer.Option("--n-genes", min=1, help="Genes of each cell.", show_default="as in training cells")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0, help="Of sampling.", show_default="of the model")
    ] = None,
    top_p: opt.TopP = 1.0,
    expected: Annotated[
        bool, typer.Option("--expected", help="Write a table of the expected expression of each gene instead of cells.")
    ] = False,
    context: opt.Context = None,
    chunk_cells: opt.ChunkCells = None,
    overwrite: opt.Overwrite = False,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    seed: opt.Seed = 0,
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
) -> None:
    """Simulate cells of a type.

    Each cell has valid genes, none twice, and reconstructed expression. The same command resumes an interrupted run.
    With --expected, -n is the number of sampled sentences; take 64 or more.
    """
    check_output(output, suffixes=(".csv", ".parquet") if expected else (".h5ad",), overwrite=overwrite or dry_run)
    from cytoglot.applications.expected_expression import expected_expression
    from cytoglot.applications.forecast import forecast_generation
    from cytoglot.applications.generation import CHUNK_CELLS, generate
    from cytoglot.atomic import atomic_path
    from cytoglot.cell_model.load import load_cell_model
    from cytoglot.lm.model.language_model import set_threads

    set_threads(threads)
    metadata = opt.parse_context(context)
    cell_model = load_cell_model(model, device=device)
    if dry_run:
        show(forecast_generation(cell_model, cell_type, n, n_genes) | {"output": output}, as_json=json)
        return
    if expected:
        chosen: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "context": metadata, "seed": seed}
        genes = expected_expression(cell_model, cell_type, n=n, n_genes=n_genes, **chosen)
        with atomic_path(output) as path:
            genes.to_csv(path, index=False) if output.suffix == ".csv" else genes.to_parquet(path, index=False)
        highest = genes.nlargest(10, "expression_mean")[list(genes.columns[:8])]
        result = {
            "genes": len(genes),
            "cell_type": cell_type or "any",
            "expected_genes_of_a_sentence": float(genes["p_present"].sum()),
            "highest": highest.to_dict(orient="records"),
            "output": output,
        }
        show(result, as_json=json)
        return
    written = generate(
        cell_model,
        cell_type,
        n=n,
        n_genes=n_genes,
        temperature=temperature,
        top_p=top_p,
        context=metadata,
        seed=seed,
        output=output,
        overwrite=overwrite,
        chunk_cells=chunk_cells or CHUNK_CELLS,
    )
    lengths = [len(text.split()) for text in written.obs["cell_sentence"]]
    show(
        {
            "cells": written.n_obs,
            "cell_type": cell_type or "any",
            "invalid_genes": int(written.obs["n_unknown"].sum()),
            "repeated_genes": int(written.obs["n_duplicates"].sum()),
            "mean_genes": sum(lengths) / len(lengths),
            "first_genes": written.obs["cell_sentence"].iloc[0].split()[:10],
            "output": output,
        },
        as_json=json,
    )


def load_for_cells(
    name: str,
    cells: AnnData | str | Path,
    labels: tuple[str, ...] | None,
    *,
    context: dict[str, str],
    templates: str | None,
    device: str,
    layer: str | None,
    genes: GeneOptions,
) -> CellModel:
    """Load a model folder of ours, or any checkpoint when labels are given, with the prompts that it knows."""
    from cytoglot.cell_model.load import as_cell_model
    from cytoglot.cell_model.spec import SPEC_FILE

    try:
        model = as_cell_model(
            name, labels=labels, cells=cells, layer=layer, gene_options=genes, context=context, device=device
        )
    except InputError as error:
        if labels is None and (Path(name) / "config.json").is_file() and not (Path(name) / SPEC_FILE).is_file():
            error.add_note("; it is a plain checkpoint: annotate takes it with --labels FILE, embed with --checkpoint")
        raise
    return model if templates is None else model.with_templates(templates)
