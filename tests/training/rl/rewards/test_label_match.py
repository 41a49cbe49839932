from __future__ import annotations

import pytest

from cytoglot.errors import InputError

LABEL = {"task": "cell_type_annotation", "answer": "CD4 T cell", "num_genes": 0, "cell_type": "CD4 T cell"}


def test_a_label_earns_by_its_distance_in_the_ontology(rate) -> None:
    # CD8 αβ T is 2 is-a steps away, B 6, monocyte 7; half of the reward is gone after 2 steps
    earned = rate("label_match", [" CD4 T cell.", " CD8 T cell.", " B cell.", " Monocyte."], **LABEL)
    assert earned == pytest.approx([1, 1 / 2, 1 / 8, 2**-3.5])
    assert rate("label_match", [" CD8 T cell."], half_distance=1, **LABEL) == pytest.approx([1 / 4])


def test_another_spelling_of_the_term_is_not_the_label(rate) -> None:
    assert rate("label_match", [" cd4 t cell", " CD4+ T cells."], **LABEL) == pytest.approx([1, 2**-0.5])


def test_labels_without_a_term_go_by_their_text(rate) -> None:
    weird = {**LABEL, "answer": "Weird cell"}
    assert rate("label_match", [" Weird cell.", " weird cell", " B cell.", " Other."], **weird) == [1, 1, 0, 0]
    assert rate("label_match", [" Weird cell.", "", " 细胞 🧬", " B cell, or CD4 T cell."], **LABEL) == [0, 0, 0, 0]


def test_it_says_nothing_of_a_generation_prompt(rate) -> None:
    assert rate("label_match", [" B cell."]) == [None]


def test_the_table_of_the_settings_is_used(rate, tmp_path) -> None:
    (tmp_path / "terms.tsv").write_text("id\tparents\nCL:0000624\tCL:0000236\n")  # CD4 T right below B
    settings = {"ontology": str(tmp_path / "terms.tsv"), "half_distance": 1}
    assert rate("label_match", [" B cell.", " CD8 T cell."], **settings, **LABEL) == pytest.approx([0.5, 0])
    with pytest.raises(InputError, match=r"reward 'label_match'.*does not exist"):
        rate("label_match", [" B cell."], ontology="nowhere.tsv", **LABEL)
