"""A whole comparison: every method on every split of every data set, each run kept as soon as it is done.

A folder of results holds `runs/ID.json` (what the run was, its cost, its values or its error) and `runs/ID.parquet`
(a row for each judged cell). A run whose ID is there is never computed again; the ID is made of the data's fingerprint,
the settings of method and protocol, split, seed and the version of cytoglot.
"""

from __future__ import annotations

import inspect
import json
import logging
import platform
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from cytoglot import __version__
from cytoglot.atomic import atomic_path, check_output_folder, write_json
from cytoglot.benchmark.cells import check_source, data_fingerprint, load_cells
from cytoglot.benchmark.classifiers.base import CLASSIFIERS
from cytoglot.benchmark.embedders.base import EMBEDDERS
from cytoglot.benchmark.protocols.base import PROTOCOLS, Maker, Outcome, Protocol
from cytoglot.benchmark.recipe import BenchmarkRecipe, DataSettings, MethodSettings
from cytoglot.engines import running
from cytoglot.errors import CytoglotError, InputError, nearest_names
from cytoglot.manifest import fingerprint_texts, package_versions
from cytoglot.resume import locked

logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.json"
RESULTS_FILE = "results.parquet"
RUNS = "runs"
PLAN_FILE = "plan.json"
"""the ids of the runs of the recipe, with the names that it gives to data set and method: a run that is there already
may have been made under other names"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """All splits of one method under one protocol on one data set; what a worker is given."""

    data: DataSettings
    data_fingerprint: str
    method: MethodSettings
    protocol: str
    settings: dict[str, Any]
    seeds: tuple[int, ...]
    folder: Path


@dataclass(frozen=True, kw_only=True)
class BenchmarkSummary:
    """How the runs of a comparison ended."""

    folder: Path
    runs: int
    failed: int
    cached: int
    """found in the folder, and not computed again"""
    errors: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    """protocols that do not fit a data set, with the reason"""


def run_benchmark(recipe: BenchmarkRecipe, folder: str | Path, *, workers: int = 1) -> BenchmarkSummary:
    """Run what is missing of a comparison, and write the runs; `results_table.write_results` makes the table of them.

    A method that fails is a run with its error, and the others go on. Failed runs are tried again the next time, unless
    the method refused the data or its settings, which it would again. The same call goes on where an interrupted one
    stopped.

    Parameters
    ----------
    recipe
        Data sets, methods and protocols.
    folder
        A new folder, or one of an earlier run of any recipe: what both have in common is not computed again.
    workers
        Processes; each works on one data set, method and protocol at a time.

    Raises
    ------
    InputError
        The recipe is empty, names something unknown or a missing file, the folder holds other things, or another
        process is writing it.
    """
    folder = Path(folder)
    check_output_folder(folder, written_by="benchmark run", mark=RECIPE_FILE)
    jobs = _jobs(recipe, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as is_ours:
        if not is_ours:
            raise InputError(f"another process is writing {folder}; wait for it, or pass another folder")
        write_json(folder / RECIPE_FILE, recipe.model_dump(mode="json"))
        (folder / RUNS).mkdir(exist_ok=True)
        # The plan of an earlier recipe would say what the table of this one is made of.
        (folder / PLAN_FILE).unlink(missing_ok=True)
        n_runs = n_cached = 0
        errors: list[str] = []
        planned: list[dict[str, Any]] = []
        skipped: dict[str, None] = {}
        with running("local", workers) as pool:
            for found in pool.map(_work, jobs, description="benchmark", unit="job"):
                n_runs += sum(run["id"] is not None for run in found)
                n_cached += sum(run["cached"] for run in found)
                errors += [f"{run['what']}: {run['error']}" for run in found if run["error"]]
                skipped |= {run["skipped"]: None for run in found if run["skipped"]}
                planned += [{key: run[key] for key in ("id", "data", "method")} for run in found if run["id"]]
        planned.sort(key=lambda run: str(run["id"]))
        write_json(folder / PLAN_FILE, {"runs": planned, "skipped": list(skipped)})
    for error in errors:
        logger.warning("failed: %s", error)
    return BenchmarkSummary(
        folder=folder,
        runs=n_runs,
        failed=len(errors),
        cached=n_cached,
        errors=tuple(errors),
        skipped=tuple(skipped),
    )


def _jobs(recipe: BenchmarkRecipe, folder: Path) -> list[Job]:
    """Return what there is to do, data set by data set, after a look at everything that a recipe can get wrong."""
    for what, given in (("data", recipe.data), ("methods", recipe.methods), ("protocols", recipe.protocols)):
        if not given:
            raise InputError(f"a benchmark needs {what}; the recipe has none")
    for method in recipe.methods:
        if method.classifier is not None:
            _check_options(method.name, CLASSIFIERS[method.classifier], method.options)
        if method.embedder is not None:
            _check_options(method.name, EMBEDDERS[method.embedder], method.embedder_options)
    for data in recipe.data:
        check_source(data, recipe.methods)
    kinds = {name: protocol_of(name, settings) for name, settings in recipe.protocols.items()}
    fingerprints = {data.name: data_fingerprint(data) for data in recipe.data}
    jobs = []
    for data in recipe.data:
        for name, protocol in kinds.items():
            for method in _of_kind(recipe.methods, protocol):
                settings = protocol.model_dump(mode="json")
                jobs.append(
                    Job(
                        data=data,
                        data_fingerprint=fingerprints[data.name],
                        method=method,
                        protocol=name,
                        settings=settings,
                        seeds=recipe.seeds,
                        folder=folder,
                    )
                )
    return jobs


def _check_options(name: str, make: Callable[..., Any], options: dict[str, Any]) -> None:
    """Raise an `InputError` where a method has no such option, or needs one that is not given."""
    known = inspect.signature(make).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return  # it takes what it is given, and says itself what it cannot use
    unknown = [option for option in options if option not in known]
    if unknown:
        others = [parameter for parameter in known if parameter not in ("seed", "embedder")]
        raise InputError(f"method {name!r} has no option {unknown[0]!r}; {nearest_names(unknown[0], others)}")
    lacking = [p.name for p in known.values() if p.default is p.empty and p.name not in options]
    if lacking:
        raise InputError(f"method {name!r} needs the option {lacking[0]!r}")


def protocol_of(name: str, settings: dict[str, Any]) -> Protocol:
    """Return a protocol with its settings; an InputError where there is no such setting."""
    try:
        return PROTOCOLS[name].model_validate(settings or {})
    except ValidationError as error:
        fault = error.errors()[0]
        known = ", ".join(PROTOCOLS[name].model_fields)
        place = ".".join(map(str, fault["loc"]))
        raise InputError(f"protocol {name}: {place}: {fault['msg']}; its settings are {known}") from error


def _of_kind(methods: Sequence[MethodSettings], protocol: Protocol) -> list[MethodSettings]:
    """Return the methods that a protocol can judge; of those with one embedder the first stands for it."""
    methods = [method for method in methods if protocol.has_ceiling or method.role != "replicate"]
    if protocol.judges == "labels":
        return [method for method in methods if method.classifier is not None]
    found: dict[str, MethodSettings] = {}
    for method in methods:
        if method.embedder is not None:
            key = json.dumps([method.embedder, method.embedder_options], sort_keys=True, default=str)
            alone = method.model_copy(update={"classifier": None, "options": {}})
            found.setdefault(key, alone)
    return list(found.values())


def columns_of(method: MethodSettings) -> tuple[str, ...]:
    """Return the columns of obs that a method reads."""
    return (method.options["column"],) if method.classifier == "given" else ()


def forecast(recipe: BenchmarkRecipe, folder: str | Path) -> dict[str, Any]:
    """Return how many runs there are, how many are missing, and how long these take by the pace of a quick method.

    Of each data set and protocol the cheapest baseline is timed on its first split, and nothing is written. Slower
    methods take longer: times of finished runs in the folder are used where there are any.

    Raises
    ------
    InputError
        As `run_benchmark`.
    """
    folder, runs, missing, seconds, disk = Path(folder), 0, 0, 0.0, 0.0
    paces: dict[tuple[str, str], float] = {}
    for job in _jobs(recipe, folder):
        protocol = protocol_of(job.protocol, job.settings)
        cells = load_cells(job.data.model_dump_json(), columns_of(job.method))
        for seed in job.seeds:
            try:
                splits = protocol.splits(cells, seed)
            except CytoglotError:
                continue
            names = [run_id(job, split, seed) for split in splits]
            kept = [record for name in names if (record := read_run(folder, name)) is not None and not record["error"]]
            runs, missing = runs + len(names), missing + len(names) - len(kept)
            disk += cells.adata.n_obs * 40e-6
            if len(kept) == len(names):
                continue
            pace = float(np.mean([record["cpu_seconds"] for record in kept])) if kept else None
            key = (job.data.name, job.protocol)
            if pace is None and key not in paces:
                began = time.process_time()
                quick = MethodSettings(name="quick", classifier="logistic_regression", embedder="pca")
                quick = quick if protocol.judges == "labels" else quick.model_copy(update={"classifier": None})
                protocol.run(cells, Maker(quick, cells), splits[0], seed)
                paces[key] = time.process_time() - began
            seconds += (pace if pace is not None else 3 * paces[key]) * (len(names) - len(kept))
    return {"runs": runs, "missing": missing, "seconds": round(seconds, 1), "disk_mb": round(disk, 1)}


def run_id(job: Job, split: str, seed: int) -> str:
    """Return the name of a run: the same for the same data, settings, split, seed and version of cytoglot."""
    data = job.data.model_dump(mode="json", exclude={"name", "source"})
    method = job.method.model_dump(mode="json", exclude={"name", "contamination"})
    facts = [job.data_fingerprint, data, method, job.protocol, job.settings, split, seed, __version__]
    return fingerprint_texts([json.dumps(facts, sort_keys=True, default=str)])


def _work(job: Job) -> list[dict[str, Any]]:
    """Do the missing runs of a job; whatever fails is kept as the run's error."""
    protocol = protocol_of(job.protocol, job.settings)
    maker: Maker | None = None
    told = []
    for seed in job.seeds:
        splits, reason = _remembered_splits(job, protocol, seed)
        if reason:
            told.append(_told(job, "", seed, skipped=f"{job.protocol}, {job.data.name}: {reason}"))
        for split in splits:
            name = run_id(job, split, seed)
            kept = read_run(job.folder, name)
            if kept is not None and kept["error"] is None:
                told.append(_told(job, split, seed, cached=True))
                continue
            if kept is not None and kept.get("will_not_change"):
                told.append(_told(job, split, seed, error=kept["error"], cached=True))
                continue
            cells = load_cells(job.data.model_dump_json(), columns_of(job.method))
            maker = maker or Maker(job.method, cells)
            _reset_peak_memory()
            began, began_cpu = time.perf_counter(), time.process_time()
            try:
                outcome = protocol.run(cells, maker, split, seed)
            except Exception as error:  # noqa: BLE001 - whatever a method raises is a result of it
                reason = str(error) if isinstance(error, CytoglotError) else f"{type(error).__name__}: {error}"
                # The same data and settings are refused again; anything else may have been bad luck.
                again = not isinstance(error, InputError)
                reason = " ".join(reason.split())
                _keep_failure(job, split, seed, reason, may_change=again)
                told.append(_told(job, split, seed, error=reason))
                continue
            cost = {
                "seconds": round(time.perf_counter() - began, 3),
                "cpu_seconds": round(time.process_time() - began_cpu, 3),
                "memory_mb": round(_peak_memory_mb(), 1),
            }
            write_run(job, split, seed, outcome, cost | {"sees_all_cells": maker.sees_all_cells}, cells.warnings)
            told.append(_told(job, split, seed))
    return told


