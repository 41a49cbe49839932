"""What could spoil a corpus: cells that parts share, missing labels, sentences that do not fit, tasks with no question.

Everything is counted in two or three walks through the shards, with memory that does not grow with the cells.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cytoglot.corpus.assign.group_split import BY_CELL, HELD_OUT, unit_name
from cytoglot.corpus.format.folder import PARTS, Corpus, Part
from cytoglot.corpus.inspect.exact_duplicates import PART_PAIRS, Repeats, SameCells
from cytoglot.corpus.inspect.gene_counts import GeneUse
from cytoglot.corpus.inspect.label_counts import LabelCounts
from cytoglot.corpus.inspect.lengths import Lengths
from cytoglot.corpus.inspect.near_duplicates import MAX_CELLS, THRESHOLD, Compared, NearDuplicates, find_near_duplicates
from cytoglot.corpus.inspect.scan import name_cells, scan_corpus
from cytoglot.corpus.inspect.task_balance import TaskBalance, TaskLine
from cytoglot.data.audit_obs import Finding
from cytoglot.data.knowledge.ontology import map_labels
from cytoglot.data.schema import GROUP_FIELDS, NOT_A_GROUP
from cytoglot.progress import progress_bar

CONTEXTS: tuple[int, ...] = (1024, 2048, 4096, 8192)
_LEVELS = ("error", "warning", "note", "ok")
_LISTED = 5
_LABEL_COLUMNS = (
    "cell_type",
    "tissue",
    "disease",
    "organism",
    "assay",
    "sex",
    "development_stage",
    "condition",
    "perturbation",
)
"""columns that tasks ask for, or a prompt tells"""


@dataclass(frozen=True, kw_only=True)
class CorpusAudit:
    """The findings, in the order of the checks, and the numbers behind them."""

    corpus: str
    fingerprint: str
    cells: Mapping[Part, int]
    findings: tuple[Finding, ...]
    numbers: dict[str, Any] = field(default_factory=dict)
    """plain JSON: `donors`, `identical_cells`, `cell_ids`, `near_duplicates`, `labels`, `ontology`, `lengths`,
    `tasks`, `damaged_shards`"""

    @property
    def worst(self) -> Literal["ok", "note", "warning", "error"]:
        """The gravest level among the findings."""
        return min((finding.level for finding in self.findings), key=_LEVELS.index, default="ok")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "findings": [asdict(finding) for finding in self.findings], "worst": self.worst}

    def to_text(self) -> str:
        """Return the report as lines for a terminal: one per finding, its fix beneath, and a table of the tasks."""
        sizes = ", ".join(f"{n:,} {part}" for part, n in self.cells.items())
        lines = [f"{self.corpus} ({self.fingerprint}): {sizes} cells"]
        for finding in self.findings:
            lines.append(f"  {finding.level:<7}  {finding.check}: {finding.message}")
            if finding.fix:
                lines.append(f"           → {finding.fix}")
        lines.append("  records that a task can be asked of (train / validation / test):")
        lines += [
            f"    {line['task']:<36}" + " / ".join(f"{line['records'][part]:,}" for part in PARTS)
            for line in self.numbers["tasks"]
            if any(line["records"].values())
        ]
        return "\n".join(lines)


def audit_corpus(
    corpus: Corpus,
    *,
    context_length: int = 2048,
    tokens_per_gene: float = 1.0,
    max_cells: int = MAX_CELLS,
    examples: int = 20,
    seed: int = 0,
) -> CorpusAudit:
    """Check a corpus as one who trains and measures on it would, and report each finding with its fix.

    Faults become findings, not errors: a damaged shard is named and left out of the other checks.

    Parameters
    ----------
    context_length
        Tokens of the model's window, for the finding about lengths; the numbers have other windows, too.
    tokens_per_gene
        1 where genes are words of the tokenizer; about 3.8 in the byte-pair encoding of a general language model.
    max_cells
        Cells of each part whose near-duplicates are looked for, a random choice.
    examples
        Pairs of cells listed for each check at most.
    """
    damaged = damaged_shards(corpus)
    labels, genes = LabelCounts(), GeneUse([s.name for s in corpus.description.sources], len(corpus.vocabulary))
    lengths = Lengths(tuple(dict.fromkeys((tokens_per_gene, 1.0, 3.8))))
    balance = TaskBalance(corpus)
    balance.see_tables()
    with tempfile.TemporaryDirectory(prefix="cytoglot_audit_") as folder:
        same = SameCells(corpus, Path(folder))
        scan_corpus(corpus, [labels, genes, lengths, balance, same], skip=damaged, description="audit")
        contents, ids = same.repeated_contents(examples=examples), same.repeated_ids(examples=examples)
    near = find_near_duplicates(corpus, genes, max_cells=max_cells, examples=examples, seed=seed, skip=damaged)
    donors = _shared_groups(corpus, labels)
    ontology = _ontology(labels)
    tasks = balance.lines()
    findings = [
        *_of_shards(corpus, damaged),
        *_of_groups(donors),
        *_of_contents(contents),
        *_of_ids(ids),
        *_of_near(near),
        *_of_labels(corpus, labels),
        *_of_ontology(ontology),
        *_of_lengths(lengths, context_length, tokens_per_gene),
        *_of_tasks(tasks),
    ]
    numbers = {
        "damaged_shards": damaged,
        "donors": donors,
        "identical_cells": _repeat_numbers(corpus, contents) | {"cells_too_short_to_compare": same.n_short},
        "cell_ids": _repeat_numbers(corpus, ids) | {"cells_with_a_number_for_an_id": same.n_without_id},
        "near_duplicates": near.to_dict(),
        "labels": labels.coverage(corpus.description.metadata_columns),
        "labels_of_parts": _label_numbers(corpus, labels),
        "ontology": ontology,
        "lengths": {
            "genes_per_cell": lengths.quantiles(),
            "over_context": lengths.over_context(tuple(sorted({*CONTEXTS, context_length}))),
        },
        "tasks": [asdict(line) for line in tasks],
    }
    return CorpusAudit(
        corpus=str(corpus.folder),
        fingerprint=corpus.description.fingerprint,
        cells={part: corpus.description.total("n_cells", part) for part in PARTS},
        findings=tuple(findings),
        numbers=numbers,
    )


# Damage


def damaged_shards(corpus: Corpus) -> dict[str, str]:
    """Return file → what is wrong, of the shards that differ from what `corpus.json` says of them."""
    damaged = {}
    shards = corpus.description.shards
    with progress_bar(total=corpus.description.total("bytes"), description="checksums", unit="B") as bar:
        for shard in shards:
            path = corpus.folder / shard.file
            n_bytes = path.stat().st_size
            if n_bytes != shard.bytes:
                damaged[shard.file] = f"{n_bytes:,} bytes, expected {shard.bytes:,}"
            else:
                with path.open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                        damaged[shard.file] = "its checksum is not the one in corpus.json"
            bar.update(shard.bytes)
    return damaged


def _of_shards(corpus: Corpus, damaged: Mapping[str, str]) -> list[Finding]:
    n = len(corpus.description.shards)
    if not damaged:
        return [Finding("ok", "shards", f"all {n} are what corpus.json says")]
    shown = _listing(f"{file} ({what})" for file, what in damaged.items())
    fix = "delete them and run the same build again, which makes the missing shards; the checks below leave them out"
    return [Finding("error", "shards", f"{len(damaged)} of {n} damaged: {shown}", fix)]


# Cells that parts share


def _shared_groups(corpus: Corpus, labels: LabelCounts) -> list[dict[str, Any]]:
    """Return for each study and column of donors, batches and data sets the values that two parts share."""
    studies: dict[str, list[str]] = {}
    for source in corpus.description.sources:
        studies.setdefault(source.study or source.name, []).append(source.name)
    splits = corpus.splits
    columns: Mapping[str, str] = splits.get("columns", {})
    rows = []
    for study, sources in sorted(studies.items()):
        kept_whole = sorted({columns[source] for source in sources if source in columns})
        for column in [c for c in GROUP_FIELDS if c in corpus.description.metadata_columns]:
            of_part = {part: labels.of_study(column, part, sources) for part in PARTS}
            named = {part: {v for v in found if v.lower() not in NOT_A_GROUP} for part, found in of_part.items()}
            if not any(named.values()):
                continue
            shared = {f"{a}/{b}": sorted(named[a] & named[b]) for a, b in PART_PAIRS}
            misplaced = {
                value: sorted(part for part in PARTS if value in named[part])
                for value in sorted(set().union(*named.values()))
                if column in kept_whole and (wanted := splits.get("units", {}).get(unit_name(study, value)))
                and any(value in named[p] and p not in _may_be_in(wanted, study, splits) for p in PARTS)
            }  # fmt: skip
            rows.append(
                {
                    "study": study,
                    "column": column,
                    "split_by": kept_whole,
                    "values": len(set().union(*named.values())),
                    "shared": shared,
                    "not_where_splits_json_says": misplaced,
                }
            )
    return rows


def _may_be_in(part: Part, study: str, splits: Mapping[str, Any]) -> set[str]:
    """A study with too few units draws its validation cells from those that train."""
    return {"train", "validation"} if part == "train" and study in splits.get("carved", ()) else {part}


def _of_groups(rows: Sequence[Mapping[str, Any]]) -> list[Finding]:
    findings = []
    if misplaced := [row for row in rows if row["not_where_splits_json_says"]]:
        shown = _listing(
            f"{row['study']}: {row['column']} {value!r} in {' and '.join(parts)}"
            for row in misplaced
            for value, parts in row["not_where_splits_json_says"].items()
        )
        fix = "build the corpus again: shards and splits.json are not of one build"
        findings.append(Finding("error", "donors", f"cells outside of the part that splits.json gives: {shown}", fix))
    shared = [(row, {k: v for k, v in row["shared"].items() if v}) for row in rows]
    shared = [(row, found) for row, found in shared if found]
    donors = [(row, found) for row, found in shared if row["column"] == "donor_id"]
    others = [(row, found) for row, found in shared if row["column"] != "donor_id"]
    if donors:
        message = "donors in two parts: " + _listing(_shared_text(*each) for each in donors)
        fix = (
            "split by donor (split: {by: donor_id}) where a study has several; scores of cells whose donor trains are "
            "flattering, so report them apart"
        )
        findings.append(Finding("warning", "donors", message, fix))
    elif any(row["column"] == "donor_id" for row in rows):
        findings.append(Finding("ok", "donors", "none is in two parts of its study"))
    else:
        fix = "name the column of donors in the recipe (columns: {donor_id: …})"
        findings.append(Finding("note", "donors", "no source says which donor a cell is of", fix))
    if others:
        message = "batches and data sets in two parts: " + _listing(_shared_text(*each) for each in others)
        fix = "none needed where donors are apart: scores then hold for new donors of known batches"
        findings.append(Finding("note", "batches", message, fix))
    return findings


def _shared_text(row: Mapping[str, Any], found: Mapping[str, Sequence[str]]) -> str:
    values = sorted({value for shared in found.values() for value in shared})
    some = ", ".join(values[:3]) + (" …" if len(values) > 3 else "")
    by = row["split_by"]
    how = f", split by {' and '.join(by)}" if by and by not in ([HELD_OUT], [row["column"]]) else ""
    how = ", split cell by cell" if by == [BY_CELL] else how
    return f"{row['study']} {len(values)} {row['column']} ({some}{how})"


def _of_contents(found: Repeats) -> list[Finding]:
    n_across, n_within = sum(found.across.values()), sum(found.within.values())
    if not n_across and not n_within:
        return [Finding("ok", "identical cells", "no two cells have the same ranked genes")]
    findings = []
    if n_across:
        fix = "build with `cells: {duplicates: drop}`: a copy in the test part is remembered, not predicted"
        message = f"cells whose ranked genes are those of a cell in another part: {_counts(found.across)}"
        findings.append(Finding("warning", "identical cells", message, fix))
    if n_within:
        fix = "build with `cells: {duplicates: drop}`, or leave it: they only count more than once"
        elsewhere = "" if n_across else "; none across parts"
        message = f"copies within a part: {_counts(found.within)}{elsewhere}"
        findings.append(Finding("note", "identical cells", message, fix))
    return findings


def _of_ids(found: Repeats) -> list[Finding]:
    n_across, n_within = sum(found.across.values()), sum(found.within.values())
    if not n_across and not n_within:
        return [Finding("ok", "cell ids", "unique within each study and over its parts")]
    findings = []
    if n_across:
        fix = (
            "keep one source of the study, or split by a column that both sources fill alike; none needed where "
            "barcodes of several libraries coincide by chance (near-duplicates tell)"
        )
        message = f"cells with the id of a cell of their study in another part: {_counts(found.across)}"
        findings.append(Finding("warning", "cell ids", message, fix))
    if n_within:
        fix = "keep one source of the study, or give each a smaller weight in training: the cell counts twice"
        message = f"cells with the id of another cell of their study in the same part: {_counts(found.within)}"
        findings.append(Finding("note", "cell ids", message, fix))
    return findings


def _of_near(near: NearDuplicates) -> list[Finding]:
    check = "near-duplicates"
    across = [c for c in near.compared if c.part != c.among and c.n_cells]
    expected = near.between("train", "train")
    alike = ""
    if near.likeness:
        alike = (
            f"; two random cells of one type have a Jaccard index of {near.likeness['median']:.2f} in the middle, "
            f"{near.likeness['q99']:.2f} in the most similar 1 %, and {near.likeness['above']:.2%} of such pairs "
            f"reach {THRESHOLD}"
        )
    within = f"among training cells {_twin_text(expected)}" if expected and expected.n_cells else ""
    repeated = [c for c in across if c.n_twins]
    if repeated:
        message = "; ".join([*(f"{c.part} cells in {c.among}: {_twin_text(c)}" for c in repeated), within])
        fix = (
            "look at the examples (--json): the same id means the same cell, other ids cells that are truly alike; "
            "keep one source of a study that is there twice, and split by donor"
        )
        findings = [Finding("warning", check, message + alike, fix)]
    elif expected is not None and expected.n_twins:
        fix = "none needed, or keep one source of a study that is there twice, so that its cells count once"
        findings = [Finding("note", check, f"none across parts; {within}{alike}", fix)]
    else:
        findings = [Finding("ok", check, f"none across parts or among training cells{alike}")]
    if near.apart:
        shown = _listing(f"{' '.join(a[:2])} and {' '.join(b[:2])}" for a, b in near.apart)
        findings.append(Finding("note", check, f"not compared, for want of shared genes: {shown}"))
    return findings


def _twin_text(compared: Compared) -> str:
    sampled = "" if compared.n_cells == compared.n_of else f" looked up of {compared.n_of:,}"
    return f"{compared.n_twins:,} of {compared.n_cells:,}{sampled} ({compared.share:.1%}, {compared.n_pairs:,} pairs)"


def _repeat_numbers(corpus: Corpus, found: Repeats) -> dict[str, Any]:
    cells = name_cells(corpus, [place for pair in found.examples for place in pair])
    examples = [{"cell": vars(cells[a]), "other": vars(cells[b])} for a, b in found.examples]
    return {"across": dict(found.across), "within": dict(found.within), "examples": examples}


# Labels


def _label_columns(corpus: Corpus) -> list[str]:
    return [column for column in _LABEL_COLUMNS if column in corpus.description.metadata_columns]


def _label_numbers(corpus: Corpus, labels: LabelCounts) -> dict[str, Any]:
    """Return for each column the share of cells of which it is known and the values that only one part has."""
    numbers = {}
    for column in _label_columns(corpus):
        of_part = {part: labels.of_part(column, part) for part in PARTS}
        known = {part: found.total() / n for part, found in of_part.items() if (n := labels.cells(part))}
        others = {part: set().union(*(set(of_part[other]) for other in PARTS if other != part)) for part in PARTS}
        only = {part: {v: n for v, n in of_part[part].most_common() if v not in others[part]} for part in PARTS}
        untrained = {
            part: {v: n for v, n in of_part[part].most_common() if v not in of_part["train"]}
            for part in ("validation", "test")
        }
        numbers[column] = {
            "known": {part: round(share, 6) for part, share in known.items()},
            "values": {part: len(found) for part, found in of_part.items()},
            "only_in": only,
            "not_in_train": untrained,
        }
    return numbers


def _of_labels(corpus: Corpus, labels: LabelCounts) -> list[Finding]:
    numbers = _label_numbers(corpus, labels)
    n_cells = sum(labels.cells(part) for part in PARTS)
    n_known = {column: sum(labels.of_part(column, part).total() for part in PARTS) for column in numbers}
    shares = ", ".join(f"{column} {n_known[column] / max(n_cells, 1):.0%}" for column in numbers)
    absent = [column for column in _LABEL_COLUMNS if column not in numbers]
    message = f"known of the cells: {shares or 'nothing'}"
    if absent:
        message += f"; of none: {', '.join(absent)}"
    findings = [Finding("ok" if not absent else "note", "labels", message)]
    untrained = [
        f"{column} {', '.join(map(repr, list(found)[:3]))}{' …' if len(found) > 3 else ''} ({sum(found.values()):,} "
        f"{part} cells)"
        for column, values in numbers.items()
        for part, found in values["not_in_train"].items()
        if found
    ]
    if untrained:
        fix = "a model cannot name what it never saw: leave these out of a score of labels, or count them apart"
        message = f"values that training never sees: {_listing(untrained)}"
        findings.append(Finding("warning", "labels", message, fix))
    return findings


def _ontology(labels: LabelCounts) -> dict[str, Any]:
    """Return how many cells with a cell type have one that names a term of the Cell Ontology."""
    counts = sum((labels.of_part("cell_type", part) for part in PARTS), Counter[str]())
    mapping = map_labels(counts)
    n_mapped = sum(n for label, n in counts.items() if mapping.ids.get(label))
    unmapped = {label: counts[label] for label in sorted(mapping.unmapped, key=lambda name: (-counts[name], name))}
    return {
        "labels": len(counts),
        "mapped_labels": sum(mapping.ids.get(label) is not None for label in counts),
        "cells": counts.total(),
        "mapped_cells": n_mapped,
        "terms": len(mapping.names),
        "unmapped": unmapped,
    }


def _of_ontology(numbers: Mapping[str, Any]) -> list[Finding]:
    if not numbers["labels"]:
        return []
    if not numbers["terms"]:
        return [Finding("note", "ontology", f"none of the {numbers['labels']} cell types names a Cell Ontology term")]
    message = (
        f"{numbers['mapped_labels']} of {numbers['labels']} cell types name one of {numbers['terms']} Cell Ontology "
        f"terms ({numbers['mapped_cells'] / numbers['cells']:.0%} of the labelled cells)"
    )
    if not numbers["unmapped"]:
        return [Finding("ok", "ontology", message)]
    shown = _listing(f"{label} ({n:,})" for label, n in numbers["unmapped"].items())
    fix = "none needed for training; rename them in the sources where several names stand for one type"
    return [Finding("note", "ontology", f"{message}; not: {shown}", fix)]


# Lengths


def _of_lengths(lengths: Lengths, context_length: int, tokens_per_gene: float) -> list[Finding]:
    quantiles = [row for row in lengths.quantiles() if row["source"] == "all"]
    if not quantiles:
        return [Finding("error", "lengths", "no cell in any part", "add sources to the recipe")]
    middle = ", ".join(f"{row['part']} {row['q50']:,.0f} ({row['q05']:,.0f} to {row['q95']:,.0f})" for row in quantiles)
    over = [row for row in lengths.over_context([context_length]) if row["tokens_per_gene"] == tokens_per_gene]
    told = [f"{row['part']} {row['unit'].replace('_', ' ')}s {row['over'][str(context_length)]:.0%}" for row in over]
    message = (
        f"ranked genes per cell, the median and 90 % of the cells: {middle}; whole sentences longer than "
        f"{context_length:,} tokens, at {tokens_per_gene:g} per gene: {', '.join(told)}"
    )
    worst = max(row["over"][str(context_length)] for row in over if row["unit"] == "cell")
    if worst <= 0.05:
        return [Finding("ok", "lengths", message)]
    fix = "reading cuts them at the low end; a longer context, or --set sentence.top_genes=N in training, says where"
    return [Finding("note", "lengths", message, fix)]


# Tasks


def _of_tasks(lines: Iterable[TaskLine]) -> list[Finding]:
    lines = list(lines)
    shown = [line for line in lines if not line.not_shown]
    findings = [Finding("ok" if shown else "error", "tasks", f"{len(shown)} of {len(lines)} tasks can be shown")]
    cannot = [line for line in lines if line.not_shown]
    return findings + [Finding("note", "tasks", f"{line.task} cannot be shown: {line.not_shown}") for line in cannot]


def _counts(numbers: Mapping[Any, int]) -> str:
    return ", ".join(f"{n:,} {name}" for name, n in numbers.items() if n)


def _listing(texts: Iterable[str] | Collection[str]) -> str:
    every = list(texts)
    more = f" and {len(every) - _LISTED} more" if len(every) > _LISTED else ""
    return "; ".join(every[:_LISTED]) + more
