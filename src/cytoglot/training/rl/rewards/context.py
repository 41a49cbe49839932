"""What rewards may know beside an answer: genes, labels, training cells; and the prompts that answers are given to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytoglot.errors import InputError
from cytoglot.tasks.task import tasks
from cytoglot.training.rl.rewards.type_profile import TypeProfiles

if TYPE_CHECKING:
    from cytoglot.data.knowledge.ontology_graph import OntologyGraph
    from cytoglot.lm.model.language_model import LanguageModel

Sentences = tuple[tuple[str, ...], ...]
COLUMNS = ("task", "answer", "cell_type", "num_genes", "key")
"""what is told of every prompt beside its text"""


@dataclass(frozen=True, kw_only=True)
class RewardInputs:
    """What rewards are made from; only training cells may be in it."""

    genes: tuple[str, ...]
    """the vocabulary: what counts as a gene, letter for letter"""
    labels: tuple[str, ...] = ()
    """answers of the closed tasks"""
    label_ids: Mapping[str, str | None] = field(default_factory=dict)
    """label → Cell Ontology id, as `data.ontology.map_labels` finds it"""
    ontology: OntologyGraph | None = None
    """by default the part of the Cell Ontology that ships with the package"""
    reference: Mapping[str, Sentences] = field(default_factory=dict)
    """cell type → sentences of training cells, each its genes from the highest on"""
    lm: LanguageModel | None = None
    """a frozen model whose hidden states measure distances; not the one in training, or the measure would move"""
    encoder: str | Path | None = None
    """folder or hub name of the text encoder, where a reward's own settings name none"""
    texts: tuple[str, ...] = ()
    """true answers of training prompts, from which the rarity of words is counted"""
    terminator: str = "."
    """ends an answer; empty if nothing does"""

    def __post_init__(self) -> None:
        if len(set(self.genes)) != len(self.genes):
            raise InputError(
                f"genes of rewards must be distinct, found {len(self.genes)}, {len(set(self.genes))} of them"
            )

    @cached_property
    def gene_set(self) -> frozenset[str]:
        """The vocabulary for look-ups."""
        return frozenset(self.genes)

    @cached_property
    def profiles(self) -> TypeProfiles:
        """Mean profiles of the types among the training cells."""
        return TypeProfiles(self.reference)


@dataclass(frozen=True, kw_only=True)
class RewardPrompts:
    """Prompts with what is told of each: the columns of `COLUMNS`, one value per prompt."""

    prompts: tuple[str, ...]
    columns: Mapping[str, tuple[Any, ...]]

    def __post_init__(self) -> None:
        absent = [name for name in COLUMNS if name not in self.columns]
        if absent:
            raise InputError(f"prompts of rewards need the columns {', '.join(COLUMNS)}; {', '.join(absent)} not found")
        wrong = {name: len(values) for name, values in self.columns.items() if len(values) != len(self.prompts)}
        if wrong:
            raise InputError(f"columns of rewards need one value per prompt ({len(self.prompts)}), found {wrong}")

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: Iterable[int]) -> RewardPrompts:
        """Return the prompts of these rows, repeats allowed."""
        chosen = list(rows)
        return RewardPrompts(
            prompts=tuple(self.prompts[i] for i in chosen),
            columns={name: tuple(values[i] for i in chosen) for name, values in self.columns.items()},
        )

    def as_columns(self) -> dict[str, list[Any]]:
        """Return the keyword arguments of a reward: `prompts` and the columns, as lists."""
        return {"prompts": list(self.prompts)} | {name: list(values) for name, values in self.columns.items()}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One completion with its prompt, read once: strictly, since a lenient reader would be an easy judge."""

    text: str
    """as written, without white space around it and without the terminator"""
    words: tuple[str, ...]
    """as written, split at white space; only the last word is freed of the terminator"""
    ended: bool
    """the terminator is there"""
    prompt: str
    task: str
    true: str
    """the true answer, without the terminator"""
    cell_type: str
    """empty if unknown, or if the prompt does not tell it: then all types together stand for it"""
    num_genes: int
    """words asked for; 0 if the answer is no sentence"""
    key: str

    @property
    def is_sentence(self) -> bool:
        """Whether genes were asked for."""
        return self.num_genes > 0

    @property
    def longest(self) -> int:
        """The larger of the words asked for and the words written, which sentence rewards divide by."""
        return max(self.num_genes, len(self.words))


def read_answers(
    completions: Sequence[str], columns: Mapping[str, Sequence[Any]], context: RewardInputs
) -> list[Answer]:
    """Return each completion with what is known of its prompt; never raises on any text.

    Raises
    ------
    InputError
        A column is missing or does not have one value per completion, or a completion is not a text.
    """
    for name in COLUMNS[:-1]:
        if name not in columns:
            raise InputError(f"a reward needs the column {name!r} of the prompts; found {sorted(columns)}")
        if len(columns[name]) != len(completions):
            raise InputError(
                f"column {name!r} needs one value per completion: {len(completions)}, found {len(columns[name])}"
            )
    odd = next((c for c in completions if not isinstance(c, str)), None)
    if odd is not None:
        raise InputError(f"completions must be texts, found {type(odd).__name__}; chat messages are not rated")
    prompts = columns.get("prompts") or [""] * len(completions)
    types, answers = known_types(columns), []
    for i, completion in enumerate(completions):
        text, ended = _without_terminator(completion, context)
        answers.append(
            Answer(
                text=text,
                words=tuple(text.split()),
                ended=ended,
                prompt=str(prompts[i]),
                task=str(columns["task"][i]),
                true=_without_terminator(str(columns["answer"][i]), context)[0],
                cell_type=types[i],
                num_genes=max(0, int(columns["num_genes"][i] or 0)),
                key=str(columns["key"][i]) if "key" in columns else "",
            )
        )
    return answers


def known_types(columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return each prompt's cell type, empty where it is unknown or the answer cannot be judged by it.

    That is where the prompt tells neither the type nor which record is meant.
    """
    untyped = {
        name
        for name in set(columns["task"])
        if name in tasks and not tasks[name].identifies_record and "cell_type" not in tasks[name].tells
    }
    pairs = zip(columns["task"], columns["cell_type"], strict=True)
    return ["" if task in untyped else str(name or "") for task, name in pairs]


def _without_terminator(completion: str, context: RewardInputs) -> tuple[str, bool]:
    text = completion.strip()
    if not context.terminator:
        return text, True
    if not text.endswith(context.terminator):
        return text, False
    last = text.split()[-1]
    if last in context.gene_set:  # a gene whose own name ends like an answer
        return text, False
    return text.removesuffix(context.terminator).rstrip(), True
