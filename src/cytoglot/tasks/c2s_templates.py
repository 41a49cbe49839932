"""The wordings of Cell2Sentence, read from its own files at run time: its models are asked as they were trained.

Read are the JSON files of the `cell2sentence` package: {"model_input": [prompt, …], "response": [answer]}. Nothing of
them is in this package. Their texts are kept to the letter. What follows from how those models were trained, by default
of that package: an answer follows its prompt without a space, genes are in capitals, each of several cells is a line
"Cell 1:" and a line of genes, an organism has its Latin name.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cytoglot.errors import InputError
from cytoglot.tasks.record import CellGroup, CellRecord, Record
from cytoglot.tasks.segments import Field, join, upper
from cytoglot.tasks.template import FieldStyle, Template, TemplateSet, check_same_fields, load_templates
from cytoglot.texts import read_text

PACKAGE = "cell2sentence"
"""the installed package whose wordings `templates_for` can name"""


_METADATA = ("organism", "tissue", "cell_type")
_LATIN = {"human": "Homo sapiens", "mouse": "Mus musculus", "rat": "Rattus norvegicus", "zebrafish": "Danio rerio"}


def cell_fields(record: CellRecord) -> dict[str, Field]:
    """Return the genes of a cell and their number, which a cell without genes announces if it is known."""
    count = len(record.genes) or record.num_genes
    fields: dict[str, Field] = {"cell_sentence": upper(record.genes)}
    return fields | ({"num_genes": str(count)} if count else {})


def group_fields(record: CellGroup) -> dict[str, Field]:
    """Return the cells, a line "Cell 1:" and a line of genes for each, and the numbers of cells and of genes."""
    n_genes = max((len(cell.genes) or cell.num_genes or 0 for cell in record.cells), default=0)
    counts = {"num_genes": n_genes or record.num_genes, "num_cells": len(record.cells) or record.num_cells}
    lines: list[Field] = []
    for i, cell in enumerate(record.cells, start=1):
        lines += [f"Cell {i}:\n", upper(cell.genes), ".\n"]
    return {"multi_cell_sentences": join(lines)} | {key: str(count) for key, count in counts.items() if count}


@dataclass(frozen=True)
class C2sStyle(FieldStyle):
    """Genes in capitals, organisms in Latin, and an answer right after its prompt."""

    answer_prefix: str = ""
    name: str = "cell2sentence"
    is_ours: bool = False
    of_unit: Callable[[Any], Mapping[str, Field]] = cell_fields
    """what is said of the genes of a record"""

    def fields_of(self, record: Record) -> Mapping[str, Field]:
        """Return what the wordings may say of a record; what is not known is absent."""
        known: dict[str, Field] = {key: record.metadata[key] for key in _METADATA if key in record.metadata}
        if "organism" in known:
            known["organism"] = _LATIN.get(record.metadata["organism"].lower(), record.metadata["organism"])
        return {**known, **self.of_unit(record)}

    def required_metadata(self, templates: TemplateSet) -> tuple[str, ...]:
        """Return the metadata that any of the wordings names."""
        return tuple(key for key in _METADATA if any(key in template.fields for template in templates.templates))

    def spelled(self, gene: str) -> str:
        """Return a gene in capitals."""
        return gene.upper()


class _Form(NamedTuple):
    """What the file of a task is called, what its texts may name, what they answer, and how they are written."""

    file: str
    fields: Sequence[str]
    answer: str
    style: C2sStyle = C2sStyle()


_CELL, _GROUP = ("num_genes", "organism"), ("num_genes", "num_cells", "organism")
_OF_GROUPS = C2sStyle(of_unit=group_fields)
_FORMS = {
    "cell_type_annotation": _Form(
        "single_cell_cell_type_prediction_prompts.json", (*_CELL, "tissue", "cell_sentence"), "cell_type"
    ),
    "cell_generation": _Form(
        "single_cell_cell_type_conditional_generation_prompts.json", (*_CELL, "tissue", "cell_type"), "cell_sentence"
    ),
    "tissue_annotation": _Form(
        "multi_cell_tissue_prediction_prompts.json", (*_GROUP, "multi_cell_sentences"), "tissue", _OF_GROUPS
    ),
    "cell_group_generation_by_tissue": _Form(
        "multi_cell_tissue_conditional_generation.json", (*_GROUP, "tissue"), "multi_cell_sentences", _OF_GROUPS
    ),
    "interpretation": _Form(
        "multi_cell_natural_lang_interpretation_prompts.json",
        (*_GROUP, "tissue", "multi_cell_sentences"),
        "abstract",
        _OF_GROUPS,
    ),
}


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
    place = Path(folder or "")
    if folder is None:
        found = importlib.util.find_spec(PACKAGE)  # not imported, which takes seconds
        if found is None or not found.submodule_search_locations:
            raise InputError(
                f"the prompts of {PACKAGE} are read from that package, which is not installed; install it, or pass a "
                "folder with its JSON files"
            )
        place = Path(next(iter(found.submodule_search_locations)))
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
    try:
        templates = TemplateSet(
            name=task,
            fields=tuple(form.fields),
            answer=answers[0],
            templates=tuple(Template(name=f"prompt_{i}", text=text) for i, text in enumerate(prompts)),
            style=form.style,
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
    check_same_fields(templates, load_templates(task), where=f"templates {path}")
    return templates


def _form(task: str) -> _Form:
    if task not in _FORMS:
        raise InputError(
            f"{PACKAGE} has no prompts of {task!r}, only of {', '.join(_FORMS)}; pass a TOML file of your own"
        )
    return _FORMS[task]


def _texts(values: object) -> list[str]:
    """Return the values if they are a list of texts, else nothing."""
    texts = [value for value in values if isinstance(value, str) and value] if isinstance(values, list) else []
    return texts if isinstance(values, list) and len(texts) == len(values) else []
