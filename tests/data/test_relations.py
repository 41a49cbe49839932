"""Relations of an AnnData: what a matrix and a column say, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

from cytoglot.data.relations import Relation, read_relations, relation_of_lists
from cytoglot.errors import InputError


def made() -> AnnData:
    adata = AnnData(np.ones((4, 2), np.float32))
    adata.obs_names = ["a", "b", "c", "d"]
    adata.obsp["near"] = sp.csr_matrix(np.array([[9, 1, 3, 3], [0, 0, 0, 0], [2, 0, 0, 0], [0, 0.5, 0, 0]]))
    adata.obs["control"] = ["b", "", None, "b"]
    return adata


def lists(relation: Relation) -> list[list[str]]:
    return [relation.cell_ids[a:b].tolist() for a, b in zip(relation.offsets, relation.offsets[1:], strict=False)]


def test_a_matrix_leads_to_the_heaviest_first_and_never_to_the_cell_itself() -> None:
    found = read_relations(made(), ["near", "absent"])
    assert list(found) == ["near"]
    assert lists(found["near"]) == [["c", "d", "b"], [], ["a"], ["b"]]
    assert found["near"].weights.tolist() == [3, 3, 1, 2, 0.5]


def test_a_column_names_one_other_cell_or_none() -> None:
    assert lists(read_relations(made(), ["control"])["control"]) == [["b"], [], [], ["b"]]


def test_what_names_no_cell_of_the_data_is_refused() -> None:
    adata = made()
    adata.obs["control"] = ["b", "x", "", ""]
    with pytest.raises(InputError, match=r"obs\['control'\] must name other cells of the data, found 'x'"):
        read_relations(adata, ["control"])
    adata = made()
    adata.obs_names = ["a", "a", "c", "d"]
    with pytest.raises(InputError, match="expected cells with names of their own where near relates them"):
        read_relations(adata, ["near"])


def test_lists_are_ranked_by_their_order_or_by_weights() -> None:
    assert lists(relation_of_lists([["x", "y"], []])) == [["x", "y"], []]
    assert lists(relation_of_lists([["x", "y"], ["z"]], [[1, 2], [1]])) == [["y", "x"], ["z"]]
