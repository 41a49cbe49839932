"""Data sets by name: one that ships with scanpy, public downloads, and every h5ad file of `CYTOGLOT_DATA`."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cytoglot import extras
from cytoglot.data.download import cache_folder, fetch, unpack
from cytoglot.data.readers.read import read
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.registry import Registry

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A named data set: what it is, whence it comes, and how its file is found."""

    name: str
    description: str
    licence: str
    """as stated at the source"""
    source: str
    path: Callable[[], Path]
    """returns the file or folder, after downloading it where needed"""
    labels_from: str | None = None
    """column that `load_dataset` copies to `obs["cell_type"]`"""


datasets: Registry[Dataset] = Registry("data set")


def load_dataset(name: str) -> AnnData:
    """Return a data set of the registry, or of the folder `CYTOGLOT_DATA`, by name.

    An h5ad file comes as it is stored (for its matrix and genes see `read`); a 10x file through `read`. The bundled
    `pbmc68k_reduced` gets `obs["cell_type"]`, a copy of its `bulk_labels`; its X is scaled and its `raw` holds log
    values.

    Parameters
    ----------
    name
        Name of a registered data set, such as "pbmc68k_reduced", or of an h5ad file in the folder `CYTOGLOT_DATA`.

    Raises
    ------
    UnknownNameError
        There is no such data set; the message lists the nearest names.
    MissingExtraError
        A bundled data set needs scanpy, which is not installed.
    InputError
        A download failed or is damaged.
    """
    entry = find_dataset(name)
    path = entry.path()
    if path.suffix == ".h5ad":
        import anndata

        with warnings.catch_warnings():
            # the file that scanpy ships was written by an old anndata, which the reader mends by itself
            warnings.simplefilter("ignore", category=anndata.OldFormatWarning)
            warnings.filterwarnings("ignore", category=FutureWarning, message="Moving element")
            adata = anndata.read_h5ad(path)
    else:
        adata = read(path)
    if entry.labels_from is not None:
        adata.obs["cell_type"] = adata.obs[entry.labels_from]
    logger.info("%s: %d cells x %d genes from %s", name, adata.n_obs, adata.n_vars, path)
    return adata


def find_dataset(name: str) -> Dataset:
    """Return the entry of a data set, which says whence it comes and under which licence.

    Raises
    ------
    UnknownNameError
        There is no such data set; the message lists the nearest names.
    """
    known = known_datasets()
    if name not in known:
        raise UnknownNameError("data set", name, known)
    return known[name]


def known_datasets() -> dict[str, Dataset]:
    """Return every data set that can be named: those of the registry, then those of `CYTOGLOT_DATA`, sorted."""
    folder = data_folder()
    files = [] if folder is None else sorted(folder.glob("*.h5ad"))
    found = {name: datasets[name] for name in sorted(datasets)}
    for file in files:
        found.setdefault(
            file.stem,
            Dataset(
                name=file.stem,
                description=f"local file {file}",
                licence="see uns['provenance'] of the file",
                source=str(file),
                path=partial(Path, file),
            ),
        )
    return found


def resolve_source(source: str | Path) -> Path | AnnData:
    """Return what a command's SOURCE means: an existing file or folder, else the data set of that name.

    A path is returned as a path, so that it can be streamed; a data set whose labels need copying is loaded.

    Raises
    ------
    InputError
        There is no such file and no such data set.
    """
    path = Path(source)
    if path.exists():
        return path
    try:
        entry = find_dataset(str(source))
    except UnknownNameError as unknown:
        raise InputError(f"{source} is neither a file or folder nor the name of a data set ({unknown})") from unknown
    return entry.path() if entry.labels_from is None else load_dataset(entry.name)


def data_folder() -> Path | None:
    """Return the folder of local data sets: `CYTOGLOT_DATA`, else `../shared/data`; None where there is none."""
    folder = Path(os.environ.get("CYTOGLOT_DATA") or Path("..") / "shared" / "data")
    return folder if folder.is_dir() else None


def knowledge_table(name: str) -> Path | None:
    """Return a table of `CYTOGLOT_DATA/knowledge`, or None where it is absent."""
    folder = data_folder()
    path = None if folder is None else folder / "knowledge" / name
    return path if path is not None and path.is_file() else None


def _scanpy_file(name: str) -> Path:
    # looked up without importing scanpy, which takes seconds
    found = importlib.util.find_spec("scanpy")
    if found is None or found.origin is None:
        extras.require("scanpy", extra="report", purpose=f"the bundled data set {name!r}")
        raise InputError(f"the bundled data set {name!r} is not in this installation of scanpy; reinstall scanpy")
    return Path(found.origin).parent / "datasets" / name


def _register_download(
    name: str, *, url: str, checksum: str, description: str, licence: str, source: str, member: str | None = None
) -> None:
    """File a public download; `member` is the path to read inside of a tar archive."""

    def path() -> Path:
        file = fetch(url, checksum=checksum, target=cache_folder() / name / url.rsplit("/", 1)[-1])
        return file if member is None else unpack(file, cache_folder() / name / "unpacked") / member

    datasets.register(name)(Dataset(name=name, description=description, licence=licence, source=source, path=path))


datasets.register("pbmc68k_reduced")(
    Dataset(
        name="pbmc68k_reduced",
        description="700 human blood cells x 765 genes with 10 labels, log values; ships with scanpy",
        licence="scanpy: BSD-3-Clause; 10x Genomics data: CC BY 4.0",
        source="Zheng et al. 2017, Nat Commun 8:14049; scanpy.datasets.pbmc68k_reduced",
        path=lambda: _scanpy_file("10x_pbmc68k_reduced.h5ad"),
        labels_from="bulk_labels",
    )
)
_register_download(
    "pbmc3k_10x",
    url="https://cf.10xgenomics.com/samples/cell/pbmc3k/pbmc3k_filtered_gene_bc_matrices.tar.gz",
    checksum="sha256:847d6ebd9a1ec9a768f2be7e40ca42cbfe75ebeb6d76a4c24167041699dc28b5",
    member="filtered_gene_bc_matrices/hg19",
    description="2,700 human blood cells x 32,738 genes, counts, no labels (7.6 MB)",
    licence="CC BY 4.0",
    source="10x Genomics, 3k PBMCs from a healthy donor, 2016",
)
_register_download(
    "pbmc3k_raw",
    url="https://exampledata.scverse.org/scanpy/pbmc3k_raw.h5ad",
    checksum="sha256:14956d64cb4d99765eef0864610a905a13bfefbaba1c1f38e4f520e4a58391e4",
    description="the same cells as pbmc3k_10x as h5ad (7.5 MB)",
    licence="CC BY 4.0",
    source="10x Genomics, 3k PBMCs from a healthy donor, 2016; file of the scanpy tutorials",
)
_register_download(
    "pbmc5k_protein_10x",
    url="https://cf.10xgenomics.com/samples/cell-exp/3.0.2/5k_pbmc_protein_v3/5k_pbmc_protein_v3_filtered_feature_bc_matrix.h5",
    checksum="md5:3366a47283177fe9af143d5819fad61f",
    description="5,247 human blood cells x 33,538 genes and 32 surface proteins, counts, no labels (17 MB)",
    licence="CC BY 4.0",
    source="10x Genomics, 5k PBMCs with cell surface proteins (v3 chemistry), 2019",
)
