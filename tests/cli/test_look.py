"""info and recipes: what a model knows and what can be trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

Command = Callable[..., Any]
RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def test_info_shows_labels_genes_and_the_split(command: Command, tiny_model_folder: Path, tmp_path: Path) -> None:
    spec = json.loads((tiny_model_folder / "cytoglot.json").read_text())
    found = command("info", tiny_model_folder, "--json").result
    assert [row["label"] for row in found["labels"]] == spec["labels"]
    assert [row["training_cells"] for row in found["labels"]] == spec["label_counts"]
    assert found["genes"] == len(found["gene_names"])
    assert sum(found["cells_of_split"].values()) == 240
    text = command("info", tiny_model_folder).out
    assert all(label in text for label in spec["labels"])
    assert max(map(len, text.splitlines())) < 200
    assert "no cytoglot.json" in command("info", tmp_path).refusal


def test_recipes_are_listed_and_printed(command: Command) -> None:
    rows = command("recipes", "--json").result["recipes"]
    assert [row["recipe"] for row in rows] == sorted(path.stem for path in RECIPES.glob("*.yaml"))
    assert all(10 < len(row["for"]) < 160 for row in rows)
    shown = command("recipes", "show", "annotation").out
    assert yaml.safe_load(shown) == yaml.safe_load((RECIPES / "annotation.yaml").read_text())
    assert "unknown recipe 'anotation'" in command("recipes", "show", "anotation").refusal
    assert "expected `cytoglot recipes`" in command("recipes", "print").refusal
