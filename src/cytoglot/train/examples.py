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

from cytoglot.lm.tokenizer import encode_pair
from cytoglot.sentence.augment import training_view
from cytoglot.tasks.record import CellRecord
from cytoglot.tasks.task import tasks
from cytoglot.train.prepare import PreparedCells
from cytoglot.train.recipe import TrainRecipe

_WINDOW = 8  # batches whose examples are sorted by length together


@dataclass(frozen=True, kw_only=True)
class ExamplePlan:
    """Which task and which cell each example is. Shape (n_examples,) each."""

    task: NDArray[np.object_]
    row: NDArray[np.int64]


class Examples(Dataset[dict[str, NDArray[Any]]]):
    """Token ids and loss weights of each example of a plan.

    An item is {"input_ids": int64 (t,), "weights": float32 (t,)}; weight w of token t is its share in the loss of
    predicting token t from those before it. The label tokens of an annotation weigh 1 each, the tokens of any other
    answer `generation_weight` over their number, prompt tokens 0 (or like those of a generation, when everything is
    learned).
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

    def __getitem__(self, index: int) -> dict[str, NDArray[Any]]:
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
    ) -> dict[str, NDArray[Any]]:
        """Render and tokenize; a sample over the context loses genes from the end of the sentence, never its answer."""
        task = tasks[name]
        while True:
            record = self._record(row, gene_ids)
            template = None if paraphrased else task.short_template(record)
            example = task.example(record, template=template, seed=self._seed, epoch=index)
            ids, n_prompt = encode_pair(self._tokenizer, example.prompt, example.completion)
            if len(ids) <= self._max_tokens or len(gene_ids) == 0:
                break
            per_gene = len(ids) / len(gene_ids)
            gene_ids = gene_ids[: max(0, len(gene_ids) - int(np.ceil((len(ids) - self._max_tokens) / per_gene)))]
        return {"input_ids": np.asarray(ids, dtype=np.int64), "weights": self._weights(name, len(ids), n_prompt)}

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


def plan_training(prepared: PreparedCells, recipe: TrainRecipe, *, n_examples: int, seed: int) -> ExamplePlan:
    """Deal tasks by their shares and cells without replacement within each pass; batches hold similar lengths."""
    rng = np.random.default_rng([seed, 2])
    names = np.array(list(recipe.tasks), dtype=object)
    shares = np.array([recipe.tasks[name] for name in names])
    task = names[rng.choice(len(names), size=n_examples, p=shares / shares.sum())]
    row = np.empty(n_examples, dtype=np.int64)
    for name in names:
        places = np.flatnonzero(task == name)
        row[places] = _passes(_usable_rows(prepared, str(name)), len(places), rng)
    order = _by_length(prepared.n_words[row], recipe.optim.batch_size, rng)
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


def _by_length(lengths: NDArray[np.integer], batch_size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    order: list[NDArray[np.int64]] = []
    for start in range(0, len(lengths), batch_size * _WINDOW):
        window = start + np.argsort(lengths[start : start + batch_size * _WINDOW], kind="stable")
        batches = [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
        order += [batches[i] for i in rng.permutation(len(batches))]
    return np.concatenate(order) if order else np.empty(0, dtype=np.int64)


def collate(items: Sequence[Mapping[str, NDArray[Any]]], *, pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pad on the right. No attention mask: a causal model never looks at what comes later (and is faster without)."""
    width = max(len(item["input_ids"]) for item in items)
    ids_bt = np.full((len(items), width), pad_token_id, dtype=np.int64)
    weights_bt = np.zeros((len(items), width), dtype=np.float32)
    for b, item in enumerate(items):
        ids_bt[b, : len(item["input_ids"])] = item["input_ids"]
        weights_bt[b, : len(item["weights"])] = item["weights"]
    return {"input_ids": torch.from_numpy(ids_bt), "weights": torch.from_numpy(weights_bt)}
