"""Cards of models and corpora: Markdown from templates that lie beside the code that counts what stands in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jinja2
import yaml


def render_card(package: str, template: str, **content: Any) -> str:
    """Return a template of `package` filled in; a name that the content lacks is an error.

    Beside Jinja's own, templates have `table(columns, rows)` and the filters `number` (thousands apart) and `yaml`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # Markdown, not HTML
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["table"] = _table
    environment.filters |= {"number": "{:,}".format, "yaml": lambda value: yaml.safe_dump(value, sort_keys=False)}
    return environment.get_template(template).render(**content)


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    numbered = ([f"{value:,}" if isinstance(value, int) else str(value) for value in row] for row in rows)
    cells = ([" ".join(text.replace("|", "\\|").split()) for text in row] for row in numbered)
    return "\n".join("| " + " | ".join(line) + " |" for line in [columns, ["---"] * len(columns), *cells])
