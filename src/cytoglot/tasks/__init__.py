"""One file per question: cells ⇄ prompt and answer."""

from cytoglot.tasks.task import AnswerSpace, CellRecord, Example, Task, describe_cell, register_task, tasks
from cytoglot.tasks.template import TERMINATOR, Template, TemplateSet, load_templates

__all__ = [
    "TERMINATOR",
    "AnswerSpace",
    "CellRecord",
    "Example",
    "Task",
    "Template",
    "TemplateSet",
    "describe_cell",
    "load_templates",
    "register_task",
    "tasks",
]