def _remembered_splits(job: Job, protocol: Protocol, seed: int) -> tuple[list[str], str]:
    """Return the names of the splits, or none and why the protocol does not fit the data set.

    They are kept, so that a finished comparison need not read its data again.
    """
    data = job.data.model_dump(mode="json", exclude={"name", "source"})
    facts = [job.data_fingerprint, data, job.protocol, job.settings, seed, __version__]
    path = job.folder / "splits" / f"{fingerprint_texts([json.dumps(facts, sort_keys=True, default=str)])}.json"
    if path.is_file():
        found: list[str] = json.loads(path.read_text(encoding="utf-8"))
        return found, ""
    cells = load_cells(job.data.model_dump_json(), columns_of(job.method))
    try:
        splits = protocol.splits(cells, seed)
    except InputError as error:
        return [], str(error)
    write_json(path, splits)
    return splits, ""


def _facts(job: Job, split: str, seed: int) -> dict[str, Any]:
    return {
        "id": run_id(job, split, seed),
        "data": job.data.model_dump(mode="json"),
        "data_fingerprint": job.data_fingerprint,
        "method": job.method.model_dump(mode="json"),
        "protocol": job.protocol,
        "settings": job.settings,
        "split": split,
        "seed": seed,
        "versions": package_versions(),
        "machine": platform.machine(),
    }


