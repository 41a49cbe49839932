from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cytoglot.data.knowledge.ontology import map_labels
from cytoglot.data.knowledge.ontology_graph import OntologyGraph, package_ontology, read_ontology
from cytoglot.errors import InputError

#: cell > leuk > {lymph > {T > {CD4, CD8}, B}, mono}
TOY = OntologyGraph(
    {
        "leuk": ["cell"],
        "lymph": ["leuk"],
        "mono": ["leuk"],
        "T": ["lymph"],
        "B": ["lymph"],
        "CD4": ["T"],
        "CD8": ["T"],
    }
)

#: (first, second, lowest common ancestor, steps from it down to the first, path), Cell Ontology of 2026-03-26
REAL = [
    ("CL:0000624", "CL:0000625", "CL:0000791", 1, 2),  # CD4 and CD8 αβ T
    ("CL:0000236", "CL:0000624", "CL:0000542", 2, 6),  # B and CD4 T: lymphocyte
    ("CL:0000576", "CL:0000624", "CL:0000842", 2, 7),  # monocyte and CD4 T: mononuclear leucocyte
    ("CL:0000625", "CL:0000084", "CL:0000084", 3, 3),  # CD8 T is a T cell
]


def test_paths_of_a_small_tree_by_hand() -> None:
    assert TOY.path_length("CD4", "CD8") == 2
    assert TOY.path_length("CD4", "B") == TOY.path_length("B", "CD4") == 3
    assert TOY.path_length("T", "CD4") == 1
    assert TOY.path_length("mono", "CD4") == 4
    assert TOY.path_length("CD4", "CD4") == 0
    assert TOY.lowest_common_ancestors("CD4", "B") == {"lymph"}
    assert dict(TOY.ancestors("CD4")) == {"CD4": 0, "T": 1, "lymph": 2, "leuk": 3, "cell": 4}


def test_two_lowest_common_ancestors_and_none() -> None:
    graph = OntologyGraph({"a": ["x", "y"], "b": ["x", "y"], "x": ["top"], "y": ["top"], "far": ["away"]})
    assert graph.lowest_common_ancestors("a", "b") == {"x", "y"}
    assert graph.lowest_common_ancestors("a", "far") == frozenset()
    assert graph.path_length("a", "far") is None
    assert {"top", "away"} == {term for term in ("top", "away", "nowhere") if term in graph}


@pytest.mark.parametrize(("first", "second", "ancestor", "steps", "path"), REAL)
def test_the_packaged_terms_give_the_known_distances(
    first: str, second: str, ancestor: str, steps: int, path: int
) -> None:
    graph = package_ontology()
    assert graph.lowest_common_ancestors(first, second) == {ancestor}
    assert graph.ancestors(first)[ancestor] == steps
    assert graph.path_length(first, second) == path


@pytest.mark.data
def test_the_packaged_part_has_the_paths_of_the_whole_ontology(data_path: Callable[[str], Path]) -> None:
    whole, part = read_ontology(data_path("knowledge/cell_ontology_cl_terms.tsv.gz")), package_ontology()
    terms = [t for t in map_labels(["B", "CD4 T", "NK", "beta", "astrocyte", "fibroblast", "DC"]).ids.values() if t]
    assert len(terms) == 7
    for first in terms:
        for second in terms:
            assert part.path_length(first, second) == whole.path_length(first, second)


def test_every_term_of_the_label_table_is_in_the_graph() -> None:
    ids = map_labels(["B cell", "platelet", "alpha cell", "oligodendrocyte", "T cell"]).ids
    assert all(term in package_ontology() for term in ids.values())


def test_a_circle_and_a_table_without_parents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="circle: a is an ancestor of itself"):
        OntologyGraph({"a": ["b"], "b": ["c"], "c": ["a"]})
    (tmp_path / "terms.tsv").write_text("id\tlabel\nx\ty\n")
    with pytest.raises(InputError, match="must have the columns id, parents; parents not found, but id, label"):
        read_ontology(tmp_path / "terms.tsv")
