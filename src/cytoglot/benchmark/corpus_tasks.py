"""Judge a model on every task of a corpus, on records that training never saw, beside one constant answer.

A task is listed as not shown, with the reason, where a corpus cannot tell how well a model does it: nothing to ask, a
single possible answer, or a task that training did not have.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, field_validator

from cytoglot.atomic import atomic_path, check_output_folder, write_json
from cytoglot.benchmark.constant_answer import fit_constant_answer
from cytoglot.benchmark.results import OURS, ResultRow
from cytoglot.cell_model.load import MIN_OVERLAP, CellModel, VocabularyOverlap, load_cell_model
from cytoglot.cell_model.task_answers import ModelAnswers
from cytoglot.cell_model.task_scores import EvalRecord, EvalTask, statistics
from cytoglot.config import Settings
from cytoglot.corpus.format.folder import Corpus, open_corpus
from cytoglot.corpus.read.examples import CorpusExamples, available_tasks
from cytoglot.data.schema import GROUP_FIELDS, group_values
from cytoglot.errors import InputError, VocabularyMismatchError, nearest_names
from cytoglot.manifest import Manifest
from cytoglot.metrics.uncertainty import bootstrap, bootstrap_difference, resampling_unit
from cytoglot.progress import progress_bar
from cytoglot.tasks.answers import LabelAnswer
from cytoglot.tasks.instance import TaskInstance
from cytoglot.tasks.record import Record
from cytoglot.tasks.record_source import record_sources
from cytoglot.tasks.task import Task
from cytoglot.tasks.task import tasks as registered_tasks

logger = logging.getLogger(__name__)

CONSTANT, SHUFFLED = "constant answer", "control: shuffled truths"
_PROMPT_CHARACTERS = 400
"""of a prompt in `answers.parquet`"""


class CorpusTaskSettings(Settings):
    """What is asked, and how much of it."""

    tasks: tuple[str, ...] | None = None
    """names of tasks; None for all"""
    part: Literal["validation", "test"] = "test"
    """part of the corpus that is asked about"""
    wording: Literal["terse", "held_out"] = "terse"
    """the shortest wording, or one that training never sees"""
    n_per_task: int = Field(default=100, gt=0)
    """records of each task at most"""
    answer_tokens: int = Field(default=20_000, gt=0)
    """tokens of all true answers of a task at most: long answers are asked for fewer times"""
    min_records: int = Field(default=10, gt=0)
    """records of each task at least, however long the answers are"""
    n_training: int = Field(default=500, gt=1)
    """training records that the constant answer is fitted on, at most"""

    @field_validator("tasks")
    @classmethod
    def _known(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in names or ():
            if name not in registered_tasks:
                raise ValueError(f"unknown task {name!r}, {nearest_names(name, registered_tasks)}")
        return names


@dataclass(frozen=True, kw_only=True)
class TaskLine:
    """One metric of one task, for a table to be read by a person."""

    task: str
    metric: str
    model: float | None
    low: float | None
    high: float | None
    constant: float | None
    """the same metric of the constant answer"""
    difference: float | None
    """model − constant"""
    difference_low: float | None
    difference_high: float | None
    shuffled: float | None
    """the model's answers against the truths of other records; None for a single record"""
    n: int
    unit: str
    """what was resampled for the intervals"""


@dataclass(frozen=True, kw_only=True)
class CorpusEvaluation:
    """What was measured and where it lies."""

    rows: list[ResultRow]
    table: list[TaskLine]
    not_shown: dict[str, str]
    """task → reason"""
    messages: list[str]
    folder: Path


class _NotShown(Exception):  # noqa: N818 - no error: a task without a result
    """Why a task has no result."""


