"""A corpus as training batches: shuffled, asked about, tokenized and packed while it is read.

Where a reader stands is three numbers: the epoch, the first piece of its window, and the rows of the window that were
handed out. What follows depends on these and the seed alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cytoglot.corpus.format.folder import Corpus, Part
from cytoglot.corpus.read.epoch_plan import Piece, plan_reading
from cytoglot.corpus.read.examples import available_tasks
from cytoglot.corpus.read.mixture import TaskMixture
from cytoglot.corpus.read.packing import Row, TokenBatch, TokenExample, bucket, lay_out, pack
from cytoglot.corpus.read.records import RecordReader, row_groups, source_of_cells
from cytoglot.corpus.read.sampler import EpochSampler
from cytoglot.corpus.read.tokenize import GeneTokenizer
from cytoglot.errors import InputError
from cytoglot.sentence.augment import AugmentSettings
from cytoglot.sentence.profile import CellProfile
from cytoglot.tasks.answers import GeneAnswer, record_rng
from cytoglot.tasks.instance import TaskInstance, truncate_to_fit
from cytoglot.tasks.record_source import Draws, record_sources
from cytoglot.tasks.task import Task

_CHUNK = 1024  # examples that are tokenized and packed together
_N_CHECKED, _GENES_CHECKED = 16, 32
_FEW_WORDS = 50
"""an answer of so many words is learned whole"""


@dataclass(frozen=True, kw_only=True)
class ExampleSettings:
    """How records become weighted token ids."""

    top_genes: int | None = None
    """genes of a cell at most; None for all"""
    paraphrase_share: float = 0.2
    """share of the examples whose prompt is any training paraphrase; the rest have the terse wording"""
    metadata_share: float = 0.5
    """probability that organism, tissue, disease and so on are told, for each of them apart"""
    held_out: bool = False
    """ask in the wordings that training never sees"""
    generation_weight: float = 10.0
    """what the tokens of an answer weigh in the loss together; those of a label weigh 1 each"""
    loss_on: Literal["answers", "everything"] = "answers"
    """whether prompts are learned too, with `generation_weight` over their tokens"""
    distinct_words: Literal["off", "words", "tokens"] = "off"
    """answers of genes tell how many words they have, so that their loss can be over the words not yet written: of the
    words alone, where each gene is one token; or of all tokens, where they spell a gene together"""
    word_share: float = 1.0
    """of an answer of more than 50 such words, the share that is in the loss, drawn for each example anew"""
    augment: AugmentSettings | None = None
    """cells that a prompt shows are seen in random views; None for the sentence itself"""


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """The shape of batches."""

    context: int
    """tokens of a row at most"""
    packed: bool = True
    """rows of exactly `context` tokens that hold several examples; else one example a row, padded, in batches of
    similar lengths"""
    batch_size: int | None = None
    """rows of a batch; the last one of an epoch that ends has fewer"""
    batch_tokens: int | None = None
    """instead of `batch_size`, for rows of one example: tokens of a batch at most, padding included"""
    bucket_examples: int | None = None
    """for rows of one example: so many are sorted together, by the genes of their cells before a view drops some;
    by default 32 batches of them or more, by their tokens. The first pads more, and a batch is less of one kind"""
    pad_id: int = 0

    def __post_init__(self) -> None:
        if (self.batch_size is None) == (self.batch_tokens is None) or (self.packed and self.batch_size is None):
            raise InputError(
                "expected batch_size or, for rows that are not packed, batch_tokens; found "
                f"batch_size={self.batch_size}, batch_tokens={self.batch_tokens}, packed={self.packed}"
            )
        if min(self.context, self.batch_size or 1, self.batch_tokens or 1) < 1:
            raise InputError("expected a context and a batch of 1 or more")


@dataclass(frozen=True, slots=True)
class _Position:
    epoch: int = 0
    piece: int = 0
    """of this reader in the epoch: where its window begins"""
    item: int = 0
    """rows (or batches of rows that are not packed) of the window that were handed out"""


class CorpusLoader:
    """Batches of a part of a corpus, for ever or for some epochs.

    Parameters
    ----------
    tokenizer
        What reads the texts; its vocabulary must be the corpus's.
    batches, examples
        Shape of the batches; how examples are made.
    tasks
        Task → share of the examples. By default equal shares of all tasks that the part can ask. See `plan_reading` for
        what shares mean across cells, cell groups and tables.
    replaced
        Task → one with other templates; by default those that the corpus's recipe names.
    profile
        Which condition's weights the words of a written cell are learned with; None for a model without a profile.
    sources
        Source → how often its cells are visited in an epoch: 2 for twice, 0.5 for every second cell, chosen by a hash
        of the seed, the epoch and the cell. 1 where it is not named.
    rank, world, worker, n_workers
        This reader is worker `worker` of rank `rank`; all readers together visit each cell once in an epoch.
    window_cells
        Cells that are held and shuffled at a time.
    epochs
        None for ever. Iterating again goes on with the next epochs.

    Raises
    ------
    InputError
        The part has nothing that a task asks about, names are unknown, weights negative, or the readers are more than
        the records.

    Notes
    -----
    A record that no task of its unit can ask, or whose answer does not fit the context, is left out and counted in
    `skipped`. Readers of an epoch have unequal numbers of batches; training in step counts steps, not epochs.
    """

    def __init__(
        self,
        corpus: Corpus,
        part: Part = "train",
        *,
        tokenizer: GeneTokenizer,
        batches: BatchSettings,
        examples: ExampleSettings | None = None,
        tasks: Mapping[str, float] | None = None,
        replaced: Mapping[str, Task[Any, Any]] | None = None,
        profile: CellProfile | None = None,
        sources: Mapping[str, float] | None = None,
        seed: int = 0,
        epochs: int | None = None,
        rank: int = 0,
        world: int = 1,
        worker: int = 0,
        n_workers: int = 1,
        window_cells: int = 16384,
    ) -> None:
        if not (0 <= rank < world and 0 <= worker < n_workers):
            raise InputError(f"expected rank and worker below {world} and {n_workers}, found {rank} and {worker}")
        settings = examples or ExampleSettings()
        weights = tasks if tasks is not None else dict.fromkeys(available_tasks(corpus, part), 1.0)
        self._mixture = TaskMixture(
            weights,
            replaced=corpus.templates_of_tasks if replaced is None else replaced,
            seed=seed,
            paraphrase_share=settings.paraphrase_share,
            metadata_share=settings.metadata_share,
            held_out=settings.held_out,
        )
        self._corpus, self._part, self._seed, self._epochs = corpus, part, seed, epochs
        self._tokenizer, self._batches, self._examples, self._profile = tokenizer, batches, settings, profile
        self._reader_number, self._n_readers = rank * n_workers + worker, world * n_workers
        self._window_cells = window_cells
        reader = RecordReader(corpus, seed=seed, augment=settings.augment)
        shares = self._mixture.unit_shares
        tables = {unit: reader.table(unit, part) for unit in shares if not record_sources[unit].is_of_cells}
        self._plan = plan_reading(
            corpus,
            part,
            unit_shares=shares,
            table_sizes={unit: len(rows) for unit, rows in tables.items()},
            sources=sources,
            n_readers=self._n_readers,
        )
        self._check_tokenizer(reader, tables)
        self._position = self._end = _Position()
        self.asked: Counter[str] = Counter()
        """task → examples that were made since this loader was"""
        self.skipped: Counter[str] = Counter()
        """reason → records that were left out"""
        self._sampler = EpochSampler(
            reader=reader,
            mixture=self._mixture,
            plan=self._plan,
            tables=tables,
            seed=seed,
            top_genes=settings.top_genes,
            context=batches.context,
            skipped=self.skipped,
        )

    @property
    def n_examples(self) -> int:
        """Expected number of examples of an epoch over all readers, if every record can be asked."""
        return round(self._plan.n_visits)

    def __iter__(self) -> Iterator[TokenBatch]:
        """Go on where the last batch ended."""
        waiting: list[Row] = []
        for item, after in self._items():
            if not self._batches.packed:
                self._position = after
                yield lay_out(item, max(map(len, (row[0] for row in item))), pad_id=self._batches.pad_id)
                continue
            waiting += item
            if len(waiting) == self._batches.batch_size:
                self._position = after
                yield lay_out(waiting, self._batches.context, pad_id=self._batches.pad_id)
                waiting = []
        self._position = self._end
        if waiting:
            yield lay_out(waiting, self._batches.context, pad_id=self._batches.pad_id)

    def state(self) -> dict[str, Any]:
        """Return where the reader stands, as plain JSON values: the next batch is the one after the last handed out."""
        return {**asdict(self._position), "settings": self._identity()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position. At most one window is read again.

        Raises
        ------
        InputError
            The state is of another corpus, or of other settings.
        """
        mine, theirs = self._identity(), state["settings"]
        differing = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        if differing:
            name = differing[0]
            raise InputError(
                f"the saved position is of a reader with other settings ({', '.join(differing)}): {name} was "
                f"{theirs.get(name)!r} and is {mine.get(name)!r}; read with the same settings, or start anew"
            )
        self._position = _Position(epoch=state["epoch"], piece=state["piece"], item=state["item"])

    def _identity(self) -> dict[str, Any]:
        """What the order and the content of batches depend on, beside the position."""
        return {
            "corpus": self._corpus.description.fingerprint,
            "part": self._part,
            "seed": self._seed,
            "tasks": self._mixture.weights,
            "templates": self._mixture.fingerprint,
            "sources": dict(self._plan.sources),
            "reader": self._reader_number,
            "readers": self._n_readers,
            "window_cells": self._window_cells,
            **asdict(self._batches),
            **{name: value for name, value in asdict(self._examples).items() if name != "augment"},
            "augment": self._examples.augment and self._examples.augment.model_dump(),
            "profile": self._profile and self._profile.fingerprint,
        }

    def _items(self) -> Iterator[tuple[list[Row], _Position]]:
        """Yield from the position on: one packed row, or the rows of one padded batch; and the position after it."""
        start = self._position
        first_epoch = start.epoch
        last_epoch = None if self._epochs is None else (start.epoch // self._epochs + 1) * self._epochs
        epoch = first_epoch
        while last_epoch is None or epoch < last_epoch:
            order = self._plan.order(
                seed=self._seed, epoch=epoch, reader=self._reader_number, n_readers=self._n_readers
            )
            piece, n_items = (start.piece if epoch == first_epoch else 0), 0
            while piece < len(order):
                window, n_visits = list[Piece](), 0  # the pieces that are shuffled together
                while piece + len(window) < len(order) and n_visits < self._window_cells:
                    window.append(order[piece + len(window)])
                    listed = sum(last - first for first, last in window[-1].tables.values())
                    n_visits += window[-1].last - window[-1].first or listed
                skipped = start.item if (epoch, piece) == (first_epoch, start.piece) else 0
                for item, rows in enumerate(self._window_items(window, epoch), start=1):
                    n_items += 1
                    if item > skipped:
                        yield rows, _Position(epoch, piece, item)
                piece += len(window)
            if n_items == 0 and start.piece == 0:
                raise InputError(
                    f"no example could be made of what this reader read of the {self._part} part: {dict(self.skipped)}"
                    "; ask other tasks, or raise the context"
                )
            epoch += 1
            self._end = _Position(epoch=epoch)

    def _window_items(self, window: Sequence[Piece], epoch: int) -> Iterator[list[Row]]:
        """Yield the rows of a window in random order: one packed row, or the rows of one padded batch at a time."""
        shape = self._batches
        size = _CHUNK if shape.packed else shape.bucket_examples or max(_CHUNK, 32 * (shape.batch_size or 1))
        rng = np.random.default_rng([self._seed, 13, epoch, window[0].number])
        waiting: list[TokenExample] = []
        for asked, n_genes, is_last in self._sampler.chunks(window, epoch, size=size):
            examples, lengths = waiting, list[int]()
            for found, n in zip(
                truncate_to_fit(asked, [shape.context] * len(asked), self._encoded), n_genes, strict=True
            ):
                if found is None:
                    self.skipped["does not fit the context"] += 1
                    continue
                instance, (ids, n_prompt) = found
                self.asked[instance.task.name] += 1
                examples.append(self._weighted(instance, ids, n_prompt))
                lengths.append(n if shape.bucket_examples is not None else len(ids))
            if shape.packed:
                rows, waiting = pack(examples, shape.context, finish=is_last)
                items = [[row] for row in rows]
            else:
                # Batches of one length in tokens would each hold views of one kind (much is dropped, or nothing) and
                # one task, so a few sorted together are sorted by the genes of their cells.
                found_batches = bucket(lengths, batch_size=shape.batch_size, batch_tokens=shape.batch_tokens)
                items, waiting = [[[examples[i]] for i in places] for places in found_batches], []
            yield from (items[i] for i in rng.permutation(len(items)))

    def _weighted(self, instance: TaskInstance, ids: NDArray[np.int32], n_prompt: int) -> TokenExample:
        """Return an example with what each token weighs in the loss, and which of them choose distinct words."""
        settings, task, record = self._examples, instance.task, instance.record
        weight = 1.0 if task.closed_answer else settings.generation_weight / max(len(ids) - n_prompt, 1)
        learns_all = settings.loss_on == "everything"
        n_words = n_distinct = condition = 0
        word_weights = None
        if settings.distinct_words != "off" and isinstance(task, GeneAnswer) and task.templates.style.is_ours:
            n_words = n_distinct = len(task.answer_genes(record))
            if settings.distinct_words == "tokens":
                n_distinct = len(ids) - n_prompt
            elif not self._tokenizer.are_genes(ids[n_prompt : n_prompt + n_words]):  # such as a gene set's other genes
                n_words = n_distinct = 0
            if self._profile is not None and task.writes_cells:
                condition = self._profile.row(record.metadata)
            n_kept = round(settings.word_share * n_words)
            if settings.distinct_words == "words" and n_words > _FEW_WORDS and 0 < n_kept < n_words:
                word_weights = np.zeros(n_words, np.float32)
                kept = record_rng("words in the loss", record).permutation(n_words)[:n_kept]
                word_weights[kept] = weight * n_words / n_kept
        return TokenExample(
            ids,
            n_prompt,
            answer_weight=weight,
            prompt_weight=settings.generation_weight / max(n_prompt, 1) if learns_all else 0.0,
            n_distinct=n_distinct,
            n_words=n_words,
            condition=condition,
            word_weights=word_weights,
        )

    def _encoded(self, instances: Sequence[TaskInstance]) -> list[tuple[tuple[NDArray[np.int32], int], int]]:
        prompts, completions = zip(*(instance.segments() for instance in instances), strict=True)
        return [(pair, len(pair[0])) for pair in self._tokenizer.encode_pairs(prompts, completions)]

    def _check_tokenizer(self, reader: RecordReader, tables: Mapping[str, list[Any]]) -> None:
        """Let the tokenizer compare its reading of some records of this corpus with that of the whole texts."""
        asked: list[TaskInstance | None] = []
        for unit in self._mixture.unit_shares:
            listed = tables.get(unit, [])[:_N_CHECKED]
            asked += [self._mixture.ask(record, unit, Draws("check", record.key)) for record in listed]
            for place in row_groups(self._corpus, self._part)[: unit not in tables]:
                cells, source = reader.read(place), source_of_cells(unit)
                for row in source.rows(cells)[:_N_CHECKED].tolist():
                    draws = Draws("check", row)
                    record = source.record(cells, row, draws, top_genes=_GENES_CHECKED)
                    asked.append(self._mixture.ask(record, unit, draws))
        pairs = [instance.segments() for instance in asked if instance is not None]
        self._tokenizer.check([prompt for prompt, _ in pairs], [completion for _, completion in pairs])
