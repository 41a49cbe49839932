"""The cells of a benchmark: what methods may see of them, and the labels, which are kept apart.

Axes: n cells, g genes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from cytoglot.benchmark.embedders.base import BATCH
from cytoglot.benchmark.recipe import DataSettings, MethodSettings
from cytoglot.data.datasets import resolve_source
from cytoglot.data.normalize import matrix_state
from cytoglot.data.plain_matrix import plain_matrix
from cytoglot.data.readers.formats import store_for
from cytoglot.data.readers.read import read
from cytoglot.data.schema import labels as read_labels
from cytoglot.errors import InputError, nearest_names
from cytoglot.manifest import fingerprint_file

logger = logging.getLogger(__name__)

Labels = NDArray[np.object_]


@dataclass(frozen=True, kw_only=True, eq=False)
class BenchmarkCells:
    """Labelled cells of one data set."""

    name: str
    adata: AnnData
    """X, genes, obsm and the names of cells; of obs the batch alone, so that no method can read a label"""
    labels: Labels
    groups: Labels | None
    """donor or batch of each cell"""
    unit: str
    """what the groups are called"""
    batches: Labels | None
    source: Path
    warnings: tuple[str, ...] = ()

    def obs(self) -> pd.DataFrame:
        """Return label and group for the splitter, which methods never see."""
        table = pd.DataFrame({"label": self.labels}, index=self.adata.obs_names)
        return table if self.groups is None else table.assign(group=self.groups)

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> AnnData:
        """Return a copy of some cells, without labels."""
        return self.adata[rows].copy()


def find_source(source: str) -> Path:
    """Return the file that a recipe names: a path, a file of the folder CYTOGLOT_DATA, or a data set by its name.

    Raises
    ------
    InputError
        There is none of these.
    """
    folder = Path(os.environ.get("CYTOGLOT_DATA", "../shared/data"))
    for path in (Path(source), folder / source):
        if path.exists():
            return path
    try:
        found = resolve_source(source)
    except InputError as error:
        raise InputError(f"{error}, nor is it in {folder} (CYTOGLOT_DATA names the folder of data)") from error
    if isinstance(found, AnnData):
        raise InputError(f"the data set {source} has labels from another file; write it to an h5ad and pass that")
    return found


@lru_cache(maxsize=1)  # runs are in the order of data sets, so that each is read once
def load_cells(settings_json: str, columns_kept: tuple[str, ...] = ()) -> BenchmarkCells:
    """Read the cells of `DataSettings`, given as JSON (which can be remembered by).

    Parameters
    ----------
    settings_json
        The settings.
    columns_kept
        Columns of obs that a method may read besides the batch, such as labels that another tool predicted.

    Raises
    ------
    InputError
        The file, a column or a second label is missing.
    """
    settings = DataSettings.model_validate_json(settings_json)
    path = find_source(settings.source)
    adata = read(path)
    warnings = []
    keep_n = used_cells(settings, adata.obs)
    if not keep_n.all():
        logger.info(
            "%s: %d of %d cells are left out (no label, or of leave_out)", settings.name, (~keep_n).sum(), len(keep_n)
        )
    adata = adata[keep_n]
    labels = read_labels(adata.obs, settings.label).astype(str).to_numpy(dtype=object)
    if settings.max_cells is not None and adata.n_obs > settings.max_cells:
        shuffled = np.random.default_rng(0).permutation(adata.n_obs)
        place = pd.Series(labels[shuffled]).groupby(labels[shuffled]).cumcount().to_numpy()
        share = place / pd.Series(labels[shuffled]).map(pd.Series(labels).value_counts()).to_numpy()
        rows = np.sort(shuffled[np.argsort(share, kind="stable")[: settings.max_cells]])
        adata, labels = adata[rows], labels[rows]
    columns: dict[str, str | None] = {"groups": settings.groups, "batch": settings.batch or settings.groups}
    found: dict[str, Labels | None] = dict.fromkeys(columns)
    for what, column in columns.items():
        if column is None:
            continue
        values_n = adata.obs[column].astype(str).to_numpy(dtype=object)
        found[what] = values_n
        # As many pairs as values and labels: each value goes with one label alone.
        if len(set(zip(values_n, labels, strict=True))) == len(set(values_n)) == len(set(labels)):
            warnings.append(
                f"{settings.name}: the column {column!r} says the same as the labels, so what differs between groups "
                "and what differs between labels cannot be told apart"
            )
    for warning in dict.fromkeys(warnings):
        logger.warning("%s", warning)
    obs = pd.DataFrame(index=adata.obs_names.astype(str))
    if found["batch"] is not None:
        obs[BATCH] = found["batch"]
    for kept in columns_kept:
        if kept in (settings.label, settings.groups):
            raise InputError(f"the column {kept!r} holds the truth of {settings.name}, so it is no prediction")
        if kept in adata.obs:
            obs[kept] = adata.obs[kept].to_numpy()
    plain = AnnData(csr_matrix(plain_matrix(adata.X)), obs=obs, var=pd.DataFrame(index=adata.var_names.astype(str)))
    for key, value in adata.obsm.items():
        plain.obsm[key] = np.asarray(value)
    return BenchmarkCells(
        name=settings.name,
        adata=plain,
        labels=labels,
        groups=found["groups"],
        unit=settings.groups or "cell",
        batches=found["batch"],
        source=path,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def used_cells(settings: DataSettings, obs: pd.DataFrame) -> NDArray[np.bool_]:
    """Return which cells have a label and are not left out, after a look at every column that the settings name.

    Raises
    ------
    InputError
        A column is missing, or fewer than two labels remain.
    """
    series = read_labels(obs, settings.label)
    for what, column in (
        ("groups", settings.groups),
        ("batch", settings.batch),
        *(("leave_out", c) for c in settings.leave_out),
    ):
        if column is not None and column not in obs:
            raise InputError(
                f"{settings.name}: there is no column {column!r} of obs, which {what} names; "
                f"{nearest_names(column, [str(name) for name in obs.columns])}"
            )
    keep_n = series.notna().to_numpy()
    for column, values in settings.leave_out.items():
        keep_n &= ~obs[column].astype(str).isin(values).to_numpy()
    n_labels = series[keep_n].nunique()
    if n_labels < 2:
        raise InputError(f"{settings.name}: column {settings.label!r} has {n_labels} labels; at least 2 are needed")
    return np.asarray(keep_n)


def check_source(settings: DataSettings, methods: Sequence[MethodSettings]) -> None:
    """Look at the table of cells of a file alone, so that a mistyped column is refused before anything is run.

    Raises
    ------
    InputError
        As `used_cells`; also for a column of predictions or a matrix of obsm that a method names and the file lacks.
    """
    path = find_source(settings.source)
    with store_for(path) as store:
        obs = store.obs
    used_cells(settings, obs)
    obsm: list[str] = []
    if path.suffix == ".h5ad":
        with h5py.File(path) as file:
            obsm = sorted(file.get("obsm", ()))
    for method in methods:
        column, key = method.options.get("column"), method.embedder_options.get("key")
        if method.classifier == "given" and column not in obs:
            raise InputError(
                f"{settings.name}: there is no column {column!r} of predicted labels; "
                f"{nearest_names(str(column), [str(name) for name in obs.columns])}"
            )
        if method.embedder == "obsm" and key not in obsm and path.suffix == ".h5ad":
            raise InputError(f"{settings.name}: there is no obsm[{key!r}]; it has {', '.join(obsm) or 'none'}")


def data_fingerprint(settings: DataSettings) -> str:
    """Return the fingerprint of the file that the settings name."""
    return fingerprint_file(find_source(settings.source))


def halves_of_reads(adata: AnnData, *, seed: int) -> tuple[AnnData, AnnData]:
    """Return the same cells twice, each from a random half of their reads: two measurements of one cell.

    Expected counts that are not whole are rounded first.

    Raises
    ------
    InputError
        The matrix holds no counts, so that there are no reads to share out.
    """
    check_counts(adata, what="halves of the reads")
    matrix_ng = csr_matrix(adata.X, copy=True)
    counts = np.rint(matrix_ng.data).astype(np.int64)
    first = np.random.default_rng([seed, 7]).binomial(counts, 0.5)
    halves = []
    for values in (first, counts - first):
        half = matrix_ng.copy()
        half.data = values.astype(np.float32)
        half.eliminate_zeros()
        halves.append(AnnData(half, obs=adata.obs.copy(), var=adata.var.copy()))
    return halves[0], halves[1]


def check_counts(adata: AnnData, *, what: str) -> None:
    """Refuse cells that hold no counts: whole numbers, or expected counts, whose sums differ from cell to cell.

    Raises
    ------
    InputError
        The values are logs, signed, or scaled to one sum.
    """
    state = matrix_state(adata.X)
    if state.kind not in ("counts", "nonnegative") or state.target_sum is not None:
        raise InputError(f"{what} need counts, found {state.description}; pass a file with counts")


def fewer_reads(adata: AnnData, share: float, *, seed: int) -> AnnData:
    """Return the cells with each read kept with probability `share`; counts that are not whole are rounded first."""
    thinned: Any = csr_matrix(adata.X, copy=True)
    counts = np.rint(thinned.data).astype(np.int64)
    thinned.data = np.random.default_rng([seed, 8]).binomial(counts, share).astype(np.float32)
    thinned.eliminate_zeros()
    return AnnData(thinned, obs=adata.obs.copy(), var=adata.var.copy())
