"""The same map in this process, in others and on Ray: results, errors, killed workers."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from cytoglot.engines import Engine, running
from cytoglot.errors import InputError, ResourceError, UnknownNameError

NUMBERS = [5, 3, 4, 0, 6]


def mapped(engine: Engine, workers: int) -> list[int]:
    with running(engine, workers) as pool:
        return sorted(pool.map(math.factorial, NUMBERS, description="factorials"))


def test_one_worker_works_in_this_process_and_in_order() -> None:
    with running("local", 1) as pool:
        assert list(pool.map(math.factorial, NUMBERS, description="x")) == [120, 6, 24, 1, 720]
        assert list(pool.map(lambda _: os.getpid(), [1], description="x")) == [os.getpid()]
        assert list(pool.map(math.factorial, [], description="x")) == []


def test_processes_give_the_same_and_are_started_once(tmp_path: Path) -> None:
    with running("local", 2) as pool:
        assert sorted(pool.map(math.factorial, NUMBERS, description="x")) == [1, 6, 24, 120, 720]
        with running("local", 2) as inner:
            assert inner is pool
        processes = {p for _ in range(3) for p in pool.map(_process, range(4), description="x")}
        assert os.getpid() not in processes
        assert len(processes) <= 2
        with pytest.raises(FileNotFoundError, match="absent"):
            list(pool.map(Path.read_text, [tmp_path / "absent"] * 5, description="x"))
        assert list(pool.map(math.factorial, [3], description="x")) == [6]


def _process(_: int) -> int:
    return os.getpid()


def test_after_an_error_nothing_more_is_begun() -> None:
    begun: list[int] = []

    def second_fails(number: int) -> int:
        begun.append(number)
        if number == 1:
            raise InputError("bad")
        return number

    with running("local", 1) as pool, pytest.raises(InputError, match="bad"):
        list(pool.map(second_fails, [0, 1, 2, 3], description="x"))
    assert begun == [0, 1]


def test_a_worker_that_is_killed_is_told_in_one_line_and_others_take_its_place() -> None:
    with running("local", 2) as pool:
        with pytest.raises(ResourceError, match="a worker process was ended from outside"):
            list(pool.map(os._exit, [9, 9, 9], description="x"))
        assert list(pool.map(math.factorial, [3], description="x")) == [6]


def test_an_unknown_engine_and_no_worker_are_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown engine 'lokal'; did you mean 'local'\?"), running("lokal", 1):  # type: ignore[arg-type]
        pass
    with pytest.raises(InputError, match="at least 1 worker, found 0"), running("local", 0):
        pass


@pytest.mark.slow
def test_ray_gives_the_same_raises_the_same_and_leaves_a_cluster_of_others_running(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    assert mapped("ray", 2) == mapped("local", 1)
    assert not ray.is_initialized()
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        assert mapped("ray", 2) == mapped("local", 1)
        with running("ray", 1) as pool, pytest.raises(FileNotFoundError, match="absent"):
            list(pool.map(Path.read_text, [tmp_path / "absent"] * 5, description="x"))
        assert ray.is_initialized()
    finally:
        ray.shutdown()
