"""Scores of validation records: what they are of a perfect and of a useless model, and that they do not wander."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData

from cytoglot.cell_model.load import CellModel
from cytoglot.corpus.format.folder import Corpus
from cytoglot.corpus.from_cells import CellCorpus, corpus_of_cells
from cytoglot.data.readers.read import read
from cytoglot.data.splits.split import Split
from cytoglot.errors import InputError
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.validation import held_out as module
from cytoglot.training.validation.held_out import HeldOutTasks, held_out_of_corpus


@pytest.fixture(scope="module")
def made(cells: AnnData, tiny_recipe: TrainRecipe, tmp_path_factory: pytest.TempPathFactory) -> CellCorpus:
    return corpus_of_cells(read(cells), tmp_path_factory.mktemp("made") / "corpus", label="cell_type", seed=3)


@pytest.fixture(scope="module")
def held_out(made: CellCorpus, tiny_recipe: TrainRecipe, tiny_model: CellModel) -> HeldOutTasks:
    return held_out_of_corpus(made.corpus, tiny_recipe.tasks, tiny_recipe, 3, profile=tiny_model.profile)


def test_a_trained_model_scores_high_and_twice_the_same(held_out: HeldOutTasks, tiny_model: CellModel) -> None:
    started = time.process_time()
    scores = held_out.scores(tiny_model.lm)
    assert time.process_time() - started < 20  # many looks at a run must not cost more than the run
    assert scores == held_out.scores(tiny_model.lm)
    assert set(scores) == set(held_out.names)
    assert scores["cell_type_annotation.accuracy"] > 0.9
    assert scores["cell_type_annotation.macro_f1"] > 0.85
    assert 0 < scores["cell_type_annotation.nll"] < 0.5
    assert 0.3 < scores["cell_generation.gene_overlap"] <= 1
    assert scores["cell_generation.duplicate_share"] == 0  # genes are written under constraint


def test_only_validation_cells_are_asked_about(held_out: HeldOutTasks, made: CellCorpus) -> None:
    validation = set(made.split.cells("validation"))
    for name, questions in held_out.questions.items():
        asked = [question.record.key for question in questions]
        assert set(asked) <= validation, name
        assert len(set(asked)) == len(asked)
    assert held_out.labels == {"cell_type_annotation": ("type A", "type B", "type C")}


def test_answers_are_compared_by_hand(
    held_out: HeldOutTasks, tiny_model: CellModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every answer is the truth but for its second gene, which is the first again; labels are always type A."""

    def answers(self: object, asked: module.EvalTask, budgets: object) -> list[str]:
        written = []
        for one in asked.records:
            first, _, *rest = one.truth.split()
            written.append(" ".join([first, first, *rest]))
        return written

    def scores_of(lm: object, prompts: list[str], labels: list[str]) -> np.ndarray:
        assert labels[0] == " type A."
        return np.tile(np.log([0.5, 0.3, 0.2]), (len(prompts), 1))

    monkeypatch.setattr(module.ModelAnswers, "answers", answers)
    monkeypatch.setattr(module, "score_answers", scores_of)
    scores = held_out.scores(tiny_model.lm)
    lengths = [len(q.record.genes) for q in held_out.questions["cell_generation"]]
    fewest = [n for n in lengths if n > 1]
    assert scores["cell_generation.gene_overlap"] == pytest.approx(np.mean([(n - 1) / n for n in fewest]))
    assert scores["cell_generation.gene_jaccard"] == pytest.approx(np.mean([(n - 1) / n for n in fewest]))
    assert scores["cell_generation.duplicate_share"] == pytest.approx(np.mean([1 / n for n in fewest]))
    types = [q.record.metadata["cell_type"] for q in held_out.questions["cell_type_annotation"]]
    share = {name: types.count(f"type {name}") / len(types) for name in "ABC"}
    assert scores["cell_type_annotation.accuracy"] == pytest.approx(share["A"])
    assert scores["cell_type_annotation.balanced_accuracy"] == pytest.approx(1 / 3)
    expected = -sum(share[name] * np.log(p) for name, p in zip("ABC", (0.5, 0.3, 0.2), strict=True))
    assert scores["cell_type_annotation.nll"] == pytest.approx(expected)


def test_directions_and_unknown_names(held_out: HeldOutTasks) -> None:
    assert held_out.better("cell_type_annotation.macro_f1") == "higher"
    assert held_out.better("cell_type_annotation.nll") == "lower"
    for name in ("cell_type_annotation.f1", "accuracy", "gene_masking.accuracy"):
        with pytest.raises(InputError, match=rf"stop_on must be loss or a task's metric .* found '{name}'"):
            held_out.check(name)


def test_the_watched_task_has_more_records(made: CellCorpus, tiny_recipe: TrainRecipe) -> None:
    counts = []
    for watched in ("cell_type_annotation.accuracy", "cell_generation.gene_overlap"):
        optim = tiny_recipe.optim.model_copy(update={"stop_on": watched})
        recipe = tiny_recipe.model_copy(update={"optim": optim})
        found = held_out_of_corpus(made.corpus, recipe.tasks, recipe, 3)
        counts.append({name: len(questions) for name, questions in found.questions.items()})
    assert counts[0]["cell_generation"] == 32 < counts[1]["cell_generation"]
    assert counts[1]["cell_type_annotation"] == 32 < counts[0]["cell_type_annotation"]


def test_without_validation_cells_there_is_nothing_to_stop_on(
    cells: AnnData, tiny_recipe: TrainRecipe, tiny_model: CellModel, tmp_path: Path
) -> None:
    split = Split(train=tuple(map(str, cells.obs_names)), by="all", seed=0, fractions=(1.0, 0.0, 0.0))
    corpus = corpus_of_cells(read(cells), tmp_path / "corpus", label="cell_type", split=split).corpus
    found = held_out_of_corpus(corpus, tiny_recipe.tasks, tiny_recipe, 3)
    assert found.scores(tiny_model.lm) == {}
    with pytest.raises(InputError, match="the validation part has nothing to ask about"):
        found.check("cell_type_annotation.macro_f1")


def test_every_kind_of_task_of_a_corpus_is_scored(small_corpus: Corpus, tiny_model: CellModel) -> None:
    """The model knows most of the genes and none of the tasks: scores are low, finite and within their range."""
    names = (
        "cell_type_annotation",
        "sex_annotation",
        "cell_types_of_cells",
        "cell_group_generation_by_tissue",
        "gene_set_naming",
        "ortholog_translation",
    )
    shares = dict.fromkeys(names, 1.0)
    recipe = TrainRecipe.model_validate({"sentence": {"top_genes": 12}})
    found = held_out_of_corpus(small_corpus, shares, recipe, 0)
    assert found.labels["sex_annotation"] == ("female", "male")  # as many cells of each: by name
    assert set(found.labels["cell_type_annotation"]) == {"type A", "type B", "type C"}
    scores = found.scores(tiny_model.lm)
    assert {name.partition(".")[0] for name in scores} == set(names)
    for name, value in scores.items():
        assert module.registered_metrics[name.rpartition(".")[2]].contains(value), name
    assert found.scores(tiny_model.lm) == scores
