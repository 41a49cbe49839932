"""Cells of unequal length in another order, against numpy by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytoglot.corpus.format.take import gather_cells


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.data())
def test_gathered_cells_are_those_named(lengths: list[int], data: st.DataObject) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    gene_ids = np.arange(offsets[-1]).astype(np.uint16)
    cells = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=10)), np.int64)
    taken, ids = gather_cells(offsets, gene_ids, cells)
    expected = [gene_ids[offsets[cell] : offsets[cell + 1]].tolist() for cell in cells]
    assert [ids[a:b].tolist() for a, b in pairwise(taken)] == expected
    assert ids.dtype == np.uint16


def test_read_only_ids_are_taken_and_a_cell_that_is_not_there_is_refused() -> None:
    ids = np.array([7, 8, 9], np.uint32)
    ids.flags.writeable = False
    assert gather_cells(np.array([0, 1, 3]), ids, np.array([1]))[1].tolist() == [8, 9]
    with pytest.raises(IndexError):
        gather_cells(np.array([0, 1, 3]), ids, np.array([2]))