def write_run(
    job: Job, split: str, seed: int, outcome: Outcome, cost: dict[str, Any], warnings: tuple[str, ...]
) -> None:
    """Write the judged cells first and the record last: a run is there when its record is."""
    facts = _facts(job, split, seed)
    if outcome.cells is not None:
        with atomic_path(job.folder / RUNS / f"{facts['id']}.parquet") as path:
            outcome.cells.to_parquet(path, index=False)
    values = {name: None if np.isnan(value) else float(value) for name, value in outcome.values.items()}
    record = facts | cost | {"values": values, "error": None, "notes": [*warnings, *outcome.notes]}
    write_json(job.folder / RUNS / f"{facts['id']}.json", record)


def _keep_failure(job: Job, split: str, seed: int, error: str, *, may_change: bool) -> None:
    facts = _facts(job, split, seed)
    nothing = dict.fromkeys(("seconds", "cpu_seconds", "memory_mb", "sees_all_cells"))
    record = facts | nothing | {"values": {}, "notes": [], "error": error, "will_not_change": not may_change}
    write_json(job.folder / RUNS / f"{facts['id']}.json", record)


def _told(
    job: Job, split: str, seed: int, *, error: str | None = None, cached: bool = False, skipped: str = ""
) -> dict[str, Any]:
    """Return what a worker says of one run, or of a protocol that does not fit the data set."""
    return {
        "id": None if skipped else run_id(job, split, seed),
        "data": job.data.name,
        "method": job.method.name,
        "what": f"{job.protocol}, {job.data.name}, {job.method.name}, split {split}",
        "error": error,
        "cached": cached,
        "skipped": skipped,
    }


