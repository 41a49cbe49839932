"""What a data set holds, what is wrong with it for our purpose, and what to do about each finding."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cytoglot.data.audit_obs import Finding, audit_columns
from cytoglot.data.datasets import knowledge_table, resolve_source
from cytoglot.data.genes import names as gene_names
from cytoglot.data.genes.columns import are_identifiers
from cytoglot.data.genes.harmonize import outdated_symbols
from cytoglot.data.genes.options import DEFAULT_GENES, GeneOptions
from cytoglot.data.genes.vocabulary import resolve_genes
from cytoglot.data.normalize import check_values
from cytoglot.data.qc import QcSettings
from cytoglot.data.readers.cell_rows import blocks, cell_rows
from cytoglot.data.readers.formats import open_store
from cytoglot.data.readers.matrix_choice import Candidate, candidates_of, choose
from cytoglot.errors import InputError
from cytoglot.hashing import NO_HASH, cell_hashes

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

#: context lengths of the forecast: small scratch models, Pythia, larger ones.
CONTEXTS: tuple[int, ...] = (1024, 2048, 8192)

#: tokens that the words of a prompt and its answer take beside the genes.
PROMPT_TOKENS = 64

_CHUNK_CELLS = 4096
_LEVELS = ("error", "warning", "note", "ok")


@dataclass(frozen=True, kw_only=True, repr=False)
class AuditReport:
    """The findings, in the order of the checks, and the numbers behind them; printed as `to_text` gives them."""

    source: str
    n_cells: int
    n_genes: int
    findings: tuple[Finding, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    """plain JSON: label counts, donors per label, genes per cell, renamed symbols, …"""

    @property
    def worst(self) -> Literal["ok", "note", "warning", "error"]:
        """The gravest level among the findings."""
        return min((finding.level for finding in self.findings), key=_LEVELS.index, default="ok")

    def __repr__(self) -> str:
        return self.to_text()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "findings": [asdict(finding) for finding in self.findings], "worst": self.worst}

    def to_text(self) -> str:
        """Return the report as lines for a terminal: one per finding, its fix beneath."""
        lines = [f"{self.source}: {self.n_cells:,} cells x {self.n_genes:,} genes"]
        for finding in self.findings:
            lines.append(f"  {finding.level:<7}  {finding.check}: {finding.message}")
            if finding.fix:
                lines.append(f"           → {finding.fix}")
        return "\n".join(lines)


def audit(
    source: str | Path | AnnData,
    *,
    label: str | None = None,
    layer: str | None = None,
    gene_options: GeneOptions = DEFAULT_GENES,
    tokens_per_gene: float = 4.0,
) -> AuditReport:
    """Look at a data set as a model would, and return each finding with its fix; the report prints as text.

    Checked are the matrix (which one `read` takes, and its state), gene names (namespace, species, duplicates,
    renamed symbols, spreadsheet dates), empty and odd cells, identical cells, the columns of `obs` (recognized fields,
    label counts, donors per label, what a split would go by) and the length of the cell sentences in tokens. Nothing is
    changed. The matrix is read once in chunks, so a file may be larger than memory. Faults of the data become findings,
    not errors.

    Parameters
    ----------
    source
        A file or folder that `read` takes, the name of a data set, or an AnnData.
    label
        The column of cell types; recognized by name when not given (`schema.OBS_FIELDS`).
    layer
        The matrix to look at, as in `read`.
    gene_options
        How the columns of the matrix become genes.
    tokens_per_gene
        Of a byte-pair tokenizer of ordinary text, for the forecast; 4 is what GPT-2's needs for human symbols. The
        tokenizer of a model from scratch needs 1.

    Raises
    ------
    InputError
        The file is missing or cannot be opened at all.

    Examples
    --------
    >>> import cytoglot as cg
    >>> report = cg.audit("pbmc68k_reduced", label="cell_type")
    >>> print(report.to_text().splitlines()[0])
    pbmc68k_reduced: 700 cells x 765 genes
    """
    with _open(source) as (name, obs, candidates):
        facts: dict[str, Any] = {}
        matrix, findings = _audit_matrix(candidates, obs, layer)
        var = (matrix or candidates[-1]).var if candidates else pd.DataFrame()
        var = var.iloc[np.argsort(var.index.to_numpy(str), kind="stable")]  # examples in messages come by name
        repeated = obs.index[obs.index.duplicated()]
        if len(repeated):
            message = f"{len(repeated)} cell ids are repeated, first {str(repeated[0])!r}"
            findings.append(Finding("error", "cell ids", message, "make them unique: adata.obs_names_make_unique()"))
        else:
            findings.append(Finding("ok", "cell ids", "unique"))
        findings += _audit_genes(var, gene_options, facts)
        if matrix is not None:
            findings += _audit_cells(matrix, obs, tokens_per_gene, facts)
        findings += audit_columns(obs, label=label, species=facts.get("species"), facts=facts)
    return AuditReport(source=name, n_cells=len(obs), n_genes=len(var), findings=tuple(findings), facts=facts)


@contextmanager
def _open(source: str | Path | AnnData) -> Iterator[tuple[str, pd.DataFrame, list[Candidate]]]:
    resolved = resolve_source(source) if isinstance(source, str | Path) else source
    if isinstance(resolved, Path):
        with open_store(resolved) as store:
            yield str(source), store.obs, store.candidates
    else:
        yield (str(source) if isinstance(source, str) else "AnnData"), resolved.obs, candidates_of(resolved)


# The matrix


def _audit_matrix(
    candidates: Sequence[Candidate], obs: pd.DataFrame, layer: str | None
) -> tuple[Candidate | None, list[Finding]]:
    try:
        chosen, verdict, message = choose(candidates, layer=layer, cell_names=obs.index.astype(str))
    except InputError as error:
        expected, _, fix = str(error).rpartition("; ")
        return None, [Finding("error", "matrix", expected or str(error), fix)]
    state = verdict.state
    if state is not None and state.is_flat:
        fix = "pass layer= (--layer) with a matrix of counts or logs: here no cell has two different values to rank"
        return chosen, [Finding("warning", "matrix", message, fix)]
    if state is None or state.kind == "counts":
        return chosen, [Finding("ok", "matrix", message)]
    if state.kind == "log1p":
        fix = "none needed: genes rank as by their counts; only the default choice of variable genes wants counts"
        return chosen, [Finding("note", "matrix", message, fix)]
    fix = (
        "pass layer= (--layer) if another matrix holds counts; otherwise make sure that these values rank genes within "
        "a cell"
    )
    return chosen, [Finding("warning", "matrix", message, fix)]


# Genes


def _audit_genes(var: pd.DataFrame, options: GeneOptions, facts: dict[str, Any]) -> list[Finding]:
    try:
        genes = resolve_genes(var, gene_column=options.column, mapping=options.mapping, duplicates=options.duplicates)
    except InputError as error:
        expected, _, fix = str(error).rpartition("; ")
        return [Finding("error", "gene names", expected, fix)]
    names = genes.vocabulary.symbols
    findings = []
    if are_identifiers(names):
        kind = "Ensembl ids" if genes.vocabulary.namespace == "ensembl" else f"identifiers such as {names[0]}"
        fix = (
            "pass gene_mapping= (--gene-mapping, id → symbol) or gene_column= (--gene-column) to read symbols, which "
            "language models know"
        )
        findings.append(Finding("warning", "gene names", f"{len(names):,} {kind} without symbols", fix))
    elif wrapped := gene_names.wrapped_names(names):
        shown = ", ".join(f"{name} ({symbol}?)" for name, symbol in list(wrapped.items())[:5])
        fix = "pass gene_mapping= (--gene-mapping) with the symbols alone, which models and tables know"
        findings.append(Finding("warning", "gene names", f"{len(wrapped):,} of {len(names):,} are odd: {shown}", fix))
    else:
        findings.append(Finding("ok", "gene names", f"{len(names):,} symbols from {genes.report.source}"))
    species, evidence = gene_names.guess_species(names)
    facts["species"] = species
    if species is None:
        fix = "state the organism in obs['organism'] if the model should know it"
        findings.append(Finding("note", "species", f"the gene names do not tell it: {evidence}", fix))
    else:
        findings.append(Finding("ok", "species", f"{species}: {evidence}"))
    if genes.report.unknown_features:
        message, _, fix = genes.report.feature_warning.partition("; ")
        findings.append(Finding("warning", "feature types", message, fix))
    told = ("gene names taken from", "the feature types")
    if messages := [m for m in genes.report.messages() if not m.startswith(told)]:
        grave = genes.report.n_duplicate_columns or genes.report.n_dropped
        fix = (
            "duplicates='sum' (--duplicates sum, the default for counts), 'first' or 'error' says what becomes of them"
        )
        findings.append(Finding("warning" if grave else "note", "gene columns", "; ".join(messages), fix))
    return findings + _audit_symbols(names, species, facts)


def _audit_symbols(names: Sequence[str], species: str | None, facts: dict[str, Any]) -> list[Finding]:
    findings = []
    mangled = gene_names.mangled_names(names)
    facts["mangled_names"] = {name: list(symbols) for name, symbols in mangled.items()}
    if mangled:
        shown = ", ".join(f"{name} ({' or '.join(s) or 'unknown'})" for name, s in list(mangled.items())[:5])
        fix = (
            "go back to the file before the spreadsheet, or pass gene_mapping= (--gene-mapping) with the right symbols"
        )
        findings.append(Finding("warning", "gene names", f"{len(mangled)} dates or numbers: {shown}", fix))
    if species != "human":
        return findings
    table = knowledge_table("hgnc_symbols_aliases.tsv.gz")
    renamed = outdated_symbols(names, hgnc=table)
    facts["renamed_symbols"] = renamed
    known_by = "the list of the package" if table is None else "HGNC's table"
    if renamed:
        shown = ", ".join(f"{old} → {new}" for old, new in list(renamed.items())[:5])
        fix = (
            "pass gene_mapping= (--gene-mapping) with the renamed_symbols among the facts of this report when data of "
            "several ages or a model that learned the new names meet"
        )
        message = f"{len(renamed):,} of {len(names):,} symbols have new names by {known_by}: {shown}"
        findings.append(Finding("note", "outdated symbols", message, fix))
    else:
        findings.append(Finding("ok", "outdated symbols", f"none by {known_by}"))
    return findings


# Cells


def _audit_cells(matrix: Candidate, obs: pd.DataFrame, tokens_per_gene: float, facts: dict[str, Any]) -> list[Finding]:
    rows = cell_rows(matrix.matrix)
    n_cells, n_genes = rows.shape
    n_expressed, in_cells = np.zeros(n_cells, dtype=np.int64), np.zeros(n_genes, dtype=np.int64)
    hashes = np.full(n_cells, NO_HASH, dtype=np.uint64)
    try:
        for cells, block in blocks(rows, _CHUNK_CELLS):
            chunk = block.copy()
            check_values(chunk, cell_names=obs.index[cells], gene_names=matrix.var.index, what=matrix.source)
            chunk.sum_duplicates()
            chunk.eliminate_zeros()
            n_expressed[cells] = np.diff(chunk.indptr)
            in_cells += np.bincount(chunk.indices, minlength=n_genes)
            hashes[cells] = cell_hashes(chunk)
    except InputError as error:  # the choice of the matrix looked at a sample of the cells alone
        fix = "remove or mend these values, or pass layer= (--layer) for another matrix"
        return [Finding("error", "matrix", str(error), fix)]
    finally:
        rows.close()
    low, middle, high = np.quantile(n_expressed, (0.05, 0.5, 0.95)).tolist() if len(n_expressed) else (0.0, 0.0, 0.0)
    most = float(n_expressed.max(initial=0))
    facts["genes_per_cell"] = {"p05": low, "median": middle, "p95": high, "max": most}
    n_copies = int((pd.Series(hashes[hashes != NO_HASH]).value_counts() - 1).sum())
    facts["identical_cells"] = n_copies
    copies = Finding("ok", "identical cells", "none")
    if n_copies:
        fix = "remove the copies, or split by donor or batch: a copy in the test set is remembered, not predicted"
        copies = Finding("warning", "identical cells", f"{n_copies:,} cells are copies of another one", fix)
    return [
        *_audit_quality(n_expressed, in_cells, facts),
        copies,
        *_forecast(n_expressed, tokens_per_gene, facts),
    ]


def _audit_quality(n_expressed: NDArray[np.int64], in_cells: NDArray[np.int64], facts: dict[str, Any]) -> list[Finding]:
    settings = QcSettings()
    n_empty = int((n_expressed == 0).sum())
    n_low = int((n_expressed < (settings.min_genes or 0)).sum())
    n_high = int((n_expressed > (settings.max_genes or np.inf)).sum())
    n_rare = int((in_cells < (settings.min_cells or 0)).sum())
    facts["quality"] = {"empty_cells": n_empty, "few_genes": n_low, "many_genes": n_high, "rare_genes": n_rare}
    findings = []
    if n_empty:
        fix = "remove them (quality_control does): an empty cell has an empty sentence"
        findings.append(Finding("warning", "cells", f"{n_empty:,} cells express no gene", fix))
    message = (
        f"quality control with its defaults would remove {n_low:,} cells under {settings.min_genes} genes, "
        f"{n_high:,} over {settings.max_genes}, and {n_rare:,} genes in fewer than {settings.min_cells} cells "
        "(beside cells of high mitochondrial share)"
    )
    small = n_low > len(n_expressed) / 2
    fix = "few genes were measured or kept: lower min_genes before quality control" if small else ""
    findings.append(Finding("warning" if small else "ok" if not (n_low or n_high) else "note", "cells", message, fix))
    return findings


def _forecast(n_expressed: NDArray[np.int64], tokens_per_gene: float, facts: dict[str, Any]) -> list[Finding]:
    """Say how many whole cell sentences fit into common contexts."""
    by_tokenizer = {"one token per gene": 1.0, f"{tokens_per_gene:g} tokens per gene": tokens_per_gene}
    forecast = {name: [_fit(n_expressed, per_gene, c) for c in CONTEXTS] for name, per_gene in by_tokenizer.items()}
    facts["token_forecast"] = forecast
    median = facts["genes_per_cell"]["median"]
    told = "; ".join(
        f"with {name}, " + ", ".join(f"{row['whole_cells']:.0%} in {row['context']:,}" for row in rows)
        for name, rows in forecast.items()
    )
    message = f"median {median:,.0f} genes per cell; whole sentences that fit a context: {told}"
    shortest = [rows[0] for rows in forecast.values()]
    if shortest[0]["whole_cells"] >= 0.95:
        return [Finding("ok", "token length", message)]
    fix = (
        f"--top-genes {shortest[0]['genes']} fits a context of {CONTEXTS[0]:,} with one token per gene, "
        f"--top-genes {shortest[1]['genes']} with {tokens_per_gene:g}; or choose variable genes with --hvg"
    )
    return [Finding("note", "token length", message, fix)]


def _fit(n_expressed: NDArray[np.int64], tokens_per_gene: float, context: int) -> dict[str, Any]:
    """Return how many genes fit beside the prompt, and the share of cells that need no more."""
    room = int((context - PROMPT_TOKENS) / tokens_per_gene)
    share = float((n_expressed <= room).mean()) if len(n_expressed) else 1.0
    return {"context": context, "genes": room, "whole_cells": round(share, 4)}
