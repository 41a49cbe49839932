"""What is asked in alignment: training prompts from training cells, held-out prompts from validation cells.

A prompt carries the columns that rewards are told, and the format of a valid answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cytoglot.answer_format import AnswerFormat, FreeText, OneOf
from cytoglot.cell_model.task_answers import ModelAnswers
from cytoglot.corpus.format.folder import Part
from cytoglot.corpus.read.examples import CorpusExamples, available_tasks
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.data.schema import GROUP_FIELDS
from cytoglot.errors import InputError
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.metrics.uncertainty import resampling_unit
from cytoglot.sentence.profile import CellProfile
from cytoglot.tasks.instance import TaskInstance
from cytoglot.tasks.record import CellRecord
from cytoglot.tasks.record_source import record_sources
from cytoglot.tasks.task import tasks as registered_tasks
from cytoglot.training.cells import TrainingCells
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.rl.rewards.context import COLUMNS, RewardPrompts
from cytoglot.training.validation.held_out import held_out_of_corpus

_POOL = 4096
"""different prompts that training takes at most; from there on they come again, with new answers"""
_REFERENCE_CELLS = 200
"""training cells of a type that rewards may look at"""


@dataclass(frozen=True, kw_only=True)
class EvalPrompt:
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
        return {name: getattr(self, name) for name in COLUMNS}


def reward_prompts(asked: Sequence[EvalPrompt]) -> RewardPrompts:
    """Return prompts as rewards take them."""
    columns = {name: tuple(getattr(one, name) for one in asked) for name in COLUMNS}
    return RewardPrompts(prompts=tuple(one.prompt for one in asked), columns=columns)


@dataclass(frozen=True, kw_only=True)
class PromptSource:
    """What prompts can be made of a corpus, by task and part; and what rewards may know of it."""

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
    profile: CellProfile | None = None
    """what the model writes cells with"""
    reference: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    """cell type → sentences of training cells"""

    def asked(self, lm: LanguageModel, task: str, part: Part, n: int) -> Iterator[EvalPrompt]:
        """Yield up to `n` prompts of a task that fit the model's context with their true answer."""
        answers, found, labels = ModelAnswers(lm, self.vocabulary, self.profile), 0, self.labels.get(task, ())
        for question in self.questions.get((task, part), ()):
            if found == n:
                return
            fitted = answers.fitted(question, labels)
            if fitted is None:
                continue
            found += 1
            record, kind, n_genes = question.record, question.task.answer_kind, 0
            answer_format: AnswerFormat = FreeText()
            if kind == "genes":
                n_genes = len(fitted.truth.split())
                answer_format = answers.words(question.task, record, n_genes) or FreeText()
            elif kind == "label":
                answer_format = OneOf(options=labels)
            yield EvalPrompt(
                prompt=fitted.prompt,
                task=task,
                answer=fitted.truth,
                answer_format=answer_format,
                cell_type=record.metadata.get("cell_type", ""),
                num_genes=n_genes,
                key=record.key,
                group=self.groups.get(record.key, ""),
            )


def source_of_corpus(
    cells: TrainingCells,
    recipe: TrainRecipe,
    *,
    n_training: int,
    types: tuple[str, ...] = (),
    profile: CellProfile | None = None,
    seed: int,
) -> PromptSource:
    """Return what the mixture asks of a corpus.

    Parameters
    ----------
    types
        The types that a base model chooses from; () for those of the training cells.
    profile
        What the base model writes cells with.
    """
    corpus, top_genes = cells.corpus, recipe.sentence.top_genes
    questions: dict[tuple[str, Part], tuple[TaskInstance, ...]] = {}
    wanted: dict[Part, int] = {"train": min(n_training, _POOL), "validation": recipe.grpo.held_out_prompts}
    for name in cells.shares:
        task = corpus.templates_of_tasks.get(name, registered_tasks[name])
        for part, n in wanted.items():
            there = corpus.shards(part) or not record_sources[task.unit].is_of_cells
            drawn = CorpusExamples(corpus, part, top_genes=top_genes, metadata_share=1.0)
            found = drawn.sample(n, name, seed=seed) if there else []
            rng, share = np.random.default_rng([seed, 24]), recipe.paraphrase_share if part == "train" else 0.0
            templates = [None if rng.random() < share else task.short_template(one.record) for one in found]
            questions[name, part] = tuple(
                TaskInstance(task, one.record, template, seed=seed)
                for one, template in zip(found, templates, strict=True)
            )
    labels = dict(held_out_of_corpus(corpus, cells.shares, recipe, seed).labels)
    for name in cells.shares:  # where validation asks none, the answers of the training prompts
        if registered_tasks[name].closed_answer and name not in labels and questions[name, "train"]:
            labels[name] = tuple(sorted({question.answer() for question in questions[name, "train"]}))
    if types and "cell_type_annotation" in labels:
        labels["cell_type_annotation"] = types
    asked = [q.record for (_, part), some in questions.items() if part == "validation" for q in some]
    unit, values = resampling_unit(
        {name: np.array([r.metadata.get(name) for r in asked], dtype=object) for name in GROUP_FIELDS}
    )
    reference = CorpusExamples(corpus, "train", top_genes=top_genes)
    is_typed = "cell_generation" in available_tasks(corpus, "train")
    of_type: dict[str, list[tuple[str, ...]]] = {}
    for one in reference.sample(_POOL, "cell_generation", seed=seed) if is_typed else []:
        label = one.record.metadata.get("cell_type")
        if isinstance(one.record, CellRecord) and label is not None and len(one.record.genes):
            of_type.setdefault(label, []).append(tuple(one.record.genes))
    return PromptSource(
        vocabulary=corpus.vocabulary,
        shares=cells.shares,
        labels=labels,
        questions=questions,
        groups={} if values is None else {r.key: str(v) for r, v in zip(asked, values, strict=True)},
        unit="prompt" if values is None else unit,
        profile=profile,
        reference={label: tuple(some[:_REFERENCE_CELLS]) for label, some in sorted(of_type.items())},
    )


def plan_prompts(source: PromptSource, lm: LanguageModel, *, n: int, seed: int) -> list[EvalPrompt]:
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
    plan: list[EvalPrompt | None] = [None] * n
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


def held_out_prompts(source: PromptSource, lm: LanguageModel, *, n: int) -> list[EvalPrompt]:
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
