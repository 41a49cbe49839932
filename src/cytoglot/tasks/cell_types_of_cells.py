"""Which types are these cells, each of them? And back: a list of types → such cells of one donor and tissue."""

from __future__ import annotations

from collections.abc import Mapping

from cytoglot.answer_format import FreeText
from cytoglot.errors import InputError
from cytoglot.tasks.answers import parse_label
from cytoglot.tasks.multicell import (
    MAX_CELLS,
    TOKENS_PER_MARK,
    GroupGeneration,
    GroupQuestion,
    cell_lines,
    read_cells,
)
from cytoglot.tasks.record import CellGroup
from cytoglot.tasks.segments import Field, Segments
from cytoglot.tasks.task import AnswerSpace, register_task, require_metadata

TOKENS_PER_LABEL = 32
"""as for one free annotation"""


@register_task
class CellTypesOfCells(GroupQuestion[tuple[str | None, ...]]):
    """Several cells → the type of each, in their order, a line each: labels hold commas, semicolons and colons."""

    name = "cell_types_of_cells"
    reverse = "cell_group_generation_by_cell_types"
    answer_kind = "labels"
    metrics = ("accuracy", "macro_f1", "exact_match")

    def has_content(self, record: CellGroup) -> bool:
        """Tell whether there are two or more cells, one of them with genes, and the type of each is known."""
        return super().has_content(record) and all("cell_type" in cell.metadata for cell in record.cells)

    def answer_fields(self, record: CellGroup) -> Mapping[str, Field]:
        """Return the types, a line each; an InputError if that of a cell is not known."""
        return {"cell_types": _type_lines(record, self.name)}

    def answer_format(self, space: AnswerSpace) -> FreeText:
        """Return free text with room for the largest group.

        No format says "several labels". Where every one must be of a closed set, answer cell by cell: the prompt and
        " Cell 1:", one `OneOf` answer; both with a line break and "Cell 2:", the next one; and so on.
        """
        return FreeText(max_tokens=MAX_CELLS * (TOKENS_PER_MARK + TOKENS_PER_LABEL))

    def parse(self, answer: str, space: AnswerSpace) -> tuple[str | None, ...]:
        """Read the labels in the order of the cells, as many as there are; None for what is no label.

        Each is read as in annotation, regardless of case if that leaves one label. A line without a mark counts if it
        is a label of `space`; without labels in `space` every line counts as one.
        """

        def is_label(line: str) -> bool:
            return parse_label(line, space.labels).label is not None

        return tuple(parse_label(line, space.labels).label for line in read_cells(answer, is_label))


@register_task
class CellGroupGenerationByCellTypes(GroupGeneration):
    """The type of each of several cells → the cells, in the same order."""

    name = "cell_group_generation_by_cell_types"
    reverse = "cell_types_of_cells"
    is_ordered = True

    def has_content(self, record: CellGroup) -> bool:
        """Tell whether there are two or more cells, all with genes and with a known type."""
        return super().has_content(record) and all("cell_type" in cell.metadata for cell in record.cells)

    def prompt_fields(self, record: CellGroup) -> Mapping[str, Field]:
        """Add the types, a line each; an InputError if that of a cell is not known, or there are no cells."""
        return {**super().prompt_fields(record), "cell_types": _type_lines(record, self.name)}


def _type_lines(record: CellGroup, task: str) -> Segments:
    if not record.cells:
        raise InputError(
            f"task {task!r} needs the cell_type of each cell of group {record.group_id!r}, found no cells; pass one "
            "record for each, without genes if it is still to be written"
        )
    return cell_lines(require_metadata(cell, "cell_type", task=task) for cell in record.cells)
