"""One run of a runner: cells into a file, the script in its own Python, what it wrote checked and kept.

Axes: n cells, g genes, d embedding dimensions.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from anndata import AnnData
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import sparse

from cytoglot.atomic import atomic_path, write_json
from cytoglot.benchmark.runners.environment import build_environment, last_lines
from cytoglot.benchmark.runners.files import checked_files, weights_folder
from cytoglot.benchmark.runners.find import PREPROCESS, Runner
from cytoglot.benchmark.runners.settings import HOST, Option
from cytoglot.config import Settings
from cytoglot.data.write import fill_h5ad
from cytoglot.download import cache_folder
from cytoglot.errors import InputError, ResourceError
from cytoglot.manifest import fingerprint_bytes

logger = logging.getLogger(__name__)

INPUT, REQUEST, EMBEDDING, RECORD = "input.h5ad", "request.json", "embedding.parquet", "run.json"


class RunRecord(Settings):
    """The content of `run.json`."""

    model: str
    version: str
    weights: dict[str, str]
    """name of a file → its SHA-256"""
    seconds: float
    memory_mib: float | None
    """the most that the process held; None where the system does not say"""


@dataclass(frozen=True, kw_only=True)
class RunnerResult:
    """What a runner gave for some cells."""

    vectors_nd: NDArray[np.float32]
    """in the order of the cells"""
    record: RunRecord
    folder: Path
    """where embedding and record are kept"""
    was_kept: bool
    """whether it comes from an earlier run on the same cells"""


def run_on_cells(
    runner: Runner,
    cells: AnnData,
    *,
    options: Mapping[str, Option],
    weights: Path | None = None,
    seed: int = 0,
    timeout_seconds: float | None = None,
) -> RunnerResult:
    """Return the embedding of cells by a runner, from an earlier run where nothing changed.

    Parameters
    ----------
    runner
        The runner.
    cells
        Counts as CSR in X, names of genes and cells, and exactly the columns of obs that the script may see.
    options
        All options of the script.
    weights
        Folder of its files; None for that of the cache.
    seed
        Of all that is random in the script.
    timeout_seconds
        A script that takes longer is ended.

    Raises
    ------
    InputError
        Files are missing or have another checksum, or the embedding does not fit the cells.
    ResourceError
        The environment cannot be built, or the script failed or took too long.
    """
    folder = weights_folder(runner, weights)
    hashes = checked_files(runner, folder)  # before an environment is built that could not be used
    key = fingerprint_bytes(
        [runner.fingerprint().encode(), json.dumps([hashes, dict(options), seed]).encode(), *_content(cells)]
    )
    target = cache_folder() / "runners" / "results" / runner.name / key
    if (target / RECORD).is_file():
        return _result(runner, cells, target, was_kept=True)
    environment = build_environment(runner)
    log = cache_folder() / "runners" / "logs" / f"{runner.name}-{key}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as work:
        work.mkdir()
        fill_h5ad(cells, work / INPUT)
        request = {"weights": str(folder.resolve()), "hashes": hashes, "options": dict(options), "seed": seed}
        write_json(work / REQUEST, {**request, "model": runner.name, "version": runner.settings.version})
        variables = _variables(runner, [PREPROCESS, *environment.search_path])
        command = [str(environment.python), str(runner.script.resolve()), str(work.resolve())]
        _execute(runner, command, variables, log, timeout_seconds)
        result = _result(runner, cells, work, was_kept=False)
        (work / INPUT).unlink()
    return RunnerResult(vectors_nd=result.vectors_nd, record=result.record, folder=target, was_kept=False)


def _content(cells: AnnData) -> list[bytes]:
    csr = sparse.csr_matrix(cells.X)
    csr.sum_duplicates()
    parts = [np.asarray(csr.indptr, np.int64), np.asarray(csr.indices, np.int64), np.asarray(csr.data, np.float64)]
    columns = [cells.obs[name].astype(str) for name in cells.obs] + [cells.var[name].astype(str) for name in cells.var]
    texts = [cells.obs_names, cells.var_names, [*cells.obs, "|", *cells.var], *columns]
    return [*(part.tobytes() for part in parts), *("\n".join(text).encode() for text in texts)]


def _variables(runner: Runner, search_path: Sequence[Path]) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    paths = [str(path) for path in search_path]
    if runner.settings.python == HOST and (given := os.environ.get("PYTHONPATH")):
        paths.append(given)
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _execute(
    runner: Runner, command: Sequence[str], variables: Mapping[str, str], log: Path, timeout_seconds: float | None
) -> None:
    started = time.perf_counter()
    logger.info("running %s (what it prints goes to %s)", runner.name, log)
    with log.open("w", encoding="utf-8") as file:
        # a session of its own, so that what the script has started ends with it
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=variables, start_new_session=True, cwd=log.parent
        )
        try:
            code = process.wait(timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise ResourceError(
                f"the runner {runner.name!r} was ended after {timeout_seconds:g} s; pass a longer --timeout or fewer "
                f"cells (what it printed is in {log})"
            ) from error
        finally:
            if process.poll() is None:
                _end(process)
    if code != 0:
        raise ResourceError(
            f"the script of the runner {runner.name!r} failed with exit code {code}: {last_lines(log)} (all of it in "
            f"{log})"
        )
    logger.info("%s: %.1f s", runner.name, time.perf_counter() - started)


def _end(process: subprocess.Popen[bytes]) -> None:
    if sys.platform == "win32":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _result(runner: Runner, cells: AnnData, folder: Path, *, was_kept: bool) -> RunnerResult:
    for name in (EMBEDDING, RECORD):
        if not (folder / name).is_file():
            raise InputError(f"the runner {runner.name!r} wrote no {name}, which its script must write")
    try:
        record = RunRecord.model_validate(json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (ValueError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the {RECORD} of the runner {runner.name!r} cannot be used: {reason}") from error
    table = pq.read_table(folder / EMBEDDING)
    vectors_nd = ordered_vectors(table, cells.obs_names.tolist(), runner=runner.name)
    return RunnerResult(vectors_nd=vectors_nd, record=record, folder=folder, was_kept=was_kept)


def ordered_vectors(table: pa.Table, cell_ids: Sequence[str], *, runner: str) -> NDArray[np.float32]:
    """Return the vectors of a table, float32 (n, d), in the order of `cell_ids`; its rows may be in any order.

    Parameters
    ----------
    table
        The column `cell_id`, then a column of numbers for each dimension.
    cell_ids
        The cells that were asked for.
    runner
        Who wrote it, for messages.

    Raises
    ------
    InputError
        The first column is not `cell_id` or there is no other; one is not numeric; a cell is missing, twice or not
        asked for; a value is NaN or infinite. Cells are named.
    """
    start = f"the embedding of the runner {runner!r}"
    names = table.column_names
    if names[:1] != ["cell_id"] or len(names) < 2:
        raise InputError(
            f"{start} must have the column 'cell_id' and then a column for each dimension, found {names[:3]}"
        )
    ids = [str(one) for one in table.column(0).to_pylist()]
    rows = {cell: row for row, cell in enumerate(ids)}
    known = set(cell_ids)
    faults: dict[str, list[Any]] = {
        "has no row for {}": [cell for cell in cell_ids if cell not in rows],
        "has more than one row for {}": [cell for row, cell in enumerate(ids) if rows[cell] != row],
        "has rows for {} that are not in the input": [cell for cell in rows if cell not in known],
    }
    for fault, found in faults.items():
        if found:
            raise InputError(f"{start} {fault.format(_some_cells(found))}; its script must keep cells and their ids")
    numbers = [column.type for column in table.columns[1:]]
    if not all(pa.types.is_floating(kind) or pa.types.is_integer(kind) for kind in numbers):
        raise InputError(f"{start} must hold numbers, found {', '.join(sorted({str(kind) for kind in numbers}))}")
    columns = [column.to_numpy(zero_copy_only=False) for column in table.columns[1:]]
    vectors_nd = np.column_stack(columns).astype(np.float32)[[rows[cell] for cell in cell_ids]]
    if not (finite_n := np.isfinite(vectors_nd).all(axis=1)).all():
        bad = [cell_ids[int(row)] for row in np.flatnonzero(~finite_n)]
        raise InputError(f"{start} is NaN or infinite for {_some_cells(bad)}; leave cells without counts out")
    return vectors_nd


def _some_cells(cells: Sequence[str]) -> str:
    named = ", ".join(repr(cell) for cell in cells[:3])
    return f"{len(cells)} cells ({named}{', …' if len(cells) > 3 else ''})" if len(cells) > 1 else f"the cell {named}"
