"""What is asked in alignment: training prompts from training cells, held-out prompts from validation cells.

A prompt carries the columns that rewards are told, and the format of a valid answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytoglot.answer_format import AnswerFormat, FreeText, OneOf
from cytoglot.cell_model.task_answers import ModelAnswers
from cytoglot.corpus.format.folder import Corpus, Part
from cytoglot.corpus.read.examples import CorpusExamples, askable_tasks
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.sentence.cell_sentence import CellSentences
from cytoglot.tasks.instance import TaskInstance
from cytoglot.tasks.record import CellRecord, Record
from cytoglot.tasks.record_source import record_sources
from cytoglot.tasks.task import AnswerSpace, Task
from cytoglot.tasks.task import tasks as registered_tasks
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.rl.rewards.context import RewardPrompts
from cytoglot.training.validation.held_out import held_out_of_corpus

_POOL = 4096
"""different prompts that training takes at most; from there on they come again, with new answers"""
_REFERENCE_CELLS = 200
"""training cells of a type that rewards may look at"""


@dataclass(frozen=True, kw_only=True)
class AskedPrompt:
    """One prompt and what is known of its answer."""

    prompt: str
    task: str
    answer: str
    """the true one, without space and terminator"""
    answer_format: AnswerFormat
    cell_type: str = ""
    """empty where it is not known"""
    num_genes: int = 0
    """words asked for; 0 if the answer is no sentence"""
    key: str = ""
    group: str = ""
    """donor or batch of the record, where held-out prompts have enough of them to be resampled by"""

    @property
    def columns(self) -> dict[str, Any]:
        """What rewards are told beside the prompt."""
        return {name: getattr(self, name) for name in ("task", "answer", "cell_type", "num_genes", "key")}


def reward_prompts(asked: Sequence[AskedPrompt]) -> RewardPrompts:
    """Return prompts as rewards take them."""
    rows = [one.columns for one in asked]
    names = ("task", "answer", "cell_type", "num_genes", "key")
    return RewardPrompts(
        prompts=tuple(one.prompt for one in asked),
        columns={name: tuple(row[name] for row in rows) for name in names},
    )


@dataclass(frozen=True, kw_only=True)
class AskableCells:
    """Cells of a file that can be asked about. Axis: n cells."""

    sentences: CellSentences
    """whole; a prompt holds the first `top_genes`"""
    top_genes: int | None
    labels: NDArray[np.object_]
    """(n,) cell type, None where unknown"""
    part: NDArray[np.object_]
    """(n,) train, validation or test"""
    groups: NDArray[np.object_] | None = None
    """(n,) donor or batch, None where the file names none"""
    unit: str = "prompt"
    """what the groups are"""
    types: tuple[str, ...] = ()
    """the labels that an annotation chooses from"""
    context: Mapping[str, str] = field(default_factory=dict)
    """metadata of every prompt"""

    def record(self, row: int, *, variant: int = 0) -> CellRecord:
        """Return a cell with its genes, as many as a sentence has, and its type."""
        names, label = self.sentences.vocabulary.names, self.labels[row]
        return CellRecord(
            cell_id=str(self.sentences.cell_ids[row]),
            genes=tuple(names[self.sentences.ids(row)[: self.top_genes]].tolist()),
            metadata=dict(self.context) if label is None else {**self.context, "cell_type": label},
            variant=variant,
        )


@dataclass(frozen=True, kw_only=True)
class PromptSource:
    """What prompts can be made of a file or a corpus, by task and part; and what rewards may know of it."""

    vocabulary: GeneVocabulary
    shares: Mapping[str, float]
    """task → share of the prompts"""
    labels: Mapping[str, tuple[str, ...]]
    """closed task → its answers"""
    questions: Mapping[tuple[str, Part], tuple[TaskInstance, ...]]
    """in random order"""
    groups: Mapping[str, str] = field(default_factory=dict)
    """key of a validation record → its donor or batch"""
    unit: str = "prompt"
    reference: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    """cell type → sentences of training cells"""

    def asked(self, lm: LanguageModel, task: str, part: Part, n: int) -> Iterator[AskedPrompt]:
        """Yield up to `n` prompts of a task that fit the model's context with their true answer."""
        answers, found = ModelAnswers(lm, self.vocabulary), 0
        for question in self.questions.get((task, part), ()):
            if found == n:
                return
            one = self._ask(answers, question)
            if one is not None:
                found += 1
                yield one

    def _ask(self, answers: ModelAnswers, question: TaskInstance) -> AskedPrompt | None:
        name, record = question.task.name, question.record
        labels = self.labels.get(name, ())
        kind = question.task.answer_kind
        fitted = answers.fitted(question, labels)
        if fitted is None:
            return None
        n_genes = len(fitted.truth.split()) if kind == "genes" else 0
        answer_format: AnswerFormat = FreeText()
        if kind == "genes":
            answer_format = question.task.answer_format(AnswerSpace(vocabulary=self.vocabulary, n_genes=n_genes))
        elif kind == "label":
            answer_format = OneOf(options=labels)
        return AskedPrompt(
            prompt=fitted.prompt,
            task=name,
            answer=fitted.truth,
            answer_format=answer_format,
            cell_type=record.metadata.get("cell_type", ""),
            num_genes=n_genes,
            key=record.key,
            group=self.groups.get(record.key, ""),
        )


