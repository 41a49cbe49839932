"""The same function on many items: in this process, in processes of this machine, or on a Ray cluster.

Nothing else runs work in parallel here. A mapped function and its items are small and can be pickled: they name files,
and what a function finds it leaves in files; only a few numbers come back.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeVar, get_args

import numba

from cytoglot.errors import InputError, UnknownNameError
from cytoglot.extras import require
from cytoglot.progress import progress_bar

Engine = Literal["local", "ray"]
ENGINES: tuple[Engine, ...] = get_args(Engine)

Item = TypeVar("Item")
Result = TypeVar("Result")

_QUEUED_PER_WORKER = 2


def map_items(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    engine: Engine = "local",
    workers: int = 1,
    description: str,
    unit: str = "piece",
    weights: Sequence[int] | None = None,
) -> Iterator[Result]:
    """Yield `function(item)` of every item, as they become ready: with several workers in no order.

    Parameters
    ----------
    function
        Defined at the top of a module (or a `partial` of such a one). What it raises is raised here, and no further
        item is begun.
    workers
        1 with the local engine: in this process. On Ray: tasks under way at a time, each of one CPU.
    description, unit, weights
        Of the progress bar; an item moves it by its weight, by default 1.

    Raises
    ------
    UnknownNameError
        There is no such engine.
    InputError
        Fewer than one worker, or a worker was killed.
    MissingExtraError
        `engine="ray"` without Ray.
    """
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    if workers < 1:
        raise InputError(f"expected at least 1 worker, found {workers}")
    weights = [1] * len(items) if weights is None else weights
    with progress_bar(total=sum(weights), description=description, unit=unit) as bar:
        for number, result in _results(function, items, engine, workers):
            bar.update(weights[number])
            yield result


def _results(
    function: Callable[[Item], Result], items: Sequence[Item], engine: Engine, workers: int
) -> Iterator[tuple[int, Result]]:
    if not items:
        return
    if engine == "ray":
        yield from _on_ray(function, items, workers)
    elif workers == 1:
        for number, item in enumerate(items):
            yield number, function(item)
    else:
        yield from _in_processes(function, items, workers)


def _in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[tuple[int, Result]]:
    # Forking a process that has threads (Arrow's, numba's, a model's) may hang, so workers start anew.
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_set_threads,
        initargs=(max(1, (os.cpu_count() or 1) // workers),),
    )
    under_way: dict[Future[Result], int] = {}
    try:
        waiting = iter(enumerate(items))
        while True:
            # Not all at once: after an error the rest must not run, and a million items would wait in the pool.
            while len(under_way) < _QUEUED_PER_WORKER * workers and (following := next(waiting, None)) is not None:
                under_way[pool.submit(function, following[1])] = following[0]
            if not under_way:
                return
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                yield under_way.pop(future), future.result()
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process was ended from outside, most often for lack of memory; run the same command again with "
            "fewer --workers: it goes on where it stopped"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _set_threads(n_threads: int) -> None:
    numba.set_num_threads(min(n_threads, numba.config.NUMBA_NUM_THREADS))


def _on_ray(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[tuple[int, Result]]:
    with _ray(workers) as ray:
        task = ray.remote(num_cpus=1, max_retries=0)(partial(_with_one_thread, function))
        under_way: dict[Any, int] = {}
        waiting = iter(enumerate(items))
        while True:
            while len(under_way) < _QUEUED_PER_WORKER * workers and (following := next(waiting, None)) is not None:
                under_way[task.remote(following[1])] = following[0]
            if not under_way:
                return
            done, _ = ray.wait(list(under_way), num_returns=1)
            number = under_way.pop(done[0])
            try:
                result = ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            yield number, result


def _with_one_thread(function: Callable[[Item], Result], item: Item) -> Result:
    numba.set_num_threads(1)
    return function(item)


@contextmanager
def _ray(workers: int) -> Iterator[Any]:
    """Yield Ray, connected: to the cluster that the caller or RAY_ADDRESS names, or else to one of our own."""
    ray = require("ray", extra="ray", purpose="the engine 'ray'")
    is_ours = not ray.is_initialized()
    if is_ours:
        own = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers}
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", **own)
    try:
        yield ray
    finally:
        if is_ours:
            ray.shutdown()
