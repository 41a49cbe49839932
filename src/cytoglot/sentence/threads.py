"""Runs of rows of about equal work, on as many threads as numba may use.

Plain threads over kernels that release the interpreter: unlike numba's own thread layers they can be entered from
several threads at once and after a fork.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numba
import numpy as np
from numpy.typing import NDArray

#: Values that a thread takes at a time: large beside the cost of a call, small beside a matrix.
TASK_VALUES = 1 << 19


def for_each_run(row_ends: NDArray[np.integer], work: Callable[[int, int], None]) -> None:
    """Call `work(begin, end)` on runs of rows that cover all rows once; `row_ends` is as the indptr of a CSR matrix.

    The first error raised by `work` is raised here, once every running call has ended.
    """
    n_rows = len(row_ends) - 1
    n_runs = max(1, -(-int(row_ends[-1] - row_ends[0]) // TASK_VALUES))
    targets = np.linspace(float(row_ends[0]), float(row_ends[-1]), n_runs + 1)[1:-1]
    edges = np.unique([0, *np.searchsorted(row_ends, targets).tolist(), n_rows]).tolist()
    runs = list(pairwise(edges))
    n_threads = min(len(runs), numba.get_num_threads())
    if n_threads <= 1:
        for begin, end in runs:
            work(begin, end)
        return
    with ThreadPoolExecutor(n_threads) as pool:
        for _ in pool.map(lambda run: work(*run), runs):
            pass
