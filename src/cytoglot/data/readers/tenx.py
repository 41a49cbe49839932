"""The output of 10x Cell Ranger and of what follows its layout: HDF5 files and folders with matrix.mtx.

Read here without scanpy, which is no part of the core. Features other than genes are dropped by `resolve_genes`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
import pandas as pd

from cytoglot.data.readers.cell_rows import CellRows, DiskCsr, SpilledRows
from cytoglot.errors import InputError
from cytoglot.texts import open_text

logger = logging.getLogger(__name__)

_FEATURES = ("features.tsv.gz", "features.tsv", "genes.tsv.gz", "genes.tsv")
_BARCODES = ("barcodes.tsv.gz", "barcodes.tsv")
_MATRIX = ("matrix.mtx.gz", "matrix.mtx")
_LINES = 1 << 21
"""entries of a matrix.mtx that are parsed at once"""


@dataclass(frozen=True, kw_only=True)
class TenxCells:
    """Cells, genes and counts of a 10x output."""

    obs: pd.DataFrame
    var: pd.DataFrame
    """index: symbols; columns: gene_ids and, where given, feature_types and genome"""
    rows: CellRows


@dataclass(frozen=True, kw_only=True)
class MtxFiles:
    """The three files of a 10x folder."""

    matrix: Path
    features: Path
    barcodes: Path


def is_tenx_h5(handle: Any) -> bool:
    """Whether an HDF5 file is 10x output: version 3 (`matrix`) or version 2 (a group for each genome)."""
    return bool(_genomes(handle)) or ("matrix" in handle and "features" in handle["matrix"])


def open_tenx_h5(handle: Any) -> TenxCells:
    """Return the cells of a 10x HDF5 file; its CSC of genes × cells is read by cells as it lies.

    Raises
    ------
    InputError
        A version 2 file holds several genomes, each with cells of its own.
    """
    if "matrix" in handle:
        group, features = handle["matrix"], handle["matrix"]["features"]
        names = {"gene_ids": "id", "feature_types": "feature_type", "genome": "genome"}
        columns = {column: _strings(features[name]) for column, name in names.items() if name in features}
        symbols = _strings(features["name"])
    else:
        group = handle[_one_genome(_genomes(handle))]
        columns, symbols = {"gene_ids": _strings(group["genes"])}, _strings(group["gene_names"])
    n_genes, n_cells = (int(n) for n in group["shape"][:])
    barcodes = _strings(group["barcodes"])
    _check_lengths(group.file.filename, n_cells, n_genes, len(barcodes), len(symbols))
    rows = DiskCsr(data=group["data"], indices=group["indices"], indptr=group["indptr"], shape=(n_cells, n_genes))
    return TenxCells(obs=pd.DataFrame(index=barcodes), var=pd.DataFrame(columns, index=symbols), rows=rows)


def find_mtx_files(folder: Path) -> MtxFiles | None:
    """Return the three files of a 10x folder, None where there is no matrix.mtx; a prefix as in GEO is allowed.

    Raises
    ------
    InputError
        Several matrices are there, or the features or barcodes that belong to the one are missing.
    """
    found = sorted(p for p in folder.iterdir() if p.name.endswith(_MATRIX))
    if not found:
        return None
    prefixes = {_without(p.name, _MATRIX) for p in found}
    if len(prefixes) > 1:
        raise InputError(
            f"expected one matrix in {folder}, found {', '.join(p.name for p in found)}; "
            "put each with its barcodes and features into a folder of its own"
        )
    prefix = prefixes.pop()
    features, barcodes = _first(folder, prefix, _FEATURES), _first(folder, prefix, _BARCODES)
    if features is None or barcodes is None:
        missing = _FEATURES if features is None else _BARCODES
        raise InputError(f"{folder} has {found[0].name} but none of {', '.join(prefix + name for name in missing)}")
    return MtxFiles(matrix=found[0], features=features, barcodes=barcodes)


def open_mtx(files: MtxFiles, *, spill_folder: Path | None = None) -> TenxCells:
    """Return the cells of a 10x folder, or of one laid out as cells × genes (STARsolo, kallisto).

    The text is parsed in blocks of two million entries, which are sorted by cell into temporary files (see
    `SpilledRows`), so that memory does not grow with the file.

    Raises
    ------
    InputError
        The header is no MatrixMarket coordinate header, entries are missing or lie outside, or the numbers of
        features, barcodes and the matrix's shape do not agree.
    """
    var, obs = _read_features(files.features), pd.DataFrame(index=_column(files.barcodes, 0))
    with open_text(files.matrix) as handle:
        (n_rows, n_columns, n_values), dtype, is_pattern = _mtx_header(handle, files.matrix)
        by_cell = (n_rows, n_columns) == (len(obs), len(var)) and n_rows != n_columns
        if n_rows == n_columns:
            logger.warning(
                "%s is square, so its layout cannot be told: read as genes × cells, as Cell Ranger writes it; if it is "
                "cells × genes (scipy's mmwrite of adata.X), transpose it or write h5ad",
                files.matrix,
            )
        n_cells, n_genes = (n_rows, n_columns) if by_cell else (n_columns, n_rows)
        _check_lengths(str(files.matrix), n_cells, n_genes, len(obs), len(var))
        rows = SpilledRows(shape=(n_cells, n_genes), dtype=dtype, n_values=n_values, folder=spill_folder)
        try:
            n_read = 0
            for first, second, values in _mtx_blocks(handle, dtype, is_pattern=is_pattern):
                cells, genes = (first, second) if by_cell else (second, first)
                _check_entries(files.matrix, cells, genes, rows.shape)
                rows.add(cells, genes, values)
                n_read += values.size
            if n_read != n_values:
                raise InputError(
                    f"{files.matrix} is truncated: expected {n_values} entries, found {n_read}; download it again"
                )
        except BaseException:
            rows.close()
            raise
    return TenxCells(obs=obs, var=var, rows=rows)


def _genomes(handle: Any) -> list[str]:
    needed = {"barcodes", "data", "gene_names", "genes", "indices", "indptr", "shape"}
    return [name for name in handle if isinstance(handle[name], h5py.Group) and needed <= set(handle[name])]


def _one_genome(genomes: list[str]) -> str:
    if len(genomes) > 1:
        raise InputError(
            f"expected one genome, found {', '.join(genomes)}, each with cells of its own; "
            "write the one you want to h5ad, for example with scanpy.read_10x_h5(file, genome=...)"
        )
    return genomes[0]


def _strings(dataset: Any) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in dataset[:]]


def _check_lengths(path: str, n_cells: int, n_genes: int, n_barcodes: int, n_features: int) -> None:
    if (n_cells, n_genes) != (n_barcodes, n_features):
        raise InputError(
            f"{path} does not fit its labels: the matrix has {n_cells} cells and {n_genes} genes, found {n_barcodes} "
            f"barcodes and {n_features} features; take the files of one run"
        )


def _without(name: str, endings: tuple[str, ...]) -> str:
    return next(name[: -len(ending)] for ending in endings if name.endswith(ending))


def _first(folder: Path, prefix: str, names: tuple[str, ...]) -> Path | None:
    return next((folder / (prefix + name) for name in names if (folder / (prefix + name)).exists()), None)


def _column(path: Path, position: int) -> list[str]:
    with open_text(path) as handle:
        return [line.rstrip("\r\n").split("\t")[position] for line in handle if line.strip()]


def _read_features(path: Path) -> pd.DataFrame:
    """Read id, symbol and feature type; a file of one column gives names alone."""
    with open_text(path) as handle:
        fields = [line.rstrip("\r\n").split("\t") for line in handle if line.strip()]
    width = min((len(f) for f in fields), default=0)
    if width < 2:
        return pd.DataFrame(index=[f[0] for f in fields])
    columns = {"gene_ids": [f[0] for f in fields]}
    if width >= 3:
        columns["feature_types"] = [f[2] for f in fields]
    return pd.DataFrame(columns, index=[f[1] for f in fields])


def _mtx_header(handle: IO[str], path: Path) -> tuple[tuple[int, int, int], np.dtype, bool]:
    """Shape and number of entries, their type, and whether they are given without values."""
    banner = handle.readline().lower().split()
    if banner[:3] != ["%%matrixmarket", "matrix", "coordinate"] or banner[4:] != ["general"]:
        raise InputError(
            f"expected '%%MatrixMarket matrix coordinate … general' as first line of {path}, found {' '.join(banner)!r}"
        )
    line = handle.readline()
    while line.startswith("%") or (line and not line.strip()):
        line = handle.readline()
    numbers = line.split()
    if len(numbers) != 3 or not all(n.isdigit() for n in numbers):
        raise InputError(f"expected rows, columns and entries in the header of {path}, found {line.strip()!r}")
    n_rows, n_columns, n_values = (int(n) for n in numbers)
    dtype = np.dtype(np.float32 if banner[3] == "real" else np.int32)
    return (n_rows, n_columns, n_values), dtype, banner[3] == "pattern"


def _mtx_blocks(
    handle: IO[str], dtype: np.dtype, *, is_pattern: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """First index, second index (from 0) and value of the entries, in blocks."""
    names = ["first", "second"] if is_pattern else ["first", "second", "value"]
    types = {"first": np.int64, "second": np.int64} | ({} if is_pattern else {"value": dtype})
    try:
        with pd.read_csv(handle, sep=r"\s+", header=None, names=names, dtype=types, chunksize=_LINES) as blocks:
            for block in blocks:
                values = np.ones(len(block), dtype=dtype) if is_pattern else block["value"].to_numpy()
                yield block["first"].to_numpy() - 1, block["second"].to_numpy() - 1, values
    except pd.errors.EmptyDataError:
        return
    except ValueError as error:
        raise InputError(f"an entry of the matrix is damaged or cut off ({error}); download the file again") from error


def _check_entries(path: Path, cells: np.ndarray, genes: np.ndarray, shape: tuple[int, int]) -> None:
    for what, positions, n in (("cells", cells, shape[0]), ("genes", genes, shape[1])):
        if positions.size and not (positions.min() >= 0 and positions.max() < n):
            raise InputError(
                f"{path} is damaged: expected {what} from 1 to {n}, found {positions.min() + 1} to "
                f"{positions.max() + 1}; download it again"
            )