def source_of_cells(cells: AskableCells, recipe: TrainRecipe, *, n_training: int, seed: int) -> PromptSource:
    """Return what the recipe's tasks ask of the cells of a file.

    Raises
    ------
    InputError
        A task asks for more than a file of labelled cells tells.
    """
    shares = _shares(recipe, registered_tasks)
    record = CellRecord(genes=("GENE1", "GENE2"), metadata={**cells.context, "cell_type": "B"}, cell_id="c")
    for name in shares:
        if registered_tasks[name].unit != "cell" or not registered_tasks[name].can_ask(record):
            raise InputError(
                f"task {name!r} needs more than the genes and types of single cells; build a corpus with "
                "`cytoglot corpus build` and align on that"
            )
    wanted = {"train": min(n_training, _POOL), "validation": recipe.grpo.held_out_prompts}
    questions = {
        (name, part): tuple(_questions_of_cells(cells, recipe, registered_tasks[name], part, n, seed))
        for name in shares
        for part, n in wanted.items()
    }
    return PromptSource(
        vocabulary=cells.sentences.vocabulary,
        shares=shares,
        labels={name: cells.types for name in shares if registered_tasks[name].closed_answer},
        questions=questions,  # type: ignore[arg-type]
        groups=_groups_of(cells),
        unit=cells.unit if cells.groups is not None else "prompt",
        reference=_reference(
            (cells.record(int(row)) for row in _shuffled(cells, "train", [seed, 21])), _REFERENCE_CELLS
        ),
    )


def _questions_of_cells(
    cells: AskableCells, recipe: TrainRecipe, task: Task[Any, Any], part: str, n: int, seed: int
) -> Iterator[TaskInstance]:
    """Yield twice as many questions as are wanted, as some may not fit; a small file is gone through again."""
    number = sorted(registered_tasks).index(task.name)
    rng = np.random.default_rng([seed, 22, number, part == "train"])
    rows, found, variant = _shuffled(cells, part, [seed, 23, number]), 0, 0
    while len(rows) and found < 2 * n and (variant == 0 or part == "train"):
        before = found
        for row in rows:
            record = cells.record(int(row), variant=variant)
            if not task.can_ask(record):
                continue
            paraphrased = part == "train" and rng.random() < recipe.paraphrase_share
            yield TaskInstance(task, record, None if paraphrased else task.short_template(record), seed=seed)
            found += 1
            if found == 2 * n:
                return
        if found == before:
            return
        variant += 1


def _shuffled(cells: AskableCells, part: str, seed: Sequence[int]) -> NDArray[np.int64]:
    return np.random.default_rng(list(seed)).permutation(np.flatnonzero(cells.part == part))


def _groups_of(cells: AskableCells) -> dict[str, str]:
    if cells.groups is None:
        return {}
    rows = np.flatnonzero(cells.part == "validation")
    return {str(cells.sentences.cell_ids[row]): str(cells.groups[row]) for row in rows}


