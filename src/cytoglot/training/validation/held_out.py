"""How well a model in training does its tasks, on validation records: fast enough to be looked at many times.

A label is chosen by scoring, genes are written under constraint, all else freely, and everything greedily; so a model
always gets the same scores. Axes: n records, k labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import softmax

from cytoglot.cell_model.task_answers import ModelAnswers, completions_of
from cytoglot.cell_model.task_scores import (
    AskedTask,
    Kind,
    bare_answer,
    gene_ids_of,
    kind_of,
    statistics,
)
from cytoglot.corpus.format.folder import Corpus
from cytoglot.corpus.read.examples import CorpusExamples, askable_tasks
from cytoglot.corpus.read.mixture import Question
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError, nearest_names
from cytoglot.lm.model.load import LanguageModel
from cytoglot.lm.scoring.score import score_answers
from cytoglot.metrics.generation import duplicate_share, gene_jaccard, kendall_tau
from cytoglot.metrics.spec import Direction
from cytoglot.metrics.spec import metrics as registered_metrics
from cytoglot.tasks.record import CellGroup, CellRecord
from cytoglot.tasks.task import AnswerSpace, Task
from cytoglot.tasks.task import tasks as registered_tasks
from cytoglot.training.recipe import TrainRecipe

_WATCHED, _OTHERS = 128, 32
"""records of the task that ends the training, and of each other one"""
_ANSWER_TOKENS, _FEWEST = 4_000, 8
"""tokens that are written for a task at most, as long as that leaves so many records"""
_BY_KIND: Mapping[Kind, tuple[str, ...]] = {
    "label": ("accuracy", "macro_f1", "balanced_accuracy", "nll", "ece", "brier"),
    "labels": ("accuracy", "macro_f1", "exact_match"),
    "genes": ("gene_overlap", "gene_jaccard", "kendall_tau_b", "duplicate_share"),
    "cells": ("gene_overlap", "exact_match"),
    "text": ("exact_match", "token_f1"),
}


@dataclass(frozen=True, kw_only=True)
class HeldOutTasks:
    """Questions about validation records, and the scores of a model's answers.

    Made by `held_out_of_corpus`. A score is named `TASK.METRIC`, such as
    `cell_type_annotation.macro_f1`.
    """

    vocabulary: GeneVocabulary
    questions: Mapping[str, tuple[Question, ...]]
    """task → what is asked, in random order; tasks that nothing can be asked of are absent"""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """task with a closed answer → what it chooses from: the answers that occur in training, most frequent first"""

    @property
    def names(self) -> tuple[str, ...]:
        """Every score there is."""
        return tuple(f"{task}.{metric}" for task in self.questions for metric in _BY_KIND[self._kind(task)])

    def check(self, name: str) -> None:
        """Refuse the name of a score that these tasks do not have.

        Raises
        ------
        InputError
            There is no such score; the message names those that there are.
        """
        if name not in self.names:
            nearest = nearest_names(name, self.names) if self.names else "the validation part has nothing to ask about"
            raise InputError(
                f"optim.stop_on must be loss or a task's metric on validation records, found {name!r}; {nearest}"
            )

    def better(self, name: str) -> Direction:
        """Return which end of a score is better, "higher" or "lower"; an InputError for an unknown one."""
        self.check(name)
        return registered_metrics[name.rpartition(".")[2]].direction

    def scores(self, lm: LanguageModel) -> dict[str, float]:
        """Return every score of the model; those that are undefined on these records are left out.

        Records too long for the model's context lose genes from the end of their sentences, and are left out where
        nothing would be left to ask.
        """
        answerer = ModelAnswers(lm, self.vocabulary)
        found: dict[str, float] = {}
        for name in self.questions:
            for metric, value in self._scores_of(name, lm, answerer).items():
                if math.isfinite(value):
                    found[f"{name}.{metric}"] = value
        return found

    def _scores_of(self, name: str, lm: LanguageModel, answerer: ModelAnswers) -> Mapping[str, float]:
        kind, labels = self._kind(name), self.labels.get(name, ())
        fitted = [one for q in self.questions[name] if (one := answerer.fitted(q, kind, labels)) is not None]
        if kind != "label" and fitted:
            n_tokens = np.cumsum(answerer.n_tokens([one.truth for one in fitted]))
            fitted = fitted[: max(_FEWEST, int(np.searchsorted(n_tokens, _ANSWER_TOKENS, side="right")))]
        if not fitted:
            return {}
        task = self.questions[name][0].task
        asked = AskedTask(task=task, kind=kind, vocabulary=self.vocabulary, records=tuple(fitted), labels=labels)
        if kind == "label":
            return _label_scores(lm, asked)
        # A free answer has room for the longest of the true ones: how long its own should be is not told.
        answers = answerer.answers(asked, [max(answerer.n_tokens([one.truth for one in fitted]))] * len(fitted))
        if kind == "genes":
            return _gene_scores(asked, answers)
        found = statistics(asked, answers)
        return {metric: found[metric].value for metric in _BY_KIND[kind]}

    def _kind(self, name: str) -> Kind:
        question = self.questions[name][0]
        return kind_of(question.task, bare_answer(question.example().completion), self.vocabulary)


def held_out_of_corpus(corpus: Corpus, shares: Mapping[str, float], recipe: TrainRecipe, seed: int) -> HeldOutTasks:
    """Return what the tasks of `shares` ask of the validation part of a corpus: some records, the same for a seed."""
    wanted = _Wanted(recipe, shares)
    askable = set(askable_tasks(corpus, "validation")) if corpus.shards("validation") else set()
    sampled = CorpusExamples(
        corpus, "validation", top_genes=recipe.sentence.top_genes, metadata_share=1.0, paraphrase_share=0.0
    )
    questions: dict[str, tuple[Question, ...]] = {}
    labels: dict[str, tuple[str, ...]] = {}
    for task in wanted.tasks:
        if task.name not in askable:
            continue
        records = [found.record for found in sampled.sample(wanted.n_records(task.name), task.name, seed=seed)]
        if records:
            asked = corpus.reworded.get(task.name, task)
            questions[task.name] = tuple(Question(asked, r, asked.short_template(r), seed=seed) for r in records)
            if task.closed_answer:
                labels[task.name] = _labels_of(corpus, asked)
    return HeldOutTasks(vocabulary=corpus.vocabulary, questions=questions, labels=labels)


class _Wanted:
    """Which tasks are asked, and how many records of each."""

    def __init__(self, recipe: TrainRecipe, shares: Mapping[str, float]) -> None:
        self._watched = recipe.optim.stop_on.rpartition(".")[0]
        self.tasks: list[Task[Any, Any]] = [registered_tasks[name] for name in shares]

    def n_records(self, name: str) -> int:
        return _WATCHED if name == self._watched else _OTHERS


def _labels_of(corpus: Corpus, task: Task[Any, Any]) -> tuple[str, ...]:
    """Return the answers of a closed task that occur in the training part, most frequent first."""
    column = task.required_metadata[0]
    values = [value for value in corpus.count(column, "train") if value.strip()]
    cells = (CellRecord(genes=("A",), metadata={column: value}, cell_id="a") for value in values)
    records = (c if task.unit == "cell" else CellGroup(cells=(c, c), metadata=c.metadata, group_id="a") for c in cells)
    return tuple(dict.fromkeys(bare_answer(task.completion(record)) for record in records))


def _label_scores(lm: LanguageModel, asked: AskedTask) -> dict[str, float]:
    """Return the metrics of a closed answer; a true answer that training did not have is missed with probability 0."""
    likelihood_nk = score_answers(lm, asked.prompts, completions_of(asked.labels))
    probability_nk = softmax(likelihood_nk, axis=1)
    predicted = np.array(asked.labels, dtype=object)[probability_nk.argmax(axis=1)]
    truth = np.array([one.truth for one in asked.records], dtype=object)
    found: dict[str, float] = {}
    for name in _BY_KIND["label"]:
        spec = registered_metrics[name]
        if spec.inputs == "labels":
            found[name] = spec.function(truth, predicted)
        elif name == "ece":
            found[name] = spec.function(np.clip(probability_nk.max(axis=1), 0, 1), truth == predicted)
        else:
            found[name] = spec.function(truth, probability_nk, asked.labels)
    return found


def _gene_scores(asked: AskedTask, answers: Sequence[str]) -> dict[str, float]:
    """Return means over records; genes are compared by their ids."""
    written = [
        asked.task.parse(answer, AnswerSpace(vocabulary=asked.vocabulary)).gene_ids.tolist() for answer in answers
    ]
    wanted = [gene_ids_of(one.parts[0]).tolist() for one in asked.records]
    n_genes = range(len(asked.vocabulary))
    compared: dict[str, Callable[[Any, Any], float]] = {
        "gene_jaccard": gene_jaccard,
        "kendall_tau_b": lambda mine, true: kendall_tau(mine, true, n_genes),
    }
    found = {
        name: _mean([function(mine, true) for mine, true in zip(written, wanted, strict=True)])
        for name, function in compared.items()
    }
    overlap = statistics(asked, answers)["gene_overlap"].value
    return {"gene_overlap": overlap, **found, "duplicate_share": _mean([duplicate_share(a.split()) for a in answers])}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
