"""A function over the rows of a table, part by part into one Parquet file; killed, it goes on where it stopped.

Each part is a file of its own in a folder beside the output until all are there. Parts do not know of each other, so
they can be done here, in processes or on a Ray cluster with a shared file system, and the result is the same.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cytoglot.atomic import atomic_path, write_json
from cytoglot.engines import Engine, running
from cytoglot.errors import InputError
from cytoglot.progress import progress_bar

logger = logging.getLogger(__name__)

PartFunction = Callable[[pa.Table], pa.Table]
METADATA_KEY = b"cytoglot"
_PLAN, _ROWS = "plan.json", "rows.parquet"


@dataclass(frozen=True, kw_only=True)
class PartsReport:
    """What was done."""

    output: Path
    n_rows: int
    """rows of the input"""
    n_rows_written: int
    n_parts: int
    n_parts_found: int
    """parts that an earlier run had done"""


def map_parts(
    function: PartFunction,
    rows: pa.Table,
    output: str | Path,
    *,
    settings: Mapping[str, Any],
    part_rows: int = 256,
    engine: Engine = "local",
    workers: int = 1,
    gpus_per_worker: float = 0.0,
    overwrite: bool = False,
    description: str = "mapping",
) -> PartsReport:
    """Write `function(part)` of all parts of a table, in their order, to one Parquet file.

    Parameters
    ----------
    function
        Gets `part_rows` rows (the last part fewer) and returns any number; the columns and types of all parts must be
        the same. With more than one worker or Ray it must be picklable, and is called in other processes.
    settings
        JSON values that decide the result; they are stored in the metadata of the output under "cytoglot". Parts of
        other settings, of other rows or of another `part_rows` are not gone on with.
    engine, workers
        "local" in this process or several, "ray" with Ray Data, each worker an actor that keeps what the function
        caches (a model); see `cytoglot.engines.running`.
    gpus_per_worker
        Asked of Ray for each worker.
    overwrite
        Begin anew where the output or parts of other settings exist. Without it, an output of the same settings is left
        as it is.

    Raises
    ------
    InputError
        There are no rows, a number is out of range, or what exists was made otherwise and `overwrite` is not given.
    """
    output = Path(output)
    if len(rows) == 0:
        raise InputError("there are no rows to map; expected at least one")
    if part_rows < 1:
        raise InputError(f"a part needs at least 1 row, found part_rows={part_rows}")
    plan = {"settings": json.loads(json.dumps(settings)), "rows": _fingerprint(rows), "part_rows": part_rows}
    n_parts = -(-len(rows) // part_rows)
    report = partial(PartsReport, output=output, n_rows=len(rows), n_parts=n_parts)
    if output.exists() and not overwrite:
        _check_same(plan, _plan_of(output), what=str(output))
        return report(n_rows_written=pq.read_metadata(output).num_rows, n_parts_found=n_parts)
    work = work_folder(output)
    _prepare(work, rows, plan, overwrite=overwrite)
    missing = [number for number in range(n_parts) if not _part(work, number).exists()]
    if len(missing) < n_parts:
        logger.info("%d of %d parts are there from an earlier run", n_parts - len(missing), n_parts)
    do = _Part(function=function, work=work, part_rows=part_rows)
    for _ in _done(do, missing, engine, workers, gpus_per_worker, description):
        pass
    n_written = _join(work, n_parts, output, plan)
    shutil.rmtree(work)
    return report(n_rows_written=n_written, n_parts_found=n_parts - len(missing))


def work_folder(output: Path) -> Path:
    """Return where the parts of an output lie until all are there."""
    return output.with_name(f"{output.name}.parts")


def n_parts_done(output: Path) -> int:
    """Return how many parts an interrupted run has left beside an output."""
    return len(list(work_folder(output).glob("part-*.parquet")))


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Does one part, named by its number; small, so that it can be sent to workers."""

    function: PartFunction
    work: Path
    part_rows: int

    def __call__(self, number: int) -> int:
        rows = pq.read_table(self.work / _ROWS).slice(number * self.part_rows, self.part_rows)
        result = self.function(rows)
        with atomic_path(_part(self.work, number)) as path:
            pq.write_table(result, path)
        return number


