"""How a model answers a task: a closed set by scoring, genes under constraint, cell by cell, all else by free writing.

Everything is greedy: the likeliest label, the likeliest next token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cytoglot.answer_format import AnswerFormat, DistinctWords, FreeText
from cytoglot.cell_model.task_scores import EvalRecord, EvalTask, parts_of
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.lm.constraint.constrain import constrain
from cytoglot.lm.generation.generate import generate_answers
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.tokenizer import encode_completions, encode_pair, encode_prompts
from cytoglot.lm.runtime.batches import checked_batch_tokens
from cytoglot.lm.scoring.score import score_answers
from cytoglot.sentence.profile import CellProfile
from cytoglot.tasks.instance import TaskInstance, truncate_to_fit
from cytoglot.tasks.record import Record
from cytoglot.tasks.task import AnswerSpace, Task

_MAX_ROWS = 64
_READING_BATCHES = 8
"""batches of reading whose tokens may be remembered at once while writing: a remembered token takes little"""


@dataclass(frozen=True)
class ModelAnswers:
    """A model that answers, and what it has room to read."""

    lm: LanguageModel
    vocabulary: GeneVocabulary
    """the genes that answers are made of"""
    profile: CellProfile | None = None
    """what the model was trained to write cells with"""

    def answers(self, asked: EvalTask, budgets: Sequence[int]) -> list[str]:
        """Return the model's answer to each record of the task, without what frames it.

        Parameters
        ----------
        budgets
            Most tokens of each answer, where no format says what an answer is.
        """
        if asked.kind == "label":
            likelihood_na = score_answers(self.lm, asked.prompts, framed(asked.task, asked.labels))
            return [asked.labels[i] for i in likelihood_na.argmax(axis=1)]
        formats = [self.words(asked.task, one.record, one.n_genes) for one in asked.records]
        worded = [one for one in formats if one is not None]
        if len(worded) == len(formats):
            return self._write(asked.prompts, worded, max(one.max_words for one in worded))
        if asked.kind == "cells":
            return self._write_cells(asked)
        return self._write_freely(asked.prompts, budgets)

    def fitted(self, instance: TaskInstance, labels: Iterable[str] = ()) -> EvalRecord | None:
        """Ask about as many genes as the context has room for beside the answer, or any of the `labels`.

        None if there is no room even with one gene of each cell, or nothing is left to ask.
        """
        context = math.inf if self.lm.context_length is None else self.lm.context_length
        longest_label = max(self.n_tokens(instance.task, labels), default=0)

        def asked(one: TaskInstance) -> tuple[EvalRecord | None, int]:
            # None if nothing of the answer is known in this vocabulary; and the tokens that it takes
            example, truth = one.example(), one.answer()
            parts = parts_of(one.task, truth, self.vocabulary)
            if not parts or not all(part.strip() for part in parts):
                return None, 0
            record = EvalRecord(record=one.record, prompt=example.prompt, truth=truth, parts=parts)
            ids, n_prompt = encode_pair(self.lm.tokenizer, example.prompt, example.completion)
            words = self.words(one.task, one.record, record.n_genes)
            n_words = 0 if words is None else constrain(words, self.lm.tokenizer).enough_tokens(words.max_words)
            return record, max(len(ids), n_prompt + max(longest_label, n_words))

        (found,) = truncate_to_fit([instance], [context], lambda ones: list(map(asked, ones)))
        return None if found is None else found[1]

    def n_tokens(self, task: Task[Any, Any], answers: Iterable[str]) -> list[int]:
        """Return the tokens of each answer with its frame and the end of text."""
        return [len(ids) for ids in encode_completions(self.lm.tokenizer, framed(task, answers), eos=True)]

    def words(self, task: Task[Any, Any], record: Record, n_genes: int) -> DistinctWords | None:
        """Return the format of an answer of genes; None where the task's answers have no such format."""
        if task.answer_kind != "genes":
            return None
        profile = self.profile if task.writes_cells else None
        weights = None if profile is None else profile.weights(record.metadata)
        one = task.answer_format(AnswerSpace(vocabulary=self.vocabulary, n_genes=n_genes, weights=weights))
        return one if isinstance(one, DistinctWords) else None

    def _write(self, prompts: Sequence[str], formats: Sequence[AnswerFormat], n_written: int) -> list[str]:
        longest = max(len(ids) for ids in encode_prompts(self.lm.tokenizer, prompts)) + n_written
        n_rows = _READING_BATCHES * checked_batch_tokens(self.lm, None) // longest
        batch_size = min(_MAX_ROWS, max(1, n_rows))
        answers = generate_answers(self.lm, prompts, formats, temperature=0.0, seed=0, batch_size=batch_size)
        return [text for (text, *_) in answers]

    def _write_cells(self, asked: EvalTask) -> list[str]:
        """Write the cells of a group one after another, each under constraint and as long as the true one.

        Greedy text without a constraint goes round in circles after some genes. What was written stands before the next
        cell, as in training.
        """
        lengths = [[len(part.split()) for part in one.parts] for one in asked.records]
        written = [""] * len(lengths)
        for number in range(max(map(len, lengths))):
            rows = [i for i, cells in enumerate(lengths) if number < len(cells)]
            for i in rows:
                written[i] += f"Cell {number + 1}:" if number == 0 else f"\nCell {number + 1}:"
            n_genes = [lengths[i][number] for i in rows]
            formats = [DistinctWords(words=self.vocabulary.symbols, min_words=n, max_words=n) for n in n_genes]
            texts = self._write([f"{asked.prompts[i]} {written[i]}" for i in rows], formats, max(n_genes))
            for i, text in zip(rows, texts, strict=True):
                written[i] += f" {text}"
        return written

    def _write_freely(self, prompts: Sequence[str], budgets: Sequence[int]) -> list[str]:
        """Write in batches of prompts of similar length; an answer ends with the context, if not before."""
        lengths = np.array([len(ids) for ids in encode_prompts(self.lm.tokenizer, prompts)])
        context = self.lm.context_length or int(lengths.max()) + max(budgets)
        answers = [""] * len(prompts)
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), _MAX_ROWS):
            batch = order[start : start + _MAX_ROWS]
            n_written = min(max(budgets[i] for i in batch), context - int(lengths[batch].max()))
            texts = self._write([prompts[i] for i in batch], [FreeText(max_tokens=n_written)] * len(batch), n_written)
            for i, text in zip(batch, texts, strict=True):
                answers[i] = text
        return answers


def framed(task: Task[Any, Any], answers: Iterable[str]) -> list[str]:
    """Return bare answers in their frame, as training shows them."""
    return [task.templates.framed(answer) for answer in answers]
