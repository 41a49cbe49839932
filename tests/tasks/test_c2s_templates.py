"""Wordings of Cell2Sentence: kept to the letter, filled in its form, refused with the reason."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from task_records import record_for

from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError
from cytoglot.tasks import AnswerSpace, CellGroup, CellRecord, Task, load_templates, tasks
from cytoglot.tasks.c2s_templates import group_fields, load_c2s_templates, read_c2s_templates, templates_for

# In the layout of the package, in words of ours.
FILES: dict[str, tuple[str, list[str], str]] = {
    "cell_type_annotation": (
        "single_cell_cell_type_prediction_prompts.json",
        [
            "{organism}, {num_genes} words:\n{cell_sentence}\nKind?",
            " {cell_sentence} is what kind of {organism} cell? ",
        ],
        "{cell_type}.",
    ),
    "cell_generation": (
        "single_cell_cell_type_conditional_generation_prompts.json",
        ["{num_genes} words for {cell_type} of {organism}:"],
        "{cell_sentence}.",
    ),
    "tissue_annotation": (
        "multi_cell_tissue_prediction_prompts.json",
        ["{num_cells} {organism} cells, {num_genes} words each.\n{multi_cell_sentences}Organ?"],
        "{tissue}.",
    ),
    "cell_group_generation_by_tissue": (
        "multi_cell_tissue_conditional_generation.json",
        ["{num_cells} cells of {tissue}, {organism}, {num_genes} words each."],
        "{multi_cell_sentences}.",
    ),
    "interpretation": (
        "multi_cell_natural_lang_interpretation_prompts.json",
        ["{num_cells} {organism} cells, {num_genes} words each.\n{multi_cell_sentences}Study?"],
        "{abstract}.",
    ),
}
CELL = CellRecord(
    genes=("CD3D", "C1orf21"), metadata={"cell_type": "T cell", "organism": "human", "sex": "male"}, cell_id="c1"
)
GROUP = CellGroup(
    cells=(CELL, CellRecord(genes=("MS4A1",), cell_id="c2")),
    metadata={"organism": "Mus musculus", "tissue": "blood", "abstract": "We saw cells."},
    group_id="g1",
)


def write(folder: Path, task: str, prompts: list[str] | None = None, response: str | None = None) -> Path:
    name, own_prompts, own_response = FILES[task]
    path = folder / name
    values = {"model_input": own_prompts if prompts is None else prompts, "response": [response or own_response]}
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the same name and layout that must not be imported, put where Python finds it."""
    prompts = tmp_path / "site" / "cell2sentence" / "prompts"
    prompts.mkdir(parents=True)
    (prompts.parent / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    for task in FILES:
        write(prompts, task)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return prompts


def asked(task: str, folder: Path) -> Task[Any, Any]:
    return tasks[task].with_templates(load_c2s_templates(task, folder))


def test_an_installed_package_is_read_and_not_imported(package: Path) -> None:
    for task, (_, prompts, response) in FILES.items():
        templates = templates_for(task, "cell2sentence")
        assert [t.text for t in templates.templates] == prompts
        assert (templates.answer, templates.style.is_ours, templates.style.answer_prefix) == (response, False, "")
        assert templates == load_c2s_templates(task, package) == load_c2s_templates(task, package.parent)
        assert templates.fingerprint != load_templates(task).fingerprint
    assert "cell2sentence" not in sys.modules


def test_a_cell_is_asked_about_to_the_letter(package: Path) -> None:
    task = asked("cell_type_annotation", package)
    example = task.example(CELL, template=0)
    assert example.prompt == "Homo sapiens, 2 words:\nCD3D C1ORF21\nKind?"
    assert example.prompt + example.completion == "Homo sapiens, 2 words:\nCD3D C1ORF21\nKind?T cell."
    assert task.prompt(CELL, template=1) == " CD3D C1ORF21 is what kind of Homo sapiens cell? "
    assert {task.example(CELL, seed=s).template for s in range(20)} == {"prompt_0", "prompt_1"}
    assert task.label_completions(["B cell"]) == ["B cell."]  # type: ignore[attr-defined]
    assert task.parse(example.completion, AnswerSpace(labels=("T cell", "B cell"))).label == "T cell"


def test_a_cell_is_asked_for(package: Path) -> None:
    task = asked("cell_generation", package)
    assert task.prompt(CELL) == "2 words for T cell of Homo sapiens:"
    assert task.completion(CELL) == "CD3D C1ORF21."
    unwritten = CellRecord(metadata={"cell_type": "T cell", "organism": "mouse"}, num_genes=200)
    assert task.prompt(unwritten) == "200 words for T cell of Mus musculus:"
    parsed = task.parse("CD3D C1ORF21.", AnswerSpace(vocabulary=GeneVocabulary(("CD3D", "C1orf21"))))
    assert list(parsed.gene_ids) == [0, 1]


def test_several_cells_are_two_lines_each(package: Path) -> None:
    cells = "Cell 1:\nCD3D C1ORF21.\nCell 2:\nMS4A1.\n"
    assert group_fields(GROUP)["multi_cell_sentences"].text == cells  # type: ignore[union-attr]
    tissue = asked("tissue_annotation", package).example(GROUP)
    assert tissue.prompt == f"2 Mus musculus cells, 2 words each.\n{cells}Organ?"
    assert tissue.completion == "blood."
    study = asked("interpretation", package).example(GROUP)
    assert (study.prompt[-len("Cell 2:\nMS4A1.\nStudy?") :], study.completion) == (
        "Cell 2:\nMS4A1.\nStudy?",
        "We saw cells.",
    )
    generation = asked("cell_group_generation_by_tissue", package)
    assert generation.prompt(GROUP) == "2 cells of blood, Mus musculus, 2 words each."
    assert generation.completion(GROUP) == f"{cells}."
    vocabulary = GeneVocabulary(("CD3D", "C1orf21", "MS4A1"))
    parsed = generation.parse(generation.completion(GROUP), AnswerSpace(vocabulary=vocabulary))
    assert [list(cell.gene_ids) for cell in parsed] == [[0, 1], [2]]


def test_what_a_wording_names_must_be_known_of_the_record(package: Path) -> None:
    task = asked("cell_type_annotation", package)
    assert task.required_metadata == ("cell_type", "organism")
    nameless = CellRecord(genes=("CD3D",), metadata={"cell_type": "T cell"}, cell_id="c7")
    assert task.can_ask(CELL)
    assert not task.can_ask(nameless)
    with pytest.raises(InputError, match=r"needs the organism of 'c7'; known of it: cell_type"):
        task.prompt(nameless)
    with pytest.raises(InputError, match=r"'cell_type_annotation' needs the cell_type of 'c8'"):
        task.completion(CellRecord(genes=("CD3D",), metadata={"organism": "human"}, cell_id="c8"))


def test_the_registered_task_keeps_its_own_wordings(package: Path) -> None:
    asked("cell_type_annotation", package)
    assert tasks["cell_type_annotation"].required_metadata == ("cell_type",)
    assert tasks["cell_type_annotation"].templates == load_templates("cell_type_annotation")
    example = tasks["cell_type_annotation"].example(record_for(tasks["cell_type_annotation"]))
    assert example.is_ours


def test_there_is_no_held_out_wording_to_choose(package: Path) -> None:
    with pytest.raises(InputError, match=r"cell_type_annotation has no held-out template here"):
        asked("cell_type_annotation", package).example(CELL, held_out=True)


@pytest.mark.parametrize(
    ("prompts", "response", "message"),
    [
        (
            ["{cell_sentence} {tisue}?"],
            None,
            r"prompts.json: template 'prompt_0' of cell_type_annotation names the fields \['tisue'\]; "
            r"known: \['num_genes', 'organism', 'tissue', 'cell_sentence'\]",
        ),
        (["{cell_sentence} of {cell_type}?"], None, r"names the fields \['cell_type'\]"),
        (["fine", "{} {0} {organism.x}"], None, r"'prompt_1' .*names the fields \['', '0', 'organism.x'\]"),
        (["{cell_sentence"], None, r"prompts.json: template 'prompt_0' .* has a brace without its partner"),
        (None, "{cell_sentence}.", r"expected \{cell_type\} and no other field in the response"),
        (None, "T cell.", r"expected \{cell_type\} and no other field in the response, found 'T cell.'"),
        (None, "{cell_type.", r"prompts.json: "),
        ([], None, r"expected .*model_input.*response.*all of them texts"),
        ([""], None, r"all of them texts"),
    ],
)
def test_a_broken_text_is_refused(
    tmp_path: Path, prompts: list[str] | None, response: str | None, message: str
) -> None:
    path = write(tmp_path, "cell_type_annotation", prompts, response)
    with pytest.raises(InputError, match=message):
        read_c2s_templates(path, "cell_type_annotation")


@pytest.mark.parametrize("text", ["[]", '{"model_input": ["a"]}', '{"model_input": "a", "response": ["b"]}'])
def test_a_file_of_another_layout_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r'own.json: expected \{"model_input": \[a prompt, …\]'):
        templates_for("cell_generation", path)


