"""One file per question: cells ⇄ prompt and answer."""

from cytoglot.tasks.instance import TaskInstance
from cytoglot.tasks.record import CellGroup, CellRecord, CellTypeTerm, GeneSet, Record
from cytoglot.tasks.record_source import CellsSource, RecordSource, TableSource, record_sources, register_source
from cytoglot.tasks.segments import Genes, Segments
from cytoglot.tasks.task import AnswerSpace, Example, Task, describe_cell, register_task, tasks
from cytoglot.tasks.template import TERMINATOR, Template, TemplateSet, load_templates

__all__ = [
    "TERMINATOR",
    "AnswerSpace",
    "CellGroup",
    "CellRecord",
    "CellTypeTerm",
    "CellsSource",
    "Example",
    "GeneSet",
    "Genes",
    "Record",
    "RecordSource",
    "Segments",
    "TableSource",
    "Task",
    "TaskInstance",
    "Template",
    "TemplateSet",
    "describe_cell",
    "load_templates",
    "record_sources",
    "register_source",
    "register_task",
    "tasks",
]
