"""Every example of a run, addressed by its number: what example i is depends on the seed and on i alone.

So a run that was killed goes on with the very examples that it would have seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from cytoglot.corpus.read.packing import best_fit
from cytoglot.errors import InputError
from cytoglot.lm.model.tokenizer import encode_pair
from cytoglot.sentence.augment import training_view
from cytoglot.tasks.record import CellRecord
from cytoglot.tasks.task import tasks
from cytoglot.training.loop.loss import Batch
from cytoglot.training.recipe import TrainRecipe
from cytoglot.training.supervised.prepare import PreparedCells

_WINDOW = 8  # steps whose examples are sorted by length together


@dataclass(frozen=True, kw_only=True)
class ExamplePlan:
    """Which task and which cell each example is. Shape (n_examples,) each."""

    task: NDArray[np.object_]
    row: NDArray[np.int64]


class Examples(Dataset[dict[str, Any]]):
    """Token ids and loss weights of each example of a plan.

    An item is {"input_ids": int64 (t,), "weights": float32 (t,), "about": what it is}. Weight w of token t is its share
    in the loss of predicting token t from those before it: the label tokens of an annotation weigh 1 each, the tokens
    of any other answer `generation_weight` over their number, prompt tokens 0 (or like those of a generation, when
    everything is learned). A sample over `max_tokens` loses genes from the end of its sentence, never its answer; one
    that is too long without any gene is an InputError.
    """

    def __init__(
        self,
        prepared: PreparedCells,
        plan: ExamplePlan,
        tokenizer: PreTrainedTokenizerBase,
        recipe: TrainRecipe,
        *,
        seed: int,
        augmented: bool,
        max_tokens: int,
    ) -> None:
        self._prepared, self._plan, self._tokenizer, self._recipe = prepared, plan, tokenizer, recipe
        self._seed, self._augmented, self._max_tokens = seed, augmented, max_tokens
        self._words = prepared.sentences.vocabulary.names

    def __len__(self) -> int:
        return len(self._plan.row)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, name = int(self._plan.row[index]), str(self._plan.task[index])
        sentences = self._prepared.sentences
        gene_ids: NDArray[Any] = sentences.ids(row)
        paraphrased = False
        if self._augmented:
            rng = np.random.default_rng([self._seed, index])
            view = training_view(gene_ids, rng, self._recipe.augment)
            gene_ids = view if len(view) >= least_genes(name) else gene_ids
            paraphrased = rng.random() < self._recipe.paraphrase_share
        gene_ids = gene_ids[: self._prepared.top_genes]
        return self._tokens(name, row, gene_ids, index, paraphrased=paraphrased)

    def _tokens(
        self, name: str, row: int, gene_ids: NDArray[np.integer], index: int, *, paraphrased: bool
    ) -> dict[str, Any]:
        """Render and tokenize; a sample over the context loses genes from the end of the sentence, never its answer."""
        task = tasks[name]
        while True:
            record = self._record(row, gene_ids)
            template = None if paraphrased else task.short_template(record)
            example = task.example(record, template=template, seed=self._seed, epoch=index)
            ids, n_prompt = encode_pair(self._tokenizer, example.prompt, example.completion)
            if len(ids) <= self._max_tokens:
                break
            if len(gene_ids) == 0:
                raise InputError(
                    f"{name} of cell {self._prepared.sentences.cell_ids[row]} has {len(ids)} tokens without any gene "
                    f"and the model reads {self._max_tokens}; leave the task out or take a model with a longer context"
                )
            per_gene = len(ids) / len(gene_ids)
            gene_ids = gene_ids[: max(0, len(gene_ids) - int(np.ceil((len(ids) - self._max_tokens) / per_gene)))]
        return {
            "input_ids": np.asarray(ids, dtype=np.int64),
            "weights": self._weights(name, len(ids), n_prompt),
            "about": f"{name} of cell {self._prepared.sentences.cell_ids[row]}",
        }

    def _record(self, row: int, gene_ids: NDArray[np.integer]) -> CellRecord:
        label = self._prepared.labels[row]
        context = self._recipe.context
        return CellRecord(
            cell_id=str(self._prepared.sentences.cell_ids[row]),
            genes=tuple(str(word) for word in self._words[gene_ids]),
            metadata=dict(context) if label is None else {**context, "cell_type": label},
        )

    def _weights(self, name: str, n_tokens: int, n_prompt: int) -> NDArray[np.float32]:
        optim = self._recipe.optim
        weights_t = np.zeros(n_tokens, dtype=np.float32)
        if optim.loss_on == "everything":
            weights_t[:n_prompt] = optim.generation_weight / max(n_prompt, 1)
        answer = 1.0 if tasks[name].closed_answer else optim.generation_weight / max(n_tokens - n_prompt, 1)
        weights_t[n_prompt:] = answer
        return weights_t


def plan_training(
    prepared: PreparedCells, recipe: TrainRecipe, *, n_examples: int, seed: int, step_size: int | None = None
) -> ExamplePlan:
    """Deal tasks by their shares and cells without replacement within each pass; steps hold similar lengths.

    `step_size` is the number of examples of an optimiser step, by default a batch of one process. A plan depends on it,
    and not on how a step's examples are shared out.
    """
    rng = np.random.default_rng([seed, 2])
    names = np.array(list(recipe.tasks), dtype=object)
    shares = np.array([recipe.tasks[name] for name in names])
    task = names[rng.choice(len(names), size=n_examples, p=shares / shares.sum())]
    row = np.empty(n_examples, dtype=np.int64)
    for name in names:
        places = np.flatnonzero(task == name)
        row[places] = _passes(_usable_rows(prepared, str(name)), len(places), rng)
    order = _by_length(prepared.n_words[row], step_size or recipe.optim.batch_size, rng)
    return ExamplePlan(task=task[order], row=row[order])


def plan_validation(prepared: PreparedCells, *, max_cells: int, seed: int) -> ExamplePlan:
    """Every labelled validation cell as an annotation, at most `max_cells` of them."""
    rows = prepared.rows("validation", labelled=True)
    if len(rows) > max_cells:
        rows = np.sort(np.random.default_rng([seed, 3]).choice(rows, max_cells, replace=False))
    rows = rows[np.argsort(prepared.n_words[rows], kind="stable")]
    return ExamplePlan(task=np.full(len(rows), "cell_type_annotation", dtype=object), row=rows)


def _usable_rows(prepared: PreparedCells, task: str) -> NDArray[np.int64]:
    rows = prepared.rows("train", labelled="cell_type" in tasks[task].required_metadata)
    return rows[prepared.n_words[rows] >= least_genes(task)]


@cache
def least_genes(task: str) -> int:
    """Return how many genes a cell must have to be asked about: none for a label, two for a sentence with a gap."""
    known = {"cell_type": "B", **dict.fromkeys(tasks[task].required_metadata, "known")}
    records = (CellRecord(genes=tuple(f"GENE{i}" for i in range(n)), metadata=known) for n in range(3))
    return next(len(record.genes) for record in records if tasks[task].can_ask(record))


def _passes(rows: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    n_passes = -(-n // max(len(rows), 1))
    return np.concatenate([rng.permutation(rows) for _ in range(n_passes)] or [rows])[:n]


def _by_length(lengths: NDArray[np.integer], step_size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    order: list[NDArray[np.int64]] = []
    for start in range(0, len(lengths), step_size * _WINDOW):
        window = start + np.argsort(lengths[start : start + step_size * _WINDOW], kind="stable")
        steps = [window[i : i + step_size] for i in range(0, len(window), step_size)]
        order += [steps[i] for i in rng.permutation(len(steps))]
    return np.concatenate(order) if order else np.empty(0, dtype=np.int64)


def collate(items: Sequence[Mapping[str, Any]], *, pad_token_id: int, row_tokens: int | None = None) -> Batch:
    """Return examples as a batch: one in each row, or packed into rows of about `row_tokens` tokens.

    Rows are padded on the right and there is no attention mask: a causal model never looks at what comes later (and is
    faster without). In packed rows the positions begin anew with each example; see `cytoglot.training.loop.loss`.
    """
    lengths = [len(item["input_ids"]) for item in items]
    if row_tokens is None:
        rows, width = [[i] for i in range(len(items))], max(lengths)
    else:
        width = min(max(row_tokens, *lengths), sum(lengths))
        rows = best_fit(lengths, width)
    shape = (len(rows), width)
    ids_bt, weights_bt = np.full(shape, pad_token_id, dtype=np.int64), np.zeros(shape, dtype=np.float32)
    positions_bt, segments_bt = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for b, row in enumerate(rows):
        begin = 0
        for segment, i in enumerate(row, start=1):
            place = (b, slice(begin, begin + lengths[i]))
            ids_bt[place], weights_bt[place] = items[i]["input_ids"], items[i]["weights"]
            weights_bt[b, begin] = 0  # nothing before it in its example predicts it
            positions_bt[place], segments_bt[place] = np.arange(lengths[i]), segment
            begin += lengths[i]
    arrays = {"input_ids": ids_bt, "weights": weights_bt}
    if row_tokens is not None:
        arrays |= {"position_ids": positions_bt, "segment_ids": segments_bt}
    return {
        **{name: torch.from_numpy(array) for name, array in arrays.items()},
        "n_examples": len(items),
        "n_tokens": sum(lengths),
        "about": [str(item["about"]) for item in items if "about" in item],
    }