def test_a_source_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"absent.json do not exist"):
        templates_for("cell_generation", tmp_path / "absent.json")
    with pytest.raises(InputError, match=r"holds no file single_cell.*with the prompts of cell_generation"):
        templates_for("cell_generation", tmp_path)
    with pytest.raises(InputError, match=r"expected 'cell2sentence', a folder of its JSON files, .* found 'other'"):
        templates_for("cell_generation", "other")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"broken.json are not valid JSON"):
        templates_for("cell_generation", tmp_path / "broken.json")
    with pytest.raises(InputError, match=r"cell2sentence has no prompts of 'gene_set_naming', only of cell_type_ann"):
        templates_for("gene_set_naming", "cell2sentence")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"which is not installed; install it, or pass a folder"):
        templates_for("cell_generation", "cell2sentence")


# A user's own TOML file


def own_file(
    folder: Path, *, name: str = "cell_type_annotation", fields: str = "", answer: str = "{cell_type}."
) -> Path:
    path = folder / "own.toml"
    path.write_text(
        f'name = "{name}"\nfields = ["cell_sentence"{fields}]\nanswer = "{answer}"\n'
        '[[prompt]]\nname = "mine"\ntext = "Read {cell_sentence}. It is"\n',
        encoding="utf-8",
    )
    return path


