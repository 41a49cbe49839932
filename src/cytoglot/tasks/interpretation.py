"""What was studied here? Several cells → the abstract of their study; and back: an abstract → cells of the study."""

from __future__ import annotations

from collections.abc import Mapping

from cytoglot.answer_format import FreeText
from cytoglot.errors import InputError
from cytoglot.tasks.answers import one_line
from cytoglot.tasks.multicell import GroupGeneration, GroupQuestion
from cytoglot.tasks.record import CellGroup
from cytoglot.tasks.segments import Field
from cytoglot.tasks.task import AnswerSpace, register_task, require_metadata

MAX_ABSTRACT_TOKENS = 1024
"""2,000 characters, a long abstract, at two to a token: the small BPE of a from-scratch model; others need half"""


@register_task
class Interpretation(GroupQuestion[str]):
    """Several cells of a study → its abstract, as one paragraph."""

    name = "interpretation"
    required_metadata = ("abstract",)
    hidden_metadata = ("abstract",)
    reverse = "cell_group_generation_by_abstract"
    answer_kind = "text"
    metrics = ("exact_match", "token_f1")

    def has_content(self, record: CellGroup) -> bool:
        """Tell whether there are two or more cells, one of them with genes, and the abstract has words."""
        return super().has_content(record) and bool(one_line(record.metadata.get("abstract", "")))

    def answer_fields(self, record: CellGroup) -> Mapping[str, Field]:
        """Return the abstract as one paragraph without the full stop at its end; an InputError if there is none."""
        return {"abstract": _abstract(record, self.name)}

    def answer_format(self, space: AnswerSpace) -> FreeText:
        """Return free text with room for a long abstract."""
        return FreeText(max_tokens=MAX_ABSTRACT_TOKENS)

    def parse(self, answer: str, space: AnswerSpace) -> str:
        """Return the answer as one paragraph without the full stop at its end; it may be empty."""
        return one_line(answer)


@register_task
class CellGroupGenerationByAbstract(GroupGeneration):
    """The abstract of a study → several cells of one of its donors."""

    name = "cell_group_generation_by_abstract"
    required_metadata = tells = ("abstract",)
    reverse = "interpretation"

    def has_content(self, record: CellGroup) -> bool:
        """Tell whether there are two or more cells, all with genes, and the abstract has words."""
        return super().has_content(record) and bool(one_line(record.metadata.get("abstract", "")))

    def prompt_fields(self, record: CellGroup) -> Mapping[str, Field]:
        """Add the abstract, as one paragraph without the full stop at its end; an InputError if there is none."""
        abstract = _abstract(record, self.name)
        return {**super().prompt_fields(record), "abstract": abstract}


def _abstract(record: CellGroup, task: str) -> str:
    abstract = one_line(require_metadata(record, "abstract", task=task))
    if not abstract:
        raise InputError(f"task {task!r}: the abstract of {record.group_id!r} has no words; leave it out")
    return abstract
