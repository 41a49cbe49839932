"""Annotation: the words by hand, and reading any answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytoglot.answer_format import OneOf
from cytoglot.errors import InputError
from cytoglot.tasks import AnswerSpace, CellRecord
from cytoglot.tasks.annotation import CellTypeAnnotation

LABELS = ("CD4 T", "CD14+ Mono.", "Mono. (inflamed)", "b cell", "B cell", "NK")
SPACE = AnswerSpace(labels=LABELS)
task = CellTypeAnnotation()


def test_the_terse_example_by_hand() -> None:
    record = CellRecord(genes=("CD3D", "IL7R"), metadata={"cell_type": "CD4 T"}, cell_id="c")
    example = task.example(record, template=0)
    assert example.prompt == "2 genes: CD3D IL7R. Cell type:"
    assert example.completion == " CD4 T."
    assert example.template == "terse"


def test_a_described_example_by_hand() -> None:
    record = CellRecord(genes=("CD3D",), metadata={"tissue": "eye", "organism": "Mus musculus"}, cell_id="c")
    assert task.prompt(record, template="terse_described") == "1 genes of a mouse eye cell: CD3D. Cell type:"


def test_an_empty_cell_still_has_a_prompt() -> None:
    assert task.prompt(CellRecord(cell_id="c")) == "0 genes: none. Cell type:"


def test_label_completions_are_those_of_training() -> None:
    record = CellRecord(metadata={"cell_type": "NK"})
    assert task.label_completions(["NK", "CD4 T"]) == [task.completion(record), " CD4 T."]


def test_the_format_is_the_closed_set_of_labels() -> None:
    assert task.answer_format(SPACE) == OneOf(options=LABELS)
    with pytest.raises(InputError, match=r"needs a list of labels to choose from, found none"):
        task.answer_format(AnswerSpace())


@pytest.mark.parametrize(
    ("answer", "label", "match"),
    [
        (" CD4 T.", "CD4 T", "exact"),
        ("CD4 T", "CD4 T", "exact"),
        ("cd4  t.\n", "CD4 T", "case"),
        (" CD14+ Mono..", "CD14+ Mono.", "exact"),
        (" CD14+ Mono.", "CD14+ Mono.", "exact"),
        (" Mono. (inflamed).", "Mono. (inflamed)", "exact"),
        (" NK. The cell kills.", "NK", "exact"),
        ("NK.\n7 genes: CD3D", "NK", "exact"),
        (" b cell.", "b cell", "exact"),
        (" B CELL.", None, "none"),  # two labels differ in case only
        (" MALAT1 CD3D", None, "none"),
        ("", None, "none"),
    ],
)
def test_an_answer_is_read(answer: str, label: str | None, match: str) -> None:
    parsed = task.parse(answer, SPACE)
    assert (parsed.label, parsed.match) == (label, match)


def test_without_a_label_set_the_text_is_the_label() -> None:
    parsed = task.parse(" Müller cell.", AnswerSpace())
    assert (parsed.label, parsed.text) == ("Müller cell", "Müller cell")
    assert task.parse(" .", AnswerSpace()).label is None


@given(st.sampled_from(LABELS))
def test_every_label_survives_completion_and_parsing(label: str) -> None:
    assert task.parse(task.label_completions([label])[0], SPACE).label == label


@given(st.text())
def test_reading_never_raises_and_never_invents_a_label(text: str) -> None:
    parsed = task.parse(text, SPACE)
    assert parsed.label is None or parsed.label in LABELS
    assert (parsed.label is None) == (parsed.match == "none")
