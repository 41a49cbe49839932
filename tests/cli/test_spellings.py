"""Spellings of earlier releases still work, with a warning; logs follow --quiet and --verbose."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cytoglot.corpus.format.folder import Corpus

Command = Callable[..., Any]


def test_a_split_of_a_corpus_was_a_part(
    command: Command, small_corpus: Corpus, caplog: pytest.LogCaptureFixture
) -> None:
    now = command("corpus", "show", small_corpus.folder, "--split", "test", "--json").out
    assert not caplog.messages
    assert command("corpus", "show", small_corpus.folder, "--part=test", "--json").out == now
    assert caplog.messages == ["--part is now called --split; the old spelling ends with the next release"]
    assert "--part" not in command("corpus", "show", "-h").out


@pytest.mark.parametrize("given", [["--seed", "3"], ["--seed=3"]])
def test_an_option_that_does_nothing_is_accepted_with_a_warning(
    command: Command, given: list[str], cells_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert command("audit", cells_file, *given, "--json").code == 0
    assert "--seed does nothing in audit and ends with the next release" in caplog.messages
    assert "--seed" not in command("audit", "-h").out


def test_a_corpus_audit_has_a_seed(command: Command, small_corpus: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    assert command("corpus", "audit", small_corpus.folder, "--seed", "3", "--json").code == 0
    assert not [message for message in caplog.messages if "--seed" in message]


def test_a_model_is_named_by_an_option_or_first(command: Command, tiny_model_folder: Path, tmp_path: Path) -> None:
    for arguments in (["card", tmp_path], ["card", "--model", tmp_path]):
        assert "no cytoglot.json" in command(*arguments).refusal
    assert "found both" in command("card", tmp_path, "--model", tmp_path).refusal
    assert "found none" in command("card").refusal
    for arguments in (["push", tiny_model_folder, "no name"], ["push", "--model", tiny_model_folder, "no name"]):
        assert "owner/name" in command(*arguments).refusal
    assert "found none" in command("push", "me/model").refusal


@pytest.mark.parametrize(("option", "level"), [("--quiet", logging.WARNING), ("--verbose", logging.DEBUG)])
def test_quiet_and_verbose_set_the_level_of_one_command(
    command: Command, option: str, level: int, cells_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("cytoglot")
    before, found = logger.level, []
    monkeypatch.setattr("cytoglot.cli.data.show", lambda *_, **__: found.append(logger.level))
    assert command("audit", cells_file, "--json", option).code == 0
    assert found == [level]
    assert logger.level == before
