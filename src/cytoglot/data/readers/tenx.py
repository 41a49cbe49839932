"""The output of 10x Cell Ranger and of what follows its layout: HDF5 files and folders with matrix.mtx.

Read here without scanpy, which is no part of the core. Features other than genes are dropped by `resolve_genes`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
import pandas as pd

from cytoglot.data.readers.cell_rows import CsrRows, SpilledRows
from cytoglot.data.readers.matrix_choice import Candidate
from cytoglot.errors import InputError
from cytoglot.texts import open_text

logger = logging.getLogger(__name__)

_FEATURES = ("features.tsv.gz", "features.tsv", "genes.tsv.gz", "genes.tsv")
_BARCODES = ("barcodes.tsv.gz", "barcodes.tsv")
_MATRIX = ("matrix.mtx.gz", "matrix.mtx")
_LINES = 1 << 21
"""entries of a matrix.mtx that are parsed at once"""


def is_tenx_h5(handle: Any) -> bool:
    """Whether an HDF5 file is 10x output: version 3 (`matrix`) or version 2 (a group for each genome)."""
    return bool(_genomes(handle)) or ("matrix" in handle and "features" in handle["matrix"])


def open_tenx_h5(handle: Any) -> tuple[Candidate, pd.DataFrame]:
    """Return the matrix, with genes as symbols, and the cells of a 10x HDF5 file.

    Its CSC of genes × cells is read by cells as it lies.

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
        genomes = _genomes(handle)
        if len(genomes) > 1:
            raise InputError(
                f"expected one genome, found {', '.join(genomes)}, each with cells of its own; "
                "write the one you want to h5ad, for example with scanpy.read_10x_h5(file, genome=...)"
            )
        group = handle[genomes[0]]
        columns, symbols = {"gene_ids": _strings(group["genes"])}, _strings(group["gene_names"])
    n_genes, n_cells = (int(n) for n in group["shape"][:])
    barcodes = _strings(group["barcodes"])
    _check_lengths(group.file.filename, n_cells, n_genes, len(barcodes), len(symbols))
    rows = CsrRows(data=group["data"], indices=group["indices"], indptr=group["indptr"], shape=(n_cells, n_genes))
    candidate = Candidate(source="X", matrix=rows, var=pd.DataFrame(columns, index=symbols))
    return candidate, pd.DataFrame(index=barcodes)


def find_mtx_files(folder: Path) -> tuple[Path, Path, Path] | None:
    """Return the matrix, the features and the barcodes of a 10x folder, None where there is none.

    A prefix as in GEO is allowed.

    Raises
    ------
    InputError
        Several matrices are there, or the features or barcodes that belong to the one are missing.
    """
    found = sorted(p for p in folder.iterdir() if p.name.endswith(_MATRIX))
    if not found:
        return None
    prefixes = {path.name.removesuffix(".gz").removesuffix("matrix.mtx") for path in found}
    if len(prefixes) > 1:
        raise InputError(
            f"expected one matrix in {folder}, found {', '.join(p.name for p in found)}; "
            "put each with its barcodes and features into a folder of its own"
        )
    prefix = prefixes.pop()
    features, barcodes = (
        next((path for name in names if (path := folder / (prefix + name)).exists()), None)
        for names in (_FEATURES, _BARCODES)
    )
    if features is None or barcodes is None:
        missing = _FEATURES if features is None else _BARCODES
        raise InputError(f"{folder} has {found[0].name} but none of {', '.join(prefix + name for name in missing)}")
    return found[0], features, barcodes


def open_mtx(files: tuple[Path, Path, Path], *, spill_folder: Path | None = None) -> tuple[Candidate, pd.DataFrame]:
    """Return the matrix, with genes as symbols, and the cells of a 10x folder.

    One that is laid out as cells × genes (STARsolo, kallisto) is known by its shape.

    The text is parsed in blocks of two million entries, which are sorted by cell into temporary files (see
    `SpilledRows`), so that memory does not grow with the file.

    Raises
    ------
    InputError
        The header is no MatrixMarket coordinate header, entries are missing or lie outside, or the numbers of
        features, barcodes and the matrix's shape do not agree.
    """
    matrix, features, barcodes = files
    fields = _fields(features)  # id, symbol and feature type; a file of one column gives names alone
    width = min((len(f) for f in fields), default=0)
    columns = {name: [f[i] for f in fields] for i, name in ((0, "gene_ids"), (2, "feature_types")) if i < width > 1}
    var = pd.DataFrame(columns, index=[f[1 if width > 1 else 0] for f in fields])
    obs = pd.DataFrame(index=[f[0] for f in _fields(barcodes)])
    with open_text(matrix) as handle:
        (n_rows, n_columns, n_values), dtype, is_pattern = _mtx_header(handle, matrix)
        by_cell = (n_rows, n_columns) == (len(obs), len(var)) and n_rows != n_columns
        if n_rows == n_columns:
            logger.warning(
                "%s is square, so its layout cannot be told: read as genes × cells, as Cell Ranger writes it; if it is "
                "cells × genes (scipy's mmwrite of adata.X), transpose it or write h5ad",
                matrix,
            )
        n_cells, n_genes = (n_rows, n_columns) if by_cell else (n_columns, n_rows)
        _check_lengths(str(matrix), n_cells, n_genes, len(obs), len(var))
        rows = SpilledRows(shape=(n_cells, n_genes), dtype=dtype, n_values=n_values, folder=spill_folder)
        try:
            n_read = 0
            for first, second, values in _mtx_blocks(handle, dtype, is_pattern=is_pattern):
                cells, genes = (first, second) if by_cell else (second, first)
                for what, positions, n in (("cells", cells, n_cells), ("genes", genes, n_genes)):
                    if positions.size and not (positions.min() >= 0 and positions.max() < n):
                        raise InputError(
                            f"{matrix} is damaged: expected {what} from 1 to {n}, found {positions.min() + 1} to "
                            f"{positions.max() + 1}; download it again"
                        )
                rows.add(cells, genes, values)
                n_read += values.size
            if n_read != n_values:
                raise InputError(
                    f"{matrix} is truncated: expected {n_values} entries, found {n_read}; download it again"
                )
        except BaseException:
            rows.close()
            raise
    return Candidate(source="X", matrix=rows, var=var), obs


def _genomes(handle: Any) -> list[str]:
    needed = {"barcodes", "data", "gene_names", "genes", "indices", "indptr", "shape"}
    return [name for name in handle if isinstance(handle[name], h5py.Group) and needed <= set(handle[name])]


def _strings(dataset: Any) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in dataset[:]]


def _check_lengths(path: str, n_cells: int, n_genes: int, n_barcodes: int, n_features: int) -> None:
    if (n_cells, n_genes) != (n_barcodes, n_features):
        raise InputError(
            f"{path} does not fit its labels: the matrix has {n_cells} cells and {n_genes} genes, found {n_barcodes} "
            f"barcodes and {n_features} features; take the files of one run"
        )


def _fields(path: Path) -> list[list[str]]:
    with open_text(path) as handle:
        return [line.rstrip("\r\n").split("\t") for line in handle if line.strip()]


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
