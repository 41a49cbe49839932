"""What tasks share whose answer is a list of genes: the form of a valid answer, and how it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np

from cytoglot.answer_format import DistinctWords
from cytoglot.errors import InputError
from cytoglot.sentence.parse import ParsedSentence, parse_genes
from cytoglot.tasks.record import CellGroup, CellRecord, CellTypeTerm, GeneSet
from cytoglot.tasks.task import AnswerSpace, Task

if TYPE_CHECKING:
    from cytoglot.data.genes.vocabulary import GeneVocabulary

R = TypeVar("R", CellRecord, CellGroup, GeneSet, CellTypeTerm)


class GeneAnswer(Task[R, ParsedSentence]):
    """A task that is answered by distinct genes, as many as the prompt says."""

    answer_field: ClassVar[str]
    """name of the genes in the answer of the TOML file"""
    metrics: ClassVar[tuple[str, ...]] = (
        "gene_overlap",
        "gene_jaccard",
        "kendall_tau_b",
        "validity",
        "duplicate_share",
    )

    def answer_genes(self, record: R) -> Sequence[str]:
        """Return the genes of the true answer."""
        raise NotImplementedError

    def answer_fields(self, record: R) -> Mapping[str, str]:
        """Return the genes with spaces between them; an InputError if there is none to learn."""
        genes = self.answer_genes(record) if self.has_content(record) else ()
        if not genes:
            raise InputError(
                f"task {self.name!r} cannot learn from {record.key!r}: it holds no genes to answer with; leave it out"
            )
        return {self.answer_field: " ".join(genes)}

    def answer_format(self, space: AnswerSpace) -> DistinctWords:
        """Return exactly `n_genes` distinct genes of the vocabulary.

        Raises
        ------
        InputError
            `space` lacks the vocabulary or the length, or asks for more genes than the vocabulary has.
        """
        return gene_list_format(space, task=self.name)

    def parse(self, answer: str, space: AnswerSpace) -> ParsedSentence:
        """Read the genes of an answer, with a report of what was unknown, repeated or mended."""
        return parse_genes(answer, vocabulary_of(space, task=self.name))


def gene_list_format(space: AnswerSpace, *, task: str) -> DistinctWords:
    """Return exactly `n_genes` distinct genes of the vocabulary of `space`; an InputError if either is missing."""
    vocabulary = vocabulary_of(space, task=task)
    if space.n_genes is None or not 1 <= space.n_genes <= len(vocabulary):
        raise InputError(
            f"task {task!r} needs a number of genes from 1 to {len(vocabulary)} (all genes of the vocabulary), "
            f"found {space.n_genes}"
        )
    return DistinctWords(words=vocabulary.symbols, min_words=space.n_genes, max_words=space.n_genes)


def vocabulary_of(space: AnswerSpace, *, task: str) -> GeneVocabulary:
    """Return the vocabulary of `space`; an InputError if there is none."""
    if space.vocabulary is None:
        raise InputError(f"task {task!r} needs the gene vocabulary that its answers are made of, found none")
    return space.vocabulary


def record_rng(task: str, record: CellRecord | GeneSet | CellTypeTerm) -> np.random.Generator:
    """Return the random numbers of a record's variant: a hash of task, key and variant, and of nothing else."""
    text = "\0".join((task, record.key, str(record.variant))).encode()
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))
