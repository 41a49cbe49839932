"""The part of an audit that looks at `obs`: fields, labels, donors, organism and splits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from cytoglot.data.knowledge.ontology import map_labels
from cytoglot.data.schema import group_columns, group_values, labels, recognize_obs
from cytoglot.data.splits.splitting import split_cells
from cytoglot.errors import InputError

#: labels of fewer cells cannot be split into training, validation and test cells with any sense.
FEW_CELLS = 10

_ORGANISMS = {"homo sapiens": "human", "human": "human", "mus musculus": "mouse", "mouse": "mouse"}


@dataclass(frozen=True)
class Finding:
    """What a check saw and what to do about it."""

    level: Literal["ok", "note", "warning", "error"]
    """error: the data cannot be used as they are; warning: results would suffer; note: good to know"""
    check: str
    message: str
    fix: str = ""


def audit_columns(obs: pd.DataFrame, *, label: str | None, species: str | None, facts: dict[str, Any]) -> list[Finding]:
    """Return the findings about `obs`; numbers go into `facts`."""
    fields = recognize_obs(obs)
    facts["obs_fields"] = fields
    told = ", ".join(f"{name} ({column!r})" if name != column else name for name, column in fields.items())
    findings = [Finding("ok" if fields else "note", "obs columns", f"recognized: {told or 'none'}")]
    findings += _audit_organism(obs, fields, species)
    column = label or fields.get("cell_type")
    if column is None:
        fix = "pass label= (--label) with the column of cell types; without labels cells can be encoded and embedded"
        findings.append(Finding("note", "labels", "no column of cell types was recognized", fix))
        return findings
    try:
        values = labels(obs, column)
    except InputError as error:
        return [*findings, Finding("error", "labels", str(error), "pass label= (--label) with one of these columns")]
    findings += _audit_labels(values, column, facts)
    return findings + _audit_groups(obs, values, column, facts)


def _audit_organism(obs: pd.DataFrame, fields: dict[str, str], species: str | None) -> list[Finding]:
    if "organism" not in fields:
        return []
    stated = {_ORGANISMS.get(value.lower(), value) for value in labels(obs, fields["organism"]).dropna().unique()}
    if len(stated) > 1:
        fix = "train on one organism at a time unless all genes are named by the orthologs of one"
        return [Finding("warning", "organism", f"{len(stated)} organisms: {', '.join(sorted(stated))}", fix)]
    if species is not None and stated and stated != {species}:
        fix = "correct obs or the gene names (mouse genes named by human orthologs look human)"
        message = f"obs says {stated.pop()}, the gene names look {species}"
        return [Finding("warning", "organism", message, fix)]
    return []


def _audit_labels(values: pd.Series, column: str, facts: dict[str, Any]) -> list[Finding]:
    counts = values.value_counts()
    facts["label_column"] = column
    facts["label_counts"] = {str(name): int(n) for name, n in counts.items()}
    n_missing = int(values.isna().sum())
    facts["unlabelled_cells"] = n_missing
    if counts.empty:
        return [
            Finding("warning", "labels", f"{column!r} has no label in any of {len(values):,} cells", "label some cells")
        ]
    shown = ", ".join(f"{name} {n:,}" for name, n in list(facts["label_counts"].items())[:8])
    more = f" and {len(counts) - 8} more" if len(counts) > 8 else ""
    findings = [Finding("ok", "labels", f"{column!r} has {len(counts)}: {shown}{more}")]
    if n_missing:
        fix = "they are left out of training and evaluation of labels, and may be annotated"
        findings.append(Finding("note", "labels", f"{n_missing:,} cells have no label", fix))
    if len(counts) == 1:
        findings.append(Finding("warning", "labels", "one label only: nothing to tell apart", "choose another column"))
    if rare := [str(name) for name, n in counts.items() if n < FEW_CELLS]:
        message = f"fewer than {FEW_CELLS} cells in {len(rare)} of {len(counts)} labels: {', '.join(rare[:8])}"
        findings.append(
            Finding("warning", "labels", message, "merge them with a broader type, or read their scores with care")
        )
    if all(str(name).replace(".", "", 1).isdigit() for name in counts.index):
        fix = "name the clusters: a language model makes nothing of numbers"
        findings.append(Finding("warning", "labels", f"the labels of {column!r} are numbers", fix))
    mapping = map_labels(counts.index)
    facts["ontology"] = mapping.to_dict()
    if not mapping.unmapped:
        return [*findings, Finding("ok", "cell ontology", f"all {len(counts)} labels have a term")]
    fix = "these get no ontology id; use names of the Cell Ontology where one fits"
    message = f"{len(mapping.unmapped)} of {len(counts)} labels have no term: {', '.join(mapping.unmapped[:8])}"
    return [*findings, Finding("note", "cell ontology", message, fix)]


def _audit_groups(obs: pd.DataFrame, values: pd.Series, column: str, facts: dict[str, Any]) -> list[Finding]:
    findings = []
    grouping = next((c for c in group_columns(obs) if group_values(obs, c).nunique() > 1), None)
    if grouping is not None and values.notna().any():
        groups = group_values(obs, grouping)
        donors = pd.Series(groups.to_numpy()).groupby(values.to_numpy()).nunique()
        facts["group_column"] = grouping
        facts["groups_per_label"] = {str(name): int(n) for name, n in donors.items()}
        single = [str(name) for name, n in donors.items() if n < 2]
        message = f"{groups.nunique()} groups in {grouping!r}, {donors.min()} to {donors.max()} for each label"
        findings.append(Finding("ok", "donors per label", message))
        if single:
            fix = "a split by whole groups cannot test them fairly: their type and their group are one"
            told = (
                f"in one group of {grouping!r} or none: {len(single)} of {len(donors)} labels, {', '.join(single[:8])}"
            )
            findings.append(Finding("warning", "donors per label", told, fix))

    try:
        split = split_cells(obs, label=column)
    except InputError as error:
        return [*findings, Finding("error", "split", str(error), "mend this before training")]
    facts["split"] = {"by": split.by, "warnings": list(split.warnings)}
    message = (
        f"auto goes by {split.by!r}: {len(split.train):,} training, {len(split.validation):,} validation and "
        f"{len(split.test):,} test cells"
    )
    if not split.warnings:
        return [*findings, Finding("ok", "split", message)]
    fix = "name a column of donors, batches or studies with --split-by if there is one"
    level: Literal["warning", "note"] = "warning" if split.by == "cell" else "note"
    return [*findings, Finding(level, "split", "; ".join([message, *split.warnings]), fix)]
