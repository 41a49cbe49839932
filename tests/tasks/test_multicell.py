"""Several cells: the words by hand, reading undoes writing, and what else a model may write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytoglot.answer_format import FreeText, OneOf
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError
from cytoglot.tasks import AnswerSpace, CellGroup, CellRecord, tasks
from cytoglot.tasks.multicell import MAX_CELLS, cell_lines, parse_cells, read_cells, state_lengths

SYMBOLS = ("CD3D", "IL7R", "MS4A1", "AC093323.3", "WAS", "(Clone).")
VOCABULARY = GeneVocabulary(SYMBOLS)
SPACE = AnswerSpace(vocabulary=VOCABULARY, n_genes=3)
NAMES = (
    "multicell_generation",
    "tissue_annotation",
    "cell_types_of_cells",
    "cell_group_generation_by_tissue",
    "cell_group_generation_by_cell_types",
    "cell_group_generation_by_abstract",
    "interpretation",
)
GENERATIONS = tuple(name for name in NAMES if "generation" in name)
KNOWN = {"organism": "Homo sapiens", "tissue": "eye", "disease": "normal", "abstract": "We looked."}


def cell(*genes: str, cell_type: str = "B", cell_id: str = "c") -> CellRecord:
    return CellRecord(genes=genes, metadata={"cell_type": cell_type}, cell_id=cell_id)


def group(*cells: CellRecord, **metadata: str) -> CellGroup:
    return CellGroup(cells=cells, metadata=metadata, group_id="g")


TWO = group(cell("CD3D", "IL7R", cell_type="T"), cell("MS4A1"), **KNOWN)


def genes(answer: str) -> list[list[str]]:
    return [[SYMBOLS[gene] for gene in parsed.gene_ids] for parsed in parse_cells(answer, VOCABULARY)]


def test_generation_by_hand() -> None:
    task = tasks["multicell_generation"]
    example = task.example(group(*TWO.cells), template=0)
    assert example.prompt == "2 cells, up to 2 genes each:"
    assert example.completion == " Cell 1: CD3D IL7R\nCell 2: MS4A1."
    assert task.prompt(TWO) == "2 human eye cells (disease: normal), up to 2 genes each:"


def test_generation_by_tissue_by_hand_names_the_tissue_once() -> None:
    prompt = tasks["cell_group_generation_by_tissue"].prompt(TWO)
    assert prompt == "Tissue: eye. 2 human cells (disease: normal), up to 2 genes each:"


def test_tissue_annotation_by_hand_with_an_empty_cell() -> None:
    example = tasks["tissue_annotation"].example(group(cell("CD3D", "IL7R"), cell(), tissue="eye"), template=0)
    assert example.prompt == "2 cells, up to 2 genes each:\nCell 1: CD3D IL7R\nCell 2: none\nTissue:"
    assert example.completion == " eye."


def test_a_disease_that_would_give_the_tissue_away_is_not_told() -> None:
    record = group(cell("CD3D"), cell("IL7R"), tissue="lung", disease="lung adenocarcinoma", sex="female")
    for template in tasks["tissue_annotation"].templates.templates:
        assert "lung" not in tasks["tissue_annotation"].prompt(record, template=template.name)
    assert tasks["tissue_annotation"].prompt(record).startswith("2 cells (sex: female), 1 genes each:")


def test_the_length_of_the_cells_is_exact_or_that_of_the_longest() -> None:
    assert state_lengths([200, 200]) == "200"
    assert state_lengths([3, 200, 0]) == "up to 200"


@pytest.mark.parametrize("name", NAMES)
def test_every_task_has_eleven_wordings_and_three_held_out_that_state_both_numbers(name: str) -> None:
    templates = tasks[name].templates
    assert len(templates.training) >= 11
    assert len(templates.held_out) >= 3
    assert all({"num_cells", "num_genes"} <= t.fields for t in templates.templates)
    assert min(templates.templates, key=lambda t: len(t.text)) is templates.training[0]


@pytest.mark.parametrize("name", NAMES)
def test_no_wording_is_that_of_another_task_on_groups(name: str) -> None:
    others = {t.text for other in NAMES if other != name for t in tasks[other].templates.templates}
    assert not others & {t.text for t in tasks[name].templates.templates}


@pytest.mark.parametrize("name", NAMES)
def test_every_wording_shows_what_it_asks_about(name: str) -> None:
    shown = {
        "tissue_annotation": "cell_sentences",
        "cell_types_of_cells": "cell_sentences",
        "interpretation": "cell_sentences",
        "cell_group_generation_by_tissue": "tissue",
        "cell_group_generation_by_cell_types": "cell_types",
        "cell_group_generation_by_abstract": "abstract",
    }
    assert all(shown.get(name, "num_cells") in t.fields for t in tasks[name].templates.templates)


@pytest.mark.parametrize("name", GENERATIONS)
def test_cells_still_to_be_written_announce_their_number_and_length(name: str) -> None:
    typed = tuple(CellRecord(metadata={"cell_type": "B"}, num_genes=n) for n in (50, 50))
    record = CellGroup(cells=typed, metadata=KNOWN, group_id="g")
    assert tasks[name].prompt(record, template=0).endswith("2 cells, 50 genes each:")
    if name != "cell_group_generation_by_cell_types":
        assert (
            tasks[name]
            .prompt(CellGroup(metadata=KNOWN, num_cells=7, num_genes=50), template=0)
            .endswith("7 cells, 50 genes each:")
        )


@pytest.mark.parametrize("name", NAMES)
def test_one_cell_is_no_group_and_an_empty_one_is_not_learned_to_write(name: str) -> None:
    assert tasks[name].can_ask(TWO)
    assert not tasks[name].can_ask(group(cell("CD3D"), **KNOWN))
    assert not tasks[name].can_ask(group(cell(), cell(), **KNOWN))
    assert tasks[name].can_ask(group(cell("CD3D"), cell(), **KNOWN)) == (name not in GENERATIONS)


def test_what_cannot_be_asked_is_refused_with_the_reason() -> None:
    generation, annotation = tasks["multicell_generation"], tasks["tissue_annotation"]
    with pytest.raises(InputError, match=r"needs the number of cells to write for group 'g' .*found genes: \[1, 0\]"):
        generation.prompt(group(cell("CD3D"), cell()))
    with pytest.raises(InputError, match=r"found genes: \[\]; pass num_cells and num_genes"):
        generation.prompt(CellGroup(group_id="g", num_genes=5))
    with pytest.raises(InputError, match=r"cannot learn from group 'g': of 2 cells .* no expressed genes: \['c9'\]"):
        generation.completion(group(cell("CD3D"), cell(cell_id="c9")))
    with pytest.raises(InputError, match=r"of 0 cells"):
        generation.completion(group())
    with pytest.raises(InputError, match=r"asks about the cells of group 'g', found no cells"):
        annotation.prompt(group())
    with pytest.raises(InputError, match=r"needs the gene vocabulary"):
        generation.parse("CD3D", AnswerSpace())
    with pytest.raises(InputError, match=r"a number of genes of each cell, 1 or more; found None"):
        generation.answer_format(AnswerSpace())
    with pytest.raises(InputError, match=r"needs a list of labels to choose from, found none"):
        annotation.answer_format(AnswerSpace())


def test_the_formats_are_a_closed_set_and_text_with_room_for_the_largest_group() -> None:
    space = AnswerSpace(labels=("eye", "lung"), vocabulary=VOCABULARY, n_genes=200)
    assert tasks["tissue_annotation"].answer_format(space) == OneOf(options=("eye", "lung"))
    answer_format = tasks["multicell_generation"].answer_format(space)
    assert isinstance(answer_format, FreeText)
    assert answer_format.max_tokens >= MAX_CELLS * 200 * 4


def test_tissue_completions_are_those_of_training_and_are_read_back() -> None:
    task = tasks["tissue_annotation"]
    assert task.label_completions(["eye", "lung"]) == [task.completion(TWO), " lung."]
    assert task.parse(" EYE.\nCell 1:", AnswerSpace(labels=("eye", "lung"))).label == "eye"


@given(st.lists(st.lists(st.sampled_from(SYMBOLS), unique=True, min_size=1), min_size=1, max_size=20))
def test_reading_undoes_writing(cells: list[list[str]]) -> None:
    record = group(*(cell(*names) for names in cells))
    parsed = tasks["multicell_generation"].parse(tasks["multicell_generation"].completion(record), SPACE)
    assert [[SYMBOLS[gene] for gene in sentence.gene_ids] for sentence in parsed] == cells
    assert all(sentence.report.first_fault is None for sentence in parsed)


@pytest.mark.parametrize(
    ("answer", "cells"),
    [
        (" Cell 1: CD3D IL7R\nCell 2: MS4A1.", [["CD3D", "IL7R"], ["MS4A1"]]),
        (" CD3D IL7R\nMS4A1.", [["CD3D", "IL7R"], ["MS4A1"]]),  # no marks
        (" CD3D IL7R\nCell 2: MS4A1.", [["CD3D", "IL7R"], ["MS4A1"]]),  # the first mark is missing
        ("Cell 1: CD3D\nIL7R\nCell 3: MS4A1", [["CD3D"], ["IL7R"], ["MS4A1"]]),
        ("Here are the cells:\n\nCell 1: CD3D\n\nCell 2: MS4A1\nThese are T and B cells.", [["CD3D"], ["MS4A1"]]),
        ("Cell 1: CD3D IL7R Cell 2: MS4A1", [["CD3D", "IL7R"], ["MS4A1"]]),  # one line
        ("**Cell 1:** CD3D, IL7R\n- **Cell 2**: MS4A1", [["CD3D", "IL7R"], ["MS4A1"]]),
        ("1. CD3D IL7R\n2) MS4A1", [["CD3D", "IL7R"], ["MS4A1"]]),
        ("CELL 1:\nCD3D IL7R\ncell #2:\nMS4A1", [["CD3D", "IL7R"], ["MS4A1"]]),
        ("Cell 1: CD3D.\nCell 2: MS4A1.\n", [["CD3D"], ["MS4A1"]]),
        ("Cell 1: CD3D\nCell 3: MS4A1", [["CD3D"], [], ["MS4A1"]]),  # a number is skipped
        ("Cell 0: CD3D\nCell 1: MS4A1", [["CD3D"], ["MS4A1"]]),
        ("Cell 1: CD3D\nCell 1: MS4A1", [["CD3D"], ["MS4A1"]]),
        ("Cell 1:\nCell 2: CD3D", [[], ["CD3D"]]),
        ("Cell 1: apple\nCell 2: CD3D", [[], ["CD3D"]]),
        ("I cannot do that.", []),
        ("", []),
    ],
)
def test_an_answer_in_another_form_is_read(answer: str, cells: list[list[str]]) -> None:
    assert genes(answer) == cells


def test_faults_are_reported_cell_by_cell() -> None:
    first, second = parse_cells("Cell 1: CD3D NOPE CD3D\nCell 2: il7r", VOCABULARY)
    assert (first.report.unknown, first.report.n_duplicates) == (("NOPE",), 1)
    assert (second.report.n_case_fixed, second.report.first_fault) == (1, None)


@given(st.text())
def test_reading_never_raises_on_any_text(text: str) -> None:
    for name in NAMES:
        tasks[name].parse(text, SPACE)


@given(st.text(alphabet="Cel 0123456789:.\n*#-CD3", max_size=60))
def test_reading_never_raises_on_marks_of_any_sort_and_never_makes_up_a_thousand_cells(text: str) -> None:
    assert len(parse_cells(text, VOCABULARY)) <= 1000 + len(text)


@given(st.lists(st.text(min_size=1).filter(lambda t: t.split() != []), min_size=2, max_size=20))
def test_lines_keep_any_text_but_for_its_white_space(texts: list[str]) -> None:
    assert read_cells(cell_lines(texts).text, lambda _: False) == [" ".join(t.split()) for t in texts]
