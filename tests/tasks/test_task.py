"""The contract that every registered task keeps, and what cells look like in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from task_records import GENES, SYMBOLS, record_for

from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.metrics import metrics
from cytoglot.tasks import AnswerSpace, CellRecord, Example, Record, Task, describe_cell, tasks
from cytoglot.tasks.task import with_article

VOCABULARY = GeneVocabulary(SYMBOLS)


@pytest.fixture(params=list(tasks))
def task(request: pytest.FixtureRequest) -> Task[Any, Any]:
    return tasks[request.param]


def all_examples(task: Task[Any, Any], record: Record) -> list[Example]:
    return [task.example(record, template=t.name) for t in task.templates.templates]


def bare(task: Task[Any, Any]) -> Any:
    """Return the record with no more metadata than the task needs."""
    record = record_for(task)
    return replace(record, metadata={key: record.metadata[key] for key in task.required_metadata})


def with_key(record: Any, key: str) -> Any:
    name = next(f for f in ("cell_id", "group_id", "term_id", "name") if hasattr(record, f))
    return replace(record, **{name: key})


def test_prompt_and_completion_meet_at_one_space(task: Task[Any, Any]) -> None:
    for example in all_examples(task, record_for(task)):
        assert example.prompt == example.prompt.strip()
        assert example.completion[0] == " "
        assert example.completion[1] != " "
        assert example.completion[-1] == "."


def test_every_gene_of_every_text_is_preceded_by_a_space(task: Task[Any, Any]) -> None:
    for example in all_examples(task, record_for(task)):
        text = example.prompt + example.completion
        assert all(text.count(gene) == text.count(" " + gene) for gene in SYMBOLS)


def test_no_prompt_tells_the_answer(task: Task[Any, Any]) -> None:
    record = record_for(task)
    for example in all_examples(task, record):
        assert example.completion.strip(" .") not in example.prompt
        assert all(record.metadata[key] not in example.prompt for key in task.hidden_metadata if key in record.metadata)


def test_every_task_has_ten_wordings_and_some_that_training_never_sees(task: Task[Any, Any]) -> None:
    assert len(task.templates.training) >= 10
    assert len(task.templates.held_out) >= 1
    assert len({t.text for t in task.templates.templates}) == len(task.templates.templates)


def test_a_record_of_which_nothing_else_is_known_makes_good_prompts(task: Task[Any, Any]) -> None:
    for example in all_examples(task, bare(task)):
        assert "None" not in example.prompt
        assert "  " not in example.prompt
        assert "()" not in example.prompt


def test_the_template_of_an_example_depends_on_the_record_and_not_on_the_order(task: Task[Any, Any]) -> None:
    records = [with_key(record_for(task), f"c{i}") for i in range(20)]
    forward = [task.example(r, seed=5, epoch=2) for r in records]
    backward = [task.example(r, seed=5, epoch=2) for r in reversed(records)][::-1]
    assert forward == backward
    assert len({e.template for e in forward}) > 3
    assert not any(task.templates.get(e.template).held_out for e in forward)
    assert task.templates.get(task.example(record_for(task), held_out=True).template).held_out


def test_prompt_and_example_agree(task: Task[Any, Any]) -> None:
    record = record_for(task)
    assert task.prompt(record, template=0) == task.example(record, template=0).prompt


def test_what_is_known_is_stated_in_the_short_prompt(task: Task[Any, Any]) -> None:
    record = record_for(task)
    if task.describe(record) != describe_cell({}) and "terse_described" in task.templates.names:
        assert task.describe(record) in task.prompt(record)
        assert task.short_template(record) == task.templates.get("terse_described").name
    assert task.prompt(bare(task), template=0) == task.example(bare(task), template=0).prompt


def test_an_example_needs_just_the_metadata_that_the_task_states(task: Task[Any, Any]) -> None:
    record = bare(task)
    assert task.can_ask(record)
    task.example(record)
    for key in task.required_metadata:
        poorer = replace(record, metadata={k: v for k, v in record.metadata.items() if k != key})
        assert not task.can_ask(poorer)
        with pytest.raises(InputError, match=f"needs the {key} of "):
            task.example(poorer)


def test_metrics_and_the_reverse_task_are_registered(task: Task[Any, Any]) -> None:
    assert all(name in metrics for name in task.metrics)
    assert task.metrics
    if task.reverse is not None:
        assert tasks[task.reverse].reverse == task.name


@pytest.mark.parametrize("answer", ["", " ", ".", "\n\n", "Cell 1:", "MALAT1 malat1 ?", "\x00é" * 50, "1. 2. 3."])
def test_reading_an_answer_never_raises(task: Task[Any, Any], answer: str) -> None:
    task.parse(answer, AnswerSpace(labels=("CD4 T", "B"), vocabulary=VOCABULARY, n_genes=5))


def test_an_unknown_task_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown task 'cell_type_anotation'; did you mean 'cell_type_annotation'"
    ):
        tasks["cell_type_anotation"]


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, "cell"),
        ({"organism": "Homo sapiens"}, "human cell"),
        (
            {"organism": "Homo sapiens", "tissue": "pancreas", "disease": "normal"},
            "human pancreas cell (disease: normal)",
        ),
        (
            {"tissue": "eye", "sex": "female", "condition": "stimulated"},
            "eye cell (condition: stimulated, sex: female)",
        ),
        ({"organism": "Gallus gallus"}, "Gallus gallus cell"),
        ({"cell_type": "B", "donor_id": "d1", "batch": "b1"}, "cell"),
    ],
)
def test_a_cell_is_described_by_what_is_known(metadata: dict[str, str], words: str) -> None:
    assert describe_cell(metadata) == words


def test_the_article_follows_the_first_letter() -> None:
    assert with_article("eye cell") == "an eye cell"
    assert with_article("human cell") == "a human cell"


def test_a_record_refuses_blank_metadata_and_a_wrong_number_of_genes() -> None:
    with pytest.raises(ValueError, match=r"cell 'c': metadata must be non-empty texts, leave out \['tissue'\]"):
        CellRecord(metadata={"tissue": " "}, cell_id="c")
    with pytest.raises(ValueError, match=r"metadata must be non-empty texts"):
        CellRecord(metadata={"tissue": float("nan")})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"5 genes, but num_genes says 200"):
        CellRecord(genes=GENES, num_genes=200)


@pytest.mark.parametrize(("prompt", "completion"), [("a ", " b."), ("a", "b."), ("a", "  b."), ("a", " ")])
def test_an_example_refuses_a_bad_seam(prompt: str, completion: str) -> None:
    with pytest.raises(ValueError, match=r"must not end in white space"):
        Example(task="t", prompt=prompt, completion=completion, key="c", template="t")


def test_a_missing_label_stops_training_and_not_inference() -> None:
    unlabelled = CellRecord(genes=GENES, cell_id="c9")
    assert tasks["cell_type_annotation"].prompt(unlabelled).startswith("5 genes: MALAT1")
    with pytest.raises(InputError, match=r"needs the cell_type of 'c9'; known of it: nothing"):
        tasks["cell_type_annotation"].example(unlabelled)