def source_of_corpus(corpus: Corpus, recipe: TrainRecipe, *, n_training: int, seed: int) -> PromptSource:
    """Return what the recipe's tasks ask of a corpus.

    Raises
    ------
    InputError
        A named task finds nothing in the training part that it could ask.
    """
    askable = askable_tasks(corpus, "train")
    shares = _shares(recipe, askable)
    absent = sorted(set(shares) - set(askable))
    if absent:
        raise InputError(
            f"{corpus.folder} holds nothing that the tasks {absent} could ask; it can ask: {', '.join(askable)}"
        )
    top_genes, questions = recipe.sentence.top_genes, {}
    wanted = {"train": min(n_training, _POOL), "validation": recipe.grpo.held_out_prompts}
    parts: dict[str, Part] = {"train": "train", "validation": "validation"}
    for name in shares:
        task = corpus.reworded.get(name, registered_tasks[name])
        for part, n in wanted.items():
            there = corpus.shards(parts[part]) or not record_sources[task.unit].is_of_cells
            drawn = CorpusExamples(corpus, parts[part], top_genes=top_genes, metadata_share=1.0)
            found = drawn.sample(n, name, seed=seed) if there else []
            records = [one.record for one in found]
            questions[name, parts[part]] = tuple(_questions(records, task, recipe, part, seed))
    held_out = held_out_of_corpus(corpus, shares, recipe, seed)
    cells = CorpusExamples(corpus, "train", top_genes=top_genes)
    typed = cells.sample(_POOL, "cell_generation", seed=seed) if "cell_generation" in askable else []
    return PromptSource(
        vocabulary=corpus.vocabulary,
        shares=shares,
        labels=_closed_labels(held_out.labels, questions),
        questions=questions,
        reference=_reference((one.record for one in typed), _REFERENCE_CELLS),
    )


def _questions(
    records: Iterable[Record], task: Task[Any, Any], recipe: TrainRecipe, part: str, seed: int
) -> Iterator[TaskInstance]:
    rng = np.random.default_rng([seed, 24])
    for record in records:
        paraphrased = part == "train" and rng.random() < recipe.paraphrase_share
        yield TaskInstance(task, record, None if paraphrased else task.short_template(record), seed=seed)


def _closed_labels(
    known: Mapping[str, tuple[str, ...]], questions: Mapping[tuple[str, Part], Sequence[TaskInstance]]
) -> dict[str, tuple[str, ...]]:
    """Return the answers of each closed task; where validation asks none, those of the training prompts."""
    labels = dict(known)
    for (name, part), asked in questions.items():
        if part == "train" and registered_tasks[name].closed_answer and name not in labels and asked:
            labels[name] = tuple(sorted({q.answer() for q in asked}))
    return labels


def _shares(recipe: TrainRecipe, askable: Iterable[str]) -> dict[str, float]:
    """Return the recipe's tasks; where it names none, cells are written."""
    if "tasks" in recipe.model_fields_set:
        return dict(recipe.tasks)
    default = "cell_generation"
    if default not in set(askable):
        raise InputError("the recipe names no tasks, and cells of a known type cannot be asked for here; set tasks")
    return {default: 1.0}


def _reference(records: Iterable[Record], n_each: int) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Return up to `n_each` sentences of each type."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for record in records:
        label = record.metadata.get("cell_type")
        if isinstance(record, CellRecord) and label is not None and len(record.genes):
            sentences = found.setdefault(label, [])
            if len(sentences) < n_each:
                sentences.append(tuple(record.genes))
    return {label: tuple(sentences) for label, sentences in sorted(found.items())}


def plan_prompts(source: PromptSource, lm: LanguageModel, *, n: int, seed: int) -> list[AskedPrompt]:
    """Return the `n` training prompts of a run in their order; tasks by their shares, each prompt once in a pass.

    Raises
    ------
    InputError
        A task has no prompt that fits the model's context.
    """
    rng = np.random.default_rng([seed, 25])
    names = list(source.shares)
    shares = np.array([source.shares[name] for name in names])
    task = rng.choice(len(names), size=n, p=shares / shares.sum())
    plan: list[AskedPrompt | None] = [None] * n
    for number, name in enumerate(names):
        places = np.flatnonzero(task == number)
        pool = list(source.asked(lm, name, "train", min(len(places), _POOL)))
        if len(places) and not pool:
            raise InputError(
                f"task {name!r} has no training prompt: no training cell can be asked, or none fits the model's "
                "context; leave the task out, or lower sentence.top_genes"
            )
        order = [i for _ in range(-(-len(places) // max(len(pool), 1))) for i in rng.permutation(len(pool)).tolist()]
        for place, i in zip(places, order, strict=False):
            plan[place] = pool[i]
    return [one for one in plan if one is not None]


def held_out_prompts(source: PromptSource, lm: LanguageModel, *, n: int) -> list[AskedPrompt]:
    """Return about `n` prompts of validation records, tasks by their shares but at least one each.

    Raises
    ------
    InputError
        There is none.
    """
    total = sum(source.shares.values())
    found = [
        one
        for name, share in source.shares.items()
        for one in source.asked(lm, name, "validation", max(1, round(n * share / total)))
    ]
    if not found:
        raise InputError(
            "no prompt can be made of the validation part, on which the reward is watched; pass cells with a "
            "validation part, or other tasks"
        )
    return found