def evaluate_corpus(
    corpus: Corpus | str | Path,
    model: CellModel | str | Path,
    *,
    out: str | Path,
    settings: CorpusTaskSettings | None = None,
    seed: int = 0,
    device: str = "auto",
) -> CorpusEvaluation:
    """Ask `model` what each task asks of records of the test part, and write the evaluation folder.

    `results.json` holds rows, table, tasks not shown and messages; `table.csv` the table; `answers.parquet` every
    answer; `timings.json` and `manifest.json` the rest.

    Raises
    ------
    InputError
        The corpus or the model cannot be read, `out` holds other things than an evaluation, or no task can be shown.
    VocabularyMismatchError
        The model knows fewer than 30 % of the genes of the corpus.
    """
    check_output_folder(Path(out), written_by="evaluate", mark="results.json")
    settings = settings or CorpusTaskSettings()
    corpus = open_corpus(corpus) if isinstance(corpus, (str, Path)) else corpus
    model = load_cell_model(model, device=device) if isinstance(model, (str, Path)) else model
    work = _Work(corpus, model, settings, seed=seed)
    work.run()
    folder = Path(out)
    with atomic_path(folder) as partial:
        partial.mkdir()
        work.write(partial)
    return CorpusEvaluation(
        rows=work.rows, table=work.table, not_shown=work.not_shown, messages=work.messages, folder=folder
    )


