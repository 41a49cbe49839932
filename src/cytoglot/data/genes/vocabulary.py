"""Genes by name: the ordered vocabulary, and which column of a matrix is which gene.

A column is tied to its gene by an index array (`column_gene`), never by its position after a rename, so duplicated,
dropped or renamed columns cannot shift the names of the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from cytoglot.data.genes.columns import all_named, are_ensembl_ids, has_name, name_columns
from cytoglot.data.plain_matrix import plain_matrix
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.manifest import fingerprint_texts

Namespace = Literal["symbol", "ensembl"]
Duplicates = Literal["sum", "first", "error"]


@dataclass(frozen=True)
class GeneVocabulary:
    """Genes in a fixed order; a gene's id is its position. Immutable, so the fingerprint can be trusted.

    Names are compared exactly: `Actb` and `ACTB` are two genes. An empty vocabulary is allowed.

    Raises
    ------
    InputError
        A name is empty, holds white space (it would be two words of a cell sentence) or occurs twice.

    Examples
    --------
    >>> import cytoglot as cg
    >>> genes = cg.GeneVocabulary(("CD74", "LYZ", "NKG7"))
    >>> genes.index_of(["LYZ", "no gene"])
    array([ 1, -1], dtype=int32)
    """

    symbols: tuple[str, ...]
    namespace: Namespace = "symbol"

    def __post_init__(self) -> None:
        object.__setattr__(self, "symbols", tuple(map(str, self.symbols)))
        if " ".join(self.symbols).split() != [*self.symbols]:
            unfit = [s for s in self.symbols if not s or s.split() != [s]]
            raise InputError(
                f"gene names must be non-empty and without white space, found {_some(unfit)}; rename these genes"
            )
        if len(set(self.symbols)) < len(self.symbols):
            twice = [name for name, n in Counter(self.symbols).items() if n > 1]
            raise InputError(
                f"gene names must be unique, found {len(twice)} repeated: {_some(twice)}; "
                "resolve_genes() makes a vocabulary from columns with duplicates"
            )

    def __len__(self) -> int:
        return len(self.symbols)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GeneVocabulary):
            return NotImplemented
        return self.symbols == other.symbols and self.namespace == other.namespace

    def __hash__(self) -> int:
        return hash((self.fingerprint, self.namespace))

    def __repr__(self) -> str:
        return f"GeneVocabulary({len(self)} genes: {_some(self.symbols)}, namespace={self.namespace!r})"

    @cached_property
    def _index(self) -> pd.Index:
        return pd.Index(self.symbols, dtype=object)

    @cached_property
    def names(self) -> NDArray[np.object_]:
        """Names as a read-only object array, for indexing with gene ids."""
        names = np.array(self.symbols, dtype=object)
        names.flags.writeable = False
        return names

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of the ordered names."""
        return fingerprint_texts(self.symbols)

    def index_of(self, names: Iterable[str]) -> NDArray[np.int32]:
        """Return the gene id of each name as int32, −1 where the name is unknown."""
        return self._index.get_indexer(pd.Index(list(names), dtype=object)).astype(np.int32)

    def subset(self, names: Iterable[str]) -> GeneVocabulary:
        """Return the vocabulary of `names` alone, in the order of this vocabulary whatever the order of `names`.

        Raises
        ------
        UnknownNameError
            A name is not in the vocabulary.
        """
        names = list(names)
        ids = self.index_of(names)
        if (ids < 0).any():
            raise UnknownNameError("gene", str(names[int(np.flatnonzero(ids < 0)[0])]), self.symbols)
        return GeneVocabulary(tuple(self.symbols[i] for i in np.unique(ids)), self.namespace)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"symbols": list(self.symbols), "namespace": self.namespace, "fingerprint": self.fingerprint}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> GeneVocabulary:
        """Read what `to_dict` wrote; a fingerprint that does not fit the symbols is refused with `InputError`."""
        vocabulary = cls(tuple(value["symbols"]), value.get("namespace", "symbol"))
        expected = value.get("fingerprint", vocabulary.fingerprint)
        if expected != vocabulary.fingerprint:
            raise InputError(
                f"the gene vocabulary does not fit its fingerprint (expected {expected}, found "
                f"{vocabulary.fingerprint}); the file was changed after it was written: write it again"
            )
        return vocabulary


