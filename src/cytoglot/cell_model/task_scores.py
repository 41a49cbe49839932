"""How right an answer is, for every task alike.

An answer is read as parts: one for most tasks, one for each cell where several are asked about. Two parts are compared
as texts; genes take the place of words by their ids, so that `Actb` is not `ACTB`. Cells that were asked for without
being told apart have no order: each is compared with the true cell that makes the best of all pairs.

Axes: n records, k columns of a statistic, f parts found, w parts wanted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.metrics.classification import macro_f1_statistic, mean_statistic
from cytoglot.metrics.generation import gene_overlap
from cytoglot.metrics.spec import metrics as registered_metrics
from cytoglot.metrics.text import exact_match, token_f1
from cytoglot.metrics.uncertainty import AdditiveStatistic
from cytoglot.sentence.parse import ParsedSentence
from cytoglot.tasks.record import Record
from cytoglot.tasks.task import AnswerKind, AnswerSpace, Task

_NO_GENE = "unknown"
"""stands for each word that is no gene or repeats one"""


@dataclass(frozen=True, kw_only=True)
class EvalRecord:
    """One record as a task asks about it, with the true answer."""

    record: Record
    prompt: str
    truth: str
    """without the space before it and the full stop after it"""
    parts: tuple[str, ...]
    """the truth as it is compared"""

    @property
    def n_genes(self) -> int:
        """Genes of the longest part, for answers of genes."""
        return max(len(part.split()) for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class EvalTask:
    """What one task asks, and what is needed to answer and to judge it."""

    task: Task[Any, Any]
    vocabulary: GeneVocabulary
    """the genes that answers are made of"""
    records: tuple[EvalRecord, ...]
    labels: tuple[str, ...] = ()
    """what a closed task chooses from: the answers that occur in training, most frequent first"""

    @property
    def kind(self) -> AnswerKind:
        """What an answer is made of."""
        return self.task.answer_kind

    @property
    def prompts(self) -> list[str]:
        """The prompt of each record."""
        return [asked.prompt for asked in self.records]

    def with_truths_of(self, order: NDArray[np.integer]) -> EvalTask:
        """Return the same prompts with the true answers of other records: i gets that of `order[i]`."""
        others = [self.records[i] for i in order]
        swapped = (replace(a, truth=o.truth, parts=o.parts) for a, o in zip(self.records, others, strict=True))
        return replace(self, records=tuple(swapped))


def parts_of(task: Task[Any, Any], answer: str, vocabulary: GeneVocabulary) -> tuple[str, ...]:
    """Return an answer as it is compared: a text for each part; genes as their ids."""
    if task.answer_kind == "label":
        return (answer,)
    value = task.parse(answer, AnswerSpace(vocabulary=vocabulary))
    match task.answer_kind:
        case "genes":
            return (_gene_words(value),)
        case "cells":
            return tuple(map(_gene_words, value))
        case "labels":
            return tuple(label or "" for label in value)
        case _:
            return (value if isinstance(value, str) else answer,)


def gene_ids_of(part: str) -> NDArray[np.int64]:
    """Return the ids of the genes in a part."""
    return np.array([int(word[1:]) for word in part.split() if word != _NO_GENE], dtype=np.int64)


def statistics(asked: EvalTask, answers: Sequence[str]) -> dict[str, AdditiveStatistic]:
    """Return metric → its additive form over the records: `exact_match`, `token_f1` and what the task names.

    Of several cells, overlap and F1 are means over the cells; a missing cell counts 0, and for F1 a surplus one does
    too. Metrics without such a form, and those of probabilities, are left out.
    """
    found_n = [parts_of(asked.task, answer, asked.vocabulary) for answer in answers]
    wanted_n = [one.parts for one in asked.records]
    has_order = asked.kind != "cells" or asked.task.is_ordered
    scores = [_scores(f, w, kind=asked.kind, has_order=has_order) for f, w in zip(found_n, wanted_n, strict=True)]
    result = {name: mean_statistic(np.array([score[name] for score in scores])) for name in scores[0]}
    if "macro_f1" in asked.task.metrics:  # over cells, summed by record; a label that was not given is the empty one
        record = np.repeat(np.arange(len(wanted_n)), [len(wanted) for wanted in wanted_n])
        truth = [label for wanted in wanted_n for label in wanted]
        padded = ([*found, *[""] * len(wanted)][: len(wanted)] for found, wanted in zip(found_n, wanted_n, strict=True))
        over_cells = macro_f1_statistic(truth, [label for given in padded for label in given])
        rows_nk = np.zeros((len(wanted_n), over_cells.rows_nk.shape[1]))
        np.add.at(rows_nk, record, over_cells.rows_nk)
        result["macro_f1"] = AdditiveStatistic(rows_nk=rows_nk, combine=over_cells.combine)
    return result


def scores_of(asked: EvalTask, answers: Sequence[str]) -> dict[str, float]:
    """Return every metric of the task that answers alone decide; NaN where one is undefined on all records."""
    found = {name: statistic.value for name, statistic in statistics(asked, answers).items()}
    written = [gene_ids_of(part).tolist() for a in answers for part in parts_of(asked.task, a, asked.vocabulary)[:1]
               ] if asked.kind == "genes" else []  # fmt: skip
    wanted = [gene_ids_of(one.parts[0]).tolist() for one in asked.records] if asked.kind == "genes" else []
    for name in set(asked.task.metrics) - set(found):
        spec = registered_metrics[name]
        match spec.inputs:
            case "sentence_pair":
                vocabulary = [range(len(asked.vocabulary))] if name == "kendall_tau_b" else []
                values = [spec.function(w, true, *vocabulary) for w, true in zip(written, wanted, strict=True)]
            case "sentence":
                genes = [frozenset(asked.vocabulary.symbols)] if name == "validity" else []
                values = [spec.function(answer.split(), *genes) for answer in answers]
            case "text_pair":
                values = [spec.function(a, one.truth) for a, one in zip(answers, asked.records, strict=True)]
            case _:
                continue
        known = [value for value in values if not math.isnan(value)]
        found[name] = float(np.mean(known)) if known else math.nan
    return {name: found[name] for name in asked.task.metrics if name in found}


def _gene_words(parsed: ParsedSentence) -> str:
    """Return ids as words: whatever is compared as words takes no notice of case."""
    n_others = parsed.report.n_unknown + parsed.report.n_duplicates
    return " ".join([*(f"g{gene}" for gene in parsed.gene_ids), *[_NO_GENE] * n_others])


def _scores(found: tuple[str, ...], wanted: tuple[str, ...], *, kind: AnswerKind, has_order: bool) -> dict[str, float]:
    pairs = list(zip_longest(found, wanted)) if has_order else _best_pairs(found, wanted)
    both = [(f, w) for f, w in pairs if f is not None and w is not None]
    n_exact = sum(exact_match(f, w) for f, w in both)
    scores = {
        "exact_match": float(n_exact == len(pairs)),
        "token_f1": sum(token_f1(f, w) for f, w in both) / len(pairs),
    }
    if kind in {"genes", "cells"}:
        scores["gene_overlap"] = sum(gene_overlap(f.split(), w.split()) for f, w in both) / len(wanted)
    if kind == "labels":
        scores["accuracy"] = n_exact / len(wanted)
    return scores


def _best_pairs(found: tuple[str, ...], wanted: tuple[str, ...]) -> list[tuple[str | None, str | None]]:
    """Pair cells so that their overlaps sum to the most; of equal choices, the one with more identical pairs."""
    overlap_fw = np.zeros((len(found), len(wanted)))
    for i, f in enumerate(found):
        overlap_fw[i] = [gene_overlap(f.split(), w.split()) + 1e-6 * (f == w) for w in wanted]
    rows, columns = (places.tolist() for places in linear_sum_assignment(overlap_fw, maximize=True))
    pairs: list[tuple[str | None, str | None]] = [(found[i], wanted[j]) for i, j in zip(rows, columns, strict=True)]
    pairs += [(f, None) for i, f in enumerate(found) if i not in rows]
    return pairs + [(None, w) for j, w in enumerate(wanted) if j not in columns]
