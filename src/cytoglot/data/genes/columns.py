"""The name of each column of a matrix, out of `var`: symbols where the file has them, tidied, one name per column."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cytoglot.errors import UnknownNameError

#: columns of `var` that hold symbols, best first, compared in lower case: CELLxGENE, scanpy, Seurat, monocle, biomaRt.
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
)

#: stands for the index of `var` where a column is asked for.
VAR_NAMES = "var_names"

_ENSEMBL = re.compile(r"^(ENS[A-Z]{0,6}G\d{11})(\.\d+)?(_PAR_Y)?$")
# Lower-case "na" is a gene of the fly; "nan" is one too, but far more often a missing name that became text.
_NO_NAME = frozenset({"", "nan", "NaN", "None", "NA", "<NA>"})


@dataclass(frozen=True, kw_only=True)
class ColumnNames:
    """A name for each column and how it was come by."""

    names: list[str]
    """without white space; empty or `nan` where there is no name"""
    source: str
    is_gene: NDArray[np.bool_]
    """False for antibodies, guides and other features"""
    n_versions_stripped: int
    n_without_symbol: int
    n_white_space: int


def name_columns(
    var: pd.DataFrame, *, gene_column: str | None = None, mapping: Mapping[str, str] | None = None
) -> ColumnNames:
    """Return the names of the rows of `var`; `resolve_genes` states the rules.

    Raises
    ------
    UnknownNameError
        There is no column `gene_column`.
    """
    given, source, n_without = _given_names(var, gene_column)
    names = [strip_version(name) for name in given]
    n_stripped = sum(a != b for a, b in zip(names, given, strict=True))
    if mapping is not None:
        names, n_without = _mapped(names, mapping)
    clean = ["_".join(name.split()) for name in names]
    return ColumnNames(
        names=clean,
        source=source,
        is_gene=_is_gene_expression(var),
        n_versions_stripped=n_stripped,
        n_without_symbol=n_without,
        n_white_space=sum(a != b for a, b in zip(clean, names, strict=True)),
    )


def has_name(name: str) -> bool:
    """Whether `name` is a name and not a missing value in words."""
    return name not in _NO_NAME


def ensembl_share(names: Sequence[str]) -> float:
    """Return the share of `names` that are Ensembl gene ids of any species, 0 for no names."""
    return sum(_ENSEMBL.match(name) is not None for name in names) / max(len(names), 1)


def strip_version(name: str) -> str:
    """Return an Ensembl id without its version (`ENSG00000141510.17` → `ENSG00000141510`), other names unchanged."""
    match = _ENSEMBL.match(name)
    return match.group(1) + (match.group(3) or "") if match else name


def _given_names(var: pd.DataFrame, gene_column: str | None) -> tuple[list[str], str, int]:
    """Names as they stand, where they come from, and how many are identifiers for want of a symbol."""
    index = _texts(var.index.to_series())
    if gene_column is not None:
        if gene_column in var.columns:
            return _texts(var[gene_column]), f"var[{gene_column!r}]", 0
        if gene_column == VAR_NAMES:
            return index, VAR_NAMES, 0
        raise UnknownNameError("column of var", gene_column, [VAR_NAMES, *(str(c) for c in var.columns)])
    column = _symbol_column(var, index)
    if column is None:
        return index, VAR_NAMES, 0
    symbols = _texts(var[column])
    # CELLxGENE itself names a gene without symbol by its id, so falling back keeps the column in the same way.
    names = [symbol if has_name(symbol) else i for symbol, i in zip(symbols, index, strict=True)]
    return names, f"var[{column!r}]", sum(not has_name(symbol) for symbol in symbols)


def _symbol_column(var: pd.DataFrame, index: list[str]) -> str | None:
    """Name of the column of symbols to be preferred to the index, None when the index should be used."""
    n_numbers = sum(name.isdigit() for name in index)
    if ensembl_share(index) <= 0.5 and n_numbers <= len(index) / 2:
        return None
    by_name = {str(column).lower(): str(column) for column in reversed(var.columns)}
    for wanted in SYMBOL_COLUMNS:
        if wanted in by_name and ensembl_share(_texts(var[by_name[wanted]])) <= 0.5:
            return by_name[wanted]
    return None


def _texts(values: pd.Series) -> list[str]:
    missing = values.isna().to_numpy()
    return ["" if gone else str(v).strip() for v, gone in zip(values.astype(object), missing, strict=True)]


def _mapped(names: list[str], mapping: Mapping[str, str]) -> tuple[list[str], int]:
    """Names after the mapping, and how many it lacks."""
    plain = {strip_version(str(key)): value for key, value in mapping.items()}
    mapped = [plain.get(name) if name in plain else name for name in names]
    texts = ["" if name is None or name != name else str(name).strip() for name in mapped]
    return texts, sum(name not in plain for name in names)


def _is_gene_expression(var: pd.DataFrame) -> NDArray[np.bool_]:
    for column in ("feature_types", "feature_type"):
        if column in var.columns:
            is_gene = (var[column].astype(str) == "Gene Expression").to_numpy(dtype=bool)
            if is_gene.any():  # CELLxGENE keeps biotypes in a column of this name
                return is_gene
    return np.ones(len(var), dtype=bool)
