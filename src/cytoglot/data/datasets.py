"""Data sets by name: one that ships with scanpy, public downloads, and every h5ad file of `CYTOGLOT_DATA`.

Public as `cytoglot.datasets`: `list()` names them, `get(name)` returns the path of one, `load_dataset(name)` reads it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from cytoglot import extras
from cytoglot.atomic import atomic_path
from cytoglot.data.readers.read import read
from cytoglot.download import cache_folder, fetch, unpack
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.registry import Registry

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Download:
    """One file to fetch, and the place below the cache folder where it is kept."""

    url: str
    checksum: str
    """"sha256:" or "md5:" and the hex digest, as published beside the file or computed from it"""
    file: str

    @property
    def target(self) -> Path:
        """Return where the file is, or will be."""
        return cache_folder() / self.file


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A named data set: what it is, whence it comes, and how its file is found."""

    name: str
    description: str
    licence: str
    """as stated at the source"""
    citation: str
    """what to cite"""
    make: Callable[..., Path]
    """takes the downloaded files, in order, and returns the file or folder to read"""
    downloads: tuple[Download, ...] = ()
    labels_from: str | None = None
    """column that `load_dataset` copies to `obs["cell_type"]`"""
    kept: str = ""
    """where it is, for a data set that needs no download"""

    @property
    def where(self) -> str:
        """Return where the data set is, in words such as "bundled with scanpy" or "not downloaded"."""
        return self.kept or ("downloaded" if all(f.target.is_file() for f in self.downloads) else "not downloaded")

    def path(self) -> Path:
        """Return the file or folder; what is missing is downloaded.

        Raises
        ------
        InputError
            A download failed, or a file has another checksum.
        """
        return self.make(*(fetch(file.url, checksum=file.checksum, target=file.target) for file in self.downloads))


datasets: Registry[Dataset] = Registry("data set")


def get(name: str) -> Path:
    """Return the path of a data set, downloaded on first use, and log its licence and what to cite.

    A download goes to the folder `CYTOGLOT_CACHE` (default: `~/.cache/cytoglot`) and is checked against its checksum.
    Once it is there, no network is needed. `load_dataset` reads the file.

    Parameters
    ----------
    name
        A name that `list` shows.

    Raises
    ------
    UnknownNameError
        There is no such data set; the message lists the nearest names.
    InputError
        A download failed, or the file has another checksum.

    Examples
    --------
    >>> import cytoglot as cg
    >>> cg.load_dataset("pbmc68k_reduced").shape
    (700, 765)
    """
    entry = find_dataset(name)
    path = entry.path()
    logger.info("%s (%s): licence %s; cite %s", name, entry.where, entry.licence, entry.citation)
    return path


