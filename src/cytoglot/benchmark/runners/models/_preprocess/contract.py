"""What every `run.py` reads and writes. Needs numpy, anndata and pyarrow.

`run.py FOLDER` finds `input.h5ad` and `request.json` in the folder and writes `embedding.parquet` and `run.json` there.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

_MIB = 2**20


@dataclass
class Request:
    """The cells and what is asked for."""

    folder: Path
    weights: Path
    options: dict[str, Any]
    seed: int
    cells: Any
    """AnnData: counts as CSR in X, names of cells and genes; obs has `batch` and `label` where the runner reads them"""
    content: dict[str, Any]
    started: float = field(default_factory=time.perf_counter)


def read_request(arguments: list[str] | None = None) -> Request:
    """Return what the folder of the first argument asks for."""
    import anndata

    folder = Path((sys.argv[1:] if arguments is None else arguments)[0])
    content = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    return Request(
        folder=folder,
        weights=Path(content["weights"]),
        options=content["options"],
        seed=content["seed"],
        cells=anndata.read_h5ad(folder / "input.h5ad"),
        content=content,
    )


def write_result(request: Request, vectors_nd: Any, cell_ids: Any = None) -> None:
    """Write the vectors, a row for each of `cell_ids` (by default the cells in their order), and the record."""
    import pyarrow
    import pyarrow.parquet

    vectors_nd = np.asarray(vectors_nd, dtype=np.float32)
    ids = request.cells.obs_names if cell_ids is None else cell_ids
    columns = {"cell_id": pyarrow.array([str(one) for one in ids])}
    columns.update({str(d): pyarrow.array(vectors_nd[:, d]) for d in range(vectors_nd.shape[1])})
    pyarrow.parquet.write_table(pyarrow.table(columns), request.folder / "embedding.parquet")
    record = {
        "model": request.content["model"],
        "version": request.content["version"],
        "weights": request.content["hashes"],
        "seconds": round(time.perf_counter() - request.started, 3),
        "memory_mib": _peak_mib(),
    }
    (request.folder / "run.json").write_text(json.dumps(record) + "\n", encoding="utf-8")


def _peak_mib() -> float | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / _MIB if sys.platform == "darwin" else peak / 1024, 1)  # bytes there, KiB elsewhere
