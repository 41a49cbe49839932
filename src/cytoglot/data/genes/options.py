"""What a user says about the names of genes, on its way from a command or a call to the reader of the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from cytoglot.manifest import fingerprint_texts
from cytoglot.texts import read_pairs

if TYPE_CHECKING:
    from cytoglot.data.genes.vocabulary import Duplicates


class GeneKeywords(TypedDict):
    """Keyword parameters of `read` and `open_cells`."""

    gene_column: str | None
    gene_mapping: Mapping[str, str] | None
    duplicates: Duplicates


@dataclass(frozen=True, kw_only=True)
class GeneOptions:
    """How the columns of a matrix become genes; `resolve_genes` states the rules."""

    column: str | None = None
    """column of var with the names; "var_names" takes the names as they stand; None finds symbols"""
    mapping: Mapping[str, str] | None = None
    """name in the file → name wanted"""
    duplicates: Duplicates = "sum"
    """what becomes of columns of the same gene"""

    @property
    def keywords(self) -> GeneKeywords:
        """The same as keyword parameters of the readers."""
        return {"gene_column": self.column, "gene_mapping": self.mapping, "duplicates": self.duplicates}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values for a manifest, with the fingerprint of the mapping in its place."""
        pairs = (f"{old}\t{new}" for old, new in sorted((self.mapping or {}).items()))
        return {**self.keywords, "gene_mapping": None if self.mapping is None else fingerprint_texts(pairs)}


#: Symbols are found, duplicates summed.
DEFAULT_GENES = GeneOptions()

#: For an AnnData that `read` returned: its genes are resolved, and a second search could change them.
AS_NAMED = GeneOptions(column="var_names")


def read_gene_mapping(path: str | Path) -> dict[str, str]:
    """Return name in the file → name wanted, from a text file with two columns (`texts.read_pairs`).

    A header needs no mark: it maps a name that no gene has. An empty second column drops the gene.

    Raises
    ------
    InputError
        The file is missing, no text or empty, a line has not two columns or no first name, or a name is mapped to two.
    """
    return read_pairs(path, what="gene mapping", columns=("name in the file", "name wanted"))
