"""The page holds what the folder holds, loads nothing, and survives odd labels and small evaluations."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cytoglot.errors import InputError
from cytoglot.report import figures
from cytoglot.report.html import write_report

ODD = "<b>T&B</b> $x"  # markup, an entity and an unfinished formula
LABELS = [ODD, "NK"]


def _row(task: str, method: str, metric: str, value: float | None, unit: str = "donor", n: int = 137) -> dict[str, Any]:
    low, high = (None, None) if value is None else (value - 0.1, value + 0.1)
    where = {"task": task, "method": method, "metric": metric}
    return {**where, "value": value, "low": low, "high": high, "n": n, "unit": unit}


CONTENT: dict[str, Any] = {
    "results.json": {
        "results": [
            _row("annotation", "cytoglot", "accuracy", 0.875),
            _row("annotation", "cytoglot", "macro_f1", None),
            _row("annotation", "logistic_regression", "accuracy", 0.5),
            _row("annotation", "cytoglot - logistic_regression", "accuracy_difference", 0.375),
            _row("generation", "cytoglot", "mean_overlap", 0.25, unit="cell_type", n=2),
            _row("generation", "cytoglot", "c2st_auc", 0.75, unit="cell_type", n=2),
            _row("generation", "plackett_luce_draw - cytoglot", "nats_per_word_difference", 0.15625, n=2),
            _row("reconstruction", "cytoglot", "r2_expressed", 0.625, unit="cell"),
        ],
        "meta": {"method": "cytoglot"},
        "knows_more_than_type": True,
        "verdict": "The model knows more of a cell than its type: 3 < 4.",
    },
    "data_card.json": {
        "n_cells": 500,
        "n_train": 300,
        "n_validation": 63,
        "n_test": 137,
        "matrix": {"message": "read X: integer counts"},
        "split_by": "donor",
        "unit": "donor",
        "labels": {ODD: 400, "NK": 100},
        "labels_unseen_in_training": ["mystery & co"],
        "vocabulary": "90 of 100 genes",
        "calibration": {"temperature": 1.5, "threshold": 0.4, "n_validation": 63},
        "messages": ["a message"],
    },
    "training.json": {
        "history": [
            {"step": 1, "train_loss": 3.0, "validation_loss": None},
            {"step": 2, "train_loss": 2.0, "validation_loss": 2.5},
        ]
    },
    "confusion.json": {"labels": LABELS, "counts": [[100, 20], [0, 17]]},
    "per_class.json": [
        {"method": "cytoglot", "label": name, "precision": 1.0, "recall": None, "f1": 0.5, "support": 9}
        for name in LABELS
    ],
    "calibration.json": [{"bin_low": 0.5, "bin_high": 1.0, "confidence": 0.9, "accuracy": 0.8, "n": 137}],
    "reconstruction.json": {
        "curves": [],
        "points": {
            "log_rank": [0.0, 1.0, 2.0],
            "expression": [2.0, 1.0, 0.5],
            "predicted": [2.1, 1.0, 0.4],
            "observed": [2.0, 1.0, 0.5],
        },
    },
    "generation.json": {
        "per_type": [],
        "generated_vs_real_2d": [
            {"cell_type": name, "method": method, "x": 0.1, "y": i}
            for i, name in enumerate(LABELS)
            for method in ("cytoglot", "held_out_cells")
        ],
        "markers": [
            {"cell_type": name, "gene": "A&B", "held_out": 0.9, "generated": 0.8, "other_types": 0.1} for name in LABELS
        ],
    },
    "timings.json": {"embedding": 1.25},
    "manifest.json": {"command": "evaluate", "seeds": {"seed": 0}},
}

#: file → a heading or a text that stands on the page because of it
SECTIONS = {
    "data_card.json": "The data",
    "training.json": "Training",
    "per_class.json": "recall",
    "calibration.json": "Calibration",
    "embedding_2d.parquet": "Embeddings",
    "reconstruction.json": "From ranks back to expression",
    "timings.json": "Timings and provenance",
    "confusion.json": "color is the share of the true type",
    "generation.json": "Crosses: generated cells",
}


def _folder(path: Path, *, only: str | None = None) -> Path:
    """Write the folder of an evaluation: all of its files, or the results and one other."""
    path.mkdir()
    for name, content in CONTENT.items():
        if only is None or name in ("results.json", only):
            (path / name).write_text(json.dumps(content), encoding="utf-8")
    if only in (None, "embedding_2d.parquet"):
        coordinates = {name: [0.0, 1.0] for name in ("umap_x", "umap_y", "pca_umap_x", "pca_umap_y")}
        pd.DataFrame({"cell_id": ["a", "b"], "truth": LABELS, **coordinates}).to_parquet(path / "embedding_2d.parquet")
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a whole evaluation."""
    written = write_report(_folder(tmp_path_factory.mktemp("report") / "evaluation"))
    assert written.name == "report.html"
    return written.read_text(encoding="utf-8")


