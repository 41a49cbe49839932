"""The parts beside the language model: the profile that cells are written with, and the head that annotates too."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData
from scipy.special import log_softmax

import cytoglot as cg
from cytoglot.applications.outputs import model_settings
from cytoglot.cell_model.load import CellModel, load_cell_model
from cytoglot.cell_model.sentence_head import HEAD_FILE, rank_features
from cytoglot.errors import InputError, ResourceError
from cytoglot.sentence.profile import PROFILE_FILE


@pytest.fixture(scope="module")
def without_parts(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> CellModel:
    """The same model as an earlier version would have saved it."""
    folder = tmp_path_factory.mktemp("bare") / "model"
    shutil.copytree(tiny_model_folder, folder, ignore=shutil.ignore_patterns(PROFILE_FILE, HEAD_FILE))
    return load_cell_model(folder)


def test_the_folder_holds_both_and_a_model_without_them_still_loads(
    tiny_model: CellModel, without_parts: CellModel, cells: AnnData
) -> None:
    loaded = load_cell_model(str(tiny_model.folder))
    assert loaded.profile is not None
    assert loaded.head is not None
    assert (loaded.profile.fingerprint, loaded.head.fingerprint) == (
        tiny_model.profile.fingerprint,
        tiny_model.head.fingerprint,
    )
    assert (without_parts.profile, without_parts.head) == (None, None)
    assert without_parts.annotation_method() == "score"
    changed = cg.annotate(cells, without_parts, copy=True)
    assert changed.uns["cytoglot"]["annotation"]["method"] == "score"
    settings = model_settings(without_parts, "cell_type_annotation")
    assert settings["model"] != model_settings(loaded, "cell_type_annotation")["model"], "answers are not resumed"


def test_written_cells_follow_the_profile_and_nats_are_those_of_the_sampler(
    tiny_model: CellModel, without_parts: CellModel, cells: AnnData
) -> None:
    sentences = tiny_model.sentences(cells)[0][:40]
    labels = cells.obs["cell_type"].astype(str).tolist()[:40]
    own = tiny_model.sentence_nats(sentences, labels)
    assert own.shape == (40,)
    assert own.mean() < without_parts.sentence_nats(sentences, labels).mean() - 0.1
    shifted = [{"type A": "type B", "type B": "type C", "type C": "type A"}[name] for name in labels]
    assert own.mean() < tiny_model.sentence_nats(sentences, shifted).mean() - 0.05
    batched = tiny_model.sentence_nats(sentences, labels, batch_size=3)
    assert batched == pytest.approx(own, abs=1e-4)

    # The probability of what is sampled, summed over its words.
    lengths = np.array([5, 9])
    prompts, formats = tiny_model.generation_prompts("type A", lengths)
    from cytoglot.lm.generation.generate import sample_answers
    from cytoglot.lm.generation.sampling import Sampling

    answers = [found[0] for found in sample_answers(tiny_model.lm, prompts, formats, sampling=Sampling(seed=4))]
    from cytoglot.sentence.decode import decode_texts

    read, _ = decode_texts([one.text for one in answers], tiny_model.spec.vocabulary)
    expected = [-sum(one.word_log_probs) / n for one, n in zip(answers, lengths, strict=True)]
    assert tiny_model.sentence_nats(read, ["type A", "type A"]) == pytest.approx(expected, abs=1e-4)


def test_an_empty_cell_has_no_nats(tiny_model: CellModel, cells: AnnData) -> None:
    sentences = tiny_model.sentences(cells)[0][:2]
    empty = replace(sentences, offsets=np.zeros(3, np.int64), gene_ids=sentences.gene_ids[:0])
    assert np.isnan(tiny_model.sentence_nats(empty, ["type A", None])).all()


def test_the_head_is_softmax_regression_on_ranks(tiny_model: CellModel, cells: AnnData) -> None:
    sentences = tiny_model.sentences(cells)[0]
    features = rank_features(sentences).toarray()
    first = sentences.ids(0)
    assert features[0, first[0]] == 1
    assert features[0, first[1]] == pytest.approx(1 / np.log2(3))
    assert (features[0] > 0).sum() == len(first)
    by_hand = log_softmax(features @ tiny_model.head.coefficients_kg.T + tiny_model.head.intercept_k, axis=1)
    found = tiny_model.label_log_probabilities(sentences, method="head")
    assert found == pytest.approx(by_hand, abs=1e-4)
    truth = cells.obs["cell_type"].astype(str).to_numpy()
    assert (np.array(tiny_model.labels)[found.argmax(axis=1)] == truth).mean() > 0.9


def test_the_hybrid_is_the_weighted_mean_of_log_probabilities(tiny_model: CellModel, cells: AnnData) -> None:
    sentences = tiny_model.sentences(cells)[0][:30]
    fitted = tiny_model.spec.calibration.hybrid
    assert fitted is not None
    scored, head, mixed = (
        tiny_model.label_log_probabilities(sentences, method=how) for how in ("score", "head", "hybrid")
    )
    mean = (1 - fitted.head_weight) * scored + fitted.head_weight * head
    assert mixed == pytest.approx(log_softmax(mean / fitted.temperature, axis=1), abs=1e-9)
    assert np.exp(mixed).sum(axis=1) == pytest.approx(np.ones(30))


@pytest.mark.parametrize("how", ["score", "head", "hybrid"])
def test_annotate_says_how_and_takes_the_one_with_the_lower_validation_loss(
    how: str, tiny_model: CellModel, cells: AnnData
) -> None:
    changed = cg.annotate(cells[:20], tiny_model, method=how, copy=True)
    assert changed.uns["cytoglot"]["annotation"]["method"] == how
    expected = np.exp(tiny_model.label_log_probabilities(tiny_model.sentences(cells[:20])[0], method=how))
    assert changed.obsm["cytoglot_probabilities"].to_numpy() == pytest.approx(expected, abs=1e-6)
    fitted = tiny_model.spec.calibration
    for better in (True, False):
        hybrid = replace(fitted.hybrid, validation_loss=fitted.validation_loss + (-0.1 if better else 0.1))
        model = tiny_model.with_calibration(replace(fitted, hybrid=hybrid))
        assert model.annotation_method() == ("hybrid" if better else "score")


def test_the_head_knows_the_models_own_labels_alone(tiny_model: CellModel, without_parts: CellModel) -> None:
    assert tiny_model.annotation_method(labels=["type A", "other"]) == "score"
    with pytest.raises(InputError, match="method 'hybrid' is of its own labels alone; pass method 'score'"):
        tiny_model.annotation_method("hybrid", labels=["type A", "other"])
    with pytest.raises(InputError, match="method 'head' is not of this model, which has no sentence head"):
        without_parts.annotation_method("head")


def test_a_method_that_there_is_not_is_refused(tiny_model: CellModel, cells: AnnData) -> None:
    with pytest.raises(InputError, match="method must be one of auto, score, head, hybrid, found 'hybird'"):
        cg.annotate(cells[:5], tiny_model, method="hybird", copy=True)


def test_a_damaged_head_and_one_of_another_model_are_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    content = (folder / HEAD_FILE).read_bytes()
    (folder / HEAD_FILE).write_bytes(content[:-5])
    with pytest.raises(ResourceError, match=r"sentence_head\.safetensors is damaged"):
        load_cell_model(folder)
    (folder / HEAD_FILE).write_bytes(content)
    model = load_cell_model(folder)
    replace(model.head, coefficients_kg=model.head.coefficients_kg[:, 1:]).save(folder)
    with pytest.raises(InputError, match=r"is of \(3, \d+\) labels and genes, the model of \(3, \d+\)"):
        load_cell_model(folder)
