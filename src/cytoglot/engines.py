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
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeVar, get_args

from cytoglot.errors import InputError, ResourceError, UnknownNameError
from cytoglot.extras import require
from cytoglot.progress import progress_bar

Engine = Literal["local", "ray"]
ENGINES: tuple[Engine, ...] = get_args(Engine)

Item = TypeVar("Item")
Result = TypeVar("Result")

_QUEUED_PER_WORKER = 2
_KILLED = (
    "a worker process was ended from outside, most often for lack of memory; run the same command again with fewer "
    "--workers: it goes on where it stopped"
)


class Workers:
    """Workers that have been started; made by `running`."""

    def __init__(self, engine: Engine, n_workers: int) -> None:
        self.engine, self.n_workers = engine, n_workers
        self._most_under_way = _QUEUED_PER_WORKER * n_workers
        self._stack = ExitStack()
        self._pool: ProcessPoolExecutor | None = None
        self._ray: Any = None

    def map(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        description: str,
        unit: str = "piece",
        weights: Sequence[int] | None = None,
    ) -> Iterator[Result]:
        """Yield `function(item)` of every item as they become ready: with several workers in no order.

        Parameters
        ----------
        function
            Defined at the top of a module, or a `partial` of such a one. What it raises is raised here, and no further
            item is begun.
        description, unit, weights
            Of the progress bar; an item moves it by its weight, by default 1.

        Raises
        ------
        ResourceError
            A worker was killed.
        """
        steps = [1] * len(items) if weights is None else weights
        with progress_bar(total=sum(steps), description=description, unit=unit) as bar:
            for number, result in self._results(function, items):
                bar.update(steps[number])
                yield result

    def _results(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
        if not items:
            return
        if self.engine == "ray":
            yield from self._on_ray(function, items)
        elif self.n_workers == 1:
            for number, item in enumerate(items):
                yield number, function(item)
        else:
            yield from self._in_processes(function, items)

    def _in_processes(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
        if self._pool is None:
            # Forking a process that has threads (Arrow's, numba's, a model's) may hang, so workers start anew.
            self._pool = ProcessPoolExecutor(
                self.n_workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=set_numba_threads,
                initargs=(max(1, (os.cpu_count() or 1) // self.n_workers),),
            )
            self._stack.callback(self._pool.shutdown, wait=True, cancel_futures=True)
        under_way: dict[Future[Result], int] = {}
        waiting = iter(enumerate(items))
        try:
            while True:
                # Not all at once: after an error the rest must not run, and a million items would wait in the pool.
                while len(under_way) < self._most_under_way and (following := next(waiting, None)) is not None:
                    under_way[self._pool.submit(function, following[1])] = following[0]
                if not under_way:
                    return
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    yield under_way.pop(future), future.result()
        except BrokenProcessPool as error:
            self._pool = None
            raise ResourceError(_KILLED) from error
        finally:
            for future in under_way:
                future.cancel()
            wait(under_way)  # what runs still writes into the folder

    def _on_ray(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
        ray = self.ray()
        task = ray.remote(num_cpus=1)(_with_one_thread)
        under_way: dict[Any, int] = {}
        waiting = iter(enumerate(items))
        try:
            while True:
                while len(under_way) < self._most_under_way and (following := next(waiting, None)) is not None:
                    under_way[task.remote(function, following[1])] = following[0]
                if not under_way:
                    return
                (done, *_), _ = ray.wait(list(under_way), num_returns=1)
                number = under_way.pop(done)
                try:
                    yield number, ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
                    raise ResourceError(_KILLED) from error
        finally:
            for reference in under_way:
                ray.cancel(reference)
            if under_way:
                ray.wait(list(under_way), num_returns=len(under_way))

    def ray(self) -> Any:
        """Return Ray, on its cluster, also for what goes beyond a map (Ray Data).

        Raises
        ------
        MissingExtraError
            Ray is not installed.
        """
        if self._ray is None:
            ray = require("ray", extra="ray", purpose="the engine 'ray'")
            if not ray.is_initialized():
                # A cluster that is named is joined; else one of as many workers as asked for is made on this machine.
                own = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": self.n_workers}
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
                ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", **own)
                self._stack.callback(ray.shutdown)
            self._ray = ray
        return self._ray

    def stop(self) -> None:
        """End the workers that were started here; a cluster that was there before stays."""
        self._pool = self._ray = None
        self._stack.close()


_running: list[Workers] = []


@contextmanager
def running(engine: Engine, workers: int) -> Iterator[Workers]:
    """Yield workers for any number of maps; they are started by the first and ended here.

    With the local engine and one worker everything runs in this process. Within another `running` of the same engine
    and number its workers are used, so that several builds need not start them each.

    Raises
    ------
    UnknownNameError
        There is no such engine.
    InputError
        Fewer than one worker.
    MissingExtraError
        When first used: the engine is "ray", and Ray is not installed.
    """
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    if workers < 1:
        raise InputError(f"expected at least 1 worker, found {workers}")
    if _running and (_running[-1].engine, _running[-1].n_workers) == (engine, workers):
        yield _running[-1]
        return
    started = Workers(engine, workers)
    _running.append(started)
    try:
        yield started
    finally:
        _running.remove(started)
        started.stop()


def set_numba_threads(n_threads: int) -> None:
    """Let numba compute with this many threads, at most with those that it has."""
    import numba

    numba.set_num_threads(min(n_threads, numba.config.NUMBA_NUM_THREADS))


def _with_one_thread(function: Callable[[Item], Result], item: Item) -> Result:
    set_numba_threads(1)
    return function(item)