class _Tags(HTMLParser):
    """Every opening tag with its attributes and its open ancestors."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.found.append((tag, values, list(self._open)))
        if tag not in {"meta", "br", "img", "link"}:
            self._open.append(f"{tag}.{values.get('class', '')}")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().split(".")[0] == tag, f"</{tag}> closes something else"


def _tags(page: str) -> list[tuple[str, dict[str, str | None], list[str]]]:
    parser = _Tags()
    parser.feed(page)
    assert not parser._open, f"never closed: {parser._open}"
    return parser.found


def test_the_page_loads_nothing(page: str) -> None:
    for tag, attributes, _ in _tags(page):
        assert tag not in {"script", "link", "iframe", "img"}
        for name in ("src", "href", "xlink:href"):
            assert not re.match(r"\s*(https?:)?//", attributes.get(name) or ""), attributes
    assert "@import" not in page
    assert "@font-face" not in page
    assert not re.search(r"url\(\s*['\"]?(?!#)", page), "only references into the page itself"


def test_the_page_is_made_for_a_phone(page: str) -> None:
    tags = _tags(page)
    viewport = [attributes for tag, attributes, _ in tags if tag == "meta" and attributes.get("name") == "viewport"]
    assert viewport[0]["content"] == "width=device-width, initial-scale=1"
    tables = [ancestors for tag, _, ancestors in tags if tag == "table"]
    assert tables
    assert all(ancestors[-1] == "div.scroll" for ancestors in tables)
    assert re.search(r"\.scroll \{[^}]*overflow-x: auto", page)


def test_the_page_states_how_many_cells_and_what_was_resampled(page: str) -> None:
    assert "the same 137 test cells" in page
    assert "Intervals are over whole groups of donor" in page
    assert "Intervals are over cell types (2)" in page
    assert "0.875<small>0.775 – 0.975</small>" in page
    assert "better than logistic regression (+37.5 points, 95 % interval +27.5 to +47.5)" in page
    assert "R² over expressed genes 0.625 (0.525 – 0.725)" in page


def test_generated_cells_have_two_tables_a_verdict_and_markers(page: str) -> None:
    assert "<b>The model knows more of a cell than its type: 3 &lt; 4.</b>" in page
    single, together = page.split("Is each cell one of its type?")[1].split("Are the cells together like real ones?")
    assert "overlap with held-out cells</th>" in single
    assert "told from real (AUC)" not in single
    assert "told from real (AUC)</th>" in together
    assert "0.750<small>0.650 – 0.850</small>" in together
    assert "nats per word difference" not in page, "the verdict has it"
    assert "Markers: the genes that most tell" in together


def test_names_of_methods_stay_in_sight_where_a_table_is_wider_than_the_page(page: str) -> None:
    assert re.search(r"\.scroll td:first-child \{[^}]*position: sticky", page)


def test_markers_are_drawn_narrow_enough_for_a_phone_and_once_in_the_legend() -> None:
    rows = [
        {"cell_type": name, "gene": f"GENE{i}", "held_out": 0.9, "generated": 0.5, "other_types": 0.0}
        for name in LABELS
        for i in range(4)
    ]
    svg = figures.markers(rows)
    width = float(re.search(r'width="([\d.]+)pt"', svg)[1])
    assert width <= 4.4 * 72, "at a page of 390 px a letter of 8 points then keeps 8 px or more"
    assert svg.count("real cells of other types") == 1
    assert all(f"GENE{i}" in svg for i in range(4))


def test_an_undefined_value_is_a_dash_and_no_zero(page: str) -> None:
    assert "<td>–<small></small></td>" in page
    assert "None" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)


def test_names_of_cell_types_are_text_and_no_markup(page: str) -> None:
    assert "<b>T&B" not in page
    assert "&lt;b&gt;T&amp;B&lt;/b&gt; $x" in page
    assert "mystery &amp; co" in page


@pytest.mark.parametrize(("file", "text"), SECTIONS.items())
def test_a_section_stands_where_its_file_does(page: str, file: str, text: str, tmp_path: Path) -> None:
    assert text in page
    short = write_report(_folder(tmp_path / "evaluation", only=file)).read_text(encoding="utf-8")
    assert [found for found in SECTIONS.values() if found in short] == [text]
    _tags(short)


def test_results_alone_make_a_page(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"results": []}))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    _tags(page)
    assert not any(text in page for text in [*SECTIONS.values(), "Annotation", "Generated cells"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"holds no results\.json; pass the folder that `cytoglot evaluate -o` wrote"),
        ("[1, 2]", "is not one of `cytoglot evaluate`"),
        ('{"accuracy": 0.9}', "is not one of `cytoglot evaluate`"),
        ('{"results": [{"accuracy": 0.9}]}', r"expected rows of high, low, method, metric, n, task, unit, value"),
        ('{"results": [', r"results\.json is damaged .*; run `cytoglot evaluate` again"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_folder_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist; pass the folder"):
        write_report(tmp_path / "nowhere")


NO_POINTS: dict[str, list[float]] = {"log_rank": [], "expression": [], "predicted": [], "observed": []}
EMPTY_MAP = pd.DataFrame(columns=["cell_id", "truth", "umap_x", "umap_y", "pca_umap_x", "pca_umap_y"])


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.training_curve([]),
        lambda: figures.training_curve([{"step": 1, "train_loss": 2.0, "validation_loss": None}]),
        lambda: figures.confusion_matrix([], []),
        lambda: figures.confusion_matrix(["T"], [[3]]),
        lambda: figures.confusion_matrix(["T", "unseen"], [[0, 0], [0, 0]]),
        lambda: figures.calibration([]),
        lambda: figures.calibration(CONTENT["calibration.json"]),
        lambda: figures.two_maps(EMPTY_MAP),
        lambda: figures.reconstruction(NO_POINTS),
        lambda: figures.reconstruction({name: [1.0] for name in NO_POINTS}),
        lambda: figures.generated_cells([]),
        lambda: figures.generated_cells([{"cell_type": "T", "method": "cytoglot", "x": 0.0, "y": 0.0}]),
        lambda: figures.markers([]),
        lambda: figures.markers(CONTENT["generation.json"]["markers"]),
        lambda: figures.method_bars([], "accuracy"),
        lambda: figures.method_bars([_row("annotation", "cytoglot", "accuracy", None)], "accuracy"),
        lambda: figures.method_bars([_row("annotation", "cytoglot", "accuracy", 1.0)], "accuracy"),
    ],
)
def test_figures_can_be_of_one_thing_or_nothing(draw: Any) -> None:
    svg = draw()
    assert svg.startswith("<svg")
    assert svg.rstrip().endswith("</svg>")


@pytest.mark.parametrize(("unit", "note"), [("cell", "too narrow for new donors"), ("donor", "whole groups of donor")])
def test_the_page_says_in_words_what_its_intervals_are_over(tmp_path: Path, unit: str, note: str) -> None:
    folder = _folder(tmp_path / "evaluation", only="results.json")
    rows = [_row("annotation", "cytoglot", "accuracy", 0.875, unit=unit)]
    (folder / "results.json").write_text(json.dumps({"results": rows}), encoding="utf-8")
    assert note in write_report(folder).read_text(encoding="utf-8")
