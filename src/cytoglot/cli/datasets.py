"""data list, data get: data sets by name."""

from __future__ import annotations

from typing import Annotated

import typer

from cytoglot.cli import options as opt
from cytoglot.cli.output import show


def list_command(json: opt.Json = False) -> None:
    """List the data sets that have a name, and where each is."""
    from cytoglot.data import datasets

    rows = datasets.list().reset_index().to_dict("records")
    if json:
        show({"datasets": rows}, as_json=True)
        return
    for row in rows:
        typer.echo(f"{row['name']}: {row['where']}\n    {row['description']}")


def get_command(
    name: Annotated[str, typer.Argument(help="A name that `cytoglot data list` shows.")],
    json: opt.Json = False,
) -> None:
    """Download a data set once, check it against its checksum, and print its path, licence and citation.

    The file goes to the folder CYTOGLOT_CACHE (default: ~/.cache/cytoglot). A data set that is bundled or was
    downloaded before needs no network.
    """
    from cytoglot.data.datasets import find_dataset

    entry = find_dataset(name)
    path = entry.path()
    facts = {field: getattr(entry, field) for field in ("name", "where", "description", "licence", "citation")}
    show({**facts, "path": path}, as_json=json)
