"""How well a model in training does its tasks, on validation records: fast enough to be looked at many times.

A label is chosen by scoring, genes are written under constraint, all else freely, and everything greedily; so a model
always gets the same scores. Axes: n records, k labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import softmax

from cytoglot.cell_model.task_answers import ModelAnswers, framed
from cytoglot.cell_model.task_scores import EvalTask, scores_of
from cytoglot.corpus.format.folder import Corpus
from cytoglot.corpus.read.examples import CorpusExamples, available_tasks
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError, nearest_names
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.scoring.score import score_answers
from cytoglot.metrics.spec import Direction
from cytoglot.metrics.spec import metrics as registered_metrics
from cytoglot.sentence.profile import CellProfile
from cytoglot.tasks.answers import LabelAnswer
from cytoglot.tasks.instance import TaskInstance
from cytoglot.tasks.task import Task
from cytoglot.tasks.task import tasks as registered_tasks
from cytoglot.training.recipe import TrainRecipe

_WATCHED, _OTHERS = 128, 32
"""records of the task that ends the training, and of each other one"""
_ANSWER_TOKENS, _FEWEST = 4_000, 8
"""tokens that are written for a task at most, as long as that leaves so many records"""


@dataclass(frozen=True, kw_only=True)
class HeldOutTasks:
    """Questions about validation records, and the scores of a model's answers.

    Made by `held_out_of_corpus`. A score is named `TASK.METRIC`, such as
    `cell_type_annotation.macro_f1`.
    """

    vocabulary: GeneVocabulary
    questions: Mapping[str, tuple[TaskInstance, ...]]
    """task → what is asked, in random order; tasks that nothing can be asked of are absent"""
    profile: CellProfile | None = None
    """what the model writes cells with"""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """task with a closed answer → what it chooses from: the answers that occur in training, most frequent first"""

    @property
    def names(self) -> tuple[str, ...]:
        """Every score there is."""
        return tuple(f"{task}.{metric}" for task in self.questions for metric in self._task(task).metrics)

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
        answerer = ModelAnswers(lm, self.vocabulary, self.profile)
        found: dict[str, float] = {}
        scores: Mapping[str, float]
        for name in self.questions:
            task, labels = self._task(name), self.labels.get(name, ())
            fitted = [one for q in self.questions[name] if (one := answerer.fitted(q, labels)) is not None]
            if not fitted:
                continue
            if task.closed_answer:
                asked = EvalTask(task=task, vocabulary=self.vocabulary, records=tuple(fitted), labels=labels)
                scores = _label_scores(lm, asked)
            else:
                n_tokens = answerer.n_tokens(task, [one.truth for one in fitted])
                n = max(_FEWEST, int(np.searchsorted(np.cumsum(n_tokens), _ANSWER_TOKENS, side="right")))
                asked = EvalTask(task=task, vocabulary=self.vocabulary, records=tuple(fitted[:n]), labels=labels)
                # A free answer has room for the longest of the true ones: how long its own should be is not told.
                scores = scores_of(asked, answerer.answers(asked, [max(n_tokens[:n])] * len(fitted[:n])))
            found |= {f"{name}.{metric}": value for metric, value in scores.items() if math.isfinite(value)}
        return found

    def _task(self, name: str) -> Task[Any, Any]:
        return self.questions[name][0].task


def held_out_of_corpus(
    corpus: Corpus,
    shares: Mapping[str, float],
    recipe: TrainRecipe,
    seed: int,
    *,
    profile: CellProfile | None = None,
) -> HeldOutTasks:
    """Return what the tasks of `shares` ask of the validation part of a corpus: some records, the same for a seed."""
    watched = recipe.optim.stop_on.rpartition(".")[0]
    askable = set(available_tasks(corpus, "validation")) if corpus.shards("validation") else set()
    sampled = CorpusExamples(
        corpus, "validation", top_genes=recipe.sentence.top_genes, metadata_share=1.0, paraphrase_share=0.0
    )
    questions: dict[str, tuple[TaskInstance, ...]] = {}
    labels: dict[str, tuple[str, ...]] = {}
    for name in (name for name in shares if name in askable):
        n_records = _WATCHED if name == watched else _OTHERS
        records = [found.record for found in sampled.sample(n_records, name, seed=seed)]
        if not records:
            continue
        task = corpus.templates_of_tasks.get(name, registered_tasks[name])
        questions[name] = tuple(TaskInstance(task, r, task.short_template(r), seed=seed) for r in records)
        if isinstance(task, LabelAnswer):
            known = task.label_completions([value for value in corpus.count(task.field, "train") if value.strip()])
            labels[name] = tuple(dict.fromkeys(task.templates.bare(answer) for answer in known))
    return HeldOutTasks(vocabulary=corpus.vocabulary, questions=questions, labels=labels, profile=profile)


def _label_scores(lm: LanguageModel, asked: EvalTask) -> dict[str, float]:
    """Return the metrics of a closed answer; a true answer that training did not have is missed with probability 0."""
    likelihood_nk = score_answers(lm, asked.prompts, framed(asked.task, asked.labels))
    probability_nk = softmax(likelihood_nk, axis=1)
    predicted = np.array(asked.labels, dtype=object)[probability_nk.argmax(axis=1)]
    truth = np.array([one.truth for one in asked.records], dtype=object)
    found: dict[str, float] = {}
    for name in asked.task.metrics:
        spec = registered_metrics[name]
        if spec.inputs == "labels":
            found[name] = spec.function(truth, predicted)
        elif name == "ece":
            found[name] = spec.function(np.clip(probability_nk.max(axis=1), 0, 1), truth == predicted)
        else:
            found[name] = spec.function(truth, probability_nk, asked.labels)
    return found
