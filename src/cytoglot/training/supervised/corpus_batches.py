"""A corpus as PyTorch and Hugging Face read it: thin wrappers of `cytoglot.corpus.read.loader`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import pad
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from cytoglot.corpus.format.folder import Corpus, Part
from cytoglot.corpus.read.loader import CorpusLoader
from cytoglot.corpus.read.packing import TokenBatch
from cytoglot.corpus.read.tokenize import GeneTokenizer
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError
from cytoglot.extras import require
from cytoglot.lm.model.tokenizer import opening_ids, plain_ids
from cytoglot.training.loop.loss import Batch

if TYPE_CHECKING:
    import datasets

ARRAYS = ("input_ids", "weights", "position_ids", "segment_ids", "n_words", "conditions")


def gene_tokenizer(tokenizer: PreTrainedTokenizerBase, vocabulary: GeneVocabulary) -> GeneTokenizer:
    """Return a tokenizer for a loader; its ids are those of `encode_pairs` of `cytoglot.lm.model.tokenizer`."""
    return GeneTokenizer(
        partial(plain_ids, tokenizer), vocabulary, opening=opening_ids(tokenizer).tolist(), eos=tokenizer.eos_token_id
    )


class CorpusDataset(IterableDataset[dict[str, torch.Tensor]]):
    """Batches of a `CorpusLoader` as tensors, shared out among the workers of a `DataLoader`.

    Pass `batch_size=None` to the `DataLoader`: what comes out are batches. Without worker processes, and with
    `torchdata.stateful_dataloader`, `state_dict` and `load_state_dict` keep the position.

    Parameters
    ----------
    rank, world
        Of the process; workers of its `DataLoader` share its part.
    options
        All other options of `CorpusLoader`.
    """

    def __init__(self, corpus: Corpus, part: Part = "train", *, rank: int = 0, world: int = 1, **options: Any) -> None:
        super().__init__()
        self._corpus, self._part, self._rank, self._world, self._options = corpus, part, rank, world, options
        self._loader: CorpusLoader | None = None

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self._opened():
            yield as_tensors(batch)

    def state_dict(self) -> dict[str, Any]:
        """Return the position of this process's reader."""
        return self._opened().state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position."""
        self._opened().restore(state)

    def _opened(self) -> CorpusLoader:
        """Return the loader of this process; workers are known only once they run."""
        if self._loader is None:
            info = get_worker_info()
            worker, n_workers = (0, 1) if info is None else (info.id, info.num_workers)
            self._loader = CorpusLoader(
                self._corpus,
                self._part,
                rank=self._rank,
                world=self._world,
                worker=worker,
                n_workers=n_workers,
                **self._options,
            )
        return self._loader


class CorpusBatches:
    """A `BatchSource` of one or several readers of a corpus; a batch holds rows of each of them.

    So a process can stand for several: with the same number of readers and rows in a step, a step has the same examples
    whether the readers are in one process or in many.

    Parameters
    ----------
    token_mean
        Every learned token weighs the same and the loss is a mean over them; else it is a mean over examples.
    """

    def __init__(self, readers: Sequence[CorpusDataset], *, token_mean: bool = False) -> None:
        self._readers, self._token_mean = list(readers), token_mean

    def __iter__(self) -> Iterator[Batch]:
        """Go on after the last batch that was given."""
        for batches in zip(*self._readers, strict=False):
            batch = joined(batches)
            if self._token_mean:
                batch["weights"] = (batch["weights"] > 0).to(batch["weights"].dtype)
                batch["n_averaged"] = int(batch["weights"].sum())
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the positions of the readers."""
        return {"readers": [reader.state_dict() for reader in self._readers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to saved positions."""
        for reader, position in zip(self._readers, state["readers"], strict=True):
            reader.load_state_dict(position)


def readers_of(rank: int, world: int, *, n_readers: int, batch_size: int) -> range:
    """Return the numbers of the readers of a process.

    Raises
    ------
    InputError
        Readers cannot be shared out evenly among processes, or rows of a batch among the readers of a process.
    """
    if n_readers % world or batch_size % (n_readers // world):
        raise InputError(
            f"expected optim.readers to be a multiple of the {world} processes, and optim.batch_size one of the "
            f"readers of a process, found {n_readers} readers and {batch_size} rows"
        )
    each = n_readers // world
    return range(rank * each, (rank + 1) * each)


def joined(batches: Sequence[Mapping[str, torch.Tensor]]) -> Batch:
    """Return the rows of several batches as one, with the numbers of its examples and of its tokens.

    Rows that hold one example each come without segments and positions, which the model knows; and a batch without
    answers of distinct words without what is told of these.
    """
    width = max(batch["input_ids"].shape[1] for batch in batches)
    arrays = {
        name: torch.cat([pad(batch[name], (0, width - batch[name].shape[1])) for batch in batches]) for name in ARRAYS
    }
    n_tokens = int((arrays["segment_ids"] > 0).sum())
    unneeded = [] if int(arrays["segment_ids"].max()) > 1 else ["position_ids", "segment_ids"]
    unneeded += [] if int(arrays["n_words"].max()) > 0 else ["n_words", "conditions"]
    arrays = {name: array for name, array in arrays.items() if name not in unneeded}
    return {**arrays, "n_examples": sum(int(batch["n_examples"]) for batch in batches), "n_tokens": n_tokens}


def as_tensors(batch: TokenBatch) -> dict[str, torch.Tensor]:
    """Return the arrays of a batch as tensors that share their memory, and `n_examples`."""
    tensors = {name: torch.from_numpy(getattr(batch, name)) for name in ARRAYS}
    return {**tensors, "n_examples": torch.tensor(batch.n_examples)}


def to_datasets(corpus: Corpus, part: Part = "train", *, n_shards: int = 1, **options: Any) -> datasets.IterableDataset:
    """Return the rows of one epoch as a streaming data set of Hugging Face `datasets`.

    Parameters
    ----------
    n_shards
        Readers that `datasets` may share out among ranks and workers.
    options
        All other options of `CorpusLoader`.
    """
    found = require("datasets", extra="c2s", purpose="a corpus as a Hugging Face data set")
    given = {"corpus": corpus, "part": part, "n_shards": n_shards, "options": {"epochs": 1, **options}}
    return found.IterableDataset.from_generator(_rows, gen_kwargs={"shards": list(range(n_shards)), **given})


def _rows(
    shards: list[int], corpus: Corpus, part: Part, n_shards: int, options: Mapping[str, Any]
) -> Iterator[dict[str, np.ndarray]]:
    for shard in shards:
        for batch in CorpusLoader(corpus, part, rank=shard, world=n_shards, **options):
            for row in range(len(batch.input_ids)):
                yield {name: getattr(batch, name)[row] for name in ARRAYS}
