"""Building and reading a corpus: speed, memory, bytes, beside what could not be done with less, and beside others.

    python -m benchmarks.bench_corpus [PART …] [--cells 200000] [--json]

Parts: `build` (against reading + ranking + a plain Parquet write), `memory` (10⁴ to 2·10⁶ cells), `ray` (against plain
processes), `shards` (bytes and reading, real sets), `loader` (tokens per second, packing), `others` (`datasets` over
rendered text, cell2sentence's Arrow path). `make bench` runs all but `memory`, which takes ten minutes and 12 GB of
disk. Every measurement has a process of its own; seconds are of the work, without imports and compilation.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.bench_encode import run

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "benchmarks" / "output"
REPEATS = 3
MEMORY_CELLS = (10_000, 50_000, 200_000, 500_000, 1_000_000, 2_000_000)
REAL_SETS = (
    "pbmc3k_counts_labeled",
    "kang_ifnb_pbmc_832_fullgenes",
    "cellbench_mixology_5batches",
    "pancreas_baron_human_mouse_350",
    "paul15_myeloid_2730",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["build", "ray", "shards", "loader", "others"])
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        from benchmarks import corpus_steps

        name, *values = arguments.step
        sys.stdout.write(json.dumps(getattr(corpus_steps, name)(*values)) + "\n")
        return
    OUTPUT.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"threads": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(dir=OUTPUT) as folder:
        for part in arguments.parts:
            say(part)
            results[part] = PARTS[part](Path(folder), arguments)
    print(json.dumps(results, indent=2) if arguments.json else as_text(results))


def step(name: str, *values: object) -> dict[str, Any]:
    """Run a step of `benchmarks.corpus_steps` in a process of its own; its result, with the peak of its memory."""
    measured = run([sys.executable, "-m", "benchmarks.bench_corpus", "--step", name, *map(str, values)])
    return json.loads(measured["stdout"].splitlines()[-1]) | {"peak_mb": measured["peak_mb"]}


def median(take: Callable[[], dict[str, Any]], *, repeats: int = REPEATS) -> dict[str, Any]:
    found = [take() for _ in range(repeats)]
    return {
        key: statistics.median(f[key] for f in found) for key in found[0] if isinstance(found[0][key], (int, float))
    }


def bench_build(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    atlas = atlas_of(folder, arguments.cells)
    floors, builds = [], []
    for _ in range(REPEATS):  # in turns: a busy spell of the machine then hits both
        floors.append(step("floor", atlas, folder / "plain.parquet"))
        builds.append(step("build", atlas, fresh(folder / "corpus")))
    ratio = {
        key: statistics.median(b[key] for b in builds) / statistics.median(f[key] for f in floors)
        for key in ("wall_s", "cpu_s")
    }
    return {"cells": arguments.cells, "floor": floors, "build": builds, "ratio": ratio}


def bench_memory(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    rows = []
    for n_cells in MEMORY_CELLS:
        atlas = atlas_of(folder, n_cells)
        measured = step("build", atlas, fresh(folder / "corpus"))
        rows.append({"cells": n_cells, "h5ad_mb": atlas.stat().st_size / 1e6, **measured})
        say(json.dumps(rows[-1]))
        atlas.unlink()
    plot_scale(rows, OUTPUT / "corpus_scale.svg")
    peaks = {row["cells"]: row["peak_mb"] for row in rows}
    return {"rows": rows, "peak_2e6_over_2e5": peaks[2_000_000] / peaks[200_000]}


def plot_scale(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw seconds and peak memory against cells; both axes of the seconds are logarithmic."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "cytoglot"
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    cells = [row["cells"] for row in rows]
    left.loglog(cells, [row["wall_s"] for row in rows], marker="o", color="#0f766e")
    left.set(xlabel="cells", ylabel="seconds, one worker", title="Time", ylim=(1, 100))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("")
    right.semilogx(cells, [row["peak_mb"] for row in rows], marker="o", color="#b45309")
    right.set(xlabel="cells", ylabel="peak resident MB", title="Memory", ylim=(0, 700))
    for axes in (left, right):
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def bench_ray(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    atlas = atlas_of(folder, arguments.cells)
    rows: dict[str, list[dict[str, Any]]] = {"local": [], "ray": []}
    for _ in range(REPEATS):
        for engine in rows:
            rows[engine].append(step("build_with_workers", atlas, fresh(folder / "corpus"), engine, 2))
    rate = {engine: statistics.median(row["cells_per_s"] for row in found) for engine, found in rows.items()}
    same = len({row["fingerprint"] for found in rows.values() for row in found}) == 1
    return {"rows": rows, "ray_over_processes": rate["ray"] / rate["local"], "identical_shards": same}


def bench_shards(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    data = Path(os.environ.get("CYTOGLOT_DATA", ROOT.parent / "shared" / "data"))
    found = [data / f"{name}.h5ad" for name in REAL_SETS]
    if not all(path.is_file() for path in found):
        return {"skipped": f"the real sets are not in {data} (set CYTOGLOT_DATA)"}
    return {path.stem: step("shard_bytes", path, fresh(folder / "corpus")) for path in found}


def bench_loader(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    corpus = fresh(folder / "loader_corpus")
    step("build", atlas_of(folder, 50_000), corpus)
    return {kind: median(lambda kind=kind: step("load", corpus, kind)) for kind in ("gene_level", "bpe")}


def bench_others(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    atlas = atlas_of(folder, 100_000)
    results = {"build": step("build", atlas, fresh(folder / "corpus"))}
    results["load"] = step("load", folder / "corpus", "gene_level")
    results["datasets_from_generator"] = step("datasets_from_generator", folder / "corpus", folder / "hf_cache")
    if not arguments.no_peer:
        from benchmarks.peer import peer_python

        command = [str(peer_python()), str(ROOT / "benchmarks" / "peer.py"), str(atlas), str(folder / "peer")]
        peer = run(command)
        results["cell2sentence"] = json.loads(peer["stdout"].splitlines()[-1]) | {"peak_mb": peer["peak_mb"]}
        results["cell2sentence"]["mb"] = size_of(folder / "peer")
        results["cell2sentence_over_build_wall"] = (
            results["cell2sentence"]["read_s"] + results["cell2sentence"]["convert_wall_s"]
        ) / results["build"]["wall_s"]
    loaded = results["load"]["tokens_per_s"] / results["datasets_from_generator"]["tokens_per_s"]
    return results | {"loader_over_datasets_tokens": loaded}


PARTS: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "build": bench_build,
    "memory": bench_memory,
    "ray": bench_ray,
    "shards": bench_shards,
    "loader": bench_loader,
    "others": bench_others,
}


def atlas_of(folder: Path, n_cells: int) -> Path:
    path = folder / f"atlas_{n_cells}.h5ad"
    if not path.is_file():
        say(f"writing {n_cells:,} cells")
        run([sys.executable, "-m", "benchmarks.synthetic_atlas", str(path), str(n_cells)])
    return path


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def size_of(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def as_text(results: dict[str, Any]) -> str:
    lines = []
    for name, value in flat(results):
        lines.append(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
    return "\n".join(lines)


def flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [pair for name, item in value.items() for pair in flat(item, f"{prefix}{name}.")]
    if isinstance(value, list):
        return [pair for number, item in enumerate(value) for pair in flat(item, f"{prefix}{number}.")]
    return [(prefix.rstrip("."), value)]


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    main()