@dataclass(frozen=True, kw_only=True)
class GeneReport:
    """What was found in the columns of a matrix and what was done about it."""

    source: str
    """where the names come from: `var_names` or `var['feature_name']`"""
    policy: Duplicates
    n_columns: int
    n_genes: int
    duplicates: tuple[str, ...] = ()
    """names that several columns carry, in the order of the vocabulary"""
    n_duplicate_columns: int = 0
    """columns beyond the first of each duplicated name"""
    case_collisions: tuple[tuple[str, ...], ...] = ()
    """groups of names that differ in case alone; kept as separate genes"""
    suffixed: tuple[str, ...] = ()
    """names such as `TBCE-1` beside `TBCE`: probably a duplicate that another tool renamed; kept as separate genes"""
    n_dropped: int = 0
    """columns without any name"""
    n_other_modality: int = 0
    """columns that `feature_types` says to be no genes (antibodies, guides)"""
    n_versions_stripped: int = 0
    n_without_symbol: int = 0
    """columns that keep their identifier because the symbol column or the mapping has no symbol for it"""
    n_white_space: int = 0
    """names in which white space became `_`"""
    unknown_features: tuple[str, ...] = ()
    """values of the column of feature types that do not say whether a row is a gene"""

    @property
    def feature_warning(self) -> str:
        """What to know about `unknown_features`; empty where there are none."""
        if not self.unknown_features:
            return ""
        return (
            f"the feature types {_some(self.unknown_features)} do not say which columns are genes, so all of these "
            "columns are kept; if some are no genes, write 'Gene Expression' and 'Antibody Capture' (or the like) there"
        )

    def messages(self) -> list[str]:
        """Return one sentence per finding; empty when every column is one gene under its own name."""
        done = {"sum": "summed", "first": "the first kept, the others dropped", "error": "refused"}[self.policy]
        findings = [
            (self.source != "var_names", f"gene names taken from {self.source}"),
            (
                self.n_duplicate_columns,
                f"{_n(self.n_duplicate_columns, 'duplicated column')} ({_some(self.duplicates)}): {done}",
            ),
            (
                self.case_collisions,
                f"{_n(len(self.case_collisions), 'group')} of names that differ in case alone "
                f"({_some([' / '.join(group) for group in self.case_collisions])}): kept as separate genes",
            ),
            (
                self.suffixed,
                f"{_n(len(self.suffixed), 'name')} like that of a renamed duplicate ({_some(self.suffixed)}): "
                "kept as separate genes, as the original names are not there",
            ),
            (self.n_dropped, f"{_n(self.n_dropped, 'column')} without a name dropped"),
            (
                self.n_other_modality,
                f"{_n(self.n_other_modality, 'column')} of other features than gene expression dropped",
            ),
            (self.n_versions_stripped, f"version suffix stripped from {_n(self.n_versions_stripped, 'Ensembl id')}"),
            (
                self.n_without_symbol,
                f"{_n(self.n_without_symbol, 'gene')} without a symbol kept under their identifier",
            ),
            (self.unknown_features, self.feature_warning),
            (self.n_white_space, f"white space in {_n(self.n_white_space, 'gene name')} replaced by '_'"),
        ]
        return [message for found, message in findings if found]


@dataclass(frozen=True, kw_only=True)
class ResolvedGenes:
    """The vocabulary of a matrix and the gene of each of its columns."""

    vocabulary: GeneVocabulary
    column_gene: NDArray[np.int32]
    """shape (n_columns,): gene id of each column, −1 where the column is dropped"""
    report: GeneReport

    @property
    def is_identity(self) -> bool:
        """Whether column i is gene i throughout, so that nothing has to be moved."""
        n_columns = self.column_gene.size
        return n_columns == len(self.vocabulary) and bool((self.column_gene == np.arange(n_columns)).all())

    @property
    def first_column(self) -> NDArray[np.int64]:
        """Shape (n_genes,): the first column of each gene."""
        kept = np.flatnonzero(self.column_gene >= 0)
        _, first = np.unique(self.column_gene[kept], return_index=True)
        return kept[first]


