"""Gene sets, and cell types with their definitions and markers: examples worked out by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cytoglot.answer_format import DistinctWords, FreeText
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.data.knowledge.tables import read_cell_types, read_gmt, readable_set_name
from cytoglot.tasks import AnswerSpace, CellTypeTerm, GeneSet, tasks
from cytoglot.tasks.cell_type_definition import unnamed
from cytoglot.tasks.gene_sets import MOST_GENES

SET = GeneSet(name="interferon gamma response", genes=("STAT1", "IRF1", "CXCL10"), collection="hallmark")
TERM = CellTypeTerm(
    label="B cell",
    definition="A lymphocyte of B  lineage. B cells and B lymphocytes make antibodies.",
    term_id="CL:0000236",
    synonyms=("B lymphocyte", "B-cell"),
    markers=tuple(f"M{i}" for i in range(30)),
)


def test_a_gene_set_is_listed_and_named() -> None:
    listed = tasks["gene_set_enumeration"].example(SET, template=0)
    assert listed.prompt == "Gene set interferon gamma response, 3 genes:"
    assert listed.completion == " STAT1 IRF1 CXCL10."
    named = tasks["gene_set_naming"].example(SET, template=0)
    assert named.completion == " interferon gamma response."
    assert sorted(named.prompt.removeprefix("3 genes: ").removesuffix(". Gene set:").split()) == sorted(SET.genes)


def test_the_order_of_the_genes_of_a_set_changes_with_the_variant() -> None:
    task, record = tasks["gene_set_naming"], replace(SET, genes=tuple(f"G{i}" for i in range(20)))
    prompts = [task.prompt(replace(record, variant=variant)) for variant in range(5)]
    assert len(set(prompts)) == 5
    assert task.prompt(record) == prompts[0]


def test_of_a_large_set_a_choice_is_shown_in_its_order() -> None:
    large = replace(SET, genes=tuple(f"G{i:03d}" for i in range(250)))
    example = tasks["gene_set_enumeration"].example(large, template=0)
    genes = example.completion.strip(" .").split()
    assert len(genes) == MOST_GENES
    assert f"{MOST_GENES} genes:" in example.prompt
    assert genes == sorted(genes)
    other = tasks["gene_set_enumeration"].example(replace(large, variant=1), template=0)
    assert other.completion != example.completion


def test_a_set_to_be_listed_states_its_number_of_genes() -> None:
    asked = GeneSet(name="apoptosis", num_genes=12)
    assert tasks["gene_set_enumeration"].prompt(asked, template=0) == "Gene set apoptosis, 12 genes:"
    space = AnswerSpace(vocabulary=GeneVocabulary(("A", "B", "C")), n_genes=2)
    assert tasks["gene_set_enumeration"].answer_format(space) == DistinctWords(
        words=("A", "B", "C"), min_words=2, max_words=2
    )


def test_a_definition_does_not_tell_the_name_that_is_asked_for() -> None:
    assert unnamed(TERM) == "A lymphocyte of B  lineage. This cell and this cell make antibodies."
    example = tasks["cell_type_from_definition"].example(TERM, template=0)
    assert example.prompt == (
        "Definition: A lymphocyte of B lineage. This cell and this cell make antibodies. Cell type:"
    )
    assert example.completion == " B cell."
    only_name = replace(TERM, definition="B cell.")
    assert not tasks["cell_type_from_definition"].can_ask(only_name)
    assert tasks["cell_type_definition"].can_ask(only_name)


@pytest.mark.parametrize(
    ("definition", "masked"),
    [
        ("A B cell that is old.", "This cell that is old."),
        ("Made of the B lymphocyte in an organ.", "Made of this cell in an organ."),
        ("The preB cell and a B celled organ.", "The preB cell and a B celled organ."),
    ],
)
def test_the_article_goes_with_the_name_and_longer_words_stay(definition: str, masked: str) -> None:
    assert unnamed(replace(TERM, definition=definition)) == masked


def test_a_definition_that_is_little_but_the_name_is_not_asked_about() -> None:
    task = tasks["cell_type_from_definition"]
    assert not task.can_ask(replace(TERM, definition="A CNS B cell."))
    assert task.can_ask(replace(TERM, definition="A B cell that is old."))


def test_no_real_definition_tells_its_name(data_path: Callable[[str], Path]) -> None:
    task = tasks["cell_type_from_definition"]
    entries = read_cell_types(data_path("knowledge/cell_ontology_cl_terms.tsv.gz"))
    terms = [CellTypeTerm(label=e.label, definition=e.definition, synonyms=e.synonyms) for e in entries]
    asked = [term for term in terms if task.can_ask(term)]
    assert len(asked) > 3000
    for term in asked:
        shown = task.prompt_fields(term)["definition"]
        assert re.search(rf"(?<!\w){re.escape(term.label)}(?!\w)", shown, re.IGNORECASE) is None


def test_real_gene_sets_are_named_from_their_genes_and_listed(data_path: Callable[[str], Path]) -> None:
    for entry in read_gmt(data_path("knowledge/msigdb_hallmark_v7.0.symbols.gmt.gz")):
        record = GeneSet(name=readable_set_name(entry.name), genes=entry.genes, collection="hallmark")
        listed, named = (tasks[n].example(record, template=0) for n in ("gene_set_enumeration", "gene_set_naming"))
        shown = named.prompt.partition(": ")[2].partition(". ")[0].split()
        assert set(shown) <= set(entry.genes)
        assert len(shown) == len(listed.completion.split()) == min(len(entry.genes), MOST_GENES)
        assert named.completion == f" {record.name}."


def test_a_definition_is_asked_for_without_its_last_full_stop_twice() -> None:
    example = tasks["cell_type_definition"].example(TERM, template=0)
    assert example.prompt == "Cell type B cell. Definition:"
    assert example.completion == " A lymphocyte of B lineage. B cells and B lymphocytes make antibodies."
    assert not tasks["cell_type_definition"].can_ask(replace(TERM, definition=" "))


def test_the_best_supported_markers_are_listed_in_order_and_shown_in_any() -> None:
    listed = tasks["cell_type_markers"].example(TERM, template=0)
    assert listed.completion == " " + " ".join(TERM.markers[:20]) + "."
    shown = list(tasks["cell_type_from_markers"].prompt_fields(TERM)["genes"])
    assert sorted(shown) == sorted(TERM.markers[:20])
    assert shown != list(TERM.markers[:20])
    assert not tasks["cell_type_markers"].can_ask(replace(TERM, markers=()))


@pytest.mark.parametrize(
    ("answer", "text"), [(" B cell.", "B cell"), ("\n\nB  cell .\nmore", "B cell"), ("", ""), ("...", "")]
)
def test_a_name_is_the_first_line_that_says_something(answer: str, text: str) -> None:
    task = tasks["cell_type_from_markers"]
    assert task.parse(answer, AnswerSpace()) == text
    assert isinstance(task.answer_format(AnswerSpace()), FreeText)