def list() -> pd.DataFrame:
    """Return a table of all data sets that have a name: where each is, what it holds, its licence, what to cite.

    Data sets that can be downloaded come first, then the files of the folder `CYTOGLOT_DATA`.

    Examples
    --------
    >>> import cytoglot as cg
    >>> cg.datasets.list().loc["pbmc68k_reduced", "where"]
    'bundled with scanpy'
    """
    columns = ("name", "where", "description", "licence", "citation")
    rows = [[getattr(entry, column) for column in columns] for entry in known_datasets().values()]
    return pd.DataFrame(rows, columns=[*columns]).set_index("name")


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

    Examples
    --------
    >>> import cytoglot as cg
    >>> cg.load_dataset("pbmc68k_reduced").shape
    (700, 765)
    """
    entry = find_dataset(name)
    path = entry.path()
    adata = _read_h5ad(path) if path.suffix == ".h5ad" else read(path)
    if entry.labels_from is not None:
        adata.obs["cell_type"] = adata.obs[entry.labels_from]
    logger.info("%s: %d cells x %d genes from %s", name, adata.n_obs, adata.n_vars, path)
    return adata


def find_dataset(name: str) -> Dataset:
    """Return the entry of a data set, which says where it is, under which licence, and what to cite.

    Raises
    ------
    UnknownNameError
        There is no such data set; the message lists the nearest names.

    Examples
    --------
    >>> import cytoglot as cg
    >>> cg.datasets.find_dataset("pbmc3k").licence
    '10x Genomics data: CC BY 4.0; labels of the scverse tutorials: BSD-3-Clause'
    """
    known = known_datasets()
    if name not in known:
        raise UnknownNameError("data set", name, known)
    return known[name]


def known_datasets() -> dict[str, Dataset]:
    """Return every data set that can be named: those of the registry, then those of `CYTOGLOT_DATA`, sorted.

    Examples
    --------
    >>> import cytoglot as cg
    >>> "pbmc68k_reduced" in cg.datasets.known_datasets()
    True
    """
    folder = data_folder()
    files = [] if folder is None else sorted(folder.glob("*.h5ad"))
    found = {name: datasets[name] for name in sorted(datasets)}
    for file in files:
        found.setdefault(
            file.stem,
            Dataset(
                name=file.stem,
                description=str(file),
                licence="see uns['provenance'] of the file",
                citation="see uns['provenance'] of the file",
                make=lambda file=file: file,
                kept="local file",
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

    Examples
    --------
    >>> import cytoglot as cg
    >>> cg.datasets.resolve_source("cells.h5ad").name
    'cells.h5ad'
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
    """Return the folder of local data sets: `CYTOGLOT_DATA`, else `../shared/data`; None where there is none.

    Examples
    --------
    >>> import cytoglot as cg
    >>> folder = cg.datasets.data_folder()
    >>> folder is None or folder.is_dir()
    True
    """
    folder = Path(os.environ.get("CYTOGLOT_DATA") or Path("..") / "shared" / "data")
    return folder if folder.is_dir() else None


def knowledge_table(name: str) -> Path | None:
    """Return a table of `CYTOGLOT_DATA/knowledge`, or None where it is absent.

    Examples
    --------
    >>> import cytoglot as cg
    >>> cg.datasets.knowledge_table("no such table") is None
    True
    """
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


def _read_h5ad(path: Path) -> AnnData:
    import anndata

    with warnings.catch_warnings():
        # files of the scanpy tutorials were written by an old anndata, which the reader mends by itself
        warnings.simplefilter("ignore", category=anndata.OldFormatWarning)
        warnings.filterwarnings("ignore", category=FutureWarning, message="Moving element")
        return anndata.read_h5ad(path)


def _with_labels(counts: Path, labelled: Path) -> Path:
    """Write the raw counts with the labels of the processed file, joined by barcode, and return the path.

    Cells that the processing left out are "unassigned". The file is made once, from two checked downloads.
    """
    target = cache_folder() / "pbmc3k" / "pbmc3k.h5ad"
    if target.is_file():
        return target
    adata, labels = _read_h5ad(counts), _read_h5ad(labelled).obs["louvain_cell_types"].astype(str)
    foreign = labels.index.difference(adata.obs_names)
    if len(foreign):
        raise InputError(
            f"{len(foreign)} of {len(labels)} labelled cells of {labelled} are not in {counts}, such as "
            f"{foreign[0]!r}; delete both files, so that they are downloaded again"
        )
    adata.obs["cell_type"] = pd.Categorical(labels.reindex(adata.obs_names).fillna("unassigned"))
    adata.obs["organism"], adata.obs["tissue"] = "Homo sapiens", "blood"
    entry = datasets["pbmc3k"]
    adata.uns["provenance"] = {"description": entry.description, "licence": entry.licence, "citation": entry.citation}
    with atomic_path(target) as partial:
        adata.write_h5ad(partial, compression="gzip")
    return target


def _10x_archive(archive: Path) -> Path:
    return unpack(archive, archive.parent / "unpacked") / "filtered_gene_bc_matrices" / "hg19"


_10X_3K = "10x Genomics, 3k PBMCs from a Healthy Donor, Single Cell Gene Expression Dataset by Cell Ranger 1.1.0 (2016)"
_PBMC3K_RAW = Download(
    url="https://exampledata.scverse.org/scanpy/pbmc3k_raw.h5ad",
    checksum="sha256:14956d64cb4d99765eef0864610a905a13bfefbaba1c1f38e4f520e4a58391e4",
    file="pbmc3k_raw/pbmc3k_raw.h5ad",
)
for _entry in (
    Dataset(
        name="pbmc68k_reduced",
        description="700 human blood cells x 765 genes with 10 labels, log values; ships with scanpy",
        licence="scanpy: BSD-3-Clause; 10x Genomics data: CC BY 4.0",
        citation="Zheng et al. 2017, Nat Commun 8:14049; Wolf et al. 2018, Genome Biol 19:15 (scanpy)",
        make=lambda: _scanpy_file("10x_pbmc68k_reduced.h5ad"),
        labels_from="bulk_labels",
        kept="bundled with scanpy",
    ),
    Dataset(
        name="pbmc3k",
        description="2,700 human blood cells x 32,738 genes, counts, with the 8 labels of the scanpy tutorial",
        licence="10x Genomics data: CC BY 4.0; labels of the scverse tutorials: BSD-3-Clause",
        citation=f"{_10X_3K}; Wolf et al. 2018, Genome Biol 19:15 (scanpy)",
        make=_with_labels,
        downloads=(
            _PBMC3K_RAW,
            # `scanpy.datasets.pbmc3k_processed` has the same labels, but no checksum of it is published.
            Download(
                url="https://exampledata.scverse.org/tutorials/scverse-getting-started-anndata-pbmc3k_processed.h5ad",
                checksum="md5:b80deb0997f96b45d06f19c694e46243",
                file="pbmc3k/pbmc3k_processed.h5ad",
            ),
        ),
    ),
    Dataset(
        name="pbmc3k_10x",
        description="2,700 human blood cells x 32,738 genes, counts, no labels (7.6 MB)",
        licence="CC BY 4.0",
        citation=_10X_3K,
        make=_10x_archive,
        downloads=(
            Download(
                url="https://cf.10xgenomics.com/samples/cell/pbmc3k/pbmc3k_filtered_gene_bc_matrices.tar.gz",
                checksum="sha256:847d6ebd9a1ec9a768f2be7e40ca42cbfe75ebeb6d76a4c24167041699dc28b5",
                file="pbmc3k_10x/pbmc3k_filtered_gene_bc_matrices.tar.gz",
            ),
        ),
    ),
    Dataset(
        name="pbmc3k_raw",
        description="the same cells as pbmc3k_10x as h5ad; the file of the scanpy tutorials (7.5 MB)",
        licence="CC BY 4.0",
        citation=_10X_3K,
        make=Path,
        downloads=(_PBMC3K_RAW,),
    ),
    Dataset(
        name="pbmc5k_protein_10x",
        description="5,247 human blood cells x 33,538 genes and 32 surface proteins, counts, no labels (17 MB)",
        licence="CC BY 4.0",
        citation="10x Genomics, 5k PBMCs from a Healthy Donor with Cell Surface Proteins (v3 chemistry, 2019)",
        make=Path,
        downloads=(
            Download(
                url="https://cf.10xgenomics.com/samples/cell-exp/3.0.2/5k_pbmc_protein_v3/"
                "5k_pbmc_protein_v3_filtered_feature_bc_matrix.h5",
                checksum="md5:3366a47283177fe9af143d5819fad61f",
                file="pbmc5k_protein_10x/5k_pbmc_protein_v3_filtered_feature_bc_matrix.h5",
            ),
        ),
    ),
):
    datasets.register(_entry.name)(_entry)