class _Work:
    """One evaluation, task by task."""

    def __init__(self, corpus: Corpus, model: CellModel, settings: CorpusTaskSettings, *, seed: int) -> None:
        self.corpus, self.model, self.settings, self.seed = corpus, model, settings, seed
        self.answerer = ModelAnswers(model.lm, corpus.vocabulary)
        self.rows: list[ResultRow] = []
        self.table: list[TaskLine] = []
        self.not_shown: dict[str, str] = {}
        self.messages = _meet(corpus, model)
        self.answers: list[pd.DataFrame] = []
        self.timings: dict[str, float] = {}

    def run(self) -> None:
        """Judge each task or note why not."""
        names = self.settings.tasks or tuple(registered_tasks)
        with progress_bar(total=len(names), description="tasks", unit="task") as bar:
            for name in names:
                started = time.perf_counter()
                try:
                    asked, training = self._ask(registered_tasks[name])
                    self._judge(asked, training)
                except _NotShown as reason:
                    self.not_shown[name] = str(reason)
                    logger.info("%s: not shown, %s", name, reason)
                else:
                    self.timings[name] = time.perf_counter() - started
                    logger.info("%s: %.1f s", name, self.timings[name])
                bar.update(1)
        if not self.rows:
            listed = "; ".join(f"{name}: {reason}" for name, reason in self.not_shown.items())
            raise InputError(f"no task of this corpus can be shown ({listed}); pass another model, part or corpus")

    def _judge(self, asked: EvalTask, training: Sequence[EvalRecord]) -> None:
        """Answer, and compare with the constant answer and with the truths of other records."""
        name, n_tokens = asked.task.name, self.answerer.n_tokens
        constant = fit_constant_answer(
            asked.kind,
            training,
            lengths=[one.n_genes for one in asked.records] if asked.kind in {"genes", "cells"} else [],
            vocabulary=asked.vocabulary,
            labels=asked.labels,
            seed=self.seed,
        )
        constants = [constant.answer(one) for one in asked.records]
        # The most tokens of each free answer, from what training answers and the prompt tell of its length; the
        # constant answer has as many genes as the prompt asks for.
        if asked.kind == "genes":
            budgets = [int(1.1 * n) + 8 for n in n_tokens(asked.task, constants)]
        else:
            usual = int(np.quantile(n_tokens(asked.task, [one.truth for one in training]), 0.95))
            budgets = [max(n, usual) for n in n_tokens(asked.task, constants)]
        answers = self.answerer.answers(asked, budgets)
        # Donors or batches where there are at least five and all are known, else the records themselves.
        metadata = pd.DataFrame([dict(one.record.metadata) for one in asked.records])
        columns = {field: group_values(metadata, field) for field in GROUP_FIELDS if field in metadata}
        unit, groups = resampling_unit(columns)
        options: dict[str, Any] = {"groups": groups, "unit": asked.task.unit if groups is None else unit}
        options |= {"seed": self.seed, "n_resamples": 1000}
        by_method = {OURS: statistics(asked, answers), CONSTANT: statistics(asked, constants)}
        order = derangement(len(asked.records), seed=self.seed)
        if order is not None:
            by_method[SHUFFLED] = statistics(asked.with_truths_of(order), answers)
        rows = {
            (method, metric): ResultRow.of(name, method, metric, bootstrap(statistic, **options))
            for method, found in by_method.items()
            for metric, statistic in found.items()
        }
        for metric, statistic in by_method[OURS].items():
            interval = bootstrap_difference(statistic, by_method[CONSTANT][metric], **options)
            rows["difference", metric] = ResultRow.of(name, f"{OURS} - {CONSTANT}", f"{metric}_difference", interval)
            ours, difference, shuffled = rows[OURS, metric], rows["difference", metric], rows.get((SHUFFLED, metric))
            line = TaskLine(
                task=name,
                metric=metric,
                model=ours.value,
                low=ours.low,
                high=ours.high,
                constant=rows[CONSTANT, metric].value,
                difference=difference.value,
                difference_low=difference.low,
                difference_high=difference.high,
                shuffled=None if shuffled is None else shuffled.value,
                n=ours.n,
                unit=ours.unit,
            )
            self.table.append(line)
        self.rows += rows.values()
        table = {
            "task": name,
            "key": [one.record.key for one in asked.records],
            "prompt": [shortened(one.prompt, _PROMPT_CHARACTERS) for one in asked.records],
            "truth": [one.truth for one in asked.records],
            "answer": answers,
            "constant": constants,
        }
        self.answers.append(pd.DataFrame(table))

    def _ask(self, task: Task[Any, Any]) -> tuple[EvalTask, list[EvalRecord]]:
        """Return what is asked of held-out records, and the same of training records."""
        settings, vocabulary = self.settings, self.corpus.vocabulary
        if task.name not in self.model.spec.tasks:
            raise _NotShown("the model was not trained on it")
        for part, names in (("train", self._askable["train"]), (settings.part, self._askable[settings.part])):
            if task.name not in names:
                needs = f" (it needs {' and '.join(task.required_metadata)})" if task.required_metadata else ""
                raise _NotShown(f"no {record_sources[task.unit].words} of the {part} part can be asked{needs}")
        if settings.wording == "held_out" and not task.templates.held_out:
            raise _NotShown("it has no held-out wording")
        training = self._sample(task, "train", settings.n_training)
        held_out = self._sample(task, settings.part, settings.n_per_task)
        labels = self._labels(task, training) if task.closed_answer else ()
        # One answer that is right whatever is asked tells nothing of a model.
        learned, asked = ({q.answer() for q in questions} for questions in (training, held_out))
        possible = learned | asked | set(labels)
        if isinstance(task, LabelAnswer):
            possible |= set(self.corpus.labels(task.field))
        if len(possible) == 1:
            raise _NotShown(f"a single possible answer in this corpus: {shortened(possible.pop(), 60)!r}")
        if len(labels or learned) == 1:
            raise _NotShown(f"a single answer in the training part: {shortened((labels or (*learned,))[0], 60)!r}")
        if len(asked) == 1:
            what = f"a single answer in the {settings.part} part"
            raise _NotShown(f"{what}, for {len(held_out)} records: {shortened(asked.pop(), 60)!r}")
        fitted = [one for q in training if (one := self.answerer.fitted(q, labels)) is not None]
        records = [one for q in held_out if (one := self.answerer.fitted(q, labels)) is not None]
        if not fitted or not records:
            raise _NotShown(f"no record fits the model's context of {self.model.lm.context_length:,} tokens")
        if len(records) < len(held_out):
            self.messages.append(
                f"{task.name}: {len(held_out) - len(records)} of {len(held_out)} records do not fit the context"
            )
        if not task.closed_answer:  # as many as the budget of tokens allows; they are in random order
            mean = float(np.mean(self.answerer.n_tokens(task, [one.truth for one in records])))
            records = records[: max(settings.min_records, int(settings.answer_tokens / mean))]
        return EvalTask(task=task, vocabulary=vocabulary, records=tuple(records), labels=labels), fitted

    def _sample(self, task: Task[Any, Any], part: Any, n: int) -> list[TaskInstance]:
        """Return what the task asks of a seeded sample of the part: all that is known is told, in one wording."""
        top_genes, is_held_out = self.model.spec.ranking.top_genes, self.settings.wording == "held_out"
        sampled = CorpusExamples(
            self.corpus, part, top_genes=top_genes, metadata_share=1.0, paraphrase_share=0.0, held_out=is_held_out
        ).sample(n, task.name, seed=self.seed)
        records: list[Record] = [found.record for found in sampled]
        return [
            TaskInstance(
                task, record, None if is_held_out else task.short_template(record), seed=self.seed, held_out=is_held_out
            )
            for record in records
        ]

    @cached_property
    def _askable(self) -> Mapping[str, tuple[str, ...]]:
        return {part: available_tasks(self.corpus, part) for part in ("train", self.settings.part)}

    def _labels(self, task: Task[Any, Any], training: Sequence[TaskInstance]) -> tuple[str, ...]:
        """Return the answers that occur in the training part, most frequent first."""
        column = task.field if isinstance(task, LabelAnswer) else ""
        if not isinstance(task, LabelAnswer) or column not in self.corpus.description.metadata_columns:
            counts = pd.Series([question.answer() for question in training]).value_counts()
            return tuple(counts.index)
        n_of: Counter[str] = Counter()
        for shard in self.corpus.shards("train"):
            values = pq.read_table(self.corpus.folder / shard.file, columns=[column])[column]
            n_of.update({found["values"]: found["counts"] for found in values.value_counts().to_pylist()})
        known = [value for value in n_of if value is not None and value.strip()]
        completions = task.label_completions(sorted(known, key=lambda value: (-n_of[value], value)))
        return tuple(dict.fromkeys(task.templates.bare(answer) for answer in completions))

    def write(self, folder: Path) -> None:
        """Write everything into a new folder."""
        settings, description = self.settings, self.corpus.description
        meta = {"method": OURS, "corpus": description.fingerprint, **settings.model_dump(mode="json")}
        content = {
            "results": [asdict(row) for row in self.rows],
            "table": [asdict(line) for line in self.table],
            "not_shown": self.not_shown,
            "messages": self.messages,
            "meta": meta,
        }
        write_json(folder / "results.json", content)
        pd.DataFrame([asdict(line) for line in self.table]).to_csv(folder / "table.csv", index=False)
        pd.concat(self.answers, ignore_index=True).to_parquet(folder / "answers.parquet", index=False)
        write_json(folder / "timings.json", {name: round(seconds, 3) for name, seconds in self.timings.items()})
        manifest = Manifest(
            command="evaluate",
            config={"settings": settings.model_dump(mode="json"), "model": dict(self.model.spec.manifest)},
            seeds={"seed": self.seed},
            inputs={"corpus": description.fingerprint, "vocabulary": self.corpus.vocabulary.fingerprint},
        )
        write_json(folder / "manifest.json", manifest.to_dict())


