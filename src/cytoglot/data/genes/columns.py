"""The name of each column of a matrix, out of `var`: symbols where the file has them, tidied, one name per column."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cytoglot.errors import UnknownNameError

#: columns of `var` that hold symbols, best first, compared in lower case with `_` for other signs.
#: They are those of CELLxGENE, scanpy, Seurat, monocle, biomaRt.
SYMBOL_COLUMNS = (
    "feature_name",
    "gene_symbols",
    "gene_symbol",
    "gene_name",
    "gene_names",
    "symbol",
    "symbols",
    "hgnc_symbol",
    "mgi_symbol",
    "external_gene_name",
    "gene_short_name",
    "genesymbol",
    "genename",
    "gene",
)

#: stands for the index of `var` where a column is asked for.
VAR_NAMES = "var_names"

_ENSEMBL = re.compile(r"^(ENS[A-Z]{0,6}G\d{11})(\.\d+)?(_PAR_Y)?$")
_IDENTIFIERS = (
    r"ENS[A-Z]{0,6}[GT]\d{11}(?:\.\d+)?(?:_PAR_Y)?",  # Ensembl
    r"FB(?:gn|tr)\d{7}",  # FlyBase
    r"WBGene\d{8}",  # WormBase
    r"(?i:AT[1-5CM]G\d{5})(?:\.\d+)?",  # Arabidopsis
    r"Y[A-P][LR]\d{3}[WC](?:-[A-Z])?|Q\d{4}|SP(?:AC|BC|CC)[A-Z0-9]*\.\d+c?",  # yeasts: budding, fission
    r"(?:LOC_)?Os\d{2}g\d{5,7}|Zm\d{5}[a-z]{1,2}\d{6}|Solyc\d{2}g\d{6}(?:\.\d+)*",  # rice, maize, tomato
    r"PF3D7_\d{7}|PBANKA_\d{7}|DDB_G\d{7}",  # Plasmodium, Dictyostelium
    r"ZDB-GENE-\d{6}-\d+|XB-GENE-\d+|(?:MGI|HGNC|RGD|FlyBase|WB|SGD|GeneID)[:_]\w+",  # of the species' data bases
    r"[NX][MR]_\d+(?:\.\d+)?",  # RefSeq
    r"\d+",  # NCBI
)
_IDENTIFIER = re.compile("|".join(_IDENTIFIERS))
_DRAWN = 1000
"""names that are looked at to tell what most of them are"""
# Lower-case "na" is a gene of the fly; "nan" is one too, but far more often a missing name that became text.
_NO_NAME = frozenset({"", "nan", "NaN", "None", "NA", "<NA>"})

_FEATURE_COLUMNS = ("featuretypes", "featuretype", "modality", "modalities")
"""columns of var that say what is measured, without the signs between letters"""
_GENES = re.compile(
    r"(?:gene )?expression|gene|genes|gex|(?:total |sc|sn|m|sc |sn )?rna(?: ?seq| expression| counts?)?|gene counts?"
    r"|transcripts?|transcriptome|whole transcriptome|wta|spliced|unspliced"
)
_BIOTYPES = re.compile(
    r"protein coding|.*pseudogene|.*rna|(?:ig|tr) .*gene|tec|ribozyme|antisense|processed transcript|sense .*"
    r"|retained intron|nonsense mediated decay|non ?stop decay|artifact|vault rna|.*overlapping.*"
)
_OTHERS = re.compile(
    r".*(?:antibod|\badt|\bprot|cite|\bhto|hash|multiplex|\bcmo|crispr|guide|\bs?grna|peak|atac|chromatin|antigen"
    r"|custom|isotype|\bvdj|\b[tb]cr\b|barcode|spike|\bercc\b|negative|control|blank|codeword|surface|\babseq|\bab\b"
    r"|metabolite|lipid|methylation|dextramer|tag\b).*"
)


def name_columns(
    var: pd.DataFrame, *, gene_column: str | None = None, mapping: Mapping[str, str] | None = None
) -> tuple[list[str], NDArray[np.bool_], dict[str, Any]]:
    """Return the names of the rows of `var`, which rows are genes, and how it was come by, as `GeneReport` tells it.

    `resolve_genes` states the rules. Names hold no white space; they are empty or `nan` where there is none.

    Raises
    ------
    UnknownNameError
        There is no column `gene_column`.
    """
    given, source, n_without = _given_names(var, gene_column)
    names = strip_versions(given)
    n_stripped = _n_changed(given, names)
    if mapping is not None:
        plain = {strip_version(str(key)): value for key, value in mapping.items()}
        n_without = sum(name not in plain for name in names)
        mapped = [plain.get(name, name) for name in names]
        names = ["" if name is None or name != name else str(name).strip() for name in mapped]  # NaN is not itself
    clean = names
    if " ".join(names).split() != names:  # the quick test for all: one name is empty or holds white space
        clean = ["_".join(name.split()) for name in names]
    is_gene, unknown = _feature_types(var)
    facts = {
        "source": source,
        "unknown_features": unknown,
        "n_versions_stripped": n_stripped,
        "n_without_symbol": n_without,
        "n_white_space": _n_changed(names, clean),
    }
    return clean, is_gene, facts


def _n_changed(before: list[str], after: list[str]) -> int:
    return 0 if after is before else sum(map(operator.ne, before, after))


def has_name(name: str) -> bool:
    """Whether `name` is a name and not a missing value in words."""
    return name not in _NO_NAME


def all_named(names: Sequence[str]) -> bool:
    """Whether each of `names` is a name."""
    return _NO_NAME.isdisjoint(names)


def ensembl_share(names: Sequence[str]) -> float:
    """Return the share of `names` that are Ensembl gene ids of any species, 0 for no names."""
    # the test of the first letters alone is ten times as fast as the expression
    return sum(name[:3] == "ENS" and _ENSEMBL.match(name) is not None for name in names) / max(len(names), 1)


def are_identifiers(names: Sequence[str]) -> bool:
    """Whether most of `names` are accession numbers of a data base (`FBgn0000003`, `AT1G01010`, `7157`), no symbols."""
    return _mostly(names, _IDENTIFIER)


def are_ensembl_ids(names: Sequence[str]) -> bool:
    """Whether most of `names` are Ensembl gene ids."""
    return _mostly(names, _ENSEMBL)


def _mostly(names: Sequence[str], pattern: re.Pattern[str]) -> bool:
    """Whether more than half of the names fit; a thousand drawn from them decide it unless they are in two minds."""
    if len(names) > 4 * _DRAWN:
        drawn = np.random.default_rng(0).integers(len(names), size=_DRAWN).tolist()
        share = sum(pattern.fullmatch(names[i]) is not None for i in drawn) / _DRAWN
        if not 0.4 < share < 0.6:
            return share > 0.5
    return sum(map(bool, map(pattern.fullmatch, names))) > len(names) / 2


def strip_version(name: str) -> str:
    """Return an Ensembl id without its version (`ENSG00000141510.17` → `ENSG00000141510`), other names unchanged."""
    match = _ENSEMBL.match(name) if name.startswith("ENS") else None
    return match.group(1) + (match.group(3) or "") if match else name


def strip_versions(names: list[str]) -> list[str]:
    """Return `strip_version` of each name; the list itself where none is an Ensembl id."""
    if "\nENS" not in "\n" + "\n".join(names):
        return names
    return [strip_version(name) if "." in name else name for name in names]


def _given_names(var: pd.DataFrame, gene_column: str | None) -> tuple[list[str], str, int]:
    """Names as they stand, where they come from, and how many are identifiers for want of a symbol."""
    index = _texts(var.index)
    if gene_column is not None:
        if gene_column in var.columns:
            return _texts(var[gene_column]), f"var[{gene_column!r}]", 0
        if gene_column == VAR_NAMES:
            return index, VAR_NAMES, 0
        raise UnknownNameError("column of var", gene_column, [VAR_NAMES, *(str(c) for c in var.columns)])
    by_name = {re.sub(r"[^a-z0-9]+", "_", str(column).lower()): str(column) for column in reversed(var.columns)}
    wanted = [by_name[name] for name in SYMBOL_COLUMNS if name in by_name]
    if not wanted or not are_identifiers(index):
        return index, VAR_NAMES, 0
    column, symbols = next(((c, texts) for c in wanted if not are_identifiers(texts := _texts(var[c]))), ("", index))
    if not column:
        return index, VAR_NAMES, 0
    # CELLxGENE itself names a gene without symbol by its id, so falling back keeps the column in the same way.
    names = [symbol if has_name(symbol) else i for symbol, i in zip(symbols, index, strict=True)]
    return names, f"var[{column!r}]", sum(not has_name(symbol) for symbol in symbols)


def _texts(values: pd.Series | pd.Index) -> list[str]:
    listed = values.tolist()
    if all(map(str.__instancecheck__, listed)):
        return [*map(str.strip, listed)]
    missing = np.asarray(values.isna())
    return ["" if gone else str(v).strip() for v, gone in zip(listed, missing, strict=True)]


def _feature_types(var: pd.DataFrame) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Which rows are genes by the column of feature types, and the values of it that a warning should name.

    Where some rows are said to be genes, the others are not; where values are biotypes of genes (CELLxGENE keeps them
    in a column of this name) or unknown, only what is known to be another feature is left out.
    """
    every = np.ones(len(var), dtype=bool)
    by_name = {re.sub(r"[^a-z]+", "", str(column).lower()): column for column in reversed(var.columns)}
    unknown: tuple[str, ...] = ()
    for name in (name for name in _FEATURE_COLUMNS if name in by_name):
        codes, values = pd.factorize(np.array(_texts(var[by_name[name]]), dtype=object))
        kinds = np.array([_kind_of_feature(str(value)) for value in values], dtype=object)
        if not len(values):
            continue
        if (kinds == "gene").any():
            return (kinds == "gene")[codes], ()
        told = tuple(str(v) for v, kind in zip(values, kinds, strict=True) if kind == "unknown" and has_name(v))
        if (kinds == "other").all():  # a file of proteins alone is read as it is
            return every, tuple(str(value) for value in values)
        if (kinds != "unknown").any():
            return (kinds != "other")[codes], told
        unknown = unknown or told
    return every, unknown


def _kind_of_feature(value: str) -> str:
    words = re.sub(r"[^a-z0-9]+", " ", value.lower()).strip()
    if _GENES.fullmatch(words):
        return "gene"
    if _BIOTYPES.fullmatch(words) and not re.search(r"\bs?grna|guide", words):
        return "biotype"
    return "other" if _OTHERS.fullmatch(words) else "unknown"
