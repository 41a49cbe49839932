"""Options with one meaning for all commands, and what they say."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cytoglot.errors import InputError
from cytoglot.progress import set_progress

if TYPE_CHECKING:
    from cytoglot.data.genes.options import GeneOptions


def _numba_threads(n_threads: int | None) -> int | None:
    """Let numba have as many threads, which it decides when it is imported."""
    if n_threads is not None and "numba" not in sys.modules:
        os.environ["NUMBA_NUM_THREADS"] = str(n_threads)
    return n_threads


def _quiet_for_json(as_json: bool) -> bool:
    """Leave stderr to log lines when a machine reads stdout."""
    if as_json:
        set_progress(False)
    return as_json


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.", callback=_quiet_for_json)]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Forecast time, memory and disk; write nothing.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="CPU threads.", show_default="OMP_NUM_THREADS", callback=_numba_threads),
]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="One setting; may be repeated.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an output that exists, and parts of an interrupted run.")
]
ChunkCells = Annotated[
    int | None,
    typer.Option(
        "--chunk-cells",
        min=1,
        help="Cells in memory at a time, and between two saved parts.",
        show_default="by command",
    ),
]
TopP = Annotated[float, typer.Option("--top-p", min=0, max=1, help="Sample from this share of the probability.")]
Number = Annotated[int, typer.Option("-n", "--number", min=1, help="How many to write or show.")]
Recipe = Annotated[
    str | None, typer.Option("--recipe", metavar="NAME|PATH", help="YAML file of settings, or a name of `recipes`.")
]
Folder = Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")]
H5ad = Annotated[Path, typer.Option("-o", "--output", help="AnnData file to write.")]
Parquet = Annotated[Path, typer.Option("-o", "--output", help="Parquet file to write.")]

Source = Annotated[str, typer.Argument(help="AnnData file, 10x file or folder, or the name of a data set.")]
Layer = Annotated[
    str | None,
    typer.Option("--layer", help="Matrix to read: X, raw or a layer's name.", show_default="found by content"),
]
GeneColumn = Annotated[
    str | None,
    typer.Option("--gene-column", help="Column of var with the gene names, or var_names.", show_default="found"),
]
GeneMapping = Annotated[
    Path | None, typer.Option("--gene-mapping", help="TSV or CSV of two columns: name in the file, name wanted.")
]
Duplicates = Literal["sum", "first", "error"]
"""as in `data.genes.vocabulary`, which a help page need not import"""
DuplicateGenes = Annotated[Duplicates, typer.Option("--duplicates", help="Columns of the same gene (sum: of counts).")]

Model = Annotated[str, typer.Option("--model", help="Model folder, as `cytoglot train` writes it.")]
MinOverlap = Annotated[
    float, typer.Option("--min-overlap", min=0, max=1, help="Least share of the model's genes in the data.")
]
Context = Annotated[str | None, typer.Option("--context", help='Metadata for prompts: "organism=human, tissue=blood".')]
Templates = Annotated[
    str | None,
    typer.Option("--templates", help="Prompts: cell2sentence (if installed), or a TOML or JSON file."),
]


def gene_options(column: str | None, mapping: Path | None, duplicates: Duplicates) -> GeneOptions:
    """Read what `--gene-column`, `--gene-mapping` and `--duplicates` say; an InputError if the mapping cannot be."""
    from cytoglot.data.genes.options import GeneOptions, read_gene_mapping

    found = None if mapping is None else read_gene_mapping(mapping)
    return GeneOptions(column=column, mapping=found, duplicates=duplicates)


def parse_context(text: str | None) -> dict[str, str]:
    """Read "organism=human, tissue=blood".

    Raises
    ------
    InputError
        A part is not of the form name=value, or no prompt tells such a field.
    """
    from cytoglot.tasks.task import check_context

    context = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, separator, value = part.partition("=")
        if not separator or not name.strip() or not value.strip():
            raise InputError(f'--context expects "name=value, name=value", found {part.strip()!r}')
        context[name.strip()] = value.strip()
    check_context(context)
    return context
