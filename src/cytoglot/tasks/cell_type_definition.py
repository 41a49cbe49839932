"""What is this cell type? A Cell Ontology term in, its definition or its markers out, and the other way round."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from cytoglot.tasks.answers import GeneAnswer, NameAnswer, one_line
from cytoglot.tasks.gene_sets import shuffled
from cytoglot.tasks.record import CellTypeTerm
from cytoglot.tasks.segments import Field
from cytoglot.tasks.task import register_task
from cytoglot.tasks.template import TERMINATOR

MOST_MARKERS = 20
"""markers in a text: the best supported ones"""
_UNNAMED = "this cell"
_MIN_WORDS = 3
"""words that a definition must have beside the name: "A CNS this cell." defines nothing"""


@register_task
class CellTypeDefinition(NameAnswer[CellTypeTerm]):
    """A cell type → its definition in the Cell Ontology."""

    name = "cell_type_definition"
    unit = "cell_type_term"
    reverse = "cell_type_from_definition"
    answer_field = record_field = "definition"
    max_tokens = 400

    def has_content(self, record: CellTypeTerm) -> bool:
        """The ontology defines most terms and not all."""
        return bool(one_line(record.definition))

    def prompt_fields(self, record: CellTypeTerm) -> Mapping[str, Field]:
        """Return the label."""
        return self.common_fields(record) | {"cell_type": record.label}


@register_task
class CellTypeFromDefinition(NameAnswer[CellTypeTerm]):
    """A definition → the cell type.

    Where a definition names the type itself, by label or synonym, "this cell" stands in its place; names of its parents
    stay.
    """

    name = "cell_type_from_definition"
    unit = "cell_type_term"
    reverse = "cell_type_definition"
    answer_field, record_field = "cell_type", "label"

    def has_content(self, record: CellTypeTerm) -> bool:
        """The definition must say something beside the name; the root of the ontology, "cell", is not asked for."""
        rest = re.sub(_UNNAMED, "", unnamed(record), flags=re.IGNORECASE)
        return record.label.lower() not in _UNNAMED and len(re.findall(r"\w+", rest)) >= _MIN_WORDS

    def prompt_fields(self, record: CellTypeTerm) -> Mapping[str, Field]:
        """Return the definition without the name."""
        return self.common_fields(record) | {"definition": f"{one_line(unnamed(record))}."}


@register_task
class CellTypeMarkers(GeneAnswer[CellTypeTerm]):
    """A cell type → its marker genes, the best supported first."""

    name = "cell_type_markers"
    unit = "cell_type_term"
    reverse = "cell_type_from_markers"
    answer_field = "genes"

    def prompt_fields(self, record: CellTypeTerm) -> Mapping[str, Field]:
        """Return the label and the number of markers to list."""
        n_markers = len(record.markers[:MOST_MARKERS])
        return self.common_fields(record) | {"cell_type": record.label, "num_genes": str(n_markers)}

    def answer_genes(self, record: CellTypeTerm) -> Sequence[str]:
        """Return the best supported markers."""
        return record.markers[:MOST_MARKERS]


@register_task
class CellTypeFromMarkers(NameAnswer[CellTypeTerm]):
    """Marker genes, in a random order by the record's variant → the cell type that they mark."""

    name = "cell_type_from_markers"
    unit = "cell_type_term"
    reverse = "cell_type_markers"
    answer_field, record_field = "cell_type", "label"

    def prompt_fields(self, record: CellTypeTerm) -> Mapping[str, Field]:
        """Return the markers and their number."""
        markers = shuffled(self.name, record, record.markers[:MOST_MARKERS])
        return self.common_fields(record) | {"genes": markers, "num_genes": str(len(markers))}


def unnamed(record: CellTypeTerm) -> str:
    """Return the definition with "this cell" for label and synonyms, in any case, with or without a plural s.

    An article before the name goes too; at the start of a sentence it is "This cell".
    """
    names = sorted({record.label, *record.synonyms} - {""}, key=len, reverse=True)
    if not names:
        return record.definition
    pattern = "|".join(re.escape(name) for name in names)
    article = r"(?:(?:an?|the|any|each|every)\s+)?"

    def replaced(match: re.Match[str]) -> str:
        starts = not match.string[: match.start()].strip() or match.string[: match.start()].rstrip().endswith(
            TERMINATOR
        )
        return _UNNAMED.capitalize() if starts else _UNNAMED

    return re.sub(rf"(?<!\w){article}(?:{pattern})s?(?!\w)", replaced, record.definition, flags=re.IGNORECASE)
