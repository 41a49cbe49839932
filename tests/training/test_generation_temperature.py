"""The temperature of generation brings the diversity of generated cells to that of real ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from anndata import AnnData

from cytoglot.cell_model.load import CellModel
from cytoglot.metrics.generation import pairwise_diversity
from cytoglot.training.validation.calibrate import generation_temperature


def _diversity(model: CellModel, name: str, lengths: np.ndarray, temperature: float) -> float:
    return pairwise_diversity(model.generate_ids(name, lengths, temperature=temperature, seed=1))


def test_diversity_meets_that_of_the_real_cells(tiny_model: CellModel, cells: AnnData) -> None:
    """The real cells here are cells of the model at temperature 0.5, which is thus the right answer."""
    labels = cells.obs["cell_type"].astype(str).to_numpy(dtype=object)
    sentences = tiny_model.truncate(tiny_model.sentences(cells)[0])
    rows = [np.flatnonzero(labels == name)[:10] for name in tiny_model.spec.labels]
    chosen = np.concatenate(rows)
    parts = [
        tiny_model.generate_ids(name, sentences.lengths[part], temperature=0.5, seed=3)
        for name, part in zip(tiny_model.spec.labels, rows, strict=True)
    ]
    written = [words for part in parts for words in part]
    stand_in = replace(sentences[chosen], gene_ids=np.concatenate(written).astype(sentences.gene_ids.dtype))
    found = generation_temperature(tiny_model, stand_in, labels[chosen], seed=0)
    assert 0.3 < found < 0.75


def test_a_lower_temperature_is_less_diverse(tiny_model: CellModel) -> None:
    lengths = np.full(8, 15)
    assert _diversity(tiny_model, "type A", lengths, 0.3) < _diversity(tiny_model, "type A", lengths, 1.0)


def test_without_enough_cells_it_stays_at_one(tiny_model: CellModel, cells: AnnData) -> None:
    sentences = tiny_model.truncate(tiny_model.sentences(cells[:2])[0])
    assert generation_temperature(tiny_model, sentences, np.array(["type A", "type B"], dtype=object), seed=0) == 1.0
