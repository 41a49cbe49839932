"""`cytoglot.json`: what is written is read, and damage is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cytoglot.cell_model.load import CellModel
from cytoglot.cell_model.spec import Calibration, CellModelSpec, load_split
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError
from cytoglot.sentence.cell_sentence import RankSettings


@pytest.fixture
def spec() -> CellModelSpec:
    return CellModelSpec(
        vocabulary=GeneVocabulary(symbols=("CD3D", "MS4A1", "LYZ")),
        ranking=RankSettings(top_genes=2, ties="rare_first"),
        tie_rates=(0.1, 0.25, 1 / 3),
        labels=("B cell", "T cell"),
        label_counts=(3, 4),
        words_per_label={"B cell": (1, 1, 2, 2, 2)},
        context={"organism": "human"},
        tasks=("cell_type_annotation",),
        calibration=Calibration(temperature=1.5, threshold=0.4, n_validation=7),
    )


def test_what_is_saved_is_loaded(spec: CellModelSpec, tmp_path: Path) -> None:
    spec.save(tmp_path)
    assert CellModelSpec.load(tmp_path) == spec


def test_a_trained_spec_is_saved_and_loaded_exactly(tiny_model: CellModel, tmp_path: Path) -> None:
    tiny_model.spec.save(tmp_path)
    assert CellModelSpec.load(tmp_path) == tiny_model.spec
    rates = tiny_model.spec.tie_rates_g
    assert rates is not None
    np.testing.assert_array_equal(CellModelSpec.load(tmp_path).tie_rates_g, rates)


def test_lengths_that_do_not_fit_are_refused(spec: CellModelSpec) -> None:
    with pytest.raises(ValueError, match="2 labels but 1 counts"):
        replace(spec, label_counts=(1,))
    with pytest.raises(ValueError, match="1 tie rates for 3 genes"):
        replace(spec, tie_rates=(0.5,))


def test_a_vocabulary_changed_by_hand_is_refused(spec: CellModelSpec, tmp_path: Path) -> None:
    spec.save(tmp_path)
    path = tmp_path / "cytoglot.json"
    path.write_text(path.read_text().replace("MS4A1", "MS4A2"))
    with pytest.raises(InputError, match=r"does not fit its fingerprint .*the file was changed after it was written"):
        CellModelSpec.load(tmp_path)


def test_a_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cytoglot.json").write_text("{")
    with pytest.raises(InputError, match=r"cytoglot.json is not valid JSON .*copy the model folder again"):
        CellModelSpec.load(tmp_path)


def test_a_released_checkpoint_has_no_split(tmp_path: Path, tiny_model_folder: Path) -> None:
    assert load_split(tmp_path) is None
    split = load_split(tiny_model_folder)
    assert split is not None
    assert split.to_dict() == json.loads((tiny_model_folder / "split.json").read_text())