class _RayWorker:
    """An actor of Ray Data: `_Part` for batches of part numbers."""

    def __init__(self, do: _Part) -> None:
        self._do = do

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"part": np.array([self._do(int(number)) for number in batch["part"]])}


def _done(
    do: _Part, missing: Sequence[int], engine: Engine, workers: int, gpus_per_worker: float, description: str
) -> Iterator[int]:
    """Yield the numbers of parts as they become ready."""
    with running(engine, workers) as started:
        if engine == "ray":
            with progress_bar(total=len(missing), description=description, unit="part") as bar:
                for number in _on_ray_data(started.ray(), do, missing, workers, gpus_per_worker):
                    bar.update()
                    yield number
        else:
            yield from started.map(do, missing, description=description, unit="part")


def _on_ray_data(ray: Any, do: _Part, missing: Sequence[int], workers: int, gpus_per_worker: float) -> Iterator[int]:
    if not missing:
        return
    data = importlib.import_module("ray.data")
    data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    n_workers = min(workers, len(missing))
    mapped = data.from_items([{"part": number} for number in missing], override_num_blocks=len(missing)).map_batches(
        _RayWorker,
        fn_constructor_args=(do,),
        batch_size=1,
        num_cpus=1,
        num_gpus=gpus_per_worker or None,
        compute=data.ActorPoolStrategy(size=n_workers),
    )
    try:
        for row in mapped.iter_rows():
            yield int(row["part"])
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, InputError) else error) from error


def _prepare(work: Path, rows: pa.Table, plan: Mapping[str, Any], *, overwrite: bool) -> None:
    """Make the folder of parts, or check that the one which is there has parts of the same plan."""
    if work.exists():
        if not (work / _PLAN).is_file() and any(work.iterdir()) and not (work / _ROWS).is_file():
            raise InputError(f"{work} is needed for parts but holds other things; move it, or pass another output")
        found = json.loads((work / _PLAN).read_text(encoding="utf-8")) if (work / _PLAN).is_file() else None
        if found == plan:
            return
        # Without a part nothing is lost: a command that was refused for its settings may be corrected.
        if not overwrite and found is not None and any(work.glob("part-*.parquet")):
            _check_same(plan, found, what=str(work))
        shutil.rmtree(work)
    work.mkdir(parents=True)
    with atomic_path(work / _ROWS) as path:
        pq.write_table(rows, path)
    write_json(work / _PLAN, plan)


def _plan_of(output: Path) -> dict[str, Any] | None:
    try:
        stored = (pq.read_schema(output).metadata or {}).get(METADATA_KEY)
    except (pa.ArrowInvalid, OSError):
        return None
    return None if stored is None else json.loads(stored)


def _check_same(plan: Mapping[str, Any], found: Mapping[str, Any] | None, *, what: str) -> None:
    if found == plan:
        return
    if found is None:
        raise InputError(f"{what} exists and was not written by this command; pass another output, or --overwrite")
    old, new = ({**one["settings"], "rows": one["rows"], "part_rows": one["part_rows"]} for one in (found, plan))
    differing = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    raise InputError(
        f"{what} was made with other settings, unlike in {', '.join(differing)}; pass another output, or --overwrite "
        "to begin anew"
    )


def _join(work: Path, n_parts: int, output: Path, plan: Mapping[str, Any]) -> int:
    n_rows = 0
    schema = pq.read_schema(_part(work, 0)).with_metadata({METADATA_KEY: json.dumps(plan).encode()})
    with atomic_path(output) as path, pq.ParquetWriter(path, schema) as writer:
        for number in range(n_parts):
            part = pq.read_table(_part(work, number))
            n_rows += len(part)
            writer.write_table(part.replace_schema_metadata(schema.metadata))
    return n_rows


def _part(work: Path, number: int) -> Path:
    return work / f"part-{number:06d}.parquet"


def _fingerprint(rows: pa.Table) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in rows.column_names:
        digest.update(f"\0{name}\0".encode())
        for value in rows.column(name).to_pylist():
            digest.update(json.dumps(value, default=str).encode() + b"\0")
    return digest.hexdigest()
