"""A runner as a `CellEmbedder`: an AnnData in, vectors out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from cytoglot.benchmark.runners.find import Runner
from cytoglot.benchmark.runners.run import RunnerResult, run_on_cells
from cytoglot.benchmark.runners.settings import Option
from cytoglot.data.genes.columns import are_ensembl_ids, strip_versions
from cytoglot.data.readers.read import matrix_state_of, read
from cytoglot.data.schema import group_values, labels
from cytoglot.errors import InputError

UNKNOWN = "unknown"
"""what a script reads where a cell has no label or batch"""


@dataclass(frozen=True, kw_only=True)
class RunnerEmbedder:
    """Embeds cells by a runner; its environment is built at the first use."""

    runner: Runner
    options: Mapping[str, Option] | Iterable[str] = ()
    """options of the script that differ from their defaults, as a mapping or as "name=value" texts"""
    weights: Path | None = None
    """folder of its files; None for that of the cache"""
    batch_column: str | None = None
    """column of obs with the batch, for a runner that reads it"""
    label_column: str | None = None
    """column of obs with the labels of training cells, for a runner that reads them; those of test cells must be
    missing or "unknown", or the model is fitted on what it is tested on"""
    seed: int = 0
    timeout_seconds: float | None = None

    @property
    def name(self) -> str:
        """The name of the runner."""
        return self.runner.name

    @property
    def sees_all_cells(self) -> bool:
        """Whether the model is fitted on the cells that it embeds, those of the test too."""
        return self.runner.settings.sees_all_cells

    def embed(self, adata: AnnData) -> NDArray[np.float32]:
        """Return float32 of shape (n_cells, d) in the order of the cells; `adata` is not changed.

        Raises
        ------
        InputError
            There are no cells or no counts, a column is missing, or as for `run_on_cells`.
        ResourceError
            As for `run_on_cells`.
        """
        return self.run(adata).vectors_nd

    def run(self, adata: AnnData) -> RunnerResult:
        """Return the vectors with the record of the run; errors as for `embed`."""
        return run_on_cells(
            self.runner,
            self._input(adata),
            options=self.runner.with_options(self.options),
            weights=self.weights,
            seed=self.seed,
            timeout_seconds=self.timeout_seconds,
        )

    def _input(self, adata: AnnData) -> AnnData:
        """Return counts, names, Ensembl ids where the file has them, and the columns that the script may see."""
        cells = read(adata)
        state = matrix_state_of(cells)
        if state.kind != "counts" or cells.n_obs == 0:
            found = state.description if cells.n_obs else "no cells"
            raise InputError(f"the runner {self.name!r} needs raw counts, found {found}; pass cells with their counts")
        # plain texts, which older releases of anndata read too
        obs = pd.DataFrame(index=pd.Index([str(cell) for cell in cells.obs_names], dtype=object))
        given = {"batch": self.batch_column, "label": self.label_column}
        for field, column in given.items():
            if field in self.runner.settings.reads and column is not None:
                values = labels(cells.obs, column) if field == "label" else group_values(cells.obs, column)
                obs[field] = values.fillna(UNKNOWN).to_numpy(dtype=object)
            elif column is not None:
                raise InputError(f"the runner {self.name!r} reads no {field}; leave --{field}-column out")
        var = pd.DataFrame(index=pd.Index([str(gene) for gene in cells.var_names], dtype=object))
        for ids in (cells.var_names, *(cells.var[column] for column in cells.var)):
            texts = [str(one) for one in ids]
            if are_ensembl_ids(texts):
                var["ensembl_id"] = np.array(strip_versions(texts), dtype=object)
                break
        counts_ng = sparse.csr_matrix(cells.X).astype(np.float32)
        return AnnData(X=counts_ng, obs=obs, var=var)
