"""Temperature and threshold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData

from cytoglot.benchmark.evaluate import EvaluateSettings, evaluate
from cytoglot.cell_model.load import CellModel
from cytoglot.cell_model.spec import Calibration, CellModelSpec, HybridCalibration
from cytoglot.lm.model.tokenizer import encode_prompts
from cytoglot.training.cells import CellSample
from cytoglot.training.validation.calibrate import calibrate, calibrate_model

_FIRST, _SECOND = slice(None, 2500), slice(2500, None)


def _cells(n: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose right temperature is known: truth is drawn from softmax(scores / temperature)."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(scale=4, size=(n, 3))
    p = np.exp(scores / temperature)
    p /= p.sum(axis=1, keepdims=True)
    truth = np.array([rng.choice(3, p=row) for row in p])
    return scores, truth


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_that_made_the_labels_is_found(temperature: float) -> None:
    scores, truth = _cells(20_000, temperature)
    assert calibrate(scores, truth).temperature == pytest.approx(temperature, rel=0.05)


def test_threshold_keeps_95_percent_of_the_right_answers() -> None:
    scores, truth = _cells(5000, 2.0)
    found = calibrate(scores, truth)
    p = np.exp(scores / found.temperature)
    p /= p.sum(axis=1, keepdims=True)
    right = p.argmax(axis=1) == truth
    # The second half set the threshold, the first one the temperature alone.
    shares = [(p.max(axis=1)[half][right[half]] >= found.threshold).mean() for half in (_SECOND, _FIRST)]
    assert shares[0] == pytest.approx(0.95, abs=0.001)
    assert shares[1] == pytest.approx(0.95, abs=0.02)


def test_the_halves_of_many_cells_fit_different_things() -> None:
    scores, truth = _cells(5000, 2.0)
    before = calibrate(scores, truth)
    sharper = scores.copy()
    sharper[_SECOND] *= 2
    after = calibrate(sharper, truth)
    assert (after.temperature, after.validation_loss) == (before.temperature, before.validation_loss)
    assert after.threshold > before.threshold
    few = calibrate(scores[:200], truth[:200])  # too few to divide: every cell fits everything
    assert few.temperature != calibrate(scores[:100], truth[:100]).temperature


def test_labels_unknown_to_the_model_take_no_part() -> None:
    scores, truth = _cells(500, 1.0)
    more = calibrate(np.vstack([scores, scores]), np.concatenate([truth, np.full(500, -1)]))
    assert more == calibrate(scores, truth)
    assert more.n_validation == 500


def test_too_few_cells_leave_the_scores_alone() -> None:
    found = calibrate(np.zeros((1, 3)), np.array([0]))
    assert (found.temperature, found.threshold) == (1.0, 0.0)


# No better than one label for all cells

BELOW = Calibration(validation_accuracy=0.09, majority_accuracy=0.37, n_validation=40)


@pytest.mark.parametrize(
    ("ours", "majority", "warned"),
    [(0.09, 0.37, True), (0.37, 0.37, True), (0.38, 0.37, False), (1.0, 1.0, False), (None, None, False)],
)
def test_a_model_at_or_below_the_majority_label_is_warned_about(
    ours: float | None, majority: float | None, warned: bool
) -> None:
    calibration = Calibration(validation_accuracy=ours, majority_accuracy=majority, n_validation=40)
    assert (calibration.warning is not None) == warned


def test_the_warning_says_what_was_found_and_what_the_hybrid_finds() -> None:
    assert BELOW.warning is not None
    assert "finds the label of 9% of 40 validation cells, no more than the most frequent label" in BELOW.warning
    assert "(37%)" in BELOW.warning
    hybrid = HybridCalibration(head_weight=1.0, validation_loss=0.5, validation_accuracy=0.8)
    better = replace(BELOW, validation_loss=2.0, hybrid=hybrid).warning
    assert better == f"{BELOW.warning} (annotate averages it with the sentence head, and finds 80%)"
    assert replace(BELOW, validation_loss=0.1, hybrid=hybrid).warning == BELOW.warning


@pytest.mark.parametrize("turned", [False, True])
def test_accuracy_and_majority_are_those_of_the_cells(
    turned: bool, tiny_model: CellModel, cells: AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    model, labels = replace(tiny_model, head=None), tiny_model.spec.labels
    sentences, _ = model.sentences(cells[:60])
    truth = cells.obs["cell_type"].astype(str).to_numpy(dtype=object)[:60]
    if turned:  # every type has the name of the next
        truth = np.array([labels[(labels.index(name) + 1) % 3] for name in truth], dtype=object)
    found = calibrate_model(
        model, CellSample(sentences=sentences, metadata={"cell_type": truth}), generation=False, seed=0
    ).spec.calibration
    predicted = np.array(labels, dtype=object)[model.label_scores(sentences).argmax(axis=1)]
    assert found.validation_accuracy == pytest.approx((predicted == truth).mean())
    most_frequent = labels[int(np.argmax(model.spec.label_counts))]
    assert found.majority_accuracy == pytest.approx((truth == most_frequent).mean())
    assert ("has not learned to tell cell types" in caplog.text) == turned


@pytest.mark.parametrize(("n_learned", "n_scored"), [(None, 100), (0, 64), (10**7, 100)])
def test_fewer_cells_are_scored_where_all_would_cost_too_much_beside_the_training(
    n_learned: int | None, n_scored: int, tiny_model: CellModel, cells: AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    sample = _sample(tiny_model, cells[:100])
    found = calibrate_model(tiny_model, sample, generation=False, seed=0, n_learned=n_learned).spec.calibration
    assert (found.n_validation, found.n_not_scored) == (n_scored, 100 - n_scored)
    assert (f"{n_scored} of 100 validation cells are scored" in caplog.text) == (n_scored < 100)


def test_scoring_costs_a_quarter_of_the_training_at_most(tiny_model: CellModel, cells: AnnData) -> None:
    sample, model = _sample(tiny_model, cells[:100]), replace(tiny_model, head=None)
    prompts = model.cell_prompts(sample.sentences)
    n_tokens = np.mean([len(ids) for ids in encode_prompts(model.lm.tokenizer, [prompt.text for prompt in prompts])])
    # A learned token costs as much as three that are read.
    for views, factor in ((1, 1), (2, 1 + 2)):
        several = replace(model, spec=replace(model.spec, views=views))
        n_learned = int(80 * n_tokens * factor / 0.25 / 3)
        found = calibrate_model(several, sample, generation=False, seed=0, n_learned=n_learned).spec.calibration
        assert found.n_validation == pytest.approx(80, abs=2)


def _sample(model: CellModel, cells: AnnData) -> CellSample:
    return CellSample(
        sentences=model.sentences(cells)[0],
        metadata={"cell_type": cells.obs["cell_type"].astype(str).to_numpy(dtype=object)},
    )


def test_card_and_evaluation_repeat_the_warning(
    tiny_model: CellModel, cells: AnnData, tiny_model_folder: Path, tmp_path: Path
) -> None:
    import shutil

    from cytoglot.training.release.model_card import write_model_card

    assert tiny_model.spec.calibration.validation_accuracy is not None
    assert tiny_model.spec.calibration.warning is None
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    assert "**Warning:**" not in write_model_card(folder).read_text()
    spec = replace(CellModelSpec.load(folder), calibration=BELOW)
    spec.save(folder)
    assert CellModelSpec.load(folder).calibration == BELOW
    assert f"**Warning:** {BELOW.warning}." in write_model_card(folder).read_text()
    assert "not scored" not in (folder / "README.md").read_text()
    replace(spec, calibration=replace(BELOW, n_not_scored=1176)).save(folder)
    assert "On 40 validation cells (1,176 more were not scored" in write_model_card(folder).read_text()
    settings = EvaluateSettings(control=False, generation=False, probe=False, maps=False)
    found = evaluate(cells, replace(tiny_model, spec=spec), out=tmp_path / "e", settings=settings, device="cpu")
    assert BELOW.warning in found.messages
