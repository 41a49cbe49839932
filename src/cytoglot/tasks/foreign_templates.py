"""Wordings of another model, read from its own files at run time, so that it is asked as it was trained.

Read are the JSON files of the `cell2sentence` package: {"model_input": [prompt, …], "response": [answer]}. Nothing of
them is in this package. Their texts are kept to the letter. What follows from how those models were trained, by default
of that package: an answer follows its prompt without a space, genes are in capitals, each of several cells is a line
"Cell 1:" and a line of genes, an organism has its Latin name.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cytoglot.errors import InputError
from cytoglot.tasks.record import CellGroup, CellRecord, Record
from cytoglot.tasks.template import Template, TemplateSet, load_templates
from cytoglot.texts import read_text

if TYPE_CHECKING:
    from typing import Any

    from cytoglot.tasks.task import Task

    AnyTask = TypeVar("AnyTask", bound=Task[Any, Any])

PACKAGE = "cell2sentence"
"""the installed package whose wordings `templates_for` can name"""


@dataclass(frozen=True, kw_only=True)
class _Form:
    """What the file of a task is called, and what its texts may name."""

    file: str
    fields: tuple[str, ...]
    answer: str


_GROUP = ("num_genes", "num_cells", "organism")
_FORMS = {
    "cell_type_annotation": _Form(
        file="single_cell_cell_type_prediction_prompts.json",
        fields=("num_genes", "organism", "tissue", "cell_sentence"),
        answer="cell_type",
    ),
    "cell_generation": _Form(
        file="single_cell_cell_type_conditional_generation_prompts.json",
        fields=("num_genes", "organism", "tissue", "cell_type"),
        answer="cell_sentence",
    ),
    "tissue_annotation": _Form(
        file="multi_cell_tissue_prediction_prompts.json", fields=(*_GROUP, "multi_cell_sentences"), answer="tissue"
    ),
    "cell_group_generation_by_tissue": _Form(
        file="multi_cell_tissue_conditional_generation.json", fields=(*_GROUP, "tissue"), answer="multi_cell_sentences"
    ),
    "interpretation": _Form(
        file="multi_cell_natural_lang_interpretation_prompts.json",
        fields=(*_GROUP, "tissue", "multi_cell_sentences"),
        answer="abstract",
    ),
}
_METADATA = ("organism", "tissue", "cell_type")
_LATIN = {"human": "Homo sapiens", "mouse": "Mus musculus", "rat": "Rattus norvegicus", "zebrafish": "Danio rerio"}


def load_c2s_templates(task: str, folder: str | Path | None = None) -> TemplateSet:
    """Return the wordings of a task from an installed `cell2sentence`, which is found and not imported.

    Parameters
    ----------
    task
        One of the five tasks that the package has prompts for: `cell_type_annotation`, `cell_generation`,
        `tissue_annotation`, `cell_group_generation_by_tissue` and `interpretation`.
    folder
        A folder with the same files, or with a folder `prompts` of them, in place of the installed package.

    Raises
    ------
    InputError
        The package is not installed, it has no prompts of the task, or its file is not as expected.
    """
    name = _form(task).file
    place = _package_folder() if folder is None else Path(folder)
    path = next((p for p in (place / name, place / "prompts" / name) if p.is_file()), None)
    if path is None:
        raise InputError(
            f"{place} holds no file {name} with the prompts of {task}; pass the folder of these JSON files"
        )
    return read_c2s_templates(path, task)


def read_c2s_templates(path: str | Path, task: str) -> TemplateSet:
    """Return the wordings of a task from one JSON file: "model_input", a list of prompts, and "response", one answer.

    Raises
    ------
    InputError
        The file is missing, is not such JSON, or a text names an unknown field; with file, text and known fields.
    """
    form, path = _form(task), Path(path)
    prompts, answers = _read_texts(path)
    try:
        templates = TemplateSet(
            name=task,
            fields=form.fields,
            answer=answers[0],
            templates=tuple(Template(name=f"prompt_{i}", text=text) for i, text in enumerate(prompts)),
            foreign=True,
            answer_prefix="",
        )
        answer_fields = Template(name="response", text=answers[0]).fields
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    if answer_fields != {form.answer}:
        raise InputError(f"{path}: expected {{{form.answer}}} and no other field in the response, found {answers[0]!r}")
    return templates


def templates_for(task: str, source: str | Path) -> TemplateSet:
    """Return wordings of a task from another place than this package.

    Parameters
    ----------
    source
        "cell2sentence", for the installed package; a folder of its JSON files, or one of them; or a TOML file of your
        own.

    Raises
    ------
    InputError
        The source is none of these, is broken, is of another task, or names fields that the task does not fill.
    """
    path = Path(source)
    if str(source) == PACKAGE:
        return load_c2s_templates(task)
    if path.is_dir():
        return load_c2s_templates(task, path)
    if path.suffix.lower() == ".json":
        return read_c2s_templates(path, task)
    if path.suffix.lower() != ".toml":
        raise InputError(
            f"templates of {task}: expected {PACKAGE!r}, a folder of its JSON files, a .json or a .toml file, found "
            f"{str(source)!r}"
        )
    templates = load_templates(path)
    _check_own(templates, load_templates(task), where=f"templates {path}")
    return templates


def with_templates(task: AnyTask, templates: TemplateSet) -> AnyTask:
    """Return the same task in other wordings; the given one stays as it is.

    A task with foreign wordings requires the metadata that any of them names.

    Raises
    ------
    InputError
        The templates are of another task, or name fields that the task does not fill.
    """
    if templates.foreign:
        _check_name(templates, task.name, where=f"templates of {templates.name}")
    else:
        _check_own(templates, load_templates(task.name), where=f"templates of {templates.name}")
    return type(task)(templates)


def foreign_fields(record: Record) -> dict[str, str]:
    """Return what foreign wordings may say of a cell or of several, in their form; nothing of other records.

    A record without genes announces `num_genes` and `num_cells`, which are absent where they are not known. Genes of a
    corpus that is being tokenised stand for themselves as single characters, which have no capitals.
    """
    known = {key: record.metadata[key] for key in _METADATA if key in record.metadata}
    if "organism" in known:
        known["organism"] = _LATIN.get(known["organism"].lower(), known["organism"])
    match record:
        case CellRecord():
            counts = {"num_genes": len(record.genes) or record.num_genes}
            texts = {"cell_sentence": _sentence(record)}
        case CellGroup():
            n_genes = max((len(cell.genes) or cell.num_genes or 0 for cell in record.cells), default=0)
            counts = {"num_genes": n_genes or record.num_genes, "num_cells": len(record.cells) or record.num_cells}
            lines = (f"Cell {i}:\n{_sentence(cell)}.\n" for i, cell in enumerate(record.cells, start=1))
            texts = {"multi_cell_sentences": "".join(lines)}
        case _:
            return {}
    return known | {key: str(count) for key, count in counts.items() if count} | texts


def needed_metadata(templates: TemplateSet) -> tuple[str, ...]:
    """Return the metadata that a record must have for every one of these foreign wordings."""
    named = frozenset().union(*(template.fields for template in templates.templates))
    return tuple(key for key in _METADATA if key in named)


def _sentence(cell: CellRecord) -> str:
    return " ".join(cell.genes).upper()


def _form(task: str) -> _Form:
    if task not in _FORMS:
        raise InputError(
            f"{PACKAGE} has no prompts of {task!r}, only of {', '.join(_FORMS)}; pass a TOML file of your own"
        )
    return _FORMS[task]


def _package_folder() -> Path:
    # looked up without importing it, which takes seconds
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise InputError(
            f"the prompts of {PACKAGE} are read from that package, which is not installed; install it, or pass a "
            "folder with its JSON files"
        )
    return Path(next(iter(found.submodule_search_locations)))


def _read_texts(path: Path) -> tuple[list[str], list[str]]:
    if not path.is_file():
        raise InputError(f"templates {path} do not exist; pass the path of a JSON file")
    try:
        values = json.loads(read_text(path))
    except ValueError as error:
        raise InputError(f"templates {path} are not valid JSON: {error}") from error
    found = values if isinstance(values, dict) else {}
    prompts, answers = _texts(found.get("model_input")), _texts(found.get("response"))
    if not prompts or len(answers) != 1:
        raise InputError(
            f'templates {path}: expected {{"model_input": [a prompt, …], "response": [one answer]}}, all of them texts'
        )
    return prompts, answers


def _texts(values: object) -> list[str]:
    """Return the values if they are a list of texts, else nothing."""
    texts = [value for value in values if isinstance(value, str) and value] if isinstance(values, list) else []
    return texts if isinstance(values, list) and len(texts) == len(values) else []


def _check_name(templates: TemplateSet, task: str, *, where: str) -> None:
    if templates.name != task:
        raise InputError(f"{where}: expected the name {task!r}, found {templates.name!r}; is this the file of another?")


def _check_own(templates: TemplateSet, shipped: TemplateSet, *, where: str) -> None:
    _check_name(templates, shipped.name, where=where)
    unknown = sorted(set(templates.fields) - set(shipped.fields))
    if unknown:
        raise InputError(f"{where} lists the fields {unknown}; {shipped.name} fills {list(shipped.fields)}")
    named, wanted = (Template(name="answer", text=t.answer).fields for t in (templates, shipped))
    if named != wanted:
        raise InputError(f"{where}: expected the field {sorted(wanted)} in the answer, found {sorted(named)}")
