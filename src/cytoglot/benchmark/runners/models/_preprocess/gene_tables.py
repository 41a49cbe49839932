"""Tables of genes that come with weights, and the columns of a file brought to their order.

Axes: n cells, g genes of the file, v genes of the model.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, texts, lists and mappings; a pickle that would run code is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("numpy") and name in ("scalar", "dtype", "_reconstruct", "ndarray"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"the table holds {module}.{name}, which is no plain value")


def read_table(path: str | Path) -> Any:
    """Return a mapping from `.json`, or plain values from `.pkl` and `.pickle`."""
    path = Path(path)
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    with path.open("rb") as file:
        return _PlainUnpickler(file).load()


def ensembl_ids(cells: Any, name_to_id: Mapping[str, str] | None = None) -> list[str]:
    """Return the Ensembl id of each column, "" where there is none: of the file, else by name."""
    if "ensembl_id" in cells.var:
        return [str(one) for one in cells.var["ensembl_id"]]
    return [(name_to_id or {}).get(str(name), "") for name in cells.var_names]


def columns_of(names: Sequence[str], known: Mapping[str, Any]) -> tuple[np.ndarray, list[str]]:
    """Return the columns whose name the model knows, and these names; of equal names the first column."""
    seen: dict[str, int] = {}
    for column, name in enumerate(names):
        if name in known:
            seen.setdefault(name, column)
    if not seen:
        raise SystemExit(f"the model knows none of the {len(names)} genes, such as {list(names[:3])}")
    return np.array(list(seen.values()), dtype=np.int64), list(seen)


def in_order_of(counts_ng: Any, names: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Return dense float32 (n, v): the columns called as `wanted`, zeros for genes that the file lacks."""
    place = {name: v for v, name in enumerate(wanted)}
    columns, found = columns_of(names, place)
    dense_nv = np.zeros((counts_ng.shape[0], len(wanted)), dtype=np.float32)
    chosen = counts_ng[:, columns]
    dense_nv[:, [place[name] for name in found]] = chosen.toarray() if hasattr(chosen, "toarray") else chosen
    return dense_nv
