"""The sources of a corpus: what a recipe names, one file each, opened as cells that are ready to be ranked."""

from __future__ import annotations

import multiprocessing.util
from pathlib import Path

from cytoglot.corpus.sources.file import FileSource
from cytoglot.corpus.sources.genes import gene_tables
from cytoglot.corpus.sources.metadata import CorpusSource, naming
from cytoglot.corpus.sources.recipe import CorpusRecipe, GeneRecipe, SourceRecipe
from cytoglot.data.datasets import find_dataset, known_datasets
from cytoglot.data.readers.tenx import find_mtx_files
from cytoglot.errors import InputError, nearest_names

__all__ = ["CorpusSource", "close_sources", "expand", "open_corpus_source", "opened_source", "path_of"]

_ENDINGS = (".h5ad", ".h5", ".hdf5")
_ZARR = ("zarr.json", ".zgroup", ".zattrs", ".zmetadata")


def expand(recipe: CorpusRecipe, base: str | Path) -> list[SourceRecipe]:
    """Return the sources of a recipe, a folder of files as one source for each file, with names and studies filled in.

    The files of a folder are those that end in .h5ad, .h5 or .hdf5, and the zarr and 10x folders in it, sorted by
    name; each is called `FOLDER/STEM`, where FOLDER is the name of the source. They are one study unless the recipe
    names another, because files of one folder often share donors. Nothing is opened.

    Raises
    ------
    InputError
        A path is neither a file, a folder nor a data set, a folder holds no file of cells, or two names are the same.
    """
    base = Path(base)
    expanded: list[SourceRecipe] = []
    for source in recipe.sources:
        label, study = source.label, source.study or source.label
        folder = None if source.path is None else _found(source.path, base)
        if source.path is None or folder is None or not folder.is_dir() or _is_store(folder):
            expanded.append(source.model_copy(update={"name": label, "study": study}))
            continue
        seen = sorted(p for p in folder.iterdir() if not p.name.startswith("."))  # as macOS leaves beside each file
        files = [p for p in seen if (p.suffix in _ENDINGS if p.is_file() else _is_store(p))]
        if not files:
            raise InputError(
                f"source {label!r}: the folder {folder} holds no file of cells; expected .h5ad or 10x .h5 files, or "
                "zarr or 10x folders"
            )
        for file in files:
            named = {"name": f"{label}/{file.stem}", "path": str(Path(source.path) / file.name), "study": study}
            expanded.append(source.model_copy(update=named))
    names = [source.name for source in expanded]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InputError(
            f"expected sources of different names, found {', '.join(repr(n) for n in twice)} more than once; rename "
            "the files, or list them as sources with a name each"
        )
    return expanded


def _is_store(path: Path) -> bool:
    """Whether a folder is one file of cells in parts: zarr or 10x."""
    if any((path / name).exists() for name in _ZARR):
        return True
    try:
        return find_mtx_files(path) is not None
    except InputError:  # an incomplete 10x folder, about which its reader has more to say
        return True


def path_of(source: SourceRecipe, base: str | Path) -> Path:
    """Return the file of an expanded source: relative to `base`, else to the working folder, else a data set's.

    Raises
    ------
    InputError
        There is neither such a file nor such a data set.
    """
    if source.path is None:
        raise ValueError(f"source {source.label!r} has no path")
    found = _found(source.path, Path(base))
    if found is not None:
        return found
    known = known_datasets()
    if source.path in known:
        return find_dataset(source.path).path()
    raise InputError(
        f"source {source.label!r}: {source.path} is neither a file or folder, relative to {Path(base)} or to the "
        f"working folder, nor the name of a data set ({nearest_names(source.path, known)})"
    )


def _found(path: str, base: Path) -> Path | None:
    return next((p for p in (base / path, Path(path)) if p.exists()), None)


def open_corpus_source(source: SourceRecipe, genes: GeneRecipe, base: str | Path) -> CorpusSource:
    """Open a source of an expanded recipe; a context manager, which closes it.

    The matrix is chosen as by `cytoglot.read`, its columns are named by `harmonize`, and nothing else is read: opening
    a file of two million cells takes no more memory than one of a thousand.

    Raises
    ------
    InputError
        The source is missing, damaged or no file of cells, its genes are of another namespace, or the recipe names
        what it does not have. The message begins with the name of the source.
    MissingExtraError
        The source is CELLxGENE Census, whose package is not installed.
    """
    base = Path(base)
    tables = gene_tables(genes, base)
    if source.census is not None:
        from cytoglot.corpus.sources.census import CensusSource

        return CensusSource(source, tables=tables, base=base)
    path, entry = path_of(source, base), known_datasets().get(source.path or "")
    if entry is not None and entry.labels_from is not None and "cell_type" not in source.columns:
        # a data set that is known to keep its cell types in another column
        source = source.model_copy(update={"columns": {**source.columns, "cell_type": entry.labels_from}})
    with naming(source.label):
        return FileSource(source, path=path, tables=tables, base=base)


_open: dict[str, CorpusSource] = {}
"""the source that this process has open: the next thing asked of a source is mostly asked of the same one"""


def opened_source(source: SourceRecipe, genes: GeneRecipe, base: str | Path) -> CorpusSource:
    """Return a source, open; the one that was open before is closed.

    Raises
    ------
    InputError
        It cannot be opened.
    """
    which = repr((source, genes, str(base)))
    if which not in _open:
        close_sources()
        _open[which] = open_corpus_source(source, genes, base)
        # Processes of a pool leave without the interpreter's own farewell, and temporary files would stay.
        multiprocessing.util.Finalize(None, close_sources, exitpriority=10)
    return _open[which]


def close_sources() -> None:
    """Close what is open."""
    while _open:
        _open.popitem()[1].close()
