"""The steps that `bench_corpus` runs, each in a process of its own. Values come as texts from the command line."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SECONDS_OF_LOADING = 10.0


@contextmanager
def timed(found: dict[str, Any]) -> Iterator[None]:
    """Add seconds of the wall clock and of the processor, with those of children that have ended."""
    wall, cpu = time.perf_counter(), _cpu_seconds()
    yield
    found |= {"wall_s": time.perf_counter() - wall, "cpu_s": _cpu_seconds() - cpu}


def _cpu_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def floor(path: str, out: str) -> dict[str, Any]:
    """Read the file in chunks, rank it, write cell ids and gene ids as plain Parquet: the least that must be done."""
    from cytoglot.data.readers.stream import open_cells
    from cytoglot.sentence.encode import encode_matrix

    _warm_up()
    found: dict[str, Any] = {}
    with timed(found), open_cells(path) as cells:
        schema = pa.schema([("cell_id", pa.string()), ("gene_ids", pa.list_(pa.uint16()))])
        with pq.ParquetWriter(out, schema) as writer:
            for _, block in cells.chunks(8192):
                sentences = encode_matrix(block, cells.vocabulary)
                ids = pa.ListArray.from_arrays(
                    pa.array(sentences.offsets.astype(np.int32)), pa.array(sentences.gene_ids)
                )
                writer.write_table(pa.table([pa.array(sentences.cell_ids, pa.string()), ids], schema=schema))
    return found


def build(path: str, out: str) -> dict[str, Any]:
    """Build a corpus of one file in this process."""
    from cytoglot.corpus.build.build import build_corpus

    _warm_up()
    found: dict[str, Any] = {}
    with timed(found):
        summary = build_corpus(_recipe(path), out)
    return found | {
        "cells": summary.cells,
        "ranked_ids": summary.ranked_ids,
        "corpus_mb": sum(file.stat().st_size for file in Path(out).rglob("*.parquet")) / 1e6,
    }


def build_with_workers(path: str, out: str, engine: str, workers: str) -> dict[str, Any]:
    """Build with workers of one thread each; their start is not counted: a first build of few cells starts them."""
    from cytoglot.corpus.build.build import build_corpus
    from cytoglot.engines import running

    os.environ["NUMBA_NUM_THREADS"] = "1"
    found: dict[str, Any] = {}
    with running(engine, int(workers)):
        few = Path(out).parent / "few.h5ad"
        _few_cells(few)
        build_corpus(
            _recipe(str(few)), Path(out).parent / "few_corpus", engine=engine, workers=int(workers), overwrite=True
        )
        with timed(found):
            summary = build_corpus(_recipe(path), out, engine=engine, workers=int(workers))
    return found | {"cells_per_s": summary.cells / found["wall_s"], "fingerprint": summary.fingerprint}


def shard_bytes(path: str, out: str) -> dict[str, Any]:
    """Bytes of the shards over those of their text under zstd, and seconds to read either."""
    from cytoglot.corpus.build.build import build_corpus
    from cytoglot.corpus.format.folder import PARTS, open_corpus

    build_corpus(_recipe(path), out)
    corpus = open_corpus(out)
    words, lines = corpus.vocabulary.names, []
    for part in PARTS:
        for block in corpus.blocks(part):
            lines += [" ".join(words[block.ids(cell)]) for cell in range(len(block))]
    text = "\n".join(lines).encode()
    codec = pa.Codec("zstd", compression_level=3)
    packed = codec.compress(text, asbytes=True)
    index = {word: number for number, word in enumerate(words)}
    ids_s = min(_seconds(lambda: [b.gene_ids for part in PARTS for b in corpus.blocks(part)]) for _ in range(5))
    text_s = min(
        _seconds(lambda: pa.array(codec.decompress(packed, len(text), asbytes=True).decode().split("\n")))
        for _ in range(5)
    )
    words_s = _seconds(
        lambda: [
            np.array([index[word] for word in line.split()], np.uint16)
            for line in codec.decompress(packed, len(text), asbytes=True).decode().split("\n")
        ]
    )
    n_bytes = corpus.description.total("bytes")
    return {
        "shard_mb": n_bytes / 1e6,
        "text_zstd_mb": len(packed) / 1e6,
        "bytes_ratio": n_bytes / len(packed),
        "read_shards_s": ids_s,
        "read_text_s": text_s,
        "read_text_to_ids_s": words_s,
        "text_to_ids_over_shards": words_s / ids_s,
        "text_over_shards": text_s / ids_s,
    }


def load(corpus: str, kind: str) -> dict[str, Any]:
    """Tokens per second of one core through the loader: rendering, tokens, packing; and the share of padding."""
    from cytoglot.corpus.format.folder import open_corpus
    from cytoglot.corpus.read.loader import BatchSettings, CorpusLoader
    from cytoglot.training.supervised.corpus_batches import gene_tokenizer

    opened = open_corpus(corpus)
    loader = CorpusLoader(
        opened,
        "train",
        tokenizer=gene_tokenizer(_tokenizer(opened, kind), opened.vocabulary),
        batches=BatchSettings(context=4096, packed=True, batch_size=8),
        seed=0,
    )
    batches = iter(loader)
    next(batches)
    n_tokens = n_places = 0
    started, cpu_started = time.perf_counter(), time.process_time()
    while time.perf_counter() - started < SECONDS_OF_LOADING:
        batch = next(batches)
        n_tokens += batch.n_tokens
        n_places += batch.input_ids.size
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    return {"tokens_per_s": n_tokens / seconds, "tokens_per_cpu_s": n_tokens / cpu_s, "waste": 1 - n_tokens / n_places}


def datasets_from_generator(corpus: str, cache: str) -> dict[str, Any]:
    """The usual way: texts rendered into a `datasets` data set on disk, tokenized with `map`, read back."""
    import datasets

    from cytoglot.corpus.format.folder import open_corpus
    from cytoglot.corpus.read.examples import sample_examples

    opened = open_corpus(corpus)
    tokenizer = _tokenizer(opened, "gene_level")
    found: dict[str, Any] = {}
    n = 5000

    def rows() -> Iterator[dict[str, str]]:
        for example in sample_examples(opened, "train", n, task="cell_type_annotation", seed=0):
            yield {"text": example.prompt + example.completion}

    datasets.disable_progress_bars()
    with timed(found):
        made = datasets.Dataset.from_generator(rows, cache_dir=cache)
        tokens = made.map(lambda batch: tokenizer(batch["text"], add_special_tokens=False), batched=True)
        n_tokens = sum(len(row) for row in tokens["input_ids"])
    return found | {"tokens_per_s": n_tokens / found["wall_s"], "examples": n}


def _tokenizer(corpus: Any, kind: str) -> Any:
    from cytoglot.lm.model.tokenizer import build_tokenizer
    from cytoglot.tasks import tasks

    texts = [t.text for name in ("cell_type_annotation", "cell_generation") for t in tasks[name].templates.training]
    if kind == "gene_level":
        return build_tokenizer(corpus.vocabulary.symbols, texts, context_length=4096)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=8000, special_tokens=["<eos>"], show_progress=False)
    bpe.train_from_iterator([*texts, *(" ".join(corpus.vocabulary.symbols[i::50]) for i in range(50))], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>")


def _recipe(path: str) -> Any:
    from cytoglot.corpus.sources.recipe import CorpusRecipe

    organism = "mouse" if "paul15" in Path(path).stem else "human"
    return CorpusRecipe.model_validate({"sources": [{"path": path, "organism": organism}]})


def _warm_up() -> None:
    """Load the compiled kernels and the libraries, which takes seconds and is no part of the work."""
    import scipy.sparse as sp

    from cytoglot.data.genes.vocabulary import GeneVocabulary
    from cytoglot.sentence.encode import encode_matrix

    for kind in (np.int32, np.float32):
        counts = sp.random(50, 40, 0.5, format="csr", rng=0)
        counts.data = np.ceil(counts.data * 5)
        encode_matrix(counts.astype(kind), GeneVocabulary(tuple(f"G{i}" for i in range(40))))


def _few_cells(path: Path) -> None:
    from benchmarks.synthetic_atlas import write_atlas

    write_atlas(path, 2_000)


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
