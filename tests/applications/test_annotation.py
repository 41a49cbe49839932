"""Annotation: probabilities that are probabilities, labels that are labels, and doubt where there is doubt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from anndata import AnnData
from scipy.special import softmax

from cytoglot.applications.annotation import KEY, UNASSIGNED, LabelProbabilities, annotate, label_probabilities
from cytoglot.cell_model.load import CellModel
from cytoglot.cell_model.spec import Calibration, load_split
from cytoglot.errors import InputError


def test_best_confidence_and_top_by_hand() -> None:
    beliefs = LabelProbabilities(labels=("A", "B", "C"), probability_nk=np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]]))
    assert list(beliefs.best) == ["B", "A"]  # the first of equals
    assert list(beliefs.confidence) == [0.5, 0.4]
    assert beliefs.top(2) == ["B (0.50), C (0.30)", "A (0.40), B (0.40)"]


def test_probabilities_are_the_scores_at_the_models_temperature(tiny_model: CellModel, cells: AnnData) -> None:
    sentences, _ = tiny_model.sentences(cells[:8])
    scores_nk = tiny_model.label_scores(sentences)
    for temperature in (0.5, 1.0, 4.0):
        model = tiny_model.with_calibration(Calibration(temperature=temperature))
        found = label_probabilities(model, sentences).probability_nk
        np.testing.assert_allclose(found, softmax(scores_nk / temperature, axis=1), atol=1e-5)


def test_held_out_cells_are_mostly_right(tiny_model: CellModel, cells: AnnData) -> None:
    assert tiny_model.folder is not None
    split = load_split(tiny_model.folder)
    assert split is not None
    held_out = cells[split.mask(cells.obs_names, "test")]
    best = annotate(held_out, tiny_model).obs[f"{KEY}_best"].astype(str)
    assert (best.to_numpy() == held_out.obs["cell_type"].astype(str).to_numpy()).mean() > 0.7


def test_the_input_is_not_changed_unless_asked(tiny_model: CellModel, cells: AnnData) -> None:
    some = cells[:6].copy()
    assert annotate(some, tiny_model) is not some
    assert list(some.obs.columns) == list(cells.obs.columns)
    assert not some.uns
    assert annotate(some, tiny_model, copy=False) is some
    assert KEY in some.obs
    assert some.uns["cytoglot"]["annotation"]["labels"] == list(tiny_model.spec.labels)


def test_labels_in_the_query_are_not_read(tiny_model: CellModel, cells: AnnData) -> None:
    lying = cells[:10].copy()
    lying.obs["cell_type"] = "type A"
    honest = annotate(cells[:10], tiny_model).obsm["cytoglot_probabilities"]
    np.testing.assert_array_equal(annotate(lying, tiny_model).obsm["cytoglot_probabilities"], honest)


def test_a_threshold_leaves_cells_unassigned_but_keeps_the_best_label(tiny_model: CellModel, cells: AnnData) -> None:
    doubtful = tiny_model.with_calibration(Calibration(temperature=1e6, threshold=0.5))  # all probabilities near 1/3
    obs = annotate(cells[:6], doubtful).obs
    assert set(obs[KEY]) == {UNASSIGNED}
    assert set(obs[f"{KEY}_best"]) <= set(doubtful.spec.labels)
    assert set(annotate(cells[:6], doubtful, threshold=0.0).obs[KEY]) <= set(doubtful.spec.labels)


def test_the_calibrated_threshold_is_for_the_models_own_labels(tiny_model: CellModel, cells: AnnData) -> None:
    doubtful = tiny_model.with_calibration(Calibration(temperature=1e6, threshold=0.9))
    obs = annotate(cells[:6], doubtful, labels=("B cell", "T cell")).obs
    assert UNASSIGNED not in set(obs[KEY])


def test_labels_get_their_cell_ontology_terms(tiny_model: CellModel, cells: AnnData) -> None:
    annotated = annotate(cells[:6], tiny_model, labels=("B cell", "no such cell at all"))
    assert set(annotated.obs[f"{KEY}_ontology_term_id"]) <= {"CL:0000236", "unknown"}
    assert annotated.uns["cytoglot"]["annotation"]["labels_without_ontology_term"] == ["no such cell at all"]


def test_fewer_than_two_labels_are_refused(tiny_model: CellModel, cells: AnnData) -> None:
    unlabelled = replace(tiny_model, spec=replace(tiny_model.spec, labels=(), label_counts=()))
    with pytest.raises(InputError, match="at least two distinct labels, found 0; pass --labels FILE"):
        annotate(cells[:2], unlabelled)
    with pytest.raises(InputError, match="at least two distinct labels, found 2"):
        annotate(cells[:2], tiny_model, labels=("B cell", "B cell"))


def test_free_answers_are_read_and_others_left_unassigned(tiny_model: CellModel, cells: AnnData) -> None:
    obs = annotate(cells[:8], tiny_model, method="generate").obs
    assert set(obs[KEY]) <= {*tiny_model.spec.labels, UNASSIGNED}
    for label, text in zip(obs[KEY], obs[f"{KEY}_text"], strict=True):
        assert label == UNASSIGNED or label.lower() in text.lower()
