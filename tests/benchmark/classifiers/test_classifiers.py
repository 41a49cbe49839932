"""Annotation baselines: one contract for all that are registered, and equality with scikit-learn used by hand."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from cytoglot.benchmark.classifiers import CLASSIFIERS, Classifier
from cytoglot.benchmark.classifiers.base import merit, validation_rows
from cytoglot.benchmark.classifiers.logistic_regression import LogisticRegressionClassifier
from cytoglot.benchmark.classifiers.majority import Majority
from cytoglot.benchmark.classifiers.nearest_neighbors import NearestNeighbors
from cytoglot.data.synthetic import make_cells
from cytoglot.errors import InputError, UnknownNameError, VocabularyMismatchError

CELLS = make_cells(n_cells=240, n_genes=120, n_types=3, seed=1)
LABELS = CELLS.obs["cell_type"].astype(str).to_numpy(dtype=object)
TRAIN, VALIDATION, TEST = CELLS[:140], CELLS[140:180], CELLS[180:]
TRAIN_LABELS, VALIDATION_LABELS, TEST_LABELS = LABELS[:140], LABELS[140:180], LABELS[180:]


@pytest.fixture(params=[name for name in CLASSIFIERS if name not in ("given", "cytoglot")])
def make(request: pytest.FixtureRequest) -> type[Classifier]:
    return CLASSIFIERS[request.param]


def fitted(make: type[Classifier], seed: int = 0) -> Classifier:
    return make(seed=seed).fit(TRAIN, TRAIN_LABELS, VALIDATION, VALIDATION_LABELS)


def ln_cp10k(adata: AnnData) -> csr_matrix:
    counts = np.asarray(adata.X.todense(), dtype=np.float64)
    return csr_matrix(np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4).astype(np.float32))


def test_probabilities_are_those_of_the_sorted_training_labels(make: type[Classifier]) -> None:
    baseline = fitted(make)
    probabilities = baseline.predict_proba(TEST)
    assert baseline.labels == tuple(sorted(set(TRAIN_LABELS)))
    assert probabilities.shape == (TEST.n_obs, 3)
    assert probabilities.dtype == np.float64
    assert (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_the_order_of_cells_and_genes_does_not_matter_to_a_cell(make: type[Classifier]) -> None:
    baseline = fitted(make)
    rng = np.random.default_rng(0)
    cells, genes = rng.permutation(TEST.n_obs), rng.permutation(TEST.n_vars)
    shuffled = baseline.predict_proba(TEST[cells][:, genes])
    np.testing.assert_allclose(shuffled, baseline.predict_proba(TEST)[cells], atol=1e-5)


def test_input_is_untouched_and_the_same_seed_gives_the_same_answer(make: type[Classifier]) -> None:
    train, test = TRAIN.copy(), TEST.copy()
    first = make(seed=3).fit(train, TRAIN_LABELS).predict_proba(test)
    second = make(seed=3).fit(train, TRAIN_LABELS).predict_proba(test)
    np.testing.assert_array_equal(first, second)
    assert (train.X != TRAIN.X).nnz == 0
    assert (test.X != TEST.X).nnz == 0


def test_log_values_give_what_counts_give(make: type[Classifier]) -> None:
    train, validation, test = (AnnData(ln_cp10k(part), var=part.var) for part in (TRAIN, VALIDATION, TEST))
    logs = make().fit(train, TRAIN_LABELS, validation, VALIDATION_LABELS)
    np.testing.assert_allclose(logs.predict_proba(test), fitted(make).predict_proba(TEST), atol=2e-3)


def test_no_query_cells_give_no_rows(make: type[Classifier]) -> None:
    assert fitted(make).predict_proba(TEST[:0]).shape == (0, 3)


def test_an_empty_validation_set_is_as_good_as_none(make: type[Classifier]) -> None:
    first = make().fit(TRAIN, TRAIN_LABELS).predict_proba(TEST)
    second = make().fit(TRAIN, TRAIN_LABELS, VALIDATION[:0], VALIDATION_LABELS[:0]).predict_proba(TEST)
    np.testing.assert_array_equal(first, second)


def test_a_validation_label_that_training_never_saw_is_no_fault(make: type[Classifier]) -> None:
    baseline = make().fit(TRAIN, TRAIN_LABELS, VALIDATION, ["new type", *VALIDATION_LABELS[1:]])
    assert "new type" not in baseline.labels


def test_labels_must_be_given_for_every_cell(make: type[Classifier]) -> None:
    with pytest.raises(InputError, match=r"one label per cell, found 139 labels for 140 cells"):
        make().fit(TRAIN, TRAIN_LABELS[1:])
    with pytest.raises(InputError, match=r"1 of 140 cells have no label; leave them out"):
        make().fit(TRAIN, [None, *TRAIN_LABELS[1:]])
    with pytest.raises(InputError, match=r"1 of 140 cells have no label"):
        make().fit(TRAIN, [float("nan"), *TRAIN_LABELS[1:]])


@pytest.mark.parametrize("make", [LogisticRegressionClassifier, NearestNeighbors])
def test_query_cells_without_a_training_gene_are_refused(make: type[Classifier]) -> None:
    name = CELLS.var_names[-1]
    with pytest.raises(VocabularyMismatchError, match=f"1 of the 120 genes .* not in these cells, such as '{name}'"):
        fitted(make).predict_proba(TEST[:, :-1])


@pytest.mark.parametrize("make", [LogisticRegressionClassifier, NearestNeighbors])
def test_methods_that_look_at_genes_beat_the_majority_and_lose_to_chance_on_shuffled_labels(
    make: type[Classifier],
) -> None:
    def accuracy(baseline: Classifier) -> float:
        predicted = np.array(baseline.labels, dtype=object)[baseline.predict_proba(TEST).argmax(axis=1)]
        return float((predicted == TEST_LABELS).mean())

    assert accuracy(fitted(make)) > accuracy(fitted(Majority)) + 0.4
    shuffled = np.random.default_rng(0).permutation(TRAIN_LABELS)
    assert accuracy(make().fit(TRAIN, shuffled)) < 0.6


def test_majority_is_the_frequency_of_the_training_labels() -> None:
    majority = Majority().fit(CELLS[:5], ["b", "a", "b", "b", "c"])
    assert majority.labels == ("a", "b", "c")
    np.testing.assert_allclose(majority.predict_proba(CELLS[:2]), [[0.2, 0.6, 0.2]] * 2)
    with pytest.raises(InputError, match=r"needs labelled training cells, found none"):
        Majority().fit(CELLS[:0], [])


def test_logistic_regression_is_that_of_scikit_learn_on_ln_cp10k() -> None:
    ours = LogisticRegressionClassifier(strengths=(0.1,), max_iter=2000)
    ours.fit(TRAIN, TRAIN_LABELS, VALIDATION, VALIDATION_LABELS)
    x, query = ln_cp10k(TRAIN), ln_cp10k(TEST)
    if ours.chosen["transform"].startswith("StandardScaler"):
        deviation = x.toarray().std(axis=0)
        scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 1e-6)
        x, query = x.multiply(scale).tocsr(), query.multiply(scale).tocsr()
    theirs = LogisticRegression(C=0.1, max_iter=2000).fit(x, TRAIN_LABELS.astype(str))
    np.testing.assert_allclose(ours.predict_proba(TEST), theirs.predict_proba(query), atol=5e-3)


def test_the_chosen_step_of_the_path_is_kept_as_it_was_fitted() -> None:
    # Labels without meaning, one of them rare: the strongest penalty always says the frequent one and is right.
    labels = np.where(np.random.default_rng(0).random(TRAIN.n_obs) < 0.3, "b", "a").astype(object)
    both, alone = (
        LogisticRegressionClassifier(strengths=strengths).fit(TRAIN, labels, VALIDATION, ["a"] * VALIDATION.n_obs)
        for strengths in ((0.0001, 10.0), (0.0001,))
    )
    assert both.chosen["C"] == 0.0001
    np.testing.assert_array_equal(both.pipeline[-1].coef_, alone.pipeline[-1].coef_)


def test_nearest_neighbors_are_those_of_scikit_learn_on_components() -> None:
    ours = fitted(NearestNeighbors)
    x, query = ln_cp10k(TRAIN).toarray(), ln_cp10k(TEST).toarray()
    pca = PCA(50, svd_solver="full").fit(x)
    theirs = KNeighborsClassifier(int(ours.chosen["n_neighbors"])).fit(pca.transform(x), TRAIN_LABELS.astype(str))
    assert ours.pipeline[0].n_components_ == 50
    same = (ours.predict_proba(TEST) == theirs.predict_proba(pca.transform(query))).all(axis=1)
    assert same.mean() > 0.95  # equal distances aside


def test_what_is_chosen_follows_the_validation_cells() -> None:
    rng = np.random.default_rng(4)
    x = csr_matrix(rng.poisson(5, (60, 30)))
    adata = AnnData(x.astype(np.float32))
    labels = np.array(["a"] * 45 + ["b"] * 15, dtype=object)
    own = NearestNeighbors(n_neighbors=(30, 1)).fit(adata, labels, adata, labels)  # one's own nearest is oneself
    assert own.chosen["n_neighbors"] == 1
    most = NearestNeighbors(n_neighbors=(1, 30)).fit(adata, labels, adata[:45], labels[:45])
    assert most.chosen["n_neighbors"] == 1


def test_the_better_candidate_has_more_merit_and_of_equals_the_likelier() -> None:
    truth, labels = np.array(["a", "b"], dtype=object), ["a", "b"]
    bold, shy, wrong = ([[p, 1 - p], [1 - p, p]] for p in (0.9, 0.6, 0.1))
    assert merit(truth, np.array(bold), labels) > merit(truth, np.array(shy), labels)
    assert merit(truth, np.array(shy), labels) > merit(truth, np.array(wrong), labels)
    assert merit(truth, np.array(bold), labels)[0] == merit(truth, np.array(shy), labels)[0]


def test_a_fifth_is_held_back_unless_a_label_would_be_lost() -> None:
    fitted_on, chosen_on = validation_rows(TRAIN_LABELS, seed=0)
    assert (len(fitted_on), len(chosen_on)) == (112, 28)
    fitted_on, chosen_on = validation_rows(np.array(["a", "b", "c", "d", "e"], dtype=object), seed=0)
    assert (len(fitted_on), len(chosen_on)) == (5, 0)
    first = NearestNeighbors(n_neighbors=(4, 1)).fit(TRAIN[:5], ["a", "b", "c", "d", "e"])
    assert first.chosen["n_neighbors"] == 4


def test_too_little_to_learn_from_is_refused() -> None:
    with pytest.raises(InputError, match=r"needs at least two labels, found only 'a'"):
        LogisticRegressionClassifier().fit(TRAIN[:4], ["a"] * 4)
    with pytest.raises(InputError, match=r"at least 3 cells and 3 genes, found \(2, 120\)"):
        NearestNeighbors().fit(TRAIN[:2], ["a", "b"])
    with pytest.raises(UnknownNameError, match=r"unknown classifier 'logistic'; did you mean 'logistic_regression'"):
        CLASSIFIERS["logistic"]
