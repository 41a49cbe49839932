"""From 200 synthetic cells to a model, its answers, a table of results and a report, by the command line alone."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from anndata import AnnData

Command = Callable[..., Any]

#: Twice as wide and deep as the tiny model of other tests, which does not learn every small data set.
LARGER = ("hidden_size=64", "n_layers=2", "n_heads=4", "feed_forward=128")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")
@pytest.mark.filterwarnings("ignore:n_jobs value 1 overridden to 1:UserWarning")
def test_two_hundred_cells_to_a_report(command: Command, tiny_cli: list[str], cells: AnnData, tmp_path: Path) -> None:
    cells = cells[:200].copy()
    source, model, evaluation = tmp_path / "cells.h5ad", tmp_path / "model", tmp_path / "evaluation"
    cells.write_h5ad(source)

    findings = command("audit", source, "--label", "cell_type", "--json").result["findings"]
    assert not [f for f in findings if f["level"] == "error"]

    encoded = command("encode", source, "-o", tmp_path / "cells.parquet", "--text", "--json").result
    assert (encoded["cells"], encoded["genes"], encoded["empty_cells"]) == (200, 120, 0)

    arguments = ["--label", "cell_type", "--split-by", "donor", "-o", model, "--device", "cpu", *tiny_cli]
    arguments += [part for setting in LARGER for part in ("--set", f"model.scratch.{setting}")]
    trained = command("train", source, *arguments, "--json").result
    assert trained["labels"] == 3
    assert trained["validation_cells"] > 0

    split = json.loads((model / "split.json").read_text())
    test_cells = _test_cells(split)
    unlabelled = cells[test_cells].copy()
    truth = unlabelled.obs["cell_type"].astype(str).to_numpy()
    del unlabelled.obs["cell_type"]
    unlabelled.write_h5ad(tmp_path / "query.h5ad")
    majority = float(np.unique(truth, return_counts=True)[1].max() / len(truth))

    work = ["--model", model, "--device", "cpu", "--json"]
    command("annotate", tmp_path / "query.h5ad", *work, "-o", tmp_path / "annotated.h5ad")
    annotated = anndata.read_h5ad(tmp_path / "annotated.h5ad")
    accuracy = float((annotated.obs["cytoglot_cell_type_best"].astype(str).to_numpy() == truth).mean())
    assert accuracy > majority + 0.25

    command("embed", tmp_path / "annotated.h5ad", *work, "-o", tmp_path / "embedded.h5ad")
    embedded = anndata.read_h5ad(tmp_path / "embedded.h5ad")
    assert "cytoglot_cell_type" in embedded.obs, "the second command keeps what the first one wrote"
    assert _neighbor_agreement(embedded.obsm["X_cytoglot"], truth) > majority + 0.1

    for name in ("type A", "type B"):
        generated = command("generate", *work, "--cell-type", name, "-n", "8", "-o", tmp_path / f"{name}.h5ad").result
        assert (generated["invalid_genes"], generated["repeated_genes"]) == (0, 0)
    drawn = anndata.read_h5ad(tmp_path / "type A.h5ad")
    assert drawn.n_obs == 8
    assert (drawn.X.data >= 0).all()

    evaluated = command("evaluate", source, *work, "--label", "cell_type", "-o", evaluation).result
    judged = evaluated["results"]
    assert {"task", "method", "metric", "value", "low", "high", "n", "unit"} == set(judged[0])
    value = {(row["method"], row["metric"]): row["value"] for row in judged}
    assert value["cytoglot", "accuracy"] == pytest.approx(accuracy, abs=0.05)
    assert value["majority", "accuracy"] == pytest.approx(majority, abs=0.2)
    assert value["logistic_regression", "accuracy"] > majority
    # Three clean clusters may all be given a wrong label by chance, so the control can be far below a third.
    assert value["control: shuffled labels", "accuracy"] < 1 / 3 + 0.25
    assert value["cytoglot", "accuracy"] > value["control: shuffled labels", "accuracy"] + 0.2

    shown = command("report", evaluation, "--json").result
    page = Path(shown["html"]).read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", page), "the page loads from a network"
    assert "logistic regression" in page
    assert evaluated["knows_more_than_type"] in (True, False)
    assert evaluated["verdict"] in html.unescape(page)
    assert not list(tmp_path.glob(".*")), "no hidden work is left"


def _test_cells(split: dict[str, Any]) -> list[str]:
    return list(split["test"] if "test" in split else split["parts"]["test"])


def _neighbor_agreement(embedding_nd: np.ndarray, truth: np.ndarray) -> float:
    """Share of cells whose nearest neighbor has their type."""
    distance_nn = ((embedding_nd[:, None] - embedding_nd[None]) ** 2).sum(axis=2)
    np.fill_diagonal(distance_nn, np.inf)
    return float((truth[distance_nn.argmin(axis=1)] == truth).mean())
