"""Metadata of a cell, its missing genes, the rest of its sentence, and its orthologs: examples worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytoglot.answer_format import DistinctWords, OneOf
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError
from cytoglot.tasks import AnswerSpace, CellRecord, tasks
from cytoglot.tasks.completion import CellCompletion
from cytoglot.tasks.masking import MASK, GeneMasking

CELL = CellRecord(
    genes=("CD3D", "IL7R", "CCR7", "LTB"),
    metadata={"organism": "Homo sapiens", "tissue": "lung", "disease": "normal", "sex": "female"},
    cell_id="c1",
    ortholog_genes=("Cd3d", "Il7r", "", "Ltb"),
)
GENES = st.lists(st.integers(0, 500).map("GENE{}".format), min_size=2, max_size=60, unique=True)


def test_a_prompt_tells_all_metadata_but_the_one_that_is_asked_for() -> None:
    disease, sex = tasks["disease_annotation"], tasks["sex_annotation"]
    assert disease.prompt(CELL) == ("4 genes of a human lung cell (sex: female): CD3D IL7R CCR7 LTB. Disease:")
    assert disease.example(CELL).completion == " normal."
    assert sex.prompt(CELL) == "4 genes of a human lung cell (disease: normal): CD3D IL7R CCR7 LTB. Sex:"
    assert tasks["organism_annotation"].prompt(CELL).startswith("4 genes of a lung cell (")


def test_what_gives_an_answer_away_is_not_told() -> None:
    known = {**CELL.metadata, "condition": "asthma", "disease": "asthma", "development_stage": "33-year-old stage"}
    cell = replace(CELL, metadata=known)
    assert tasks["disease_annotation"].describe(cell) == (
        "human lung cell (development stage: 33-year-old stage, sex: female)"
    )
    assert "asthma" not in tasks["condition_annotation"].describe(cell)
    assert tasks["organism_annotation"].describe(cell) == "lung cell (disease: asthma, condition: asthma, sex: female)"
    assert "asthma" in tasks["sex_annotation"].describe(cell)


def test_labels_of_any_field_are_scored_and_read_like_cell_types() -> None:
    task = tasks["disease_annotation"]
    assert task.label_completions(["normal", "lupus"]) == [" normal.", " lupus."]
    space = AnswerSpace(labels=("normal", "lupus"))
    assert task.answer_format(space) == OneOf(options=("normal", "lupus"))
    assert task.parse(" Lupus. It is", space).label == "lupus"
    assert task.parse("flu", space).label is None
    with pytest.raises(InputError, match=r"'disease_annotation' needs a list of labels"):
        task.answer_format(AnswerSpace())


def test_half_of_the_sentence_is_shown_and_the_rest_asked_for() -> None:
    example = tasks["cell_completion"].example(CELL, template=0)
    assert example.prompt == "First 2 of 4 genes: CD3D IL7R. Next 2:"
    assert example.completion == " CCR7 LTB."


@given(GENES, st.integers(0, 2**32 - 1))
def test_what_is_shown_and_what_is_asked_for_make_the_sentence(genes: list[str], variant: int) -> None:
    task, record = CellCompletion(), CellRecord(genes=tuple(genes), cell_id="c", variant=variant)
    shown = list(task.prompt_fields(record)["cell_sentence"])
    assert 1 <= len(shown) < len(genes)
    assert [*shown, *task.answer_genes(record)] == genes


def test_variants_of_a_cell_hide_different_genes_and_the_same_variant_the_same() -> None:
    record = CellRecord(genes=tuple(f"GENE{i}" for i in range(100)), cell_id="c")
    task = GeneMasking()
    places = [tuple(task.hidden_places(replace(record, variant=v))) for v in (0, 1, 2, 0)]
    assert len(set(places)) == 3
    assert places[0] == places[3]
    assert all(len(p) == 15 for p in places)
    shown = {CellCompletion().n_shown(replace(record, variant=v)) for v in range(20)}
    assert len(shown) > 10
    assert min(shown) >= 20
    assert max(shown) <= 80


@given(GENES, st.integers(0, 2**32 - 1))
def test_the_hidden_genes_put_back_make_the_sentence(genes: list[str], variant: int) -> None:
    task, record = GeneMasking(), CellRecord(genes=tuple(genes), cell_id="c", variant=variant)
    fields, hidden = task.prompt_fields(record), iter(task.answer_genes(record))
    words = list(fields["cell_sentence"])
    assert words.count(MASK) == int(fields["num_masked"]) >= 1
    assert [next(hidden) if word == MASK else word for word in words] == genes


def test_a_gap_is_the_same_tokens_wherever_it_stands() -> None:
    lm = pytest.importorskip("cytoglot.lm.model.tokenizer")
    task = GeneMasking()
    records = [replace(CELL, variant=variant) for variant in range(20)]
    assert {int(task.hidden_places(record)[0]) for record in records} == {0, 1, 2, 3}
    prompts = [task.prompt(record, template=t.name) for record in records for t in task.templates.templates]
    tokenizer = lm.build_tokenizer(CELL.genes, prompts)
    mark = lm.encode_completions(tokenizer, [f" {MASK}"])[0].tolist()
    genes = set(lm.word_token_ids(tokenizer, CELL.genes).tolist())
    for prompt in prompts:
        ids = lm.encode_prompts(tokenizer, [prompt])[0].tolist()
        n_gaps = sum(ids[i : i + len(mark)] == mark for i in range(len(ids)))
        assert n_gaps == prompt.count(MASK)
        assert sum(i in genes for i in ids) == 3


def test_an_answer_that_repeats_the_gaps_names_no_unknown_gene() -> None:
    space = AnswerSpace(vocabulary=GeneVocabulary(CELL.genes), n_genes=2)
    assert tasks["gene_masking"].parse(f" {MASK} LTB {MASK}.", space).report.unknown == ()


def test_a_sentence_of_one_gene_has_no_gap_and_no_rest() -> None:
    record = CellRecord(genes=("CD3D",), cell_id="c1")
    for name in ("gene_masking", "cell_completion"):
        assert not tasks[name].can_ask(record)
        with pytest.raises(InputError, match=rf"'{name}' cannot learn from 'c1': it holds no genes to answer with"):
            tasks[name].example(record)


def test_a_cell_is_translated_into_the_other_species() -> None:
    example = tasks["ortholog_translation"].example(CELL, template=0)
    assert example.prompt == "4 genes: CD3D IL7R CCR7 LTB. 3 orthologs in mouse:"
    assert example.completion == " Cd3d Il7r Ltb."
    mouse = replace(CELL, metadata={"organism": "mouse"}, genes=("Cd3d", "Ltb"), ortholog_genes=("CD3D", "LTB"))
    assert "orthologs in human:" in tasks["ortholog_translation"].prompt(mouse, template=0)
    unknown = replace(CELL, metadata={})
    assert "orthologs in another species:" in tasks["ortholog_translation"].prompt(unknown, template=0)
    assert not tasks["ortholog_translation"].can_ask(replace(CELL, ortholog_genes=()))
    assert not tasks["ortholog_translation"].can_ask(replace(CELL, ortholog_genes=("",) * 4))


def test_a_shorter_cell_is_answered_with_the_orthologs_of_the_genes_that_are_left() -> None:
    example = tasks["ortholog_translation"].example(CELL.truncate(3), template=0)
    assert example.prompt == "3 genes: CD3D IL7R CCR7. 2 orthologs in mouse:"
    assert example.completion == " Cd3d Il7r."
    with pytest.raises(ValueError, match=r"cell 'c1': 4 genes, but 2 ortholog_genes, one for each"):
        replace(CELL, ortholog_genes=("Cd3d", "Il7r"))


def test_gene_answers_are_so_many_distinct_genes_and_are_read_as_genes() -> None:
    space = AnswerSpace(vocabulary=GeneVocabulary(CELL.genes), n_genes=2)
    for name in ("gene_masking", "cell_completion", "ortholog_translation"):
        assert tasks[name].answer_format(space) == DistinctWords(words=CELL.genes, min_words=2, max_words=2)
        assert tasks[name].parse(" LTB foo IL7R.", space).gene_ids.tolist() == [3, 1]
        with pytest.raises(InputError, match=r"needs a number of genes from 1 to 4 .*, found 9"):
            tasks[name].answer_format(AnswerSpace(vocabulary=space.vocabulary, n_genes=9))
        with pytest.raises(InputError, match=r"needs the gene vocabulary that its answers are made of"):
            tasks[name].parse("LTB", AnswerSpace())
