"""What tells one input of training from another: its cells, genes, values, and the columns of `obs` that are used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cytoglot.data.schema import labels
from cytoglot.hashing import cell_hashes
from cytoglot.manifest import fingerprint_bytes, fingerprint_texts

if TYPE_CHECKING:
    from anndata import AnnData


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