def test_own_wordings_in_toml_are_used(tmp_path: Path) -> None:
    templates = templates_for("cell_type_annotation", own_file(tmp_path))
    task = tasks["cell_type_annotation"].with_templates(templates)
    assert task.example(CELL).prompt == "Read CD3D C1orf21. It is"
    assert task.completion(CELL) == " T cell."
    assert task.required_metadata == ("cell_type",)


def test_own_wordings_that_do_not_fit_the_task_are_refused(tmp_path: Path) -> None:
    message = r"own.toml lists the fields \['tisue'\]; cell_type_annotation fills \['num_genes', 'cell_sentence'"
    with pytest.raises(InputError, match=message):
        templates_for("cell_type_annotation", own_file(tmp_path, fields=', "tisue"'))
    with pytest.raises(
        InputError, match=r"own.toml: expected the name 'cell_generation', found 'cell_type_annotation'"
    ):
        templates_for("cell_generation", own_file(tmp_path))
    with pytest.raises(InputError, match=r"expected the field \['cell_type'\] in the answer, found \['type'\]"):
        templates_for("cell_type_annotation", own_file(tmp_path, answer="{type}."))
    with pytest.raises(InputError, match=r"expected the name 'cell_generation'"):
        tasks["cell_generation"].with_templates(load_templates("cell_type_annotation"))


def test_own_wordings_about_several_cells_need_no_described_one(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(
        'name = "tissue_annotation"\nfields = ["cell_sentences"]\nanswer = "{tissue}."\n'
        '[[prompt]]\nname = "mine"\ntext = "{cell_sentences}\\nOrgan:"\n',
        encoding="utf-8",
    )
    task = tasks["tissue_annotation"].with_templates(templates_for("tissue_annotation", path))
    assert task.prompt(GROUP) == "Cell 1: CD3D C1orf21\nCell 2: MS4A1\nOrgan:"


@pytest.mark.skipif(importlib.util.find_spec("cell2sentence") is None, reason="cell2sentence is not installed")
@pytest.mark.parametrize("name", list(FILES))
def test_the_real_package(name: str) -> None:
    task = tasks[name].with_templates(templates_for(name, "cell2sentence"))
    assert len(task.templates.training) >= 10
    record = CELL if task.unit == "cell" else GROUP
    for template in task.templates.templates:
        example = task.example(record, template=template.name)
        assert "{" not in example.prompt + example.completion
        assert example.completion[0] not in " \n"
        assert example.completion.endswith(".")
