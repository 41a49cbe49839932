"""`read`: any file of cells to an AnnData whose X is the matrix to work with and whose genes are unique.

The order in which matrices are tried is in `matrix_choice`, the formats are in `formats`, chunks are in `stream`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from cytoglot.data.genes.options import GeneOptions
from cytoglot.data.genes.vocabulary import Duplicates, collapse_columns
from cytoglot.data.normalize import MatrixState
from cytoglot.data.plain_matrix import is_sparse
from cytoglot.data.readers.cell_rows import cell_rows
from cytoglot.data.readers.formats import CellStore, loaded, readable, store_for
from cytoglot.data.readers.matrix_choice import Selection, Verdict, check_cell_names, select, verdict_on
from cytoglot.data.readers.stream import CellStream, open_cells
from cytoglot.errors import InputError

__all__ = ["CellStream", "loaded", "matrix_state_of", "open_cells", "read"]

logger = logging.getLogger(__name__)


def read(
    source: AnnData | str | Path,
    *,
    layer: str | None = None,
    backed: bool = False,
    gene_column: str | None = None,
    gene_mapping: Mapping[str, str] | None = None,
    duplicates: Duplicates = "sum",
) -> AnnData:
    """Read an h5ad, a zarr folder, a 10x HDF5 file, a 10x folder or an AnnData as cells × unique genes.

    `X` is one matrix of the file: `layer` ("X", "raw" or the name of a layer) when given; else the first of the layers
    named for counts (`counts`, `raw_counts`, `umi`, …), `raw.X` and `X` that holds integer counts; else the first of
    these that holds log1p or other non-negative values, whose ranking is as good. Signed (scaled) values are refused.
    What each holds is tested, not guessed. Other layers, `varm`, `obsp` and `varp` are left out; `obs`, `obsm` and
    `uns` are kept.

    Gene names are symbols where the file has them (`resolve_genes` says how; `gene_column`, which may be "var_names"
    for the index, and `gene_mapping` change it). Duplicated columns are summed for counts; for other values the first
    is kept, as logs cannot be summed.

    `var` has the rows of the first columns; where another column became the name, the old index is `var["gene_ids"]`.

    `uns["cytoglot"]["matrix"]` says what was read: `source`, `state`, `message`, and `log_base` and `target_sum` where
    known. Every verb that is given the result, or a file of it, takes its genes as they are named here, so that gene
    options are said once. X is CSR with the type of the file (8- and 16-bit integers become 32-bit where columns are
    summed), and every value of it has been tested. With `backed=True` X stays on disk (h5ad and zarr alone), is tested
    on a sample of its cells, and duplicated columns are refused, because they cannot be summed there; `open_cells` can.

    Parameters
    ----------
    source
        An h5ad, zarr or 10x file or folder, or an AnnData, which is not changed.
    layer
        "X", "raw" or the name of a layer, to read that matrix and no other; None finds one, as above.
    backed
        Leave X on disk.
    gene_column
        Column of var with the names of genes, or "var_names" for the index; None finds symbols.
    gene_mapping
        Name in the file → name wanted; an empty name drops the gene.
    duplicates
        What becomes of columns of the same gene: "sum" (of counts; of other values the first is kept), "first", or
        "error".

    Raises
    ------
    InputError
        The file is missing, damaged or of no known kind; no matrix can be used; a value is NaN or infinite (cell and
        gene are named); two cells have the same name; no column has a name.
    UnknownNameError
        There is no such layer or column of var.

    Examples
    --------
    >>> import cytoglot as cg
    >>> adata = cg.read(cg.datasets.get("pbmc68k_reduced"))
    >>> adata.shape, adata.uns["cytoglot"]["matrix"]["state"]
    ((700, 765), 'log1p')
    """
    started = time.perf_counter()
    with ExitStack() as stack:
        store = stack.enter_context(store_for(source))
        with readable(store.path):
            check_cell_names(store.obs)
            choose = partial(
                select,
                store.candidates,
                store.obs.index,
                layer=layer,
                genes=GeneOptions(column=gene_column, mapping=gene_mapping, duplicates=duplicates),
            )
            if backed:
                if not store.is_anndata:
                    raise InputError(
                        f"backed=True reads h5ad and zarr, {store.path} is 10x output; use backed=False or open_cells()"
                    )
                selection = choose()
                matrix = selection.candidate.matrix
                if not selection.genes.is_identity:
                    raise InputError(
                        "backed=True needs one column per gene as the file has them, found: "
                        f"{'; '.join(selection.genes.report.messages())}; use backed=False, or open_cells() for large "
                        "files"
                    )
            else:
                selection, matrix = _in_memory(store, choose)
            obsm, uns = store.read_obsm(), store.read_uns()
        if backed:
            stack.pop_all()  # X reads from the open file, which HDF5 closes with the last reference to it
    genes, state = selection.genes, selection.state
    # the rows of `var` that belong to the first column of each gene, under the name of the gene
    var = selection.candidate.var.iloc[genes.first_column].copy()
    if genes.report.source != "var_names" and "gene_ids" not in var.columns:
        var["gene_ids"] = [str(name) for name in var.index]
    var.index = pd.Index(genes.vocabulary.symbols, dtype=object)
    adata = AnnData(X=matrix, obs=store.obs.copy(), var=var, obsm=obsm, uns=uns)
    record = {
        "source": selection.candidate.source,
        "state": state.kind,
        "message": selection.message,
        "log_base": state.log_base,
        "target_sum": state.target_sum,
    }
    earlier = uns.get("cytoglot")
    adata.uns["cytoglot"] = {
        **(earlier if isinstance(earlier, dict) else {}),
        "matrix": {name: value for name, value in record.items() if value is not None},  # not every format stores None
    }
    seconds = time.perf_counter() - started
    logger.info(
        "%s: %s; %d cells × %d genes, %.1f s", store.path, selection.message, adata.n_obs, adata.n_vars, seconds
    )
    return adata


def _in_memory(store: CellStore, choose: Callable[..., Selection]) -> tuple[Selection, sparse.csr_matrix]:
    """Read the chosen matrix and test all of it; where that contradicts the sample, choose again knowing it."""
    loaded: dict[str, sparse.csr_matrix] = {}
    known: dict[str, Verdict] = {}
    while (selection := choose(known=known)).candidate.source not in loaded:
        candidate = selection.candidate
        matrix = cell_rows(candidate.matrix).rows(0, len(store.obs))
        loaded[candidate.source] = matrix
        known[candidate.source] = verdict_on(matrix, cell_names=store.obs.index, gene_names=candidate.var.index)
    matrix = loaded[selection.candidate.source]
    collapsed = collapse_columns(matrix, selection.genes.column_gene, len(selection.genes.vocabulary))
    given = selection.candidate.matrix
    shared = is_sparse(given) and np.may_share_memory(collapsed.data, given.data)
    return selection, collapsed.copy() if shared else collapsed


def matrix_state_of(adata: AnnData) -> MatrixState:
    """Return the state of `adata.X` as `read` recorded it.

    Raises
    ------
    InputError
        `adata` does not come from `read`.
    """
    record = adata.uns.get("cytoglot", {}).get("matrix")
    if record is None:
        raise InputError(
            "this AnnData was not read by cytoglot, so the state of X is unknown; pass cytoglot.read(adata)"
        )
    return MatrixState(
        kind=record["state"],
        log_base=record.get("log_base"),
        target_sum=record.get("target_sum"),
        n_cells_checked=adata.n_obs,
    )
