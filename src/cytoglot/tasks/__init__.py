"""One file per question: cells ⇄ prompt and answer."""

from cytoglot.tasks.record import CellGroup, CellRecord, CellTypeTerm, GeneSet, Record
from cytoglot.tasks.task import AnswerSpace, Example, Task, describe_cell, register_task, tasks
from cytoglot.tasks.template import TERMINATOR, Template, TemplateSet, load_templates

__all__ = [
    "TERMINATOR",
    "AnswerSpace",
    "CellGroup",
    "CellRecord",
    "CellTypeTerm",
    "Example",
    "GeneSet",
    "Record",
    "Task",
    "Template",
    "TemplateSet",
    "describe_cell",
    "load_templates",
    "register_task",
    "tasks",
]
