"""Inputs of training are known by what they hold, not by where and how it is stored."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from cytoglot.data.schema import group_columns
from cytoglot.data.splits.content import fingerprint_cells
from cytoglot.errors import InputError

COUNTS = np.random.default_rng(0).poisson(1.0, (6, 8))


def cells(counts=COUNTS, genes=None, **columns) -> AnnData:
    obs = pd.DataFrame(
        {"label": list("aabbcc"), "donor": [1, 1, 2, 2, 3, 3], "unused": range(6), **columns},
        index=[f"c{i}" for i in range(6)],
    )
    return AnnData(X=counts, obs=obs, var=pd.DataFrame(index=genes or [f"G{i}" for i in range(8)]))


def changed(other: AnnData) -> list[str]:
    before, after = (fingerprint_cells(adata, ["label", "donor"]) for adata in (cells(), other))
    return [name for name in before if before[name] != after[name]]


SWAPPED = COUNTS[[1, 0, 2, 3, 4, 5]]  # the sum of all values is the same


@pytest.mark.parametrize(
    ("other", "names"),
    [
        (cells(label=list("aabbcd")), ["obs column label"]),
        (cells(label=["a", "b", "a", "b", "c", "c"]), ["obs column label"]),
        (cells(donor=[2, 2, 1, 1, 3, 3]), ["obs column donor"]),
        (cells(donor=[1, 1, 2, 2, 3, np.nan]), ["obs column donor"]),
        (cells(SWAPPED), ["values"]),
        (cells(genes=["G1", "G0", *(f"G{i}" for i in range(2, 8))]), ["values"]),
        (cells(genes=["X", *(f"G{i}" for i in range(1, 8))]), ["genes", "values"]),
        (
            cells()[[1, 0, 2, 3, 4, 5]].copy(),
            [
                "cell names",
                "values",
            ],
        ),
    ],
)
def test_what_has_changed_is_named(other, names):
    assert changed(other) == names


def test_the_same_content_is_the_same_however_it_is_stored():
    order = [3, 1, 0, 2, 7, 6, 5, 4]
    for other in (
        cells(sparse.csr_matrix(COUNTS)),
        cells(sparse.csc_matrix(COUNTS.astype(np.float32))),
        cells(COUNTS[:, order], genes=[f"G{i}" for i in order]),
        cells(label=pd.Categorical(list("aabbcc"), categories=list("cba"))),
        cells(donor=[1.0, 1.0, 2.0, 2.0, 3.0, 3.0]),
        cells(donor=["1", "1", "2", "2", "3", "3"]),
        cells(unused=0),
    ):
        assert changed(other) == []


def test_columns_are_those_that_are_there():
    assert group_columns(cells().obs) == ["donor"]
    with pytest.raises(InputError, match="obs has no column 'batch'"):
        fingerprint_cells(cells(), ["batch"])