def derangement(n: int, *, seed: int) -> NDArray[np.int64] | None:
    """Return a random order of n things in which nothing stands at its own place; None for fewer than two."""
    if n < 2:
        return None
    circle = np.random.default_rng([seed, 7]).permutation(n)
    order = np.empty(n, dtype=np.int64)
    order[circle] = np.roll(circle, 1)
    return order


def shortened(text: str, n_characters: int) -> str:
    """Return a text with its middle left out if it is longer than `n_characters`."""
    half = (n_characters - 3) // 2
    return text if len(text) <= n_characters else f"{text[:half]} … {text[-half:]}"


def _meet(corpus: Corpus, model: CellModel) -> list[str]:
    """Refuse a model of other genes; say what is not known of the model's training."""
    known, asked = model.spec.vocabulary, corpus.vocabulary
    overlap = VocabularyOverlap.of(known, asked)
    if overlap.n_shared < MIN_OVERLAP * len(asked):
        raise VocabularyMismatchError(f"{overlap}; pass a model that was trained on the genes of this corpus")
    messages = [] if known == asked else [f"{overlap}; other genes are read and written letter by letter"]
    if corpus.description.fingerprint not in model.spec.manifest.get("inputs", {}).values():
        messages.append(
            "the model was not trained on this corpus: whether it saw the donors asked about cannot be known here"
        )
    for message in messages:
        logger.warning("%s", message)
    return messages
