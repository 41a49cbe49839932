"""`cytoglot train` for every kind of recipe; `card` and `push`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from cytoglot.corpus.format.folder import Corpus

Command = Callable[..., Any]


def _recipe(path: Path, **values: Any) -> Path:
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


@pytest.fixture
def small() -> dict[str, Any]:
    """Settings with which anything trains in a second."""
    return {
        "sentence": {"top_genes": 10},
        "model": {
            "scratch": {"hidden_size": 16, "n_layers": 1, "n_heads": 2, "feed_forward": 16, "context_length": 256},
            "word_vector_rank": 8,
        },
        "optim": {"steps": 2, "batch_size": 2, "evaluate_every": 2},
        "tasks": {"cell_type_annotation": 1},
        "views": 1,
    }


def test_a_recipe_alone_says_everything(
    command: Command, cells_file: Path, small: dict[str, Any], tmp_path: Path
) -> None:
    named = {"source": str(cells_file), "label": "cell_type", "output": str(tmp_path / "model")}
    recipe = _recipe(tmp_path / "r.yaml", **small, **named)
    assert command("train", "--recipe", recipe, "--dry-run", "--json").result["steps"] == 2
    assert not (tmp_path / "model").exists()
    result = command("train", "--recipe", recipe, "--json").result
    assert result["model"] == str(tmp_path / "model")
    assert result["labels"] == 3
    assert (tmp_path / "model" / "README.md").is_file()
    other = command("train", cells_file, "--recipe", recipe, "-o", tmp_path / "other", "--json").result
    assert other["model"] == str(tmp_path / "other")
    spec = (tmp_path / "other" / "cytoglot.json").read_text()
    assert str(tmp_path) not in spec  # paths of this machine stay here


def test_all_cells_can_be_taken(
    command: Command, cells_file: Path, small: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = _recipe(tmp_path / "r.yaml", **small)
    arguments = ["train", cells_file, "--label", "cell_type", "--recipe", recipe, "-o", tmp_path / "m"]
    caplog.set_level("INFO", logger="cytoglot")
    assert command(*arguments, "--no-test", "--split-by", "cell", "--json").result["validation_cells"] == 24
    assert "216 cells for training, 24 for validation, 0 kept for test; split by cell" in caplog.messages
    split = json.loads((tmp_path / "m" / "split.json").read_text())
    assert (len(split["train"]), len(split["validation"]), split["test"]) == (216, 24, [])
    # Another division is another run, the same in other words is the same one.
    assert "fractions" in command(*arguments, "--fractions", "0.5,0.25,0.25", "--split-by", "cell").refusal
    assert command(*arguments, "--fractions", "0.9,0.1,0", "--split-by", "cell").code == 0
    refusal = command("evaluate", cells_file, "--model", tmp_path / "m", "-o", tmp_path / "e").refusal
    assert "no cell to evaluate on" in refusal


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--fractions", "0.7,0.3"], "--fractions expects three numbers such as 0.7,0.1,0.2, found '0.7,0.3'"),
        (["--fractions", "0.7,0.2,0.3"], "that sum to 1, the first above 0; found (0.7, 0.2, 0.3)"),
        (["--fractions", "1,0,0", "--no-test"], "--no-test and --fractions say the same"),
    ],
)
def test_fractions_that_are_none_are_refused(command: Command, given: list[str], message: str, tmp_path: Path) -> None:
    refusal = command("train", "absent.h5ad", "--label", "cell_type", "-o", tmp_path / "m", *given).refusal
    assert message in refusal


def test_a_corpus_has_been_divided(command: Command, small_corpus: Corpus, tmp_path: Path) -> None:
    refusal = command("train", small_corpus.folder, "-o", tmp_path / "m", "--no-test").refusal
    assert "is a corpus" in refusal
    assert "leave out --no-test" in refusal


def test_pretraining_on_a_corpus(command: Command, small_corpus: Corpus, small: dict[str, Any], tmp_path: Path) -> None:
    small["model"].pop("word_vector_rank")
    small.pop("views")
    recipe = _recipe(tmp_path / "r.yaml", **small, kind="pretrain", source=str(small_corpus.folder))
    forecast = command("train", "--recipe", recipe, "--dry-run", "--json").result
    assert forecast["kind"] == "pretrain"
    assert forecast["cells"] == small_corpus.description.total("n_cells", "train")
    assert command("train", "--recipe", recipe, "-o", tmp_path / "m", "--json").result["tasks"] == 1
    card = (tmp_path / "m" / "README.md").read_text()
    assert "| kind | pretrain |" in card
    assert "| optim.loss_on | everything |" in card
    assert "| synthetic |  | human | CC0 |" in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no cells to train on: pass SOURCE"),
        (["{cells}", "--label", "cell_type"], "no folder for the model: pass -o FOLDER"),
        (["{cells}", "-o", "m"], "pass --label"),
        (["{corpus}", "-o", "m", "--label", "x"], "cells, genes and labels are settled; leave out --label"),
        (["{corpus}", "-o", "m", "--layer", "counts"], "is a corpus, in which cells, genes and labels are settled"),
        (["{cells}", "-o", "m", "--set", "kind=rl"], "kind: Input should be 'pretrain', 'sft' or 'grpo', found 'rl'"),
        (["{cells}", "-o", "m", "--set", "kind=grpo"], "kind grpo aligns a trained model: set model.base to its fold"),
        (["{cells}", "-o", "m", "--set", "lora={{}}"], "lora adapts a trained model: set model.base to a folder or"),
        (["{cells}", "-o", "m", "--label", "cell_type", "--set", "push_to_hub=x"], "is named owner/name, found 'x'"),
    ],
)
def test_what_is_missing_is_told_in_one_line(
    command: Command, cells_file: Path, small_corpus: Corpus, arguments: list[str], message: str
) -> None:
    filled = [argument.format(cells=cells_file, corpus=small_corpus.folder) for argument in arguments]
    assert message in command("train", *filled).refusal


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.base=nowhere"], "no folder 'nowhere' here"),
        (["model.base={model}", "lora.targets=[foo]"], "lora.targets: no layer is called 'foo'"),
        (["optim.stop_on=foo"], "optim.stop_on must be loss or a task's metric"),
        (["report_to=[foo]"], "report_to foo: foo is not supported"),
        (["model.scratch.context_length=8"], "'does not fit the context': 40}; ask other tasks, or raise the context"),
        (
            ["kind=grpo", "model.base={model}", "grpo.rewards.overlap.weight=1", "grpo.probes=off", "report_to=[foo]"],
            "report_to foo: foo is not supported",
        ),
    ],
)
def test_what_is_refused_leaves_the_folder_as_it_was(
    command: Command,
    cells_file: Path,
    tiny_model_folder: Path,
    small: dict[str, Any],
    settings: list[str],
    message: str,
    tmp_path: Path,
) -> None:
    small.pop("tasks")
    recipe = _recipe(tmp_path / "r.yaml", **small, source=str(cells_file), label="cell_type")
    options = [x for value in settings for x in ("--set", value.format(model=tiny_model_folder))]
    result = command("train", "--recipe", recipe, "-o", tmp_path / "new", *options)
    assert result.code == 2
    assert message in result.err.splitlines()[-1]
    assert not (tmp_path / "new").exists()
    shutil.copytree(tiny_model_folder, tmp_path / "old")
    before = sorted((file.name, file.stat().st_mtime_ns) for file in (tmp_path / "old").iterdir())
    assert command("train", "--recipe", recipe, "-o", tmp_path / "old", *options, "--overwrite").code == 2
    assert sorted((file.name, file.stat().st_mtime_ns) for file in (tmp_path / "old").iterdir()) == before


def test_a_forecast_refuses_what_the_training_would(command: Command, cells_file: Path, tmp_path: Path) -> None:
    asked = ("--label", "cell_type", "--set", "tasks.tissue_annotation=1", "--dry-run")
    assert "task 'tissue_annotation' needs more than the genes" in command("train", cells_file, *asked).refusal


def test_the_card_is_written_again_with_test_metrics(
    command: Command, tiny_model_folder: Path, cells_file: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model_folder, tmp_path / "model")
    out = tmp_path / "evaluation"
    skipped = [x for name in ("control", "generation", "maps") for x in ("--set", f"{name}=false")]
    assert command("evaluate", cells_file, "--model", tmp_path / "model", "-o", out, *skipped, "--json").code == 0
    result = command("card", tmp_path / "model", "--evaluation", out, "--overwrite", "--json").result
    assert result == {"card": str(tmp_path / "model" / "README.md")}
    text = Path(result["card"]).read_text()
    rows = json.loads((out / "results.json").read_text())["results"]
    ours = next(row for row in rows if (row["method"], row["metric"]) == ("cytoglot", "macro_f1"))
    assert f"| annotation | macro_f1 | cytoglot | {ours['value']:.3f} ({ours['low']:.3f} to {ours['high']:.3f})" in text
    for method in {row["method"] for row in rows if row["metric"] == "macro_f1"}:
        assert f"| annotation | macro_f1 | {method} |" in text
    assert "no cytoglot.json" in command("card", tmp_path).refusal


def test_push_needs_a_network_and_a_name(
    command: Command, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model_folder, tmp_path / "model")
    assert "HF_HUB_OFFLINE must not be set" in command("push", tmp_path / "model", "me/cells").refusal
    assert "is named owner/name, found 'cells'" in command("push", tmp_path / "model", "cells").refusal
    made: list[bool] = []

    class Api:
        def create_repo(self, *, private: bool, **_: Any) -> str:
            made.append(private)
            return "https://hub/me/cells"

        def upload_folder(self, **_: Any) -> None:
            pass

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert command("push", tmp_path / "model", "me/cells", "--json").result == {"page": "https://hub/me/cells"}
    assert command("push", tmp_path / "model", "me/cells", "--public").code == 0
    assert made == [True, False]
