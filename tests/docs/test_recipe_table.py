"""The table of settings in docs/training.md is made from the text below each field of the recipe.

python tests/docs/test_recipe_table.py writes it anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from pydantic import BaseModel

from cytoglot.training.recipe import TrainRecipe

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->"


def recipe_table() -> str:
    return "| setting | default | meaning |\n|---|---|---|\n" + "".join(_rows(TrainRecipe(), ""))


def _rows(settings: BaseModel, prefix: str) -> list[str]:
    rows = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        group = value if isinstance(value, BaseModel) else _optional_group(field.annotation)
        shown = "" if isinstance(value, BaseModel) else f"`{'null' if value is None else _yaml(value)}`"
        meaning = " ".join((field.description or "").split()).rstrip(".")
        rows.append(f"| `{prefix}{name}` | {shown} | {meaning} |\n")
        if group is not None:
            rows += _rows(group, f"{prefix}{name}.")
    return rows


def _optional_group(annotation: object) -> BaseModel | None:
    """A group that is off by default has defaults of its own."""
    kinds = [kind for kind in get_args(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return kinds[0]() if kinds else None


def _yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {item}" for name, item in value.items()) + "}"
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, tuple) else str(value)


def test_the_table_of_settings_is_that_of_the_recipe() -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = text[text.index(BEGIN) + len(BEGIN) : text.index(END)]
    assert shown == recipe_table(), "run: python tests/docs/test_recipe_table.py"


if __name__ == "__main__":
    before = PAGE.read_text(encoding="utf-8")
    head, tail = before[: before.index(BEGIN) + len(BEGIN)], before[before.index(END) :]
    PAGE.write_text(head + recipe_table() + tail, encoding="utf-8")
