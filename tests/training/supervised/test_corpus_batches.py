"""The wrappers give what the loader gives, shared out and restored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cytoglot.corpus.format.folder import Corpus
from cytoglot.corpus.read.loader import BatchSettings, CorpusLoader
from cytoglot.corpus.read.records import RecordReader
from cytoglot.lm.model.tokenizer import build_tokenizer, encode_pair
from cytoglot.tasks import TaskInstance, tasks
from cytoglot.training.supervised.corpus_batches import CorpusDataset, as_tensors, gene_tokenizer, to_datasets

TASKS = {"cell_type_annotation": 1.0}


@pytest.fixture(scope="module")
def options(small_corpus: Corpus) -> dict[str, Any]:
    tokenizer = build_tokenizer(small_corpus.vocabulary.symbols, ["Cell type: type A of a human cell."])
    return {
        "tokenizer": gene_tokenizer(tokenizer, small_corpus.vocabulary),
        "batches": BatchSettings(context=512, packed=False, batch_size=4),
        "tasks": TASKS,
    }


def rows(batches: Any) -> list[tuple[int, ...]]:
    return sorted(
        tuple(ids[np.asarray(segments) > 0].tolist())
        for batch in batches
        for ids, segments in zip(batch["input_ids"], batch["segment_ids"], strict=True)
    )


def test_the_ids_are_those_of_training(small_corpus: Corpus) -> None:
    tokenizer = build_tokenizer(small_corpus.vocabulary.symbols, ["Cell type: type A of a human cell."])
    fast = gene_tokenizer(tokenizer, small_corpus.vocabulary)
    block = next(iter(small_corpus.blocks("train")))
    records = RecordReader(small_corpus).open(block)
    asked = TaskInstance(tasks["cell_generation"], records.cell(3, records.draws(3)), 0)
    ids, n_prompt = encode_pair(tokenizer, asked.example().prompt, asked.example().completion)
    prompt, completion = asked.segments()
    ((found, n_found),) = fast.encode_pairs([prompt], [completion])
    assert found.tolist() == ids.tolist()
    assert n_found == n_prompt


def test_tensors_are_the_arrays_of_the_batch(small_corpus: Corpus, options: dict[str, Any]) -> None:
    batch = next(iter(CorpusLoader(small_corpus, **options)))
    tensors = as_tensors(batch)
    assert torch.equal(tensors["weights"], torch.from_numpy(batch.weights))
    assert tensors["input_ids"].dtype == torch.int64
    assert int(tensors["n_examples"]) == 4


def test_workers_share_the_cells(small_corpus: Corpus, options: dict[str, Any]) -> None:
    whole = rows(DataLoader(CorpusDataset(small_corpus, epochs=1, **options), batch_size=None))
    shared = rows(DataLoader(CorpusDataset(small_corpus, epochs=1, **options), batch_size=None, num_workers=2))
    ranks = [CorpusDataset(small_corpus, rank=rank, world=2, epochs=1, **options) for rank in range(2)]
    assert len(whole) == small_corpus.description.total("n_cells", "train")
    assert shared == whole
    assert sorted(rows(ranks[0]) + rows(ranks[1])) == whole


def test_a_position_is_kept(small_corpus: Corpus, options: dict[str, Any]) -> None:
    first, second = (CorpusDataset(small_corpus, **options) for _ in range(2))
    batches = iter(first)
    for _ in range(5):
        next(batches)
    second.load_state_dict(first.state_dict())
    assert torch.equal(next(iter(second))["input_ids"], next(batches)["input_ids"])


def test_hugging_face_datasets_streams_the_rows(
    small_corpus: Corpus, options: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    packed = {**options, "batches": BatchSettings(context=256, batch_size=2)}
    found = to_datasets(small_corpus, n_shards=2, **packed)
    expected = [
        ids.tolist()
        for rank in range(2)
        for batch in CorpusLoader(small_corpus, rank=rank, world=2, epochs=1, **packed)
        for ids in batch.input_ids
    ]
    assert found.num_shards == 2
    assert [list(row["input_ids"]) for row in found] == expected
