"""Generated cells beside the baselines that keep their overlap honest."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from cytoglot.benchmark.generation import MIN_CELLS, GenerationEvaluation, evaluate_generation
from cytoglot.benchmark.generation_summary import HELD_OUT, NATS_DIFFERENCE, PLACKETT_LUCE, REAL, verdict
from cytoglot.benchmark.results import OURS, ResultRow
from cytoglot.cell_model.load import CellModel
from cytoglot.cell_model.spec import load_split
from cytoglot.sentence.cell_sentence import CellSentences

METHODS = {OURS, PLACKETT_LUCE, "type_profile_draw", "type_profile_top", REAL}
#: what would compare held-out cells with themselves
OF_OTHERS = {"c2st_auc", "energy_distance", "coverage", "component_variance_ratio"}


@pytest.fixture(scope="module")
def model(tiny_model: CellModel) -> CellModel:
    """The shared model with sentences of ten genes, so that all are of one length."""
    return replace(tiny_model, spec=replace(tiny_model.spec, ranking=replace(tiny_model.spec.ranking, top_genes=10)))


@pytest.fixture(scope="module")
def parts(cells: AnnData, model: CellModel) -> dict[str, Any]:
    """Sentences and labels of training and test cells."""
    split = load_split(model.folder)
    assert split is not None
    ranking = replace(model.spec.ranking, ties="random")
    untied = replace(model, spec=replace(model.spec, ranking=ranking, tie_rates=None))
    sentences = untied.truncate(untied.sentences(cells)[0])
    labels = cells.obs["cell_type"].astype(str).to_numpy(dtype=object)
    train, test = (np.flatnonzero(split.mask(cells.obs_names, part)) for part in ("train", "test"))
    return {
        "train": sentences[train],
        "train_labels": labels[train],
        "test": sentences[test],
        "test_labels": labels[test],
    }


@pytest.fixture(scope="module")
def result(model: CellModel, parts: dict[str, Any]) -> GenerationEvaluation:
    return evaluate_generation(model, **parts, max_cells=6, seed=1)


@pytest.fixture(scope="module")
def value(result: GenerationEvaluation) -> dict[tuple[str, str], float | None]:
    return {(row.method, row.metric): row.value for row in result.rows}


def test_overlap_never_stands_alone(result: GenerationEvaluation) -> None:
    difference = f"{PLACKETT_LUCE} - {OURS}"
    assert {row.method for row in result.rows} == METHODS | {HELD_OUT, difference}
    for method in METHODS | {HELD_OUT}:
        metrics = {row.metric for row in result.rows if row.method == method}
        assert {"mean_overlap", "pairwise_diversity", "diversity_ratio_to_real", "knn_type_agreement"} <= metrics
    assert {(row.n, row.unit) for row in result.rows} == {(3, "cell_type")}


def test_every_word_is_a_gene_and_none_comes_twice(value: dict[tuple[str, str], float]) -> None:
    for method in METHODS:
        assert value[method, "validity"] == 1
        assert value[method, "duplicate_share"] == 0


def test_the_mean_profile_overlaps_most_and_has_no_diversity(value: dict[tuple[str, str], float]) -> None:
    assert value["type_profile_top", "pairwise_diversity"] == pytest.approx(0)
    assert value["type_profile_top", "diversity_ratio_to_real"] == pytest.approx(0)
    assert value["type_profile_top", "mean_overlap"] > value["real_training_cells", "mean_overlap"]
    assert 0.8 < value["real_training_cells", "diversity_ratio_to_real"] < 1.2


def test_held_out_cells_are_not_compared_with_themselves(value: dict[tuple[str, str], float]) -> None:
    assert all(value.get((HELD_OUT, metric)) is None for metric in OF_OTHERS)
    assert all(value[method, metric] is not None for method in METHODS for metric in OF_OTHERS)
    assert 0.3 < value[HELD_OUT, "mean_overlap"] < 1  # pairs of different cells
    assert value[HELD_OUT, "coexpression_agreement"] is not None


def test_real_cells_pass_for_real_and_the_profile_does_not(value: dict[tuple[str, str], float]) -> None:
    assert value["type_profile_top", "c2st_auc"] == 1
    assert abs(value[REAL, "c2st_auc"] - 0.5) < 0.3
    assert value[REAL, "energy_distance"] < value["type_profile_top", "energy_distance"]
    assert value[REAL, "coverage"] >= value["type_profile_top", "coverage"]
    assert value["type_profile_top", "component_variance_ratio"] == pytest.approx(0)
    assert value["type_profile_top", "coexpression_agreement"] is None
    assert value[REAL, "memorized_share"] == pytest.approx(0.5, abs=0.25)


def test_nats_are_of_the_model_and_of_the_profile_and_their_difference_is_paired(
    result: GenerationEvaluation, value: dict[tuple[str, str], float], model: CellModel, parts: dict[str, Any]
) -> None:
    methods = {row.method for row in result.rows if row.metric == "nats_per_word" and row.value is not None}
    assert methods == {OURS, PLACKETT_LUCE}
    gain = value[f"{PLACKETT_LUCE} - {OURS}", NATS_DIFFERENCE]
    assert gain == pytest.approx(value[PLACKETT_LUCE, "nats_per_word"] - value[OURS, "nats_per_word"])
    everything = evaluate_generation(model, **parts, max_cells=1000, seed=1)
    test, labels = parts["test"], parts["test_labels"]
    nats = model.sentence_nats(test, list(labels))
    expected = np.mean([nats[labels == name].mean() for name in sorted(set(labels))])
    found = {(row.method, row.metric): row.value for row in everything.rows}
    assert found[OURS, "nats_per_word"] == pytest.approx(expected, rel=1e-4)


def test_markers_are_genes_of_their_type(result: GenerationEvaluation, parts: dict[str, Any]) -> None:
    train, labels = parts["train"], parts["train_labels"]
    assert len({entry["cell_type"] for entry in result.markers}) == 3
    for entry in result.markers:
        has = np.array([entry["gene"] in train.words(i) for i in range(len(train))])
        name = entry["cell_type"]
        elsewhere = np.mean([has[labels == other].mean() for other in set(labels) - {name}])
        assert entry["other_types"] == pytest.approx(elsewhere)
        assert has[labels == name].mean() > elsewhere
        assert {0 <= entry[who] <= 1 for who in ("held_out", "generated")} == {True}


def _verdict_rows(low: float | None, ours: float | None) -> list[ResultRow]:
    def row(method: str, metric: str, value: float | None, low: float | None = None) -> ResultRow:
        high = None if low is None else low + 0.2
        where = {"task": "generation", "method": method, "metric": metric}
        return ResultRow(**where, value=value, low=low, high=high, n=4, unit="cell_type")

    gain = None if low is None else low + 0.1
    return [
        row(OURS, "c2st_auc", ours),
        row(PLACKETT_LUCE, "c2st_auc", 0.8),
        row(f"{PLACKETT_LUCE} - {OURS}", NATS_DIFFERENCE, gain, low),
    ]


@pytest.mark.parametrize(
    ("low", "ours", "answer", "start"),
    [
        (0.05, 0.7, True, "The model knows more of a cell than its type: a word of a held-out cell costs the model"),
        (0.05, 0.9, False, "It is not shown that the model knows more"),
        (-0.05, 0.7, False, "It is not shown that the model knows more"),
        (-0.3, 0.7, False, "It is not shown that the model knows more of a cell than its type: a word of a held-out "
         "cell costs the model 0.200 nats more"),
        (None, 0.7, None, "It cannot be said whether the model knows more"),
        (0.05, None, None, "It cannot be said whether the model knows more of a cell than its type: too few cells"),
    ],
)  # fmt: skip
def test_the_verdict_needs_nats_by_interval_and_the_two_sample_test(
    low: float | None, ours: float | None, answer: bool | None, start: str
) -> None:
    found = verdict(_verdict_rows(low, ours))
    assert found.answer is answer
    assert found.sentence.startswith(start)
    assert found.to_dict() == {"knows_more_than_type": answer, "verdict": found.sentence}


def test_the_model_writes_the_type_it_is_asked_for(value: dict[tuple[str, str], float]) -> None:
    assert value["cytoglot", "knn_type_agreement"] > 1 / 3 + 0.3


class RandomWriter:
    """A generator without knowledge, of random sentences, and cells of the same kind under labels without meaning."""

    def __init__(self, like: CellSentences, labels: str) -> None:
        self.rng, self.like = np.random.default_rng(0), like
        self.spec = SimpleNamespace(
            labels=tuple(labels), vocabulary=like.vocabulary, calibration=SimpleNamespace(generation_temperature=1)
        )

    def draw(self, n: int) -> np.ndarray:
        return np.array([self.rng.permutation(60)[:20] for _ in range(n)])

    def generate_ids(self, name: str, lengths: np.ndarray, **options: Any) -> list[np.ndarray]:
        return list(self.draw(len(lengths)))

    def sentence_nats(self, sentences: CellSentences, labels: list[str]) -> np.ndarray:
        """Each gene is as likely as any other that is not yet written."""
        left = len(self.like.vocabulary) - np.arange(20)
        return np.full(len(sentences), np.log(left).mean())

    def sentences(self, ids: np.ndarray) -> CellSentences:
        return CellSentences(
            cell_ids=np.arange(len(ids)).astype(str),
            offsets=np.arange(len(ids) + 1) * ids.shape[1],
            gene_ids=ids.ravel().astype(self.like.gene_ids.dtype),
            n_expressed=np.full(len(ids), ids.shape[1]),
            vocabulary=self.like.vocabulary,
            settings=self.like.settings,
        )

    def score(self, train: np.ndarray, train_labels: Any, test: np.ndarray, test_labels: Any, metric: str) -> Any:
        found = evaluate_generation(
            self,  # type: ignore[arg-type]
            self.sentences(train),
            np.array(train_labels, dtype=object),
            self.sentences(test),
            np.array(test_labels, dtype=object),
            max_cells=60,
        )
        return next(r.value for r in found.rows if (r.method, r.metric) == ("real_training_cells", metric))


@pytest.mark.parametrize("copies", [1, 3])
def test_real_cells_with_labels_without_information_are_at_chance(parts: dict[str, Any], copies: int) -> None:
    writer = RandomWriter(parts["train"], "abcdefgh")
    train, train_labels = writer.draw(800), writer.rng.choice(list("abcdefgh"), 800)
    test, test_labels = writer.draw(400), writer.rng.choice(list("abcdefgh"), 400)
    train, train_labels = np.repeat(train, copies, axis=0), np.repeat(train_labels, copies)
    agreement = writer.score(train, train_labels, test, test_labels, "knn_type_agreement")
    assert agreement == pytest.approx(1 / 8, abs=0.06)


def test_real_cells_are_not_compared_with_copies_of_themselves(parts: dict[str, Any]) -> None:
    writer = RandomWriter(parts["train"], "ab")
    test, others = writer.draw(10), writer.draw(10)
    train, labels = np.concatenate([np.tile(test, (20, 1)), others]), ["a", "b"] * 105
    overlap = writer.score(train, labels, test, ["a", "b"] * 5, "mean_overlap")
    assert overlap == pytest.approx(20 / 60, abs=0.04)  # with a copy among every five it would be 0.47


def test_all_sets_of_a_type_are_of_one_size(result: GenerationEvaluation) -> None:
    assert {entry["n"] for entry in result.per_type} == {6}
    assert len(result.per_type) == 3 * (len(METHODS) + 1)
    assert {point["method"] for point in result.points} == {"held_out_cells", "cytoglot"}
    assert len(result.points) == 3 * 2 * 6


def test_a_type_of_few_cells_is_left_out(model: CellModel, parts: dict[str, Any]) -> None:
    rare = parts["test_labels"][0]
    of_rare = np.flatnonzero(parts["test_labels"] == rare)
    keep = np.setdiff1d(np.arange(len(parts["test_labels"])), of_rare[MIN_CELLS - 1 :])
    fewer = parts | {"test": parts["test"][keep], "test_labels": parts["test_labels"][keep]}
    found = evaluate_generation(model, **fewer, max_cells=2, seed=1)
    assert rare not in {entry["cell_type"] for entry in found.per_type}
    assert {row.n for row in found.rows} == {2}


def test_nothing_to_compare_gives_no_rows(model: CellModel, parts: dict[str, Any]) -> None:
    few = parts | {"test": parts["test"][:3], "test_labels": parts["test_labels"][:3]}
    found = evaluate_generation(model, **few)
    assert (found.rows, found.per_type, found.points, found.markers, found.verdict) == ([], [], [], [], None)
