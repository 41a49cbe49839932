"""The contract that every registered task keeps, and what cells look like in words."""

from __future__ import annotations

import pytest

from cytoglot.errors import InputError, UnknownNameError
from cytoglot.tasks import CellRecord, Example, Task, describe_cell, tasks
from cytoglot.tasks.task import with_article

GENES = ("MALAT1", "HLA-DRA", "AC093323.3")
RECORD = CellRecord(
    genes=GENES,
    metadata={"cell_type": "CD4 T", "organism": "Homo sapiens", "tissue": "pancreas", "disease": "normal"},
    cell_id="AAAC-1",
)


@pytest.fixture(params=list(tasks))
def task(request: pytest.FixtureRequest) -> Task[CellRecord, Any]:
    return tasks[request.param]


def all_examples(task: Task, record: CellRecord) -> list[Example]:
    return [task.example(record, template=t.name) for t in task.templates.templates]


def test_prompt_and_completion_meet_at_one_space(task: Task) -> None:
    for example in all_examples(task, RECORD):
        assert example.prompt == example.prompt.strip()
        assert example.completion[0] == " "
        assert example.completion[1] != " "
        assert example.completion[-1] == "."


def test_every_gene_of_every_text_is_preceded_by_a_space(task: Task) -> None:
    for example in all_examples(task, RECORD):
        text = example.prompt + example.completion
        assert all(text.count(gene) == text.count(" " + gene) == 1 for gene in GENES)


def test_the_true_number_of_genes_is_in_the_prompt(task: Task) -> None:
    assert all("3" in example.prompt for example in all_examples(task, RECORD))


def test_no_prompt_tells_the_answer(task: Task) -> None:
    for example in all_examples(task, RECORD):
        assert example.completion.strip(" .") not in example.prompt


def test_a_cell_of_which_nothing_is_known_makes_good_prompts(task: Task) -> None:
    record = CellRecord(genes=GENES, metadata={"cell_type": "B"}, cell_id="c")
    for example in all_examples(task, record):
        assert "None" not in example.prompt
        assert "  " not in example.prompt
        assert "()" not in example.prompt


def test_the_template_of_an_example_depends_on_the_cell_and_not_on_the_order(task: Task) -> None:
    records = [CellRecord(genes=GENES, metadata={"cell_type": "B"}, cell_id=f"c{i}") for i in range(20)]
    forward = [task.example(r, seed=5, epoch=2) for r in records]
    backward = [task.example(r, seed=5, epoch=2) for r in reversed(records)][::-1]
    assert forward == backward
    assert len({e.template for e in forward}) > 3
    assert not any(task.templates.get(e.template).held_out for e in forward)
    assert task.templates.get(task.example(RECORD, held_out=True).template).held_out


def test_prompt_and_example_agree(task: Task) -> None:
    assert task.prompt(RECORD, template=0) == task.example(RECORD, template=0).prompt


def test_what_is_known_of_a_cell_is_stated_in_its_short_prompt(task: Task) -> None:
    assert "human pancreas" in task.prompt(RECORD)
    bare = CellRecord(genes=GENES, metadata={"cell_type": "B"}, cell_id="c")
    assert task.prompt(bare) == task.prompt(bare, template=0)
    assert task.short_template(RECORD) == task.templates.get("terse_described").name


def test_an_example_needs_just_the_metadata_that_the_task_states(task: Task) -> None:
    needed = {key: RECORD.metadata[key] for key in task.required_metadata}
    task.example(CellRecord(genes=GENES, metadata=needed, cell_id="c"))
    for key in needed:
        rest = {k: v for k, v in needed.items() if k != key}
        with pytest.raises(InputError, match=f"needs the {key} of 'c'"):
            task.example(CellRecord(genes=GENES, metadata=rest, cell_id="c"))


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
    with pytest.raises(ValueError, match=r"3 genes, but num_genes says 200"):
        CellRecord(genes=GENES, num_genes=200)


@pytest.mark.parametrize(("prompt", "completion"), [("a ", " b."), ("a", "b."), ("a", "  b."), ("a", " ")])
def test_an_example_refuses_a_bad_seam(prompt: str, completion: str) -> None:
    with pytest.raises(ValueError, match=r"must not end in white space"):
        Example(task="t", prompt=prompt, completion=completion, key="c", template="t")


def test_a_missing_label_stops_training_and_not_inference() -> None:
    unlabelled = CellRecord(genes=GENES, cell_id="c9")
    assert tasks["cell_type_annotation"].prompt(unlabelled).startswith("3 genes: MALAT1")
    with pytest.raises(InputError, match=r"needs the cell_type of 'c9'; known of it: nothing"):
        tasks["cell_type_annotation"].example(unlabelled)
