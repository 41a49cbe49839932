"""What all verbs share when they write: the AnnData they add to, its file, and the settings they resume by."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cytoglot.cell_model.load import CellModel
from cytoglot.data.genes.options import GeneOptions
from cytoglot.data.whole_file import WholeFile, whole_file
from cytoglot.errors import InputError
from cytoglot.lm.model.fingerprint import model_fingerprint
from cytoglot.manifest import fingerprint_bytes, fingerprint_texts, package_versions
from cytoglot.resume import Parts
from cytoglot.sentence.cell_sentence import CellSentences
from cytoglot.texts import is_key

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)


def cells_to_change(
    source: AnnData | str | Path, *, copy: bool, output: str | Path | None, layer: str | None, genes: GeneOptions
) -> WholeFile:
    """Return the AnnData that a verb was given, or all of the file that it was given, and how its matrix is read.

    Raises
    ------
    InputError
        The file cannot be read, or nothing would be left of the work.
    """
    if not isinstance(source, (str, Path)):
        return WholeFile(adata=source, layer=layer, genes=genes)
    if not copy and output is None:
        raise InputError(
            f"{source} is a file, which is not changed; pass copy=True to get its cells with what is added, or output= "
            "to write them"
        )
    return whole_file(source, layer=layer, genes=genes)


def check_suffix(output: str | Path | None, suffixes: Sequence[str]) -> None:
    """Refuse an output of another ending than those that a verb writes."""
    if output is not None and Path(output).suffix not in suffixes:
        raise InputError(f"the output must end in {' or '.join(suffixes)}, found {Path(output).name!r}")


def check_target(
    adata: AnnData,
    verb: str,
    key_added: str,
    *,
    default: str,
    writes: Mapping[str, Sequence[str]],
    copy: bool,
) -> str:
    """Refuse what a verb could not write, before it computes anything; return the name of its record.

    Raises
    ------
    InputError
        A name cannot be one in a file or holds data of others, `uns["cytoglot"]` is not ours, or `adata` is a view of a
        backed AnnData and `copy` is false.
    """
    there = {"obs": adata.obs, "obsm": adata.obsm}
    name = check_names(adata.uns, verb, key_added, default=default, writes=writes, there=there)
    if adata.obs_names.name in writes.get("obs", ()):
        raise InputError(f"the index of obs is called {adata.obs_names.name!r}, as a column to write; rename the index")
    if not copy and adata.is_view and adata.isbacked:
        raise InputError("expected an AnnData to write into, found a view of a backed one; pass copy=True")
    return name


def check_names(
    uns: Mapping[str, Any],
    verb: str,
    key_added: str,
    *,
    default: str,
    writes: Mapping[str, Sequence[str]],
    there: Mapping[str, Container[str]],
) -> str:
    """Refuse names that no file can hold, or that data of others have; return the name of the record of `key_added`.

    What an earlier call wrote under the same key has a record in `uns["cytoglot"]`, and is replaced.
    """
    if not isinstance(key_added, str):
        raise InputError(f"key_added must be a text, found {key_added!r}")
    for one in (key_added, *(name for names in writes.values() for name in names)):
        if not is_key(one):
            made = "" if one == key_added else f", made of key_added={key_added!r}"
            raise InputError(f"key_added must give names without '/' that are not '.' or '_index', found {one!r}{made}")
    check_record(uns)
    name, records = record_name(verb, key_added, default), uns.get("cytoglot", {})
    if not isinstance(records.get(name, {}), Mapping):
        raise InputError(f"expected a record in uns['cytoglot'][{name!r}], found a value; rename or delete it")
    known = [one for which, one in records.items() if str(which).startswith(verb) and isinstance(one, Mapping)]
    if all(one.get("key", default) != key_added for one in known):
        for part, names in writes.items():
            for taken in (one for one in names if one in there[part]):
                raise InputError(
                    f"{part}[{taken!r}] is there already and cytoglot did not write it; pass another key_added, or "
                    "rename or delete it"
                )
    return name


def record_name(verb: str, key_added: str, default: str) -> str:
    """Return where `uns["cytoglot"]` keeps the record of what a verb wrote under a key."""
    return verb if key_added == default else f"{verb}_{key_added}"


def result_of(adata: AnnData, *, copy: bool) -> AnnData:
    """Return what a verb writes into: a copy in memory (of a backed AnnData too), or `adata` itself.

    A view to be written into becomes an AnnData of its own, as anndata has it; what it was a view of stays as it is.
    """
    if copy:
        return adata.to_memory() if adata.isbacked else adata.copy()
    if adata.is_view:
        logger.info("the cells are a view: they become an AnnData of their own, and the whole one is not changed")
        adata._init_as_actual(adata.copy())
    return adata


def check_record(uns: Mapping[str, Any]) -> None:
    """Refuse an `uns` whose "cytoglot" is no mapping, which records are added to."""
    if not isinstance(uns.get("cytoglot", {}), Mapping):
        raise InputError("expected a mapping in uns['cytoglot'], found a value; rename or delete it")


def add_record(adata: AnnData, name: str, record: Mapping[str, Any]) -> None:
    """Write `uns["cytoglot"][name]` and leave what other verbs wrote there."""
    adata.uns["cytoglot"] = {**adata.uns.get("cytoglot", {}), name: dict(record)}


def model_settings(model: CellModel, *tasks: str) -> dict[str, str]:
    """Return fingerprints of all of a model that decides what it says, and of the wordings of its prompts."""
    spec = model.spec
    known = [model_fingerprint(model.lm), spec.vocabulary.fingerprint, repr(replace(spec, manifest={}))]
    known += [part.fingerprint for part in (model.profile, model.head) if part is not None]
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
