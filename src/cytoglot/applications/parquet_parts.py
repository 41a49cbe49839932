"""A function over the rows of a table, part by part into one Parquet file; killed, it goes on where it stopped.

Each part is a file of its own in a folder beside the output until all are there. Parts do not know of each other, so
they can be done here, in processes or on a Ray cluster with a shared file system, and the result is the same.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cytoglot.engines import Engine, running
from cytoglot.errors import InputError
from cytoglot.manifest import fingerprint_texts
from cytoglot.progress import progress_bar
from cytoglot.resume import Parts, changes, parts_folder

logger = logging.getLogger(__name__)

PartFunction = Callable[[pa.Table], pa.Table]
METADATA_KEY = b"cytoglot"


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
    texts = (
        text
        for name in rows.column_names
        for text in (name, *map(partial(json.dumps, default=str), rows[name].to_pylist()))
    )
    plan = json.loads(json.dumps({**settings, "data": fingerprint_texts(texts), "part_rows": part_rows}))
    n_parts = -(-len(rows) // part_rows)
    report = partial(PartsReport, output=output, n_rows=len(rows), n_parts=n_parts)
    if output.exists() and not overwrite:
        try:
            stored = (pq.read_schema(output).metadata or {}).get(METADATA_KEY)
        except (pa.ArrowInvalid, OSError):
            stored = None
        if stored is None:
            raise InputError(
                f"{output} exists and was not written by this command; pass another output, or --overwrite"
            )
        if json.loads(stored) != plan:
            raise InputError(
                f"{output} was made with {changes(json.loads(stored), plan)}; pass another output, or --overwrite to "
                "begin anew"
            )
        return report(n_rows_written=pq.read_metadata(output).num_rows, n_parts_found=n_parts)
    # What a function refuses may be a server that is down: its other answers are kept.
    with Parts(output, plan).opened(overwrite=overwrite, keep_at_fault=True) as parts:
        parts.write("rows", rows)
        missing = parts.missing(n_parts)
        if len(missing) < n_parts:
            logger.info("%d of %d parts are there from an earlier run", n_parts - len(missing), n_parts)
        do = _Part(function=function, parts=parts, part_rows=part_rows)
        with running(engine, workers) as started:
            if engine == "ray":
                with progress_bar(total=len(missing), description=description, unit="part") as bar:
                    for _ in _on_ray_data(started.ray(), do, missing, workers, gpus_per_worker):
                        bar.update()
            else:
                for _ in started.map(do, missing, description=description, unit="part"):
                    pass
        schema = parts.read(0).schema.with_metadata({METADATA_KEY: json.dumps(plan).encode()})
        n_written = 0
        with parts.whole() as path, pq.ParquetWriter(path, schema) as writer:
            for number in range(n_parts):
                part = parts.read(number).replace_schema_metadata(schema.metadata)
                writer.write_table(part)
                n_written += len(part)
    return report(n_rows_written=n_written, n_parts_found=n_parts - len(missing))


def n_parts_done(output: Path) -> int:
    """Return how many parts an interrupted run has left beside an output."""
    return len(list(parts_folder(output).glob("part-*.parquet")))


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Does one part, named by its number; small, so that it can be sent to workers."""

    function: PartFunction
    parts: Parts
    part_rows: int

    def __call__(self, number: int) -> int:
        rows = self.parts.read("rows").slice(number * self.part_rows, self.part_rows)
        self.parts.write(number, self.function(rows))
        return number


class _RayWorker:
    """Does parts in an actor of Ray Data."""

    def __init__(self, do: _Part) -> None:
        self._do = do

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"part": np.array([self._do(int(number)) for number in batch["part"]])}


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
