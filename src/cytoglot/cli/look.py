"""info, recipes: what a model knows, and which recipes ship with cytoglot."""

from __future__ import annotations

import sys
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import typer

from cytoglot.cli import options as opt
from cytoglot.cli.output import show
from cytoglot.config import recipes
from cytoglot.errors import InputError, UnknownNameError


def info_command(
    model: Annotated[Path, typer.Argument(help="Model folder, as `cytoglot train` writes it.")],
    json: opt.Json = False,
) -> None:
    """Show the labels, genes, tasks and scores of a model."""
    import json as json_module

    from cytoglot.cell_model.spec import TRAINING_FILE, CellModelSpec, load_split

    spec, split = CellModelSpec.load(model), load_split(model)
    training: dict[str, Any] = {}
    if (model / TRAINING_FILE).is_file():
        training = json_module.loads((model / TRAINING_FILE).read_text(encoding="utf-8"))
    scores = {name: value for name, value in (training.get("validation") or {}).items() if value is not None}
    symbols = spec.vocabulary.symbols
    calibration = spec.calibration
    result: dict[str, Any] = {
        "model": model,
        "species": spec.context.get("organism", "unknown"),
        "label_column": spec.label_column,
        "labels": [
            {"label": name, "training_cells": n, "ontology_id": spec.label_ontology_ids.get(name)}
            for name, n in zip(spec.labels, spec.label_counts, strict=True)
        ],
        "genes": len(symbols),
        "tasks": list(spec.tasks) if json else ", ".join(spec.tasks),
        "threshold": calibration.in_use.threshold,
        "annotation_method": calibration.method,
        "temperature": calibration.in_use.temperature,
        "validation_cells": calibration.n_validation,
        "warning": calibration.warning,
        "validation_scores": [{"score": name, "value": value} for name, value in scores.items()],
        "cells_of_split": None
        if split is None
        else {p: len(getattr(split, p)) for p in ("train", "validation", "test")},
    }
    if json:
        result["gene_names"] = list(symbols)
    else:
        result["first_genes"] = ", ".join(symbols[:8])
    show(result, as_json=json)


def recipes_command(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[show NAME]", help="Print this recipe.", show_default=False)
    ] = None,
    json: opt.Json = False,
) -> None:
    """List the recipes, or print one to save and change."""
    known = recipes()
    if words:
        if len(words) != 2 or words[0] != "show":
            raise InputError(f"expected `cytoglot recipes` or `cytoglot recipes show NAME`, found {' '.join(words)!r}")
        if words[1] not in known:
            raise UnknownNameError("recipe", words[1], known)
        text = known[words[1]].read_text(encoding="utf-8")
        show({"recipe": words[1], "yaml": text}, as_json=True) if json else sys.stdout.write(text)
        return
    rows = []
    for name, path in known.items():
        comment = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
        about = " ".join(line.lstrip("# ") for line in comment)
        rows.append({"recipe": name, "for": about.partition(". ")[0].rstrip(".")})
    show({"recipes": rows}, as_json=json)
