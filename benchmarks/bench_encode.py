"""Cells to sentences: our speed and memory beside cell2sentence 1.2.0, in one run, on the same h5ad.

    python -m benchmarks.bench_encode [--cells 50000] [--genes 30000] [--expressed 2050] [--quick] [--json]

Synthetic counts (`make_counts`: 65 % ones, gamma-like spread), CSR float32, uncompressed h5ad. Every measurement has a
process of its own, so that peak memory is its own too. Seconds are of the wall clock and of the processor: on a busy
machine only the second tells. The peer is installed into `benchmarks/.peer` on first use (`--no-peer` leaves it out).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "benchmarks" / "output"
REPEATS = 3

WHOLE = """
import sys
from cytoglot.sentence.encode_file import encode_file
from cytoglot.sentence.cell_sentence import RankSettings
settings = RankSettings(top_genes=int(sys.argv[3]) or None)
encode_file(sys.argv[1], sys.argv[2], settings=settings, text=sys.argv[4] == "text")
"""


def main() -> None:
    arguments = parsed()
    if arguments.child:
        sys.stdout.write(json.dumps(measure_in_memory(arguments.child)) + "\n")
        return
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OUTPUT) as folder:
        results = compare(Path(folder), arguments)
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        print(as_table(results))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=50_000)
    parser.add_argument("--genes", type=int, default=30_000)
    parser.add_argument("--expressed", type=int, default=2_050, help="mean genes above 0 in a cell")
    parser.add_argument("--quick", action="store_true", help="a tenth of the cells")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.cells = max(arguments.cells // 10, 1)
    return arguments


def compare(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    h5ad = folder / "cells.h5ad"
    in_child(lambda: write_h5ad(h5ad, arguments.cells, arguments.genes, arguments.expressed))
    say("kernels: compiling or loading")
    warm = folder / "warm.h5ad"
    in_child(lambda: write_h5ad(warm, 200, arguments.genes, arguments.expressed))
    ours([str(warm), str(folder / "warm.parquet"), "0", "text"])
    results: dict[str, Any] = {
        "cells": arguments.cells,
        "genes": arguments.genes,
        "h5ad_mb": h5ad.stat().st_size / 1e6,
        "threads": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
    }
    say("ours in memory")
    process = run([sys.executable, "-m", "benchmarks.bench_encode", "--child", str(h5ad)])
    results["memory"] = json.loads(process["stdout"].splitlines()[-1])
    for name, options in {"top200": ["200", "ids"], "full": ["0", "ids"], "full_text": ["0", "text"]}.items():
        say(f"ours as a whole process: {name}")
        measured = min((ours([str(h5ad), str(folder / "s.parquet"), *options]) for _ in range(REPEATS)), key=wall)
        results[f"whole_{name}"] = measured | {"output_mb": (folder / "s.parquet").stat().st_size / 1e6}
    if not arguments.no_peer:
        results["peer"] = peer(h5ad, folder)
        results["ratios"] = ratios(results)
    return results


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """Peer divided by us: how many times faster, or smaller."""
    peer, memory, found = results["peer"], results["memory"], {}
    for name, measured in memory["encode"].items():
        found[f"{name}, wall"] = peer["convert_wall_s"] / measured["wall_s"]
        found[f"{name}, per CPU second"] = peer["convert_cpu_s"] / measured["cpu_s"]
    for name in ("top200", "full", "full_text"):
        whole = results[f"whole_{name}"]
        found[f"whole process {name}, wall"] = peer["whole"]["wall_s"] / whole["wall_s"]
        found[f"whole process {name}, per CPU second"] = peer["whole"]["cpu_s"] / whole["cpu_s"]
        found[f"whole process {name}, peak memory"] = peer["whole"]["peak_mb"] / whole["peak_mb"]
    return found


def peer(h5ad: Path, folder: Path) -> dict[str, Any]:
    from benchmarks.peer import peer_python

    say("the peer (installs it the first time)")
    python = peer_python()
    whole = run([str(python), str(ROOT / "benchmarks" / "peer.py"), str(h5ad), str(folder / "peer")])
    return json.loads(whole.pop("stdout").splitlines()[-1]) | {"whole": whole}


def ours(arguments: list[str]) -> dict[str, Any]:
    measured = run([sys.executable, "-c", WHOLE, *arguments])
    measured.pop("stdout")
    return measured


def wall(measured: dict[str, Any]) -> float:
    return float(measured["wall_s"])


def run(command: list[str]) -> dict[str, Any]:
    """Run a command; return its output, seconds and peak memory, everything from start to end included."""
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    stdout, stderr = "", ""
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        stdout = process.stdout.read()
        stderr = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command[:4])} failed:\n{stderr}")
    return {
        "stdout": stdout,
        "wall_s": time.perf_counter() - started,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1024,
    }


def in_child(work: Callable[[], None]) -> None:
    """Run `work` in a forked process: what it allocates would count for every later child of ours."""
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
        raise SystemExit("could not make the cells")


def write_h5ad(path: Path, n_cells: int, n_genes: int, n_expressed: int) -> None:
    import anndata
    import numpy as np
    import pandas as pd

    from cytoglot.data.synthetic_counts import make_counts

    counts_ng = make_counts(n_cells, n_genes, n_expressed, seed=0)
    rng = np.random.default_rng(0)
    extra = rng.choice(3, n_genes, p=[0.45, 0.3, 0.25])  # names of 6 to 8 characters, 6.8 on average as in GENCODE
    names = [f"G{gene:05d}{'XY'[:width]}" for gene, width in enumerate(extra)]
    obs = pd.DataFrame(index=[f"cell_{cell}" for cell in range(n_cells)])
    anndata.AnnData(counts_ng, obs=obs, var=pd.DataFrame(index=names)).write_h5ad(path)


def measure_in_memory(path: str) -> dict[str, Any]:
    """In a process of its own: seconds of each rule, and the peak of memory beside matrix and result."""
    import resource

    import h5py
    import numpy as np
    import pandas as pd
    import scipy.sparse as sp

    from cytoglot.data.genes.vocabulary import GeneVocabulary, resolve_genes
    from cytoglot.sentence.cell_sentence import RankSettings
    from cytoglot.sentence.encode import encode_matrix
    from cytoglot.sentence.ranker import detection_rates

    with h5py.File(path) as file:
        shape = tuple(file["X"].attrs["shape"])
        matrix = sp.csr_matrix(tuple(file["X"][part][:] for part in ("data", "indices", "indptr")), shape=shape)
        vocabulary = GeneVocabulary(tuple(name.decode() for name in file["var"][file["var"].attrs["_index"]][:]))
    rates_g = detection_rates(matrix[:1000])
    gigabytes = (matrix.data.nbytes + matrix.indices.nbytes) / 1e9

    def seconds(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
        best: dict[str, float] = {}
        for _ in range(REPEATS):
            result = None
            wall_started, cpu_started = time.perf_counter(), time.process_time()
            result = work()
            wall_s, cpu_s = time.perf_counter() - wall_started, time.process_time() - cpu_started
            if not best or wall_s < best["wall_s"]:
                best = {"wall_s": wall_s, "cpu_s": cpu_s}
        per_second = {"cells_per_s": shape[0] / best["wall_s"], "cells_per_cpu_s": shape[0] / best["cpu_s"]}
        return best | per_second | {"gb_per_s": gigabytes / best["wall_s"]}, result

    def memory_mb() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    for ties in ("symbol", "order", "random"):  # load the kernels
        encode_matrix(matrix[:200], vocabulary, settings=RankSettings(ties=ties), tie_rates=rates_g).text()
    before_mb, encode = memory_mb(), {}
    for ties in ("symbol", "order", "rare_first", "common_first", "random"):
        settings = RankSettings(top_genes=200, ties=ties)
        encode[f"top200 {ties}"], sentences = seconds(
            lambda settings=settings: encode_matrix(matrix, vocabulary, settings=settings, tie_rates=rates_g)
        )
    peaks = {"top200": {"beside_matrix_mb": memory_mb() - before_mb, "output_mb": output_mb(sentences)}}
    var = pd.DataFrame(index=list(vocabulary.symbols))
    encode["names of the genes alone"], _ = seconds(lambda: resolve_genes(var))
    encode["full"], sentences = seconds(lambda: encode_matrix(matrix, vocabulary))
    peaks["full"] = {"beside_matrix_mb": memory_mb() - before_mb, "output_mb": output_mb(sentences)}
    encode["full with text"], text = seconds(lambda: encode_matrix(matrix, vocabulary).text())
    assert len(text) == shape[0]
    assert text[0].as_py() == " ".join(sentences.words(0))
    return {"encode": encode, "peaks": peaks, "matrix_mb": gigabytes * 1e3, "numpy": np.__version__}


def output_mb(sentences: Any) -> float:
    return float(sentences.gene_ids.nbytes + sentences.offsets.nbytes + sentences.n_expressed.nbytes) / 1e6


def as_table(results: dict[str, Any]) -> str:
    lines = [
        f"{results['cells']:,} cells × {results['genes']:,} genes, {results['h5ad_mb']:.0f} MB h5ad, "
        f"{results['threads']} threads, load {results['load']:.1f}",
        "",
        f"{'':44}{'wall s':>9}{'CPU s':>9}{'cells/s':>11}{'per CPU s':>11}{'peak MB':>9}",
    ]
    rows = [(name, row["wall_s"], row["cpu_s"], None) for name, row in results["memory"]["encode"].items()]
    whole = [name for name in results if name.startswith("whole_")]
    rows += [
        (f"whole process, {name[6:]}", results[name]["wall_s"], results[name]["cpu_s"], results[name]["peak_mb"])
        for name in whole
    ]
    if "peer" in results:
        peer = results["peer"]
        rows.append(("cell2sentence, conversion", peer["convert_wall_s"], peer["convert_cpu_s"], peer["peak_mb"]))
        rows.append(("cell2sentence, whole process", *(peer["whole"][k] for k in ("wall_s", "cpu_s", "peak_mb"))))
    n_cells = results["cells"]
    lines += [
        f"{name:44}{wall_s:9.2f}{cpu_s:9.2f}{n_cells / wall_s:11,.0f}{n_cells / cpu_s:11,.0f}"
        + (f"{peak:9,.0f}" if peak else "")
        for name, wall_s, cpu_s, peak in rows
    ]
    for name, peak in results["memory"]["peaks"].items():
        lines.append(
            f"in memory, {name}: {peak['beside_matrix_mb']:.0f} MB beside the matrix, "
            f"of which {peak['output_mb']:.0f} MB are the result"
        )
    lines += ["", *(f"{name:44}{ratio:9.1f} ×" for name, ratio in results.get("ratios", {}).items())]
    return "\n".join(lines)


def say(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
