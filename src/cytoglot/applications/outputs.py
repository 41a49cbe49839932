"""What all verbs share when they write: the AnnData they add to, its file, and the settings they resume by."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cytoglot.cell_model.load import CellModel
from cytoglot.errors import InputError
from cytoglot.lm.model.fingerprint import model_fingerprint
from cytoglot.manifest import fingerprint_bytes, fingerprint_texts, package_versions
from cytoglot.resume import Parts
from cytoglot.sentence.cell_sentence import CellSentences
from cytoglot.texts import is_key

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)


def result_of(adata: AnnData, *, copy: bool) -> AnnData:
    """Return what a verb writes into: a copy in memory (of a backed AnnData too), or `adata` itself.

    Raises
    ------
    InputError
        `uns["cytoglot"]` is no mapping, or `adata` is a view of a backed AnnData and is to be written into.
    """
    check_record(adata.uns)
    if not copy and adata.is_view and adata.isbacked:
        raise InputError("expected an AnnData to write into, found a view of a backed one; pass copy=True")
    if not copy:
        return adata
    return adata.to_memory() if adata.isbacked else adata.copy()


def check_record(uns: Mapping[str, Any]) -> None:
    """Refuse an `uns` whose "cytoglot" is no mapping, which records are added to."""
    if not isinstance(uns.get("cytoglot", {}), Mapping):
        raise InputError("expected a mapping in uns['cytoglot'], found a value; rename or delete it")


def add_record(adata: AnnData, name: str, record: Mapping[str, Any]) -> None:
    """Write `uns["cytoglot"][name]` and leave what other verbs wrote there."""
    adata.uns["cytoglot"] = {**adata.uns.get("cytoglot", {}), name: dict(record)}


def check_key(name: str, *, of: str) -> None:
    """Refuse a name that no file can have for an element, such as one with a slash."""
    if not is_key(name):
        raise InputError(f"{of} must be a name without '/' that is not '.' or '_index', found {name!r}")


def model_settings(model: CellModel, *tasks: str) -> dict[str, str]:
    """Return fingerprints of all of a model that decides what it says, and of the wordings of its prompts."""
    spec = model.spec
    known = [model_fingerprint(model.lm), spec.vocabulary.fingerprint, repr(replace(spec, manifest={}))]
    wordings = [model.task(task).templates.fingerprint for task in tasks]
    return {"model": fingerprint_texts(known), "prompts": fingerprint_texts(wordings)}


def sentences_fingerprint(sentences: CellSentences) -> str:
    """Fingerprint the names and the words of cells, which are all that a model sees of them."""
    names = "\0".join(map(str, sentences.cell_ids)).encode("utf-8", "surrogatepass")
    return fingerprint_bytes([names, np.ascontiguousarray(sentences.offsets).tobytes(), sentences.gene_ids.tobytes()])


@contextmanager
def parts_of(
    output: str | Path | None, settings: Callable[[], Mapping[str, Any]], *, overwrite: bool
) -> Iterator[Parts | None]:
    """Open the parts of an output; None without an output, and then nothing is kept."""
    if output is None:
        yield None
    else:
        version = package_versions(["cytoglot"])["cytoglot"]
        with Parts(Path(output), {**settings(), "version": version}).opened(overwrite=overwrite) as parts:
            yield parts


def made_in_parts(make: Callable[[int, int], pa.Table], n: int, chunk: int, parts: Parts | None) -> pa.Table:
    """Return the rows of `make(first, last)` of all chunks of `n`; those that an interrupted run kept are read.

    Without parts there is one chunk.
    """
    if parts is None:
        return make(0, n)
    if chunk < 1:
        raise InputError(f"expected chunk_cells of at least 1, found {chunk}")
    edges = [(first, min(first + chunk, n)) for first in range(0, n, chunk)] or [(0, 0)]
    missing = parts.missing(len(edges))
    if len(missing) < len(edges):
        n_kept = n - sum(edges[number][1] - edges[number][0] for number in missing)
        logger.info("%d of %d cells are kept from an interrupted run", n_kept, n)
    for number in missing:
        parts.write(number, make(*edges[number]))
    return pa.concat_tables([parts.read(number) for number in range(len(edges))])
