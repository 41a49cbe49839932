"""Opening files of cells: h5ad, zarr, 10x HDF5 and 10x matrix folders, as tables and matrices that are not read yet.

What a file is is told by its content, not by its name. Anything that cannot be read ends in one `InputError`.
"""

from __future__ import annotations

import copy
import errno
import importlib
import importlib.util
import logging
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import anndata
import h5py
import pandas as pd
import zarr
from anndata import AnnData

from cytoglot.data.plain_matrix import check_indices, is_sparse, plain_matrix
from cytoglot.data.readers.cell_rows import cell_rows, in_memory
from cytoglot.data.readers.matrix_choice import Candidate, candidates_of
from cytoglot.data.readers.obs_table import GroupObs, MemoryObs, ObsTable, is_by_columns
from cytoglot.data.readers.tenx import find_mtx_files, is_tenx_h5, open_mtx, open_tenx_h5
from cytoglot.errors import InputError, nearest_names

logger = logging.getLogger(__name__)

_GROUPS = h5py.Group | zarr.Group

READABLE = "an AnnData file (.h5ad), a zarr folder, a 10x HDF5 file or a 10x folder with matrix.mtx"

#: first bytes → what such a file is and what to do.
_SIGNATURES = {
    b"\x1f\x8b": "a gzip file; decompress it first",
    b"PK\x03\x04": "a zip file; unpack it first",
    b"%%MatrixMarket": "a MatrixMarket file; pass the folder that holds it with its barcodes and features",
    b"<": "a web page or XML, as a failed download leaves it; download the file again",
    b"version https://git-lfs": "a pointer of Git LFS; fetch the file itself with `git lfs pull`",
    b"RDX": "an R file; convert it to h5ad",
}


@dataclass(frozen=True, kw_only=True)
class CellStore:
    """An open file of cells; matrices and the table of cells are read when their rows are asked for."""

    path: Path
    cells: ObsTable
    candidates: list[Candidate]
    close: Callable[[], None]
    read_obsm: Callable[[], dict[str, Any]] = field(default=lambda: {})
    read_uns: Callable[[], dict[str, Any]] = field(default=lambda: {})
    read_whole: Callable[[], AnnData] | None = None
    """reads all that is stored, so that it can be written back; None for what is no AnnData"""

    @property
    def is_anndata(self) -> bool:
        """Whether it is stored as an AnnData."""
        return self.read_whole is not None

    @cached_property
    def obs(self) -> pd.DataFrame:
        """The whole table of cells, read when it is first looked at and kept."""
        with readable(self.path):
            return self.cells.frame()

    def __enter__(self) -> CellStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def store_for(source: AnnData | str | Path, *, spill_folder: Path | None = None) -> CellStore:
    """Return an AnnData as a store, or open a file; the caller closes it.

    Raises
    ------
    InputError
        As for `open_store`, or it is neither.
    """
    if isinstance(source, AnnData):
        return store_of(source)
    if isinstance(source, str | Path):
        return open_store(source, spill_folder=spill_folder)
    modalities = ", ".join(repr(str(name)) for name in getattr(source, "mod", ()))
    advice = f"pass one of its modalities, source[name], here {modalities}" if modalities else f"pass {READABLE}"
    raise InputError(f"expected an AnnData or a path, found {type(source).__name__}; {advice}")


