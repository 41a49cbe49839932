"""Cells of many files → a corpus on disk, with memory that does not grow with the number of cells.

1. Plan: open every source, decide on genes and on spans, runs of cells that are worked on as one.
2. Count: from the metadata alone, which cells are wanted and which part each donor is in.
3. Rank: each span leaves its ranked cells on disk, sorted by the shard that they go to.
4. Drop cells that repeat an earlier one.
5. Shuffle: each shard takes its cells from all spans.
6. Finish: knowledge tables, rank curve, data set card, description.

2, 3 and 5 run on any number of workers. Where a cell goes depends on the seed, its source and its row alone, so the
bytes do not depend on the workers, nor on how often the build was interrupted: whatever is under its name is whole.
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cytoglot.atomic import atomic_path, check_output_folder, write_json, write_text
from cytoglot.config import Overrides
from cytoglot.corpus.build.count import BadSourcesError, Decisions, SpanMap, decide
from cytoglot.corpus.build.knowledge import fit_curve_of_sample, write_knowledge
from cytoglot.corpus.build.plan import BUILD_VERSION, PLAN, BuildPlan, differences, make_plan
from cytoglot.corpus.build.rank import TIE_RATES, count_detections, rank_span
from cytoglot.corpus.build.shuffle import ShardTask, build_shard, drop_duplicates
from cytoglot.corpus.build.spill import write_array
from cytoglot.corpus.format.card import corpus_card
from cytoglot.corpus.format.folder import (
    CARD,
    DESCRIPTION,
    FORMAT_VERSION,
    ORTHOLOGS,
    PARTS,
    RANK_CURVE,
    SPLITS,
    VOCABULARY,
    CorpusDescription,
    ShardInfo,
    SourceInfo,
    most_frequent_first,
)
from cytoglot.corpus.format.templates import FOLDER as WORDINGS
from cytoglot.corpus.format.templates import check_wordings, copy_wordings
from cytoglot.corpus.sources.expand import close_sources
from cytoglot.corpus.sources.genes import find_file
from cytoglot.corpus.sources.recipe import CorpusRecipe, SourceRecipe, load_corpus_recipe
from cytoglot.engines import Engine, Workers, running
from cytoglot.errors import InputError, ResourceError
from cytoglot.manifest import package_versions
from cytoglot.resume import locked
from cytoglot.tasks.record_source import TableSource, record_sources
from cytoglot.texts import read_text

logger = logging.getLogger(__name__)

WORK = ".work"
_BAD = "bad_sources.json"
#: Packages that decide the bytes of a shard.
_PACKAGES = ("cytoglot", "anndata", "numba", "numpy", "pandas", "pyarrow", "scipy")


@dataclass(frozen=True, kw_only=True)
class BuildSummary:
    """What `build_corpus` wrote."""

    cells: int
    cell_groups: int
    genes: int
    """genes of the vocabulary"""
    ranked_ids: int
    shards: int
    fingerprint: str
    cells_of_part: Mapping[str, int]
    removed: Mapping[str, int]
    """why → cells that were left out"""
    skipped: tuple[str, ...] = ()
    """names of the sources that were left out"""
    resumed_spans: int = 0
    """runs of cells that an earlier, interrupted build had ranked"""
    resumed_shards: int = 0
    """shards that an earlier build had finished"""


def build_corpus(
    recipe: CorpusRecipe | str | Path,
    out: str | Path,
    *,
    engine: Engine = "local",
    workers: int = 1,
    seed: int = 0,
    skip_bad: bool = False,
    overwrite: bool = False,
    overrides: Overrides = (),
    base: str | Path | None = None,
) -> BuildSummary:
    """Build a corpus, or finish building it.

    Parameters
    ----------
    recipe
        A recipe, or the path of one.
    out
        Folder of the corpus. What an interrupted build of the same recipe, seed and inputs left there is taken over; a
        finished corpus of the same is left as it is.
    engine, workers
        Where the work is done: in this process, in that many processes, or in tasks of a Ray cluster that sees the same
        files. They change nothing in the result.
    skip_bad
        Leave out sources that cannot be read, instead of stopping.
    overwrite
        Replace a corpus of another recipe, seed or input, finished or not, and rebuild a finished one.
    overrides
        For a recipe that is a path: as `cytoglot.config.load_recipe` takes them.
    base
        Folder that paths in the recipe are relative to; by default that of the recipe's file, or the working folder.

    Raises
    ------
    InputError
        The recipe is wrong, a source cannot be read, the folder holds another corpus or other things, another process
        builds in it, or the disk is full. What was finished is kept, and nothing half-written is under a shard's name.

    Examples
    --------
    >>> import cytoglot as cg
    >>> recipe = cg.corpus.CorpusRecipe(sources=[{"path": "pbmc68k_reduced"}])
    >>> cg.corpus.build_corpus(recipe, "corpus").cells
    700
    """
    started, out = time.perf_counter(), Path(out)
    if not isinstance(recipe, CorpusRecipe):
        base = Path(recipe).parent if base is None else base
        recipe = load_corpus_recipe(recipe, overrides)
    base = Path(base or ".").resolve()
    check_wordings(recipe.templates, base)
    if not (out / WORK).is_dir():
        check_output_folder(out, written_by="corpus build", mark=DESCRIPTION)
    with explain_write_errors(out), running(engine, workers) as pool:
        bad: dict[str, str] = {}
        if skip_bad and not overwrite:  # what an earlier run found to be unreadable is not tried again
            if (out / DESCRIPTION).is_file():
                bad = dict(_read_json(out / DESCRIPTION).get("skipped", {}))
            elif (out / WORK / _BAD).is_file():
                bad = _read_json(out / WORK / _BAD)
        try:
            summary = None
            while summary is None:
                plan = make_plan(recipe, base, seed=seed, skip_bad=skip_bad, known_bad=bad)
                try:
                    summary = _build(plan, out, pool, bad=bad if skip_bad else None, overwrite=overwrite)
                except BadSourcesError as error:
                    if not skip_bad:
                        raise
                    bad |= error.faults
        finally:
            close_sources()
    logger.info("%s: %d cells in %d shards, %.1f s", out, summary.cells, summary.shards, time.perf_counter() - started)
    return summary


def forecast_build(
    recipe: CorpusRecipe | str | Path,
    *,
    seed: int = 0,
    skip_bad: bool = False,
    overrides: Overrides = (),
    base: str | Path | None = None,
) -> dict[str, Any]:
    """Say what a build would read and write, from the headers of the sources; cells that caps leave out are included.

    Raises
    ------
    InputError
        As for `build_corpus`.
    """
    if not isinstance(recipe, CorpusRecipe):
        base = Path(recipe).parent if base is None else base
        recipe = load_corpus_recipe(recipe, overrides)
    try:
        plan = make_plan(recipe, Path(base or ".").resolve(), seed=seed, skip_bad=skip_bad)
    finally:
        close_sources()
    n_ids = round(sum(source.n_cells * plan.ids_per_cell(source) for source in plan.sources))
    width = 2 if len(plan.vocabulary) <= 1 << 16 else 4
    return {
        "cells": sum(source.n_cells for source in plan.sources),
        "genes": len(plan.vocabulary),
        "ranked_ids": n_ids,
        "shards": max(1, round(n_ids / recipe.shard_ids)),
        "skipped": list(plan.skipped),
        "disk_mb": n_ids * width * 0.8 / 1e6,
        "work_disk_mb": n_ids * width * 1.1 / 1e6,
        "memory_mb": 400 + min(n_ids, recipe.shard_ids) * width * 3 / 1e6,
        "cpu_s": n_ids / _IDS_PER_SECOND,
        "sources": [{"name": s.name, "cells": s.n_cells, "fingerprint": s.fingerprint} for s in plan.sources],
    }


_IDS_PER_SECOND = 1e7


def _build(
    plan: BuildPlan, out: Path, pool: Workers, *, bad: Mapping[str, str] | None, overwrite: bool
) -> BuildSummary:
    """Build as planned; `bad` are sources known to be unreadable, None where such sources are not to be skipped."""
    if (found := _finished(plan, out, overwrite=overwrite)) is not None:
        return found
    work = out / WORK
    work.mkdir(parents=True, exist_ok=True)
    with locked(work) as is_ours:
        if not is_ours:
            raise InputError(f"another process is building {out}; wait for it, or build in another folder")
        _start(plan, out, overwrite=overwrite)
        try:
            description, resumed_spans, resumed_shards = _run(plan, out, pool, skip_bad=bad is not None)
        except BadSourcesError as error:
            if bad is None:
                _give_up(out)
            else:
                (work / PLAN).unlink()
                _clear(out)
                write_json(work / _BAD, {**bad, **error.faults})
            raise
        except InputError:
            _give_up(out)
            raise
        write_json(out / DESCRIPTION, description.to_dict())
        shutil.rmtree(work)
    return _summary(description, resumed_spans=resumed_spans, resumed_shards=resumed_shards)


def _run(plan: BuildPlan, out: Path, pool: Workers, *, skip_bad: bool) -> tuple[CorpusDescription, int, int]:
    """Do all the work; return the description, and how many spans and shards were there already."""
    work = out / WORK
    over_spans = SpanMap(plan=plan, work=work, workers=pool, skip_bad=skip_bad)
    decisions = decide(plan, work, over_spans)
    if plan.settings.needs_tie_rates and not (work / TIE_RATES).is_file():
        n_cells, detected = 0, np.zeros(len(plan.vocabulary), np.int64)
        for n, genes in over_spans(count_detections, "detection rates"):
            n_cells += n
            detected += genes
        with atomic_path(work / TIE_RATES) as partial:
            write_array(partial, (detected / max(n_cells, 1)).astype(np.float32))
    removed = {source.name: Counter[str]() for source in plan.sources}
    resumed_spans = 0
    for counts in over_spans(rank_span, "rank"):
        resumed_spans += counts["resumed"]
        removed[counts["source"]].update(counts["removed"])
    if resumed_spans:
        logger.info("%d of %d spans were ranked by an interrupted build", resumed_spans, len(plan.spans))
    if plan.recipe.cells.duplicates == "drop":
        for source, n in drop_duplicates(plan, work).items():
            removed[source]["repeats an earlier cell"] = n
    places = [(part, number) for part, n in zip(PARTS, decisions.shards_of_part, strict=True) for number in range(n)]
    tasks = [
        ShardTask(str(work), plan.key, str(out), part, number, destination)
        for destination, (part, number) in enumerate(places)
    ]
    results = list(pool.map(build_shard, tasks, description="shuffle", unit="shard"))
    resumed_shards = sum(result.pop("resumed") for result in results)
    if resumed_shards:
        logger.info("%d shards were finished by an interrupted build", resumed_shards)
    shards = sorted((r for r in results if r["file"] is not None), key=lambda r: (PARTS.index(r["part"]), r["file"]))
    if not shards:
        raise InputError("no cell is left to build from; lower cells.min_genes, or look at what the sources hold")
    description = _describe(plan, decisions, shards, removed)
    write_knowledge(plan, description, out)
    copy_wordings(plan.recipe.templates, Path(plan.base), out)
    if (curve := fit_curve_of_sample(plan, work)) is not None:
        write_json(out / RANK_CURVE, curve)
    write_json(out / VOCABULARY, plan.vocabulary.to_dict())
    write_json(out / SPLITS, asdict(decisions.splits))
    write_text(out / CARD, corpus_card(description, warnings=decisions.splits.warnings))
    return description, resumed_spans, resumed_shards


def _describe(
    plan: BuildPlan, decisions: Decisions, shards: list[dict[str, Any]], removed: Mapping[str, Mapping[str, int]]
) -> CorpusDescription:
    counts = {name: Counter[str]() for name in ("source", *decisions.values)}
    for shard in shards:
        for column, values in shard.pop("counts").items():
            counts[column].update(values)
    kept = counts.pop("source")
    return CorpusDescription(
        seed=plan.seed,
        settings=plan.settings,
        genes=len(plan.vocabulary),
        shards=tuple(ShardInfo(**shard) for shard in shards),
        sources=tuple(
            SourceInfo(
                name=source.name,
                organism=source.recipe.organism,
                study=source.recipe.study,
                title=source.recipe.title or "",
                abstract=_abstract(source.recipe, Path(plan.base)),
                licence=source.recipe.licence or "",
                fingerprint=source.fingerprint,
                n_cells=source.n_cells,
                n_kept=kept[source.name],
                removed=dict(sorted((r, n) for r, n in removed[source.name].items() if n)),
                messages=source.messages,
            )
            for source in plan.sources
        ),
        metadata_columns=tuple(decisions.values),
        counts={column: most_frequent_first(found) for column, found in counts.items()},
        recipe=plan.recipe.model_dump(mode="json"),
        inputs=plan.inputs,
        skipped=plan.skipped,
        versions=package_versions(_PACKAGES) | {"build": f"{BUILD_VERSION}.{FORMAT_VERSION}"},
    )


def _abstract(source: SourceRecipe, base: Path) -> str:
    text = source.abstract or ""
    if not text.endswith(".txt"):
        return " ".join(text.split())
    try:
        return " ".join(read_text(find_file(text, base)).split())
    except OSError as error:
        raise InputError(f"source {source.label!r}: the abstract {text} cannot be read: {error}") from error


def _finished(plan: BuildPlan, out: Path, *, overwrite: bool) -> BuildSummary | None:
    """Return what is to be said of a finished corpus of this plan; None where there is something to do.

    Raises
    ------
    InputError
        There is a finished corpus of another plan, and it is not to be overwritten.
    """
    if not (out / DESCRIPTION).is_file() or overwrite:
        return None
    description = CorpusDescription.from_dict(_read_json(out / DESCRIPTION))
    old = {
        "recipe": description.recipe,
        "seed": description.seed,
        "sources": {source.name: source.fingerprint for source in description.sources},
        "inputs": description.inputs,
        "vocabulary": _read_json(out / VOCABULARY)["fingerprint"],
        "version": [int(n) for n in description.versions.get("build", "0.0").split(".")],
    }
    _refuse_other(old, plan, out)
    files = {shard.file: out / shard.file for shard in description.shards}
    bad = [s.file for s in description.shards if not files[s.file].is_file() or files[s.file].stat().st_size != s.bytes]
    if bad:
        logger.info("%d shards are missing or damaged, and are made again: %s", len(bad), ", ".join(bad[:3]))
        for file in bad:
            files[file].unlink(missing_ok=True)
        return None
    shutil.rmtree(out / WORK, ignore_errors=True)
    logger.info("%s is finished, and nothing has changed", out)
    return _summary(description, resumed_spans=0, resumed_shards=len(description.shards))


def _refuse_other(old: Mapping[str, Any], plan: BuildPlan, out: Path) -> None:
    changed = differences(old, plan.decisive())
    if changed:
        raise InputError(
            f"{out} holds a corpus, finished or not, that differs from this build: {'; '.join(changed)}; pass "
            "--overwrite to replace it, or build in another folder"
        )


def _start(plan: BuildPlan, out: Path, *, overwrite: bool) -> None:
    """Make the folder ready for this plan: take over what an interrupted build left, or clear it."""
    work = out / WORK
    old = _read_json(work / PLAN)["decisive"] if (work / PLAN).is_file() else None
    if old is not None and differences(old, plan.decisive()):
        if not overwrite:
            _refuse_other(old, plan, out)
        (work / PLAN).unlink()
        old = None
    if overwrite and (out / DESCRIPTION).is_file():
        (out / DESCRIPTION).unlink()
        old = None
    if old is None and not (out / DESCRIPTION).is_file():
        _clear(out)
    for folder in (out, work, *(out / part for part in PARTS), work / "spans", work / "shards"):
        for left in folder.glob(".*.partial*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    plan.write(work)


def _clear(out: Path) -> None:
    """Delete everything that a build writes, the lock excepted. The plan must have been deleted before."""
    work = out / WORK
    tables = [f"{s.table}.parquet" for s in record_sources.values() if isinstance(s, TableSource)]
    for name in (*PARTS, WORDINGS, DESCRIPTION, VOCABULARY, SPLITS, *tables, ORTHOLOGS, RANK_CURVE, CARD):
        _delete(out / name)
    for path in work.iterdir():
        if path.name not in ("lock", _BAD):
            _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _give_up(out: Path) -> None:
    """After a fault of the input: leave nothing where nothing worth keeping was made."""
    work = out / WORK
    if any((work / "spans").glob("[0-9]*")) or (out / DESCRIPTION).is_file():
        return
    _delete(work)
    if not any(out.iterdir()):
        out.rmdir()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}; delete the folder and build again") from error


def _summary(description: CorpusDescription, *, resumed_spans: int, resumed_shards: int) -> BuildSummary:
    removed = Counter[str]()
    for source in description.sources:
        removed.update(source.removed)
    return BuildSummary(
        cells=description.total("n_cells"),
        cell_groups=description.total("n_groups"),
        genes=description.genes,
        ranked_ids=description.total("n_ids"),
        shards=len(description.shards),
        fingerprint=description.fingerprint,
        cells_of_part={part: description.total("n_cells", part) for part in PARTS},
        removed=dict(removed),
        skipped=tuple(description.skipped),
        resumed_spans=resumed_spans,
        resumed_shards=resumed_shards,
    )


@contextmanager
def explain_write_errors(out: Path) -> Iterator[None]:
    """Say what to do where the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError(
            f"no space left for {out}; free some and run the same command again: it goes on from what is finished"
        ) from error
