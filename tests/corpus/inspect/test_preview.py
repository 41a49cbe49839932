"""Examples for people: long sentences are cut, short ones are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cytoglot.corpus.format.folder import Corpus
from cytoglot.corpus.inspect.preview import shortened

GENES = frozenset(f"G{i}" for i in range(100))


def genes(*numbers: int) -> str:
    return " ".join(f"G{i}" for i in numbers)


@pytest.mark.parametrize(
    ("text", "short"),
    [
        (f"20 genes: {genes(*range(20))}. Type:", f"20 genes: {genes(*range(6))} … (12 more) … G18 G19. Type:"),
        (f"9 genes: {genes(*range(9))}. Type:", f"9 genes: {genes(*range(9))}. Type:"),
        (
            f"Cell 1: {genes(*range(11))}.\nCell 2: G1 _ G2.",
            "Cell 1: G0 G1 G2 G3 G4 G5 … (3 more) … G9 G10.\nCell 2: G1 _ G2.",
        ),
        ("word " * 99 + "end", "word " * 59 + "word … (20 more) … " + "word " * 19 + "end"),
        ("", ""),
    ],
)
def test_long_runs_of_genes_and_long_prose_are_cut_in_the_middle(text: str, short: str) -> None:
    assert shortened(text, GENES, max_genes=8) == short
    assert shortened(text, GENES, max_genes=0) == text


def test_the_command_shows_examples_of_a_task(small_corpus: Corpus, command: Callable[..., Any]) -> None:
    done = command("corpus", "show", small_corpus.folder, "-n", "3", "--task", "tissue_annotation", "--json")
    examples = done.result["examples"]
    assert [example["task"] for example in examples] == ["tissue_annotation"] * 3
    assert all(example["completion"] in {" lung.", " blood."} for example in examples)
    again = command("corpus", "show", small_corpus.folder, "-n", "3", "--task", "tissue_annotation")
    assert again.code == 0
    assert again.out.count("--- tissue_annotation") == 3
    assert examples[0]["prompt"] in again.out


def test_the_command_says_what_it_cannot_show(
    small_corpus: Corpus, command: Callable[..., Any], tmp_path: Path
) -> None:
    folder = small_corpus.folder
    assert "unknown task 'tissue'; did you mean" in command("corpus", "show", folder, "--task", "tissue").refusal
    refusal = command("corpus", "show", folder, "--split", "tests").refusal
    assert "'tests' is not one of 'train', 'validation', 'test'" in refusal
    nothing = command("corpus", "show", folder, "--task", "interpretation", "--split", "test", "--max-genes", "0")
    assert nothing.code == 0
    absent = command("corpus", "show", folder, "--task", "assay_annotation")
    assert "has no example of assay_annotation" in absent.refusal
    assert "is no corpus" in command("corpus", "show", tmp_path).refusal
