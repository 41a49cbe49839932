"""What could spoil a corpus: cells that parts share, missing labels, sentences that do not fit, tasks with no question.

Everything is counted in two or three walks through the shards, with memory that does not grow with the cells.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cytoglot.corpus.assign.group_split import BY_CELL, HELD_OUT, unit_name
from cytoglot.corpus.format.folder import PARTS, Corpus, Part
from cytoglot.corpus.inspect.counts import CONTEXTS, CorpusCounts, count_corpus
from cytoglot.corpus.inspect.exact_duplicates import PART_PAIRS, SameCells
from cytoglot.corpus.inspect.near_duplicates import MAX_CELLS, THRESHOLD, find_near_duplicates
from cytoglot.data.audit_obs import Finding
from cytoglot.data.knowledge.ontology import map_labels
from cytoglot.data.schema import GROUP_FIELDS, NOT_A_GROUP
from cytoglot.progress import progress_bar

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
    with tempfile.TemporaryDirectory(prefix="cytoglot_audit_") as folder:
        same = SameCells(corpus, Path(folder))
        counts = count_corpus(
            corpus,
            tokens_per_gene=tuple(dict.fromkeys((tokens_per_gene, 1.0, 3.8))),
            visitors=[same],
            skip=damaged,
            description="audit",
        )
        contents, ids = same.repeated("contents", examples=examples), same.repeated("ids", examples=examples)
    near = find_near_duplicates(corpus, counts.used_sg, max_cells=max_cells, examples=examples, seed=seed, skip=damaged)
    n_shards = len(corpus.description.shards)
    shards = Finding("ok", "shards", f"all {n_shards} are what corpus.json says")
    if damaged:
        shown = _listing(f"{file} ({what})" for file, what in damaged.items())
        fix = (
            "delete them and run the same build again, which makes the missing shards; the checks below leave them out"
        )
        shards = Finding("error", "shards", f"{len(damaged)} of {n_shards} damaged: {shown}", fix)
    groups, of_groups = _check_groups(corpus, counts)
    labels, of_labels = _check_labels(corpus, counts)
    ontology, of_ontology = _check_ontology(counts)
    can = [line for line in counts.tasks if not line.not_shown]
    findings = [
        shards,
        *of_groups,
        *_check_repeats(contents, _SAME_CONTENT),
        *_check_repeats(ids, _SAME_ID),
        *_check_near(near),
        *of_labels,
        *of_ontology,
        *_check_lengths(counts, context_length, tokens_per_gene),
        Finding("ok" if can else "error", "tasks", f"{len(can)} of {len(counts.tasks)} tasks can be shown"),
        *(Finding("note", "tasks", f"{line.task} cannot be shown: {line.not_shown}")
          for line in counts.tasks if line.not_shown),
    ]  # fmt: skip
    numbers = {
        "damaged_shards": damaged,
        "donors": groups,
        "identical_cells": contents | {"cells_too_short_to_compare": same.n_short},
        "cell_ids": ids | {"cells_with_a_number_for_an_id": same.n_without_id},
        "near_duplicates": near,
        "labels": counts.coverage(corpus.description.metadata_columns),
        "labels_of_parts": labels,
        "ontology": ontology,
        "lengths": {
            "genes_per_cell": counts.quantiles(),
            "over_context": counts.over_context(tuple(sorted({*CONTEXTS, context_length}))),
        },
        "tasks": [asdict(line) for line in counts.tasks],
    }
    return CorpusAudit(
        corpus=str(corpus.folder),
        fingerprint=corpus.description.fingerprint,
        cells={part: corpus.description.total("n_cells", part) for part in PARTS},
        findings=tuple(findings),
        numbers=numbers,
    )


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


def _check_groups(corpus: Corpus, counts: CorpusCounts) -> tuple[list[dict[str, Any]], list[Finding]]:
    """Look for donors, batches and data sets that two parts share; return a row for each study and column."""
    splits = corpus.splits
    columns: Mapping[str, str] = splits.get("columns", {})
    studies: dict[str, list[str]] = {}
    for source in corpus.description.sources:
        studies.setdefault(source.study or source.name, []).append(source.name)
    drawn_from_train = {*splits.get("validation_from_train", ()), *splits.get("carved", ())}  # its name in old builds
    rows: list[dict[str, Any]] = []
    misplaced_shown: list[str] = []
    for study, sources in sorted(studies.items()):
        kept_whole = sorted({columns[source] for source in sources if source in columns})
        for column in [c for c in GROUP_FIELDS if c in corpus.description.metadata_columns]:
            named = {
                part: {v for v in counts.labels(column, part, sources) if v.lower() not in NOT_A_GROUP}
                for part in PARTS
            }
            every = sorted(set().union(*named.values()))
            if not every:
                continue
            misplaced: dict[str, list[Part]] = {}
            for value in every if column in kept_whole else ():
                found = sorted(part for part in PARTS if value in named[part])
                wanted = splits.get("units", {}).get(unit_name(study, value))
                # A study with too few units draws its validation cells from those that train.
                may_be_in = {wanted, "validation"} if wanted == "train" and study in drawn_from_train else {wanted}
                if wanted and not may_be_in.issuperset(found):
                    misplaced[value] = found
                    misplaced_shown.append(f"{study}: {column} {value!r} in {' and '.join(found)}")
            rows.append(
                {
                    "study": study,
                    "column": column,
                    "split_by": kept_whole,
                    "values": len(every),
                    "shared": {f"{a}/{b}": sorted(named[a] & named[b]) for a, b in PART_PAIRS},
                    "not_where_splits_json_says": misplaced,
                }
            )
    findings = []
    if misplaced_shown:
        message = f"cells outside of the part that splits.json gives: {_listing(misplaced_shown)}"
        fix = "build the corpus again: shards and splits.json are not of one build"
        findings.append(Finding("error", "donors", message, fix))
    shared = [row for row in rows if any(row["shared"].values())]
    donors = [_shared_text(row) for row in shared if row["column"] == "donor_id"]
    others = [_shared_text(row) for row in shared if row["column"] != "donor_id"]
    if donors:
        fix = (
            "split by donor (split: {by: donor_id}) where a study has several; scores of cells whose donor trains are "
            "flattering, so report them apart"
        )
        findings.append(Finding("warning", "donors", f"donors in two parts: {_listing(donors)}", fix))
    elif any(row["column"] == "donor_id" for row in rows):
        findings.append(Finding("ok", "donors", "none is in two parts of its study"))
    else:
        fix = "name the column of donors in the recipe (columns: {donor_id: …})"
        findings.append(Finding("note", "donors", "no source says which donor a cell is of", fix))
    if others:
        fix = "none needed where donors are apart: scores then hold for new donors of known batches"
        findings.append(Finding("note", "batches", f"batches and data sets in two parts: {_listing(others)}", fix))
    return rows, findings


def _shared_text(row: Mapping[str, Any]) -> str:
    values = sorted({value for shared in row["shared"].values() for value in shared})
    some = ", ".join(values[:3]) + (" …" if len(values) > 3 else "")
    by = row["split_by"]
    how = f", split by {' and '.join(by)}" if by and by not in ([HELD_OUT], [row["column"]]) else ""
    how = ", split cell by cell" if by == [BY_CELL] else how
    return f"{row['study']} {len(values)} {row['column']} ({some}{how})"


_SAME_CONTENT = {
    "check": "identical cells",
    "none": "no two cells have the same ranked genes",
    "across": "cells whose ranked genes are those of a cell in another part",
    "across_fix": "build with `cells: {duplicates: drop}`: a copy in the test part is remembered, not predicted",
    "within": "copies within a part",
    "within_only": "; none across parts",
    "within_fix": "build with `cells: {duplicates: drop}`, or leave it: they only count more than once",
}
_SAME_ID = {
    "check": "cell ids",
    "none": "unique within each study and over its parts",
    "across": "cells with the id of a cell of their study in another part",
    "across_fix": "keep one source of the study, or split by a column that both sources fill alike; none needed where "
    "barcodes of several libraries coincide by chance (near-duplicates tell)",
    "within": "cells with the id of another cell of their study in the same part",
    "within_only": "",
    "within_fix": "keep one source of the study, or give each a smaller weight in training: the cell counts twice",
}


def _check_repeats(found: Mapping[str, Any], words: Mapping[str, str]) -> list[Finding]:
    apart, together = (
        ", ".join(f"{n:,} {name}" for name, n in found[which].items() if n) for which in ("across", "within")
    )
    findings = []
    if apart:
        findings.append(Finding("warning", words["check"], f"{words['across']}: {apart}", words["across_fix"]))
    if together:
        message = f"{words['within']}: {together}{'' if apart else words['within_only']}"
        findings.append(Finding("note", words["check"], message, words["within_fix"]))
    return findings or [Finding("ok", words["check"], words["none"])]


def _check_near(near: Mapping[str, Any]) -> list[Finding]:
    def twins(row: Mapping[str, Any]) -> str:
        of = "" if row["n_cells"] == row["n_of"] else f" looked up of {row['n_of']:,}"
        return f"{row['n_twins']:,} of {row['n_cells']:,}{of} ({row['share']:.1%}, {row['n_pairs']:,} pairs)"

    check = "near-duplicates"
    looked_up = [row for row in near["compared"] if row["n_cells"]]
    repeated = [row for row in looked_up if row["part"] != row["among"] and row["n_twins"]]
    expected = next((row for row in looked_up if row["part"] == row["among"]), None)
    within = "" if expected is None else f"among training cells {twins(expected)}"
    alike = ""
    if likeness := near["likeness_within_cell_types"]:
        alike = (
            f"; two random cells of one type have a Jaccard index of {likeness['median']:.2f} in the middle, "
            f"{likeness['q99']:.2f} in the most similar 1 %, and {likeness['above']:.2%} of such pairs "
            f"reach {THRESHOLD}"
        )
    if repeated:
        message = "; ".join([*(f"{row['part']} cells in {row['among']}: {twins(row)}" for row in repeated), within])
        fix = (
            "look at the examples (--json): the same id means the same cell, other ids cells that are truly alike; "
            "keep one source of a study that is there twice, and split by donor"
        )
        findings = [Finding("warning", check, message + alike, fix)]
    elif expected is not None and expected["n_twins"]:
        fix = "none needed, or keep one source of a study that is there twice, so that its cells count once"
        findings = [Finding("note", check, f"none across parts; {within}{alike}", fix)]
    else:
        findings = [Finding("ok", check, f"none across parts or among training cells{alike}")]
    if near["not_compared"]:
        shown = _listing(f"{' '.join(a[:2])} and {' '.join(b[:2])}" for a, b in near["not_compared"])
        findings.append(Finding("note", check, f"not compared, for want of shared genes: {shown}"))
    return findings


def _check_labels(corpus: Corpus, counts: CorpusCounts) -> tuple[dict[str, Any], list[Finding]]:
    """Return for each column the share of cells of which it is known and the values that only one part has."""
    n_cells = {part: counts.n_cells(part) for part in PARTS}
    numbers, shares, untrained = {}, [], []
    for column in [column for column in _LABEL_COLUMNS if column in corpus.description.metadata_columns]:
        of_part = {part: counts.labels(column, part) for part in PARTS}
        others = {part: set().union(*(of_part[other] for other in PARTS if other != part)) for part in PARTS}
        not_in_train = {
            part: {v: n for v, n in of_part[part].most_common() if v not in of_part["train"]}
            for part in ("validation", "test")
        }
        numbers[column] = {
            "known": {part: round(of_part[part].total() / n, 6) for part, n in n_cells.items() if n},
            "values": {part: len(found) for part, found in of_part.items()},
            "only_in": {
                part: {v: n for v, n in of_part[part].most_common() if v not in others[part]} for part in PARTS
            },
            "not_in_train": not_in_train,
        }
        n_known = sum(found.total() for found in of_part.values())
        shares.append(f"{column} {n_known / max(sum(n_cells.values()), 1):.0%}")
        untrained += [
            f"{column} {', '.join(map(repr, list(found)[:3]))}{' …' if len(found) > 3 else ''} "
            f"({sum(found.values()):,} {part} cells)"
            for part, found in not_in_train.items()
            if found
        ]
    absent = [column for column in _LABEL_COLUMNS if column not in numbers]
    message = f"known of the cells: {', '.join(shares) or 'nothing'}"
    if absent:
        message += f"; of none: {', '.join(absent)}"
    findings = [Finding("ok" if not absent else "note", "labels", message)]
    if untrained:
        fix = "a model cannot name what it never saw: leave these out of a score of labels, or count them apart"
        message = f"values that training never sees: {_listing(untrained)}"
        findings.append(Finding("warning", "labels", message, fix))
    return numbers, findings


def _check_ontology(counts: CorpusCounts) -> tuple[dict[str, Any], list[Finding]]:
    """Return how many cells with a cell type have one that names a term of the Cell Ontology."""
    cells = sum((counts.labels("cell_type", part) for part in PARTS), Counter[str]())
    mapping = map_labels(cells)
    mapped = {label: n for label, n in cells.items() if mapping.ids.get(label)}
    unmapped = {label: cells[label] for label in sorted(mapping.unmapped, key=lambda name: (-cells[name], name))}
    numbers = {
        "labels": len(cells),
        "mapped_labels": len(mapped),
        "cells": cells.total(),
        "mapped_cells": sum(mapped.values()),
        "terms": len(mapping.names),
        "unmapped": unmapped,
    }
    if not cells:
        return numbers, []
    if not mapping.names:
        message = f"none of the {len(cells)} cell types names a Cell Ontology term"
        return numbers, [Finding("note", "ontology", message)]
    message = (
        f"{len(mapped)} of {len(cells)} cell types name one of {len(mapping.names)} Cell Ontology terms "
        f"({sum(mapped.values()) / cells.total():.0%} of the labelled cells)"
    )
    if not unmapped:
        return numbers, [Finding("ok", "ontology", message)]
    shown = _listing(f"{label} ({n:,})" for label, n in unmapped.items())
    fix = "none needed for training; rename them in the sources where several names stand for one type"
    return numbers, [Finding("note", "ontology", f"{message}; not: {shown}", fix)]


def _check_lengths(counts: CorpusCounts, context_length: int, tokens_per_gene: float) -> list[Finding]:
    quantiles = [row for row in counts.quantiles() if row["source"] == "all"]
    if not quantiles:
        return [Finding("error", "lengths", "no cell in any part", "add sources to the recipe")]
    middle = ", ".join(f"{row['part']} {row['q50']:,.0f} ({row['q05']:,.0f} to {row['q95']:,.0f})" for row in quantiles)
    over = [row for row in counts.over_context([context_length]) if row["tokens_per_gene"] == tokens_per_gene]
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


def _listing(texts: Iterable[str]) -> str:
    every = list(texts)
    more = f" and {len(every) - _LISTED} more" if len(every) > _LISTED else ""
    return "; ".join(every[:_LISTED]) + more