def resolve_genes(
    var: pd.DataFrame,
    *,
    gene_column: str | None = None,
    mapping: Mapping[str, str] | None = None,
    duplicates: Duplicates = "sum",
) -> ResolvedGenes:
    """Decide which gene each row of `var` (a column of the matrix) is, symbols preferred.

    Names come from `gene_column` when given ("var_names" is the index); else from `var_names`, unless most of these
    are accession numbers (of Ensembl, FlyBase, WormBase, NCBI, …) and one of `columns.SYMBOL_COLUMNS` is there.
    Ensembl ids lose their version. `mapping` (identifier or old name → symbol) is applied last, with and without the
    version; a name it lacks is kept, a name mapped to an empty text is dropped. Genes are in the order of their first
    column. Names that differ in case alone stay separate genes.
    Where `feature_types` marks some rows as genes ("Gene Expression", "GEX", "rna", in any case), the others are
    dropped; where it does not, those that it marks as something else are ("Antibody Capture", "ADT", …).

    Raises
    ------
    InputError
        `duplicates="error"` and a name occurs twice, or not one column has a name.
    UnknownNameError
        There is no column `gene_column`.
    """
    names, is_gene, facts = name_columns(var, gene_column=gene_column, mapping=mapping)
    named = np.array([*map(has_name, names)]) if not all_named(names) else np.ones(len(names), dtype=bool)
    kept = np.flatnonzero(is_gene & named)
    if not kept.size:
        raise InputError(
            f"expected gene names in {facts['source']}, found none among {len(var)} columns; "
            "pass gene_column= (a column of var, --gene-column) or gene_mapping= (--gene-mapping)"
        )
    given = names if kept.size == len(names) else [names[i] for i in kept]
    codes, uniques, repeated = np.arange(len(given)), given, np.zeros(len(given), dtype=bool)
    if len(set(given)) < len(given):  # the genes in the order of their first column, and which columns repeat one
        codes, found = pd.factorize(np.array(given, dtype=object))
        uniques = found.tolist()
        repeated[:] = True
        repeated[np.unique(codes, return_index=True)[1]] = False
    if duplicates == "error" and repeated.any():
        twice = list(dict.fromkeys(names[i] for i in kept[repeated]))
        raise InputError(
            f"expected one column per gene, found {int(repeated.sum())} repeated columns in {facts['source']}: "
            f"{_some(twice)}; pass duplicates='sum' or duplicates='first' (--duplicates)"
        )
    column_gene = np.full(len(names), -1, dtype=np.int32)
    column_gene[kept] = np.where(repeated & (duplicates == "first"), -1, codes)
    symbols = tuple(uniques)
    report = GeneReport(
        policy=duplicates,
        n_columns=len(names),
        n_genes=len(symbols),
        duplicates=tuple(symbols[i] for i in np.unique(codes[repeated])),
        n_duplicate_columns=int(repeated.sum()),
        case_collisions=_case_collisions(symbols),
        suffixed=_suffixed(symbols),
        n_dropped=int((is_gene & ~named).sum()),
        n_other_modality=int((~is_gene).sum()),
        **facts,
    )
    vocabulary = GeneVocabulary(symbols, "ensembl" if are_ensembl_ids(symbols) else "symbol")
    return ResolvedGenes(vocabulary=vocabulary, column_gene=column_gene, report=report)


def collapse_columns(matrix: Any, column_gene: NDArray[np.int32], n_genes: int) -> sparse.csr_matrix:
    """Return the cells × genes CSR in which columns of the same gene are summed and dropped columns are left out.

    `matrix` is sparse or dense, cells in rows, one column per entry of `column_gene`; it is not changed, but the result
    shares its memory when it is CSR already and nothing has to be moved. Booleans and integers below 32 bits become
    int32 (uint32 for unsigned) and float16 becomes float32, so that sums do not overflow. Column indices come out
    sorted.
    """
    csr: Any = plain_matrix(matrix)
    csr = csr if getattr(csr, "format", "") == "csr" else sparse.csr_matrix(csr)
    if csr.shape[1] != len(column_gene):
        raise ValueError(f"the matrix has {csr.shape[1]} columns, column_gene has {len(column_gene)} entries")
    small = csr.dtype.kind in "bi" and csr.dtype.itemsize < 4, csr.dtype.kind == "u" and csr.dtype.itemsize < 4
    wide = np.int32 if small[0] else np.uint32 if small[1] else np.float32 if csr.dtype == np.float16 else csr.dtype
    data = csr.data.astype(wide, copy=False)
    if n_genes == len(column_gene) and (column_gene == np.arange(n_genes)).all():
        if csr.has_canonical_format and isinstance(csr, sparse.csr_matrix) and data is csr.data:
            return csr
        result = sparse.csr_matrix((data, csr.indices, csr.indptr), shape=csr.shape, copy=data is csr.data)
        result.sum_duplicates()
        return result
    genes = column_gene.astype(csr.indices.dtype)[csr.indices]
    indptr = csr.indptr
    kept = genes >= 0
    if not kept.all():
        indptr = np.concatenate([[0], np.cumsum(kept)])[csr.indptr].astype(csr.indptr.dtype)
        genes, data = genes[kept], data[kept]
    collapsed = sparse.csr_matrix((data, genes, indptr), shape=(csr.shape[0], n_genes), copy=data is csr.data)
    collapsed.sum_duplicates()
    return collapsed


def _case_collisions(symbols: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    folded = " ".join(symbols).casefold().split(" ")  # at once, because names hold no white space
    if len(set(folded)) == len(symbols):
        return ()
    count, groups = Counter(folded), dict[str, list[str]]()
    for symbol, fold in zip(symbols, folded, strict=True):
        if count[fold] > 1:
            groups.setdefault(fold, []).append(symbol)
    return tuple(tuple(group) for group in groups.values())


def _suffixed(symbols: tuple[str, ...]) -> tuple[str, ...]:
    known = set(symbols)
    stems = ((symbol, symbol.rstrip("0123456789")) for symbol in symbols if "-" in symbol or "." in symbol)
    return tuple(s for s, stem in stems if stem != s and stem[-1:] in ("-", ".") and stem[:-1] in known)


def _n(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _some(names: Sequence[str], n: int = 3) -> str:
    listed = ", ".join(repr(name) for name in names[:n])
    return listed + (f" and {len(names) - n} more" if len(names) > n else "")
