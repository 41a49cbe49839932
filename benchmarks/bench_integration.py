"""Scores of an embedding: how long silhouettes, LISI and the matching of pairs take, and what memory matching needs.

    python -m benchmarks.bench_integration [--cells 50000] [--pairs 25000] [--scib-python PYTHON]

Cells are drawn around 20 centers in 50 dimensions, pairs in 512. With the Python of an environment that has
scib-metrics, its second call is timed too, so that its compiling is not counted. Prints one JSON object, in seconds.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from cytoglot import metrics

_SCIB = """
import json, sys, time
import numpy as np
from scib_metrics import lisi_knn, silhouette_label
from scib_metrics.nearest_neighbors import NeighborsResults
stored = np.load(sys.argv[1])
neighbors = NeighborsResults(indices=stored["indices"], distances=stored["distances"])
calls = {"silhouette": lambda: silhouette_label(stored["vectors"], stored["labels"]),
         "lisi": lambda: lisi_knn(neighbors, stored["labels"])}
found = {}
for name, call in calls.items():
    np.asarray(call())
    start = time.perf_counter()
    np.asarray(call())
    found[name] = time.perf_counter() - start
print(json.dumps(found))
"""


def main() -> int:
    """Time the scores and print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=50_000)
    parser.add_argument("--pairs", type=int, default=25_000)
    parser.add_argument("--scib-python", help="Python of an environment with scib-metrics")
    parser.add_argument("--stored", default="bench_integration.npz", help="file that hands the cells to scib-metrics")
    options = parser.parse_args()
    rng = np.random.default_rng(0)

    x_nd = rng.normal(size=(options.pairs, 512)).astype(np.float32)
    y_nd = x_nd + 3 * rng.normal(size=x_nd.shape).astype(np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: dict[str, object] = {"foscttm": _second_call(lambda: metrics.foscttm(x_nd, y_nd))}
    found["foscttm_extra_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    labels = rng.integers(20, size=options.cells)
    vectors_nd = rng.normal(size=(20, 50))[labels] + rng.normal(size=(options.cells, 50))
    found["silhouette"] = _second_call(lambda: metrics.asw_label(vectors_nd, labels))
    neighbors = metrics.nearest_neighbors(vectors_nd, 89)
    found["lisi"] = _second_call(lambda: metrics.lisi(neighbors, labels))
    if options.scib_python:
        itself = np.arange(options.cells)[:, None]  # scib-metrics counts the cell itself
        np.savez(
            options.stored,
            vectors=vectors_nd,
            labels=labels,
            indices=np.hstack([itself, neighbors.indices_nk]),
            distances=np.hstack([np.zeros(itself.shape), neighbors.distances_nk]),
        )
        command = [options.scib_python, "-c", _SCIB, options.stored]
        found["scib_metrics"] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(json.dumps(found))
    return 0


def _second_call(call: Callable[[], object]) -> float:
    call()  # compiles, or loads what is compiled
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
