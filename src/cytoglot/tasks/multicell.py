"""Several cells of one donor and tissue: write them, or name the tissue that they are from.

Decided here for all tasks about cell groups: a cell is a line, "Cell 1: CD3D IL7R". Neither a gene nor a label holds a
line break, so lines need no escape, while labels do hold commas, semicolons and colons. Read are also answers that
leave out the marks, number the cells otherwise or put prose between them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Generic

from cytoglot.answer_format import FreeText
from cytoglot.errors import InputError
from cytoglot.sentence.parse import ParsedSentence, parse_genes
from cytoglot.tasks.answers import LabelAnswer, ParsedLabel, vocabulary_of
from cytoglot.tasks.record import CellGroup
from cytoglot.tasks.segments import Field, Segments, join
from cytoglot.tasks.task import (
    NO_GENES,
    AnswerSpace,
    Task,
    Value,
    describe_cell,
    register_task,
    require_metadata,
    with_article,
)

if TYPE_CHECKING:
    from cytoglot.data.genes.vocabulary import GeneVocabulary

MIN_CELLS, MAX_CELLS = 2, 20
"""sizes of the cell groups that training sees"""
TOKENS_PER_MARK = 8
"""room for a line break and "Cell 12:" in byte-level BPE"""
TOKENS_PER_GENE = 4
"""what a gene symbol takes in the BPE of a general language model; 1 where genes are words of the tokenizer"""

_MARK = re.compile(r"[\s*_#>-]*(?:cell ?#?[0-9]{1,3} ?[*_]*[:.)]|#?[0-9]{1,3}[:.)](?=\s|$))[*_]*", re.IGNORECASE)
_INLINE_MARK = re.compile(r"(?<=\s)(?=cell ?#?[0-9]{1,3} ?:)", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]+")


class GroupTask(Task[CellGroup, Value], Generic[Value]):
    """What all tasks about several cells share: how the cells are described, and that there are several."""

    unit, noun = "cell_group", "cells"
    own_field: str | None = None
    """metadata that a field of the prompt states, so that the description need not"""

    def has_content(self, record: CellGroup) -> bool:
        """Tell whether there are two or more cells, one of them with genes."""
        return len(record.cells) >= MIN_CELLS and record.longest > 0

    def common_fields(self, record: CellGroup) -> dict[str, Field]:
        """Return the description of one cell, with and without an article, and that of the cells in the plural."""
        cell = describe_cell(self.told(record))
        return {
            "description": cell,
            "a_description": with_article(cell),
            "cells_description": self.describe(record),
        }

    def told(self, record: CellGroup) -> dict[str, str]:
        """Return what is known of all cells, but for what a field of the prompt states."""
        return {key: value for key, value in super().told(record).items() if key != self.own_field}


class GroupQuestion(GroupTask[Value], Generic[Value]):
    """Several cells are shown and something is asked about them."""

    def prompt_fields(self, record: CellGroup) -> Mapping[str, Field]:
        """Return the number of cells, the genes of each ("5", or "up to 5"), the cells and their description.

        The genes of an empty cell are "none". A group without cells is an InputError.
        """
        if not record.cells:
            raise InputError(f"task {self.name!r} asks about the cells of group {record.group_id!r}, found no cells")
        return self.common_fields(record) | {
            "num_cells": str(len(record.cells)),
            "num_genes": state_lengths(len(cell.genes) for cell in record.cells),
            "cell_sentences": cell_lines(cell.genes if len(cell.genes) else NO_GENES for cell in record.cells),
        }


class GroupGeneration(GroupTask[tuple[ParsedSentence, ...]]):
    """The answer is several cell sentences, a line each."""

    answer_kind = "cells"
    is_ordered = False
    identifies_record = False
    writes_cells = True
    metrics = ("gene_overlap", "exact_match")

    def has_content(self, record: CellGroup) -> bool:
        """Tell whether there are two or more cells and all have genes: an empty cell is nothing to learn to write."""
        return len(record.cells) >= MIN_CELLS and 0 not in record.lengths()

    def prompt_fields(self, record: CellGroup) -> Mapping[str, Field]:
        """Return the number of cells to write, the genes of each ("5", or "up to 5") and the description.

        A cell still to be written has the length of its own `num_genes`, else of the group's. A group whose number of
        cells or genes is not known is an InputError.
        """
        if record.cells:
            lengths = [len(cell.genes) or cell.num_genes or record.num_genes or 0 for cell in record.cells]
        else:
            lengths = [record.num_genes or 0] * (record.num_cells or 0)
        if not lengths or 0 in lengths:
            raise InputError(
                f"task {self.name!r} needs the number of cells to write for group {record.group_id!r} and of the genes "
                f"of each, found genes: {lengths}; pass num_cells and num_genes, or leave out cells without expressed "
                "genes"
            )
        return self.common_fields(record) | {"num_cells": str(len(lengths)), "num_genes": state_lengths(lengths)}

    def answer_fields(self, record: CellGroup) -> Mapping[str, Field]:
        """Return the cells, a line each; an InputError if there are none or one is empty."""
        empty = [cell.cell_id for cell in record.cells if not len(cell.genes)]
        if empty or not record.cells:
            raise InputError(
                f"task {self.name!r} cannot learn from group {record.group_id!r}: of {len(record.cells)} cells these "
                f"have no expressed genes: {empty}; leave out empty cells"
            )
        return {"cell_sentences": cell_lines(cell.genes for cell in record.cells)}

    def answer_format(self, space: AnswerSpace) -> FreeText:
        """Return free text with room for the largest group.

        No format says "several cells". Where every word must be a gene, write cell by cell: the prompt and " Cell 1:",
        one `DistinctWords` answer; both with a line break and "Cell 2:", the next one; and so on.

        Raises
        ------
        InputError
            `space` lacks the number of genes of a cell.
        """
        if space.n_genes is None or space.n_genes < 1:
            raise InputError(
                f"task {self.name!r} needs a number of genes of each cell, 1 or more; found {space.n_genes}"
            )
        return FreeText(max_tokens=MAX_CELLS * (TOKENS_PER_MARK + TOKENS_PER_GENE * space.n_genes))

    def parse(self, answer: str, space: AnswerSpace) -> tuple[ParsedSentence, ...]:
        """Read the cells in order, as many as there are; a line without a mark counts if half of its words are genes.

        A cell whose number was skipped, or without genes, has no genes here. `space` must hold the vocabulary.
        """
        return parse_cells(answer, vocabulary_of(space, task=self.name))


@register_task
class MulticellGeneration(GroupGeneration):
    """Nothing but what is known of the donor and tissue → several cells."""

    name = "multicell_generation"


@register_task
class TissueAnnotation(GroupQuestion[ParsedLabel], LabelAnswer[CellGroup]):
    """Several cells → the tissue that all of them are from."""

    name, field = "tissue_annotation", "tissue"
    required_metadata = ("tissue",)
    # A disease often names its organ: "lung adenocarcinoma", "Crohn's colitis".
    hidden_metadata = ("tissue", "disease")
    reverse = "cell_group_generation_by_tissue"


@register_task
class CellGroupGenerationByTissue(GroupGeneration):
    """A tissue → several cells of one donor."""

    name = "cell_group_generation_by_tissue"
    required_metadata = tells = ("tissue",)
    reverse = "tissue_annotation"
    own_field = "tissue"

    def prompt_fields(self, record: CellGroup) -> Mapping[str, Field]:
        """Add the tissue, which must be known."""
        tissue = require_metadata(record, "tissue", task=self.name)
        return {**super().prompt_fields(record), "tissue": tissue}


def cell_lines(cells: Iterable[Field]) -> Segments:
    """Return one line for each cell: "Cell 1: " and its genes, or a text, in which white space is collapsed."""
    pieces: list[Field] = []
    for i, cell in enumerate(cells, start=1):
        pieces += ["\n" * (i > 1), f"Cell {i}: ", " ".join(cell.split()) if isinstance(cell, str) else cell]
    return join(pieces)


def read_cells(text: str, is_cell: Callable[[str], bool]) -> list[str]:
    """Return what an answer says of each cell, in order; undoes `cell_lines` and tolerates much else.

    A mark is "Cell 3:" anywhere, or a number with ":", "." or ")" at the start of a line. What stands behind it is the
    cell's text; a number that runs ahead leaves the cells between empty. A line without a mark is the text of the mark
    before it, if that has none yet, or else of a next cell, provided that `is_cell` of it; other lines are prose.
    """
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    if len(lines) >= MIN_CELLS and all(line.startswith(f"Cell {i}:") for i, line in enumerate(lines, start=1)):
        return [line.partition(":")[2].strip() for line in lines]  # as trained on; a mark inside is part of a label
    cells: list[str] = []
    for piece in (piece for line in lines for piece in _INLINE_MARK.split(line)):
        mark = _MARK.match(piece)
        content = piece[mark.end() if mark else 0 :].strip(" \t;,")
        if mark is not None:
            number = _NUMBER.search(mark[0])
            assert number is not None
            cells += [""] * (int(number[0]) - 1 - len(cells))
            cells.append(content)
        elif is_cell(content):
            if cells and not cells[-1]:
                cells.pop()
            cells.append(content)
    return cells


def parse_cells(answer: str, vocabulary: GeneVocabulary) -> tuple[ParsedSentence, ...]:
    """Return the genes of each cell that an answer writes; see `read_cells` for what counts as one.

    A line without a mark is a cell if at least half of its words name genes.
    """

    def is_cell(line: str) -> bool:
        return parse_genes(line, vocabulary).report.valid_share >= 0.5

    return tuple(parse_genes(cell, vocabulary) for cell in read_cells(answer, is_cell))


def state_lengths(lengths: Iterable[int]) -> str:
    """Return the number of genes that cells have, "5", or of the longest, "up to 5", where they differ."""
    distinct = sorted(set(lengths))
    return str(distinct[0]) if len(distinct) == 1 else f"up to {distinct[-1]}"
