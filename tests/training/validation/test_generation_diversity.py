"""Generated cells are as diverse as real ones at temperature 1, and a model whose cells are not is said to be unfit."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from anndata import AnnData

from cytoglot.cell_model.load import CellModel
from cytoglot.metrics.generation import pairwise_diversity
from cytoglot.training.cells import CellSample
from cytoglot.training.validation.calibrate import calibrate_model, generation_diversity


def _labels(cells: AnnData) -> np.ndarray:
    return cells.obs["cell_type"].astype(str).to_numpy(dtype=object)


def test_it_is_the_diversity_of_generated_cells_by_that_of_real_ones(tiny_model: CellModel, cells: AnnData) -> None:
    """The real cells here were generated at temperature 0.3, so cells of temperature 1 must be more diverse."""
    labels, sentences = _labels(cells), tiny_model.truncate(tiny_model.sentences(cells)[0])
    rows = [np.flatnonzero(labels == name)[:10] for name in tiny_model.spec.labels]
    chosen = np.concatenate(rows)
    parts = [
        tiny_model.generate_ids(name, sentences.lengths[part], temperature=0.3, seed=3)
        for name, part in zip(tiny_model.spec.labels, rows, strict=True)
    ]
    written = [words for part in parts for words in part]
    stand_in = replace(sentences[chosen], gene_ids=np.concatenate(written).astype(sentences.gene_ids.dtype))
    found = generation_diversity(tiny_model, stand_in, labels[chosen], seed=0)
    at_one = [
        pairwise_diversity(tiny_model.generate_ids(name, sentences.lengths[part], temperature=1.0, seed=8))
        for name, part in zip(tiny_model.spec.labels, rows, strict=True)
    ]
    expected = np.mean(at_one) / np.mean([pairwise_diversity(words) for words in parts])
    assert found == pytest.approx(expected, rel=0.15)
    assert found > 1.2


def test_a_trained_model_writes_as_diverse_cells_as_real_ones(tiny_model: CellModel) -> None:
    assert tiny_model.spec.calibration.generation_temperature == 1.0
    assert tiny_model.spec.calibration.generation_diversity == pytest.approx(1, abs=0.2)


def test_without_enough_cells_there_is_nothing_to_compare(tiny_model: CellModel, cells: AnnData) -> None:
    sentences = tiny_model.truncate(tiny_model.sentences(cells[:2])[0])
    assert generation_diversity(tiny_model, sentences, np.array(["type A", "type B"], dtype=object), seed=0) is None


def test_a_model_whose_cells_are_too_diverse_is_said_to_be_unfit(
    tiny_model: CellModel, cells: AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    hot = replace(tiny_model.spec.calibration, generation_temperature=3.0)
    sample = CellSample(sentences=tiny_model.sentences(cells)[0], metadata={"cell_type": _labels(cells)})
    with caplog.at_level(logging.WARNING):
        model = calibrate_model(tiny_model.with_calibration(hot), sample, generation=True, seed=0)
    assert model.spec.calibration.generation_diversity > 1.25
    assert model.spec.calibration.generation_temperature == 3.0, "it is kept and told, not fitted"
    assert "times as diverse as real cells of their type: the model has not learned to write cells" in caplog.text
