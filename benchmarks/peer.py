"""cell2sentence 1.2.0 in its own environment, `benchmarks/.peer`: never installed into ours.

`peer_python()` makes the environment on first use. Run by that environment's Python, this file converts an h5ad the way
the peer's tutorials do, less their normalization, which the order of the genes does not need:

    benchmarks/.peer/bin/python benchmarks/peer.py IN.h5ad OUT_FOLDER
"""

import json
import os
import resource
import subprocess
import sys
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE / ".peer"
VERSION = "1.2.0"


def peer_python() -> Path:
    """Return the Python of the peer's environment; the first call downloads it (about 1.5 GB on disk)."""
    python = ENVIRONMENT / "bin" / "python"
    done = ENVIRONMENT / ".installed"
    if done.exists() and done.read_text() == VERSION:
        return python
    venv.EnvBuilder(clear=True, with_pip=True).create(ENVIRONMENT)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    constraints = ["-c", str(HERE.parent / "constraints-py311.txt")]
    # torch first and by exact version, so that the CPU wheel is taken where the index has one
    subprocess.run([*pip, *constraints, "torch==2.13.0"], check=True)
    subprocess.run([*pip, *constraints, f"cell2sentence=={VERSION}"], check=True)
    done.write_text(VERSION)
    return python


def convert(path: str, out: str) -> dict[str, float]:
    """Convert and save; return seconds of wall clock and processor for reading and for the conversion."""
    started, cpu_started = time.perf_counter(), time.process_time()
    import anndata
    import cell2sentence as cs

    imported = time.perf_counter()
    adata = anndata.read_h5ad(path)
    read, cpu_read = time.perf_counter(), time.process_time()
    dataset, vocabulary = cs.CSData.adata_to_arrow(adata=adata, random_state=42, sentence_delimiter=" ")
    cs.CSData.csdata_from_arrow(
        arrow_dataset=dataset, vocabulary=vocabulary, save_dir=out, save_name="cells", dataset_backend="arrow"
    )
    ended = time.perf_counter()
    return {
        "import_s": imported - started,
        "read_s": read - imported,
        "convert_wall_s": ended - read,
        "convert_cpu_s": time.process_time() - cpu_read,
        "cpu_s": time.process_time() - cpu_started,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    measured = convert(sys.argv[1], sys.argv[2])
    sys.stdout.write("\n" + json.dumps(measured) + "\n")
