"""Cells and abstracts: the words by hand, and one paragraph with one full stop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytoglot.answer_format import FreeText
from cytoglot.errors import InputError
from cytoglot.tasks import AnswerSpace, CellGroup, CellRecord, tasks
from cytoglot.tasks.answers import one_line

task, reverse = tasks["interpretation"], tasks["cell_group_generation_by_abstract"]
CELLS = tuple(CellRecord(genes=("CD3D", "IL7R"), cell_id=f"c{i}") for i in range(2))


def group(**metadata: str) -> CellGroup:
    return CellGroup(cells=CELLS, metadata=metadata, group_id="g")


ABSTRACT = "Background.\n  We profiled\tT cells of 3 donors.\n\nThey differ.\n"


def test_both_directions_by_hand() -> None:
    example = task.example(group(abstract=ABSTRACT), template=0)
    cells = "Cell 1: CD3D IL7R\nCell 2: CD3D IL7R"
    assert example.prompt == f"2 cells, 2 genes each:\n{cells}\nStudy:"
    assert example.completion == " Background. We profiled T cells of 3 donors. They differ."
    back = reverse.example(group(abstract=ABSTRACT, tissue="eye"), template="terse_described")
    assert back.prompt == (
        "Study: Background. We profiled T cells of 3 donors. They differ.\n2 eye cells, 2 genes each:"
    )
    assert back.completion == f" {cells}."


@given(st.text(min_size=1).filter(lambda text: one_line(text) != ""))
def test_reading_undoes_writing_of_any_abstract(abstract: str) -> None:
    record = group(abstract=abstract)
    completion = task.completion(record)
    assert completion.endswith(".")
    assert not completion.endswith(("..", " ."))
    assert "\n" not in completion
    assert task.parse(completion, AnswerSpace()) == one_line(abstract)
    assert ".." not in reverse.prompt(record, template=0).replace(one_line(abstract), "")


def test_an_abstract_without_words_is_not_asked_about() -> None:
    for asked in (task, reverse):
        assert asked.can_ask(group(abstract="Cells."))
        assert not asked.can_ask(group(abstract=" ... "))
        with pytest.raises(InputError, match=r"the abstract of 'g' has no words; leave it out"):
            asked.example(group(abstract="..."))


def test_the_answer_may_be_as_long_as_an_abstract() -> None:
    answer_format = task.answer_format(AnswerSpace())
    assert isinstance(answer_format, FreeText)
    assert answer_format.max_tokens == 1024


def test_no_prompt_holds_the_abstract() -> None:
    for template in task.templates.templates:
        assert "profiled" not in task.prompt(group(abstract=ABSTRACT), template=template.name)
