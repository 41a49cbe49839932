"""Records of a corpus, what is asked of them, and random examples."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from cytoglot.corpus.format.folder import Corpus
from cytoglot.corpus.read.examples import CorpusExamples, available_tasks, sample_examples
from cytoglot.corpus.read.mixture import TaskMixture, vary_metadata
from cytoglot.corpus.read.records import RecordReader, source_of_cells
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.sentence.augment import AugmentSettings
from cytoglot.tasks import CellGroup, CellRecord, Task, TemplateSet, load_templates, tasks
from cytoglot.tasks.annotation import CellTypeAnnotation
from cytoglot.tasks.record_source import Draws

CELL = CellRecord(
    genes=("G1", "G2", "G3"),
    metadata={"cell_type": "B", "organism": "human", "tissue": "blood", "sex": "female", "donor_id": "d1"},
    cell_id="c1",
)


def test_a_cell_is_its_genes_by_name_and_what_is_known(small_corpus: Corpus) -> None:
    block = next(iter(small_corpus.blocks("train")))
    records = RecordReader(small_corpus, seed=1).open(block)
    cell = records.cell(0, records.draws(0))
    names, orthologs = small_corpus.vocabulary.names, small_corpus.orthologs
    assert tuple(cell.genes) == tuple(names[block.ids(0)])
    assert cell.cell_id == block.cell_ids[0].as_py()
    assert orthologs is not None
    assert tuple(cell.ortholog_genes) == tuple(names[orthologs[i]] if orthologs[i] >= 0 else "" for i in block.ids(0))
    assert any(any(records.cell(row, records.draws(row)).ortholog_genes) for row in range(len(records)))
    assert cell.metadata["donor_id"] == "donor_1"
    assert "disease" not in cell.metadata  # of the first donor it is not known
    assert records.cell(0, records.draws(0), top_genes=3).genes == cell.genes[:3]
    assert records.draws(0) == records.draws(0) != records.draws(1)
    assert len({records.draws(0, epoch=e, visit=v) for e in range(3) for v in range(3)}) == 9


def test_a_group_is_its_cells_what_they_share_and_the_abstract(small_corpus: Corpus) -> None:
    block = next(iter(small_corpus.blocks("train")))
    records = RecordReader(small_corpus).open(block)
    source = source_of_cells("cell_group")
    rows = source.rows(records).tolist()
    first, last = rows[1], rows[2]
    assert np.array_equal(np.unique(block.group[first:last]), [block.group[first]])
    group = source.record(records, first, records.draws(first, "cell_group"))
    assert isinstance(group, CellGroup)
    assert [cell.cell_id for cell in group.cells] == block.cell_ids[first:last].to_pylist()
    types = [cell.metadata["cell_type"] for cell in group.cells]
    assert ("cell_type" in group.metadata) == (len(set(types)) == 1)
    assert group.metadata["abstract"] == "Cells that were made by a recipe."
    assert group.metadata["tissue"] == "blood"
    assert tuple(source.lengths(records, first)) == group.lengths()
    assert len({source.record(records, row, records.draws(row)).key for row in rows}) == len(rows)


def test_views_of_a_cell_depend_on_the_visit_alone(small_corpus: Corpus) -> None:
    block = next(iter(small_corpus.blocks("train")))
    records = RecordReader(small_corpus, augment=AugmentSettings(unchanged_share=0)).open(block)
    first, again, later = (records.cell(0, records.draws(0, epoch=epoch)).genes for epoch in (0, 0, 1))
    assert first == again != later
    assert set(first) <= set(small_corpus.vocabulary.names[block.ids(0)])


def test_metadata_are_told_independently_with_their_share() -> None:
    metadata = dict.fromkeys(("organism", "tissue", "disease", "cell_type", "donor_id"), "x")
    told = [vary_metadata(metadata, ("disease",), Draws(i), share=0.3) for i in range(2000)]
    seen = Counter(name for found in told for name in found)
    assert seen["cell_type"] == seen["donor_id"] == seen["disease"] == 2000
    assert seen["organism"] == pytest.approx(600, abs=80)
    assert seen["tissue"] == pytest.approx(600, abs=80)
    assert sum("organism" in f and "tissue" in f for f in told) == pytest.approx(180, abs=50)
    assert vary_metadata(metadata, (), Draws(1), share=1.0) == metadata
    assert set(vary_metadata(metadata, (), Draws(1), share=0.0)) == {"cell_type", "donor_id"}
    assert vary_metadata({"tissue": "x"}, (), Draws(1)).keys() <= {"tissue"}
    many = [f"field {i}" for i in range(100)]
    told_n = np.array([[Draws(i)("metadata", name) for name in many] for i in range(2000)]) < 2.0**31
    assert np.abs(np.corrcoef(told_n.T) - np.eye(100)).max() < 0.12  # no two names hang together


def test_tasks_are_asked_by_their_weights_among_those_that_can() -> None:
    mixture = TaskMixture({"cell_type_annotation": 3, "cell_generation": 1, "unconditional_generation": 4})
    assert mixture.weights == {"cell_type_annotation": 0.375, "cell_generation": 0.125, "unconditional_generation": 0.5}
    assert mixture.unit_shares == {"cell": 1.0}

    def count(record: CellRecord) -> Counter[str]:
        asked = (mixture.ask(record, "cell", Draws(i)) for i in range(4000))
        return Counter("none" if question is None else question.task.name for question in asked)

    full = count(CELL)
    assert full["cell_type_annotation"] == pytest.approx(1500, abs=120)
    assert full["unconditional_generation"] == pytest.approx(2000, abs=120)
    assert count(CellRecord(genes=("G1",), cell_id="c")) == {"unconditional_generation": 4000}
    empty = count(CellRecord(metadata={"cell_type": "B"}, cell_id="c"))
    assert empty == {"cell_type_annotation": 4000}  # of an empty cell one may ask the type
    assert count(CellRecord(cell_id="c")) == {"none": 4000}


def test_wordings_are_terse_but_for_a_share_of_paraphrases() -> None:
    def names(**options: float | bool) -> Counter[str]:
        mixture = TaskMixture({"cell_generation": 1}, **options)
        asked = (mixture.ask(CellRecord(genes=("G",), metadata={"cell_type": "B"}, cell_id=f"c{i}"), "cell", Draws(i))
                 for i in range(600))  # fmt: skip
        return Counter(question.example().template for question in asked if question is not None)

    assert names(paraphrase_share=0.0) == {"terse": 600}
    training = {t.name for t in tasks["cell_generation"].templates.training}
    assert set(names(paraphrase_share=1.0)) == training
    some = names(paraphrase_share=0.25)
    assert 600 - some["terse"] == pytest.approx(150 * (len(training) - 1) / len(training), abs=50)
    assert set(names(held_out=True)) == {t.name for t in tasks["cell_generation"].templates.held_out}


def test_templates_of_another_model_replace_a_tasks() -> None:
    own = load_templates("cell_type_annotation")
    foreign = TemplateSet(
        name=own.name, fields=own.fields, answer=own.answer, templates=(own.templates[0].__class__(
            name="theirs", text="The cell reads: {cell_sentence}. It is"),)
    )  # fmt: skip
    task: Task[CellRecord, object] = CellTypeAnnotation(foreign)
    weights = {"cell_type_annotation": 1.0}
    mixture = TaskMixture(weights, replaced={"cell_type_annotation": task}, paraphrase_share=0.5)
    question = mixture.ask(CELL, "cell", Draws(1))
    assert question is not None
    assert question.example().prompt == "The cell reads: G1 G2 G3. It is"
    assert mixture.fingerprint != TaskMixture(weights).fingerprint
    with pytest.raises(InputError, match=r"found none of .'cell_type_annotation'.; leave these out"):
        TaskMixture(weights, replaced={"cell_type_annotation": task}, held_out=True)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"cell_generatoin": 1.0}, "unknown task 'cell_generatoin'; did you mean 'cell_generation'"),
        ({"cell_generation": -1.0}, "must be at least 0, found -1"),
        ({"cell_generation": 0.0}, "at least one task needs a weight above 0"),
        ({}, "at least one task needs a weight above 0"),
    ],
)
def test_faulty_weights_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TaskMixture(weights)


def test_a_cut_question_asks_about_fewer_genes_in_the_same_words() -> None:
    question = TaskMixture({"cell_generation": 1}, paraphrase_share=1.0).ask(CELL, "cell", Draws(3))
    assert question is not None
    shorter = question.truncate(2)
    assert shorter is not None
    assert shorter.example().completion == " G1 G2."
    assert shorter.example().template == question.example().template
    assert shorter.example().prompt == question.example().prompt.replace("3", "2")
    assert question.truncate(0) is None  # an empty cell is nothing to write


def test_random_examples_are_of_other_records_and_seeded(small_corpus: Corpus) -> None:
    drawn = CorpusExamples(small_corpus, "train").sample(40, "cell_generation", seed=2)
    assert len({found.example.key for found in drawn}) == 40
    assert {found.record.metadata["donor_id"] for found in drawn} == set(small_corpus.count("donor_id", "train"))
    for found in drawn:
        assert found.example.completion == " " + " ".join(found.record.genes) + "."
        assert "donor" not in found.example.prompt
    again = sample_examples(small_corpus, "train", 40, task="cell_generation", seed=2)
    assert again == [found.example for found in drawn]
    assert again != sample_examples(small_corpus, "train", 40, task="cell_generation", seed=3)
    assert len(sample_examples(small_corpus, "test", 1000, task="cell_type_annotation", top_genes=2)) == 40
    assert sample_examples(small_corpus, "train", 0) == []


def test_random_examples_of_every_task_that_the_corpus_can_ask(small_corpus: Corpus) -> None:
    possible = available_tasks(small_corpus)
    assert {"cell_type_annotation", "multicell_generation", "interpretation"} <= set(possible)
    for name in possible:
        assert {found.task for found in sample_examples(small_corpus, "train", 3, task=name)} == {name}
    assert {found.task for found in sample_examples(small_corpus, "train", 400, seed=1)} == set(possible)
    weights = {"cell_generation": 1.0, "interpretation": 3.0}
    found = Counter(found.task for found in sample_examples(small_corpus, "train", 40, tasks=weights))
    assert set(found) == set(weights)
    assert found["interpretation"] > found["cell_generation"]
    with pytest.raises(UnknownNameError, match="unknown task"):
        sample_examples(small_corpus, "train", 3, task="cell_typ")
