"""Generation: the words by hand, the form of an answer, and what cannot be asked."""

from __future__ import annotations

import pytest

from cytoglot.answer_format import DistinctWords
from cytoglot.errors import InputError
from cytoglot.tasks import AnswerSpace, CellRecord
from cytoglot.tasks.generation import CellGeneration, UnconditionalGeneration

GeneVocabulary = pytest.importorskip("cytoglot.data.genes.vocabulary").GeneVocabulary

VOCABULARY = GeneVocabulary(symbols=("MS4A1", "CD79A", "AC093323.3", "Actb"))
SPACE = AnswerSpace(vocabulary=VOCABULARY, n_genes=3)
task = CellGeneration()


def test_the_terse_examples_by_hand() -> None:
    record = CellRecord(genes=("CD79A", "MS4A1"), metadata={"cell_type": "B"}, cell_id="c")
    assert task.example(record, template=0).prompt == "Cell type: B. 2 genes:"
    assert task.example(record, template=0).completion == " CD79A MS4A1."
    assert UnconditionalGeneration().example(record, template=0).prompt == "Any cell. 2 genes:"


def test_a_cell_still_to_be_written_announces_its_length() -> None:
    record = CellRecord(metadata={"cell_type": "B"}, num_genes=200)
    assert task.prompt(record) == "Cell type: B. 200 genes:"


def test_the_format_is_that_many_distinct_genes_of_the_vocabulary() -> None:
    assert task.answer_format(SPACE) == DistinctWords(words=VOCABULARY.symbols, min_words=3, max_words=3)


def test_reading_undoes_writing_with_the_last_gene_kept() -> None:
    record = CellRecord(genes=("AC093323.3", "Actb", "MS4A1"), metadata={"cell_type": "B"})
    parsed = task.parse(task.completion(record), SPACE)
    assert list(parsed.gene_ids) == [2, 3, 0]


def test_what_cannot_be_asked_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match=r"'cell_generation' needs the cell_type of 'c1'; known.*: tissue"):
        task.prompt(CellRecord(metadata={"tissue": "eye"}, cell_id="c1", num_genes=5))
    with pytest.raises(InputError, match=r"needs the number of genes to write for cell 'c2', found an empty cell"):
        task.prompt(CellRecord(metadata={"cell_type": "B"}, cell_id="c2"))
    with pytest.raises(InputError, match=r"cannot learn from 'c3': it holds no genes to answer with"):
        task.example(CellRecord(metadata={"cell_type": "B"}, cell_id="c3", num_genes=5))
    with pytest.raises(InputError, match=r"needs the gene vocabulary"):
        task.answer_format(AnswerSpace(n_genes=3))
    with pytest.raises(InputError, match=r"a number of genes from 1 to 4 .*, found 5"):
        task.answer_format(AnswerSpace(vocabulary=VOCABULARY, n_genes=5))
    with pytest.raises(InputError, match=r"a number of genes from 1 to 4 .*, found None"):
        task.answer_format(AnswerSpace(vocabulary=VOCABULARY))
