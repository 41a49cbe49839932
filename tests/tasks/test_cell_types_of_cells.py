"""The types of several cells: the words by hand, labels with every sign in them, and answers in another form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytoglot.errors import InputError
from cytoglot.tasks import AnswerSpace, CellGroup, CellRecord, tasks

task, reverse = tasks["cell_types_of_cells"], tasks["cell_group_generation_by_cell_types"]
LABELS = ("CD4-positive, alpha-beta T cell", "B cell 2: naive", "T; activated", "CD14+ Mono.", "NK", "b", "B")
SPACE = AnswerSpace(labels=LABELS)


def group(*types: str) -> CellGroup:
    cells = tuple(CellRecord(genes=("CD3D", "IL7R"), metadata={"cell_type": t}, cell_id="c") for t in types)
    return CellGroup(cells=cells, group_id="g")


def test_both_directions_by_hand() -> None:
    example = task.example(group("CD4 T", "B", "CD4 T"), template=0)
    cells = "Cell 1: CD3D IL7R\nCell 2: CD3D IL7R\nCell 3: CD3D IL7R"
    types = "Cell 1: CD4 T\nCell 2: B\nCell 3: CD4 T"
    assert example.prompt == f"3 cells, 2 genes each:\n{cells}\nCell types:"
    assert example.completion == f" {types}."
    back = reverse.example(group("CD4 T", "B", "CD4 T"), template=0)
    assert back.prompt == f"Cell types:\n{types}\n3 cells, 2 genes each:"
    assert back.completion == f" {cells}."


@given(st.lists(st.sampled_from(LABELS), min_size=2, max_size=20))
def test_labels_with_commas_colons_stops_and_marks_survive(types: list[str]) -> None:
    assert task.parse(task.completion(group(*types)), SPACE) == tuple(types)


def test_without_a_label_set_the_lines_are_the_labels() -> None:
    answer = task.completion(group("Müller, type 1", "NK"))
    assert task.parse(answer, AnswerSpace()) == ("Müller, type 1", "NK")


@pytest.mark.parametrize(
    ("answer", "labels"),
    [
        (" Cell 1: NK\nCell 2: nk.", ("NK", "NK")),
        (" NK\nB.", ("NK", "B")),
        ("The types are these:\nCell 1: NK\nCell 2: B\nHope this helps.", ("NK", "B")),
        ("Cell 1: NK; Cell 2: B; Cell 3: T; activated.", ("NK", "B", "T; activated")),
        ("1. NK\n2. B", ("NK", "B")),
        ("Cell 1: NK\nCell 3: B", ("NK", None, "B")),  # not "B" for the second cell
        ("Cell 1: dragon\nCell 2: B", (None, "B")),
        ("Cell 1: NK\nCell 2: cd14+ mono.", ("NK", "CD14+ Mono.")),
        ("Cell 1:\nCell 2:", (None, None)),
        ("dragon", ()),
        ("", ()),
    ],
)
def test_an_answer_is_read(answer: str, labels: tuple[str | None, ...]) -> None:
    assert task.parse(answer, SPACE) == labels


@given(st.text())
def test_reading_never_raises_and_never_invents_a_label(text: str) -> None:
    assert set(task.parse(text, SPACE)) <= {None, *LABELS}
    task.parse(text, AnswerSpace())


@pytest.mark.parametrize("asked", [task, reverse], ids=lambda t: t.name)
def test_a_cell_without_a_type_is_not_asked_about(asked) -> None:  # type: ignore[no-untyped-def]
    unlabelled = CellRecord(genes=("CD3D", "IL7R"), cell_id="c7")
    record = CellGroup(cells=(*group("B").cells, unlabelled), group_id="g")
    assert asked.can_ask(group("B", "NK"))
    assert not asked.can_ask(record)
    with pytest.raises(InputError, match=r"needs the cell_type of 'c7'; known of it: nothing"):
        asked.example(record)
    with pytest.raises(InputError, match=r"found no cells"):
        asked.prompt(CellGroup(group_id="g", num_cells=2, num_genes=5))


def test_the_question_needs_no_type() -> None:
    cells = tuple(CellRecord(genes=("CD3D",)) for _ in range(2))
    assert task.prompt(CellGroup(cells=cells)) == ("2 cells, 1 genes each:\nCell 1: CD3D\nCell 2: CD3D\nCell types:")