def read_run(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the record of a run, None where there is none that can be read."""
    with suppress(OSError, ValueError):
        record: dict[str, Any] = json.loads((folder / RUNS / f"{name}.json").read_text(encoding="utf-8"))
        return record
    return None


def read_cells(folder: Path, name: str) -> pd.DataFrame | None:
    """Return the judged cells of a run, None where it has none."""
    path = folder / RUNS / f"{name}.parquet"
    return pd.read_parquet(path) if path.is_file() else None


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What came of running a run again."""

    run_id: str
    same: bool
    """every judged cell has the same answer, and every number is within 1e-6"""
    largest_difference: float
    changed_cells: int
    n_cells: int
    changed_versions: tuple[str, ...]


def reproduce(folder: str | Path, name: str) -> Reproduction:
    """Run one run of a comparison again, from its data, and compare; nothing is written.

    Raises
    ------
    InputError
        There is no such run, it failed, or its data are not what they were.
    """
    folder = Path(folder)
    record = read_run(folder, name)
    if record is None:
        known = sorted(path.stem for path in (folder / RUNS).glob("*.json")) if folder.is_dir() else []
        start = f"; its runs are {', '.join(known[:3])}, …" if known else ""
        raise InputError(f"{folder} has no run {name!r}{start}")
    if record["error"] is not None:
        raise InputError(f"run {name} failed ({record['error']}), so there is nothing to reproduce")
    data, method = DataSettings.model_validate(record["data"]), MethodSettings.model_validate(record["method"])
    if data_fingerprint(data) != record["data_fingerprint"]:
        raise InputError(f"the file {data.source} has changed since run {name}; its numbers were of another file")
    cells = load_cells(data.model_dump_json(), columns_of(method))
    protocol = protocol_of(record["protocol"], record["settings"])
    again = protocol.run(cells, Maker(method, cells), record["split"], record["seed"])
    before = read_cells(folder, name)
    largest, changed, n_cells = 0.0, 0, 0
    if before is not None and again.cells is not None:
        n_cells = len(before)
        if len(again.cells) != n_cells:
            changed, largest = n_cells, float("inf")
        else:
            for column in before:
                if pd.api.types.is_float_dtype(before[column]):
                    difference_n = np.abs(before[column].to_numpy() - again.cells[column].to_numpy())
                    largest = max(largest, float(np.nanmax(difference_n, initial=0.0)))
                else:
                    changed = max(changed, int((before[column].to_numpy() != again.cells[column].to_numpy()).sum()))
    for metric, value in record["values"].items():
        now = again.values.get(metric, float("nan"))
        if value is not None:
            largest = max(largest, abs(now - value)) if not np.isnan(now) else float("inf")
    versions = package_versions()
    moved = sorted(k for k in {*versions, *record["versions"]} if versions.get(k) != record["versions"].get(k))
    told = tuple(f"{k} {record['versions'].get(k)} → {versions.get(k)}" for k in moved)
    return Reproduction(
        run_id=name,
        same=changed == 0 and largest <= 1e-6,
        largest_difference=largest,
        changed_cells=changed,
        n_cells=n_cells,
        changed_versions=told,
    )


def _reset_peak_memory() -> None:
    with suppress(OSError):  # Linux alone keeps a peak that can be reset
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_memory_mb() -> float:
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
