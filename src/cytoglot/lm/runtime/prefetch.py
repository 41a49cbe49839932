"""Making the next item in another thread while the one before it is in use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numba

Item = TypeVar("Item")


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items in order; an error in making one is raised where it would have been yielded."""
    iterator = iter(items)
    done = object()
    # the number of threads that numba may use is each thread's own
    with ThreadPoolExecutor(1, initializer=numba.set_num_threads, initargs=(numba.get_num_threads(),)) as pool:
        coming = pool.submit(next, iterator, done)
        while (item := coming.result()) is not done:
            coming = pool.submit(next, iterator, done)
            yield item  # type: ignore[misc]
