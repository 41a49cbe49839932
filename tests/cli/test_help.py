"""Help pages: short enough to read, each with an example, every summary whole; versions and completion."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
import typer.main

import cytoglot
from cytoglot.cli import data, options
from cytoglot.cli.main import app

Command = Callable[..., Any]


def _pages(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    group = group or typer.main.get_command(app)
    yield path
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _pages(command, (*path, name))
        else:
            yield (*path, name)


_PAGES = list(_pages())
_COMMANDS = [path for path in _PAGES if path not in [(), ("corpus",), ("data",), ("runner",), ("benchmark",)]]


@pytest.mark.parametrize("path", _PAGES, ids=" ".join)
@pytest.mark.parametrize("width", [80, 60])
def test_a_help_page_fits_its_terminal_and_shows_an_example(
    command: Command, path: tuple[str, ...], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    outcome = command(*path, "--help")
    assert outcome.code == 0
    assert outcome.out == command(*path, "-h").out
    lines = outcome.out.splitlines()
    assert "..." not in outcome.out.replace("[ARGS]...", "")
    assert "\x1b" not in outcome.out
    if width == 80:
        assert len(lines) <= 60
    text, mark, example = outcome.out.partition("xample:")
    assert mark
    assert max(map(len, text.splitlines())) <= width
    assert example.split()[:1] == ["cytoglot"]


@pytest.mark.parametrize("path", _COMMANDS, ids=" ".join)
def test_the_example_of_a_help_page_can_be_typed(command: Command, path: tuple[str, ...]) -> None:
    example = command(*path, "--help").out.partition("Example:")[2].replace("\\\n", " ")
    words = shlex.split(example)[1:]
    assert path == ("gene-vectors",) or tuple(words[: len(path)]) == path
    found: Any = typer.main.get_command(app)
    for name in path:
        found = found.commands[name]
    found.make_context(path[-1], words[len(path) :])  # an unknown option or a missing argument is refused here


def test_the_overview_groups_the_commands_with_whole_summaries(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    shown = command("-h").out
    headings = [line for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings[:6] == ["Options:", "Cells:", "Corpus:", "Model:", "Use:", "Evaluation:"]
    assert "gene-embeddings" in shown
    assert "gene-vectors" not in shown


def test_choices_and_defaults_are_shown(command: Command) -> None:
    page = " ".join(command("encode", "-h").out.split())
    assert "symbol|order|random|rare_first|common_first" in page
    assert "[default: symbol]" in page
    assert "[default: all expressed genes]" in page
    assert "range" not in page


def test_choices_of_options_are_those_of_the_functions() -> None:
    from cytoglot.cell_model.load import CellPooling
    from cytoglot.cli import embed
    from cytoglot.data.genes.vocabulary import Duplicates
    from cytoglot.lm.embedding.embed import Precision
    from cytoglot.sentence.cell_sentence import RankSettings, TieRule

    assert get_args(options.Duplicates) == get_args(Duplicates)
    assert get_args(data.TieRule) == get_args(TieRule)
    assert get_args(embed.Pooling) == get_args(CellPooling)
    assert get_args(embed.Precision) == get_args(Precision)
    assert RankSettings().ties == "symbol"


def test_version(command: Command) -> None:
    assert command("--version").out == f"cytoglot {cytoglot.__version__}\n"


def test_completion_knows_commands_and_options_without_torch_or_pandas() -> None:
    script = (
        "import sys; from cytoglot.cli.main import run\ntry:\n    run([])\nfinally:\n"
        "    print(*{'torch', 'pandas', 'numba', 'transformers'} & set(sys.modules), file=sys.stderr)"
    )
    environment = {**os.environ, "_CYTOGLOT_COMPLETE": "complete_bash", "COMP_CWORD": "1", "COMP_WORDS": "cytoglot ann"}
    found = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert found.stdout.split() == ["annotate"]
    assert found.stderr.split() == []
