"""Making the next items in another thread while the one before them is in use."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numba

Item = TypeVar("Item")


def ahead(items: Iterable[Item], *, n: int = 1) -> Iterator[Item]:
    """Yield the items in order, with up to `n` made ahead; an error in making one is raised where it would come."""
    iterator = iter(items)
    done = object()
    # the number of threads that numba may use is each thread's own
    pool = ThreadPoolExecutor(1, initializer=numba.set_num_threads, initargs=(numba.get_num_threads(),))
    try:
        coming = deque(pool.submit(next, iterator, done) for _ in range(n))
        while (item := coming.popleft().result()) is not done:
            coming.append(pool.submit(next, iterator, done))
            yield item  # type: ignore[misc]
    finally:  # who goes no further does not wait for more than the one that is being made
        pool.shutdown(cancel_futures=True)
