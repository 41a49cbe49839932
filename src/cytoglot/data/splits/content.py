"""Cells known by what they hold: found again under other names, in other files; and told from another input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.data.readers.read import matrix_state_of
from cytoglot.data.schema import labels
from cytoglot.hashing import NO_HASH, cell_hashes
from cytoglot.manifest import fingerprint_bytes, fingerprint_texts

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True, kw_only=True, eq=False)
class CellContent:
    """Hashes of n cells over the genes that a model knows; see `content_of` for what they are made of."""

    kind: str
    """of the matrix: "counts", "log1p" or "nonnegative" """
    values: NDArray[np.uint64]
    """(n,) hashes of genes and values, `NO_HASH` for a cell without an expressed gene"""
    ranks: NDArray[np.uint64]
    """(n,) hashes of genes and the places of their values within the cell"""

    def __len__(self) -> int:
        return len(self.values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CellContent) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def take(self, rows: NDArray[np.integer]) -> CellContent:
        """Return the content of some cells; that of a row of −1 is unknown."""
        taken = [np.where(rows < 0, np.uint64(NO_HASH), found[rows]) for found in (self.values, self.ranks)]
        return CellContent(kind=self.kind, values=taken[0], ranks=taken[1])

    def comparable(self, other: CellContent) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Return hashes of our cells and of the others' that are equal where the cells are.

        Counts are compared with counts by value. In all other pairs the values depend on how they were normalized, and
        only the order of the genes is left to compare; normalizing a cell does not change it.
        """
        if self.kind == other.kind == "counts":
            return self.values, other.values
        return self.ranks, other.ranks

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, hashes as 16 hex digits."""
        return {
            "kind": self.kind,
            **{name: [f"{value:016x}" for value in getattr(self, name).tolist()] for name in ("values", "ranks")},
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> CellContent:
        """Read what `to_dict` wrote."""
        values, ranks = (np.array([int(text, 16) for text in value[n]], np.uint64) for n in ("values", "ranks"))
        return cls(kind=value["kind"], values=values, ranks=ranks)


def content_of_cells(adata: AnnData, known_genes: GeneVocabulary) -> CellContent:
    """Return the content of the cells of an AnnData that `cytoglot.read` returned; see `content_of`."""
    return content_of(adata.X, list(adata.var_names), kind=matrix_state_of(adata).kind, known_genes=known_genes)


def content_of(matrix_ng: Any, genes: Sequence[str], *, kind: str, known_genes: GeneVocabulary) -> CellContent:
    """Return the content of cells, (n, g), as far as it concerns the genes that a model knows.

    The content of a cell is the set of its expressed genes of `known_genes`, by symbol as the file's names were
    resolved, with their values. It does not depend on the cell's name, on the order of the genes, on genes that the
    model does not know (a file cut down to other genes, quality control), or on the format and type of the matrix.
    """
    names = [str(gene) for gene in genes]
    among = [name if place >= 0 else "" for name, place in zip(names, known_genes.index_of(names), strict=True)]
    values, ranks = (cell_hashes(matrix_ng, among, by_rank=by_rank) for by_rank in (False, True))
    return CellContent(kind=kind, values=values, ranks=ranks)


def fingerprint_cells(adata: AnnData, columns: Iterable[str]) -> dict[str, str]:
    """Return the fingerprints of all that training reads of `adata`: "cell names", "genes", "values", and each column.

    They are those of the content: the path, the format and type of the matrix, stored zeros, the order of the genes and
    the type of a column (`data.schema.value_text`) do not matter. The order of the cells does.

    Parameters
    ----------
    adata
        As `cytoglot.read` returns it.
    columns
        Of `obs`.

    Raises
    ------
    InputError
        There is no such column.
    """
    texts = {column: labels(adata.obs, column).fillna("") for column in dict.fromkeys(columns)}
    return {
        "cell names": fingerprint_texts(str(name) for name in adata.obs_names),
        "genes": fingerprint_texts(sorted(str(name) for name in adata.var_names)),
        "values": fingerprint_bytes([cell_hashes(adata.X, adata.var_names).tobytes()]),
        **{f"obs column {column}": fingerprint_texts(values) for column, values in texts.items()},
    }
