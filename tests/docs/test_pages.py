"""What the README and the pages show can be typed: their Python runs, and their commands have these options."""

from __future__ import annotations

import doctest
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

import cytoglot
from cytoglot.cli.main import app

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
#: A call within the text; "cytoglot linear probe" and "cytoglot - majority" are names of methods in result tables.
_INLINE = re.compile(r"(?<!`)`(cytoglot (?!linear probe|head`|hybrid`|- )[^`\n]+)`(?!`)")
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _blocks(page: Path, *languages: str) -> Iterator[str]:
    for language, text in _FENCE.findall(page.read_text(encoding="utf-8")):
        if language in languages:
            yield text


def _commands(page: Path) -> list[list[str]]:
    """Every call of cytoglot: lines of shell blocks, continued ones joined, and `cytoglot …` within the text.

    Words in capitals (`COMMAND`) stand for something else.
    """
    prose = _FENCE.sub("", page.read_text(encoding="utf-8"))
    found = [call.replace("…", " ").split()[1:] for call in _INLINE.findall(prose)]
    found = [words for words in found if not words[0].isupper()]
    for text in _blocks(page, "bash", "sh", "shell", "console"):
        for line in text.replace("\\\n", " ").splitlines():
            call = line.removeprefix("$ ")
            if call.startswith("cytoglot "):  # what a command prints is not shell
                found.append(shlex.split(call, comments=True)[1:])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_the_options_that_a_page_shows(page: Path) -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for words in _commands(page):
        name, *arguments = words
        if name.startswith("-"):
            continue
        assert name in known, f"{page.name}: cytoglot {name}"
        command = known[name]
        if hasattr(command, "commands") and arguments:  # `corpus build`, or `corpus build|show` in prose
            below = arguments[0].split("|")
            assert set(below) <= set(command.commands), f"{page.name}: cytoglot {name} {arguments[0]}"
            command = command.commands[below[0]]
        options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        shown = {word.split("=")[0] for word in arguments if re.fullmatch(r"--?[a-z][\w-]*(=.*)?", word)}
        assert shown <= options, f"{page.name}: cytoglot {' '.join(words)} has no {sorted(shown - options)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_that_a_page_shows_as_a_session_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block with `>>>` is run with what it prints; the blocks of a page share their names."""
    sessions = [text for text in _blocks(page, "python", "pycon") if ">>>" in text]
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTestParser().get_doctest("\n".join(sessions), {}, page.name, str(page), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    runner.run(test)
    assert runner.failures == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name} links to {name}"
        assert not anchor or anchor in _anchors(target), f"{page.name} links to the heading {link}"


def _anchors(page: Path) -> set[str]:
    """The names that headings get in links: lower case, words joined by hyphens, other signs dropped."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_functions_of_the_package_that_a_page_names_exist(page: Path) -> None:
    named = set(re.findall(r"\bcg\.(\w+)", page.read_text(encoding="utf-8")))
    assert named <= set(cytoglot.__all__), f"{page.name}: {sorted(named - set(cytoglot.__all__))}"


def test_every_python_block_is_valid_python() -> None:
    for page in PAGES:
        for text in _blocks(page, "python"):
            source = text if ">>>" not in text else doctest.script_from_examples(text)
            compile(source, str(page), "exec")