def open_store(path: str | Path, *, spill_folder: Path | None = None) -> CellStore:
    """Open a file of cells; the caller closes it.

    `spill_folder` is where files that are not stored by cells are sorted (default: the system's temporary folder).

    Raises
    ------
    InputError
        The file is missing, damaged, empty or of no known kind.
    """
    path = Path(path)
    with readable(path):
        if not path.exists():
            near = (
                nearest_names(path.name, sorted(p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
            )
            raise InputError(f"there is no file {path}" + (f"; {near}" if near.startswith("did") else ""))
        if path.is_dir():
            return _open_folder(path, spill_folder)
        if not h5py.is_hdf5(path):
            with path.open("rb") as file:
                start = file.read(64)
            known = next(
                (words for signature, words in _SIGNATURES.items() if start.lstrip().startswith(signature)), ""
            )
            found = f"it is {known}" if known else f"it starts with {start[:16]!r}" if start else "it is empty"
            raise InputError(f"{path} is not an HDF5 file: {found}; expected {READABLE}")
        handle = h5py.File(path, "r")
        try:
            return _open_hdf5(path, handle)
        except BaseException:
            handle.close()
            raise


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what the file libraries raise about a damaged file into an `InputError` that names the file."""
    try:
        yield
    except Exception as error:
        if not _is_of_a_file(error) or isinstance(error, InputError | PermissionError | BlockingIOError):
            raise
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        if "codec" in str(error).lower():  # zarr's and numcodecs' own classes differ by version
            raise InputError(
                f"{path} is compressed with a codec that is not installed ({error}); install the package that has it, "
                "or write the file again with another compression"
            ) from error
        raise InputError(
            f"{path} cannot be read, it is truncated or damaged ({type(error).__name__}: {error}); "
            "write or download it again"
        ) from error


def _is_of_a_file(error: Exception) -> bool:
    """Whether a file library raises this about what it cannot read; anndata's own class is not public."""
    known = OSError | KeyError | ValueError | EOFError | zlib.error | RuntimeError
    return isinstance(error, known) or type(error).__name__ == "IORegistryError"


def _open_folder(path: Path, spill_folder: Path | None) -> CellStore:
    if any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs", ".zmetadata")):
        group = zarr.open_group(str(path), mode="r")
        _check_content(path, group, "zarr")
        return _store_of_group(path, group, close=lambda: None)
    mtx = find_mtx_files(path)
    if mtx is None:
        listed = sorted(p.name for p in path.iterdir())
        names = ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")
        raise InputError(f"the folder {path} is neither zarr nor 10x; it holds: {names or 'nothing'}; pass {READABLE}")
    candidate, obs = open_mtx(mtx, spill_folder=spill_folder)
    return CellStore(path=path, cells=MemoryObs(obs), candidates=[candidate], close=candidate.matrix.close)


def _open_hdf5(path: Path, handle: Any) -> CellStore:
    _check_filters(path, handle)
    if is_tenx_h5(handle):
        candidate, obs = open_tenx_h5(handle)
        return CellStore(path=path, cells=MemoryObs(obs), candidates=[candidate], close=handle.close)
    if "row_attrs" in handle and "col_attrs" in handle:
        raise InputError(f"{path} is a loom file; expected {READABLE}: convert it with anndata.io.read_loom")
    _check_content(path, handle, "HDF5")
    if "encoding-type" not in handle["obs"].attrs:
        handle.close()
        # An h5ad from before anndata 0.7 is read whole: its tables are laid out in several older ways.
        with warnings.catch_warnings():
            # anndata says for each element that it is old; one line of ours says it for the file
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=anndata.OldFormatWarning)
            warnings.filterwarnings("ignore", message="(Observation|Variable) names are not unique")
            adata = anndata.read_h5ad(path)
        logger.info("%s was written by anndata before 0.7 and is read into memory whole", path)
        return store_of(adata, path)
    return _store_of_group(path, handle, close=handle.close)


def _check_content(path: Path, group: Any, kind: str) -> None:
    if "mod" in group:
        names = ", ".join(repr(str(name)) for name in group["mod"]) or "none"
        raise InputError(
            f"{path} is a MuData file, which holds several tables of cells, here the modalities {names}; write the one "
            "with gene expression to a file of its own, such as "
            f"mudata.read({path.name!r})['rna'].write_h5ad('rna.h5ad')"
        )
    if "obs" not in group or "var" not in group:
        listed = ", ".join(sorted(group)) or "nothing"
        raise InputError(f"{path} is {kind} but holds no cells: found {listed}, expected {READABLE}")


def _check_filters(path: Path, handle: Any) -> None:
    """Refuse arrays packed by a filter that HDF5 has not, which it would only call unreadable."""
    missing: dict[int, str] = {}

    def look(_: str, element: Any) -> None:
        if isinstance(element, h5py.Dataset):
            properties = element.id.get_create_plist()
            for number in range(properties.get_nfilters()):
                code, _flags, _values, name = properties.get_filter(number)
                if not h5py.h5z.filter_avail(code):
                    missing[code] = name.decode(errors="replace")

    for name in set(handle) - {"obsm", "varm", "obsp", "varp", "uns"}:  # what is not needed is left out when it fails
        look(name, handle[name])
        if isinstance(handle[name], h5py.Group):
            handle[name].visititems(look)
    if missing and importlib.util.find_spec("hdf5plugin") is not None:
        importlib.import_module("hdf5plugin")  # which makes its filters known to HDF5
        missing = {code: name for code, name in missing.items() if not h5py.h5z.filter_avail(code)}
    if missing:
        listed = ", ".join(f"{name or 'without a name'} (filter {code})" for code, name in missing.items())
        raise InputError(
            f"{path} is compressed with {listed}, which this installation of HDF5 lacks; install it with "
            "pip install hdf5plugin, or write the file again with gzip"
        )


def _store_of_group(path: Path, group: Any, *, close: Callable[[], None]) -> CellStore:
    """An AnnData in a group of HDF5 or zarr, format 0.7 and later."""
    var, obs = anndata.io.read_elem(group["var"]), group["obs"]
    cells: ObsTable = GroupObs(obs) if is_by_columns(obs) else MemoryObs(anndata.io.read_elem(obs))
    layers, record = group.get("layers", {}), group.get("uns/cytoglot")
    is_read = isinstance(record, _GROUPS) and "matrix" in record
    found = [Candidate(source=f"layers[{n!r}]", matrix=_lazy(layers[n]), var=var, is_read=is_read) for n in layers]
    if "raw" in group and isinstance(group["raw"], _GROUPS) and "X" in group["raw"]:
        raw = group["raw"]
        found.append(Candidate(source="raw.X", matrix=_lazy(raw["X"]), var=anndata.io.read_elem(raw["var"])))
    if "X" in group and group["X"].attrs.get("encoding-type") != "null":
        found.append(Candidate(source="X", matrix=_lazy(group["X"]), var=var, is_read=is_read))
    for candidate in found:
        expected, shape = (cells.n_cells, len(candidate.var)), tuple(int(n) for n in candidate.matrix.shape)
        if shape != expected:
            raise InputError(
                f"{path} does not fit together: expected {candidate.source} of {expected[0]} cells × {expected[1]} "
                f"genes, as obs and var have, found {shape}; write or download it again"
            )
    return CellStore(
        path=path,
        cells=cells,
        candidates=found,
        close=close,
        read_obsm=lambda: _elements(group, "obsm"),
        read_uns=lambda: _elements(group, "uns"),
        read_whole=lambda: _whole(group, cells.frame(), found),
    )


def _whole(group: Any, obs: pd.DataFrame, candidates: list[Candidate]) -> AnnData:
    """All that an AnnData on disk holds, read element by element.

    So a root attribute in other words does not matter, and an entry that anndata cannot read is all that is lost.
    """
    parts = {name: _elements(group, name) for name in ("obsm", "varm", "obsp", "varp", "uns")}
    layers = {c.option: _in_memory(c.matrix) for c in candidates if c.source.startswith("layers[")}
    with warnings.catch_warnings():  # about repeated gene names, which are resolved when the cells are read
        warnings.simplefilter("ignore")
        whole = AnnData(X=None, obs=obs, var=anndata.io.read_elem(group["var"]), layers=layers, **parts)
        for candidate in candidates:
            if candidate.source == "X":
                whole.X = _in_memory(candidate.matrix)
            elif candidate.source == "raw.X":
                varm = _elements(group["raw"], "varm")
                whole.raw = AnnData(X=_in_memory(candidate.matrix), obs=obs[[]], var=candidate.var, varm=varm)
    return whole


def _in_memory(matrix: Any) -> Any:
    """A matrix of a file as it is stored, or as CSR where anndata cannot read its type."""
    try:
        found = matrix.to_memory() if hasattr(matrix, "to_memory") else matrix[:]
    except (TypeError, ValueError):
        return cell_rows(matrix).rows(0, int(matrix.shape[0]))
    if is_sparse(found):
        found = plain_matrix(found)
        check_indices(found.indices, found.shape[1 if found.format == "csr" else 0])
    return found


def loaded(adata: AnnData) -> AnnData:
    """Return `adata` itself where it is in memory, else a copy that is: backed, or with matrices on disk.

    Dask arrays stay as they are. To read cells alone `open_cells` takes either kind and needs less memory.

    Raises
    ------
    InputError
        The file after it was closed, or cannot be read.
    """
    matrices = [candidate.matrix for candidate in candidates_of(adata)]
    if not adata.isbacked and all(in_memory(m) or type(m).__module__.startswith("dask") for m in matrices):
        return adata
    with readable(Path(adata.filename or "the AnnData")):
        return adata.to_memory()


def store_of(adata: AnnData, path: Path = Path("AnnData")) -> CellStore:
    """Return an AnnData as a store; matrices are not copied, `obsm` and `uns` are when they are read."""
    return CellStore(
        path=path,
        cells=MemoryObs(adata.obs),
        candidates=candidates_of(adata),
        close=lambda: None,
        read_obsm=lambda: {name: values.copy() for name, values in adata.obsm.items()},
        read_uns=lambda: copy.deepcopy(dict(adata.uns)),
        read_whole=lambda: adata,
    )


def _lazy(element: Any) -> Any:
    """The array on disk, or AnnData's handle of a sparse matrix on disk."""
    return anndata.io.sparse_dataset(element) if isinstance(element, _GROUPS) else element


def _elements(group: Any, name: str) -> dict[str, Any]:
    """Read the entries of `obsm` or `uns` one by one; what anndata cannot read is left out with a warning."""
    values = {}
    for key in group.get(name, ()):
        try:
            values[key] = anndata.io.read_elem(group[name][key])
        except Exception as error:
            if not (_is_of_a_file(error) or isinstance(error, TypeError | NotImplementedError)):
                raise
            logger.warning("%s[%r] cannot be read and is left out: %s", name, key, error)
    return values
