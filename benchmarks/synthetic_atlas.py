"""An h5ad file of synthetic cells of any number, written in chunks: 300 expressed genes of 30,000 in every cell.

python -m benchmarks.synthetic_atlas OUT.h5ad 200000
"""

import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem

N_GENES, EXPRESSED = 30_000, 300
CELLS_PER_DONOR, N_TYPES, TISSUES = 5_000, 40, ("blood", "lung", "liver", "skin", "brain")
_CHUNK = 50_000


def write_atlas(path: str | Path, n_cells: int, *, seed: int = 0) -> Path:
    """Write counts (int32 CSR, not compressed) and obs with cell_type, donor_id, tissue and disease."""
    path = Path(path)
    widths = _widths()
    starts = np.concatenate([[0], np.cumsum(widths)[:-1]])
    rng = np.random.default_rng(seed)
    types = rng.integers(0, N_TYPES, n_cells)
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        matrix = file.create_group("X")
        shape = (n_cells, N_GENES)
        matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
        n_values = n_cells * EXPRESSED
        data = matrix.create_dataset("data", (n_values,), np.int32, chunks=(1 << 18,))
        indices = matrix.create_dataset("indices", (n_values,), np.int32, chunks=(1 << 18,))
        matrix.create_dataset("indptr", data=np.arange(0, n_values + 1, EXPRESSED))
        for first in range(0, n_cells, _CHUNK):
            n = min(_CHUNK, n_cells - first)
            span = slice(first * EXPRESSED, (first + n) * EXPRESSED)
            # a gene of each stratum; which one leans on the cell's type, how many counts on the stratum
            draw = rng.random((n, EXPRESSED)) ** (0.6 + types[first : first + n, None] % 8 * 0.1)
            indices[span] = (starts + (draw * widths).astype(np.int32)).ravel()
            data[span] = (1 + rng.poisson(np.geomspace(20, 0.05, EXPRESSED), (n, EXPRESSED))).ravel()
        donors = np.arange(n_cells) // CELLS_PER_DONOR
        obs = pd.DataFrame(
            {
                "cell_type": pd.Categorical.from_codes(types, [f"type {i}" for i in range(N_TYPES)]),
                "donor_id": pd.Categorical.from_codes(donors, [f"donor {i}" for i in range(donors[-1] + 1)]),
                "tissue": pd.Categorical.from_codes(donors % len(TISSUES), list(TISSUES)),
                "disease": pd.Categorical.from_codes(np.zeros(n_cells, int), ["normal"]),
            },
            index=pd.Index(np.char.add("cell-", np.arange(n_cells).astype(str)).astype(object)),
        )
        write_elem(file, "obs", obs)
        write_elem(file, "var", pd.DataFrame(index=pd.Index([f"GENE{i}" for i in range(N_GENES)])))
        for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
            write_elem(file, name, {})
    return path


def _widths() -> np.ndarray:
    """Genes of each of the 300 strata, 1 in the first and most in the last, 30,000 in all."""
    widths = np.maximum(1, np.geomspace(0.5, 1000, EXPRESSED) / np.geomspace(0.5, 1000, EXPRESSED).sum() * N_GENES)
    widths = widths.astype(int)
    widths[-1] += N_GENES - widths.sum()
    return widths


if __name__ == "__main__":
    write_atlas(sys.argv[1], int(sys.argv[2]))
    adata = anndata.read_h5ad(sys.argv[1], backed="r")
    sys.stdout.write(f"{adata}\n")
