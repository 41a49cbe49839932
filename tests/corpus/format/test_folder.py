"""The folder of a corpus: what is written is read, and what is not whole is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cytoglot.corpus.format.folder import Corpus, CorpusDescription, open_corpus, read_shard_counts
from cytoglot.errors import InputError


def test_a_corpus_tells_what_is_in_it(small_corpus: Corpus) -> None:
    description = small_corpus.description
    assert sum(map(len, small_corpus.blocks("train"))) == description.total("n_cells", "train")
    assert description.total("n_cells") == 240
    assert description.counts["tissue"] == {"blood": 120, "lung": 120}
    assert set(small_corpus.labels("cell_type")) == {"type A", "type B", "type C"}
    assert [s.name for s in small_corpus.gene_sets("validation")] == ["programme 6"]
    assert small_corpus.cell_type_terms("train")[0].markers == small_corpus.vocabulary.symbols[:4]
    assert small_corpus.orthologs is not None
    assert np.array_equal(small_corpus.orthologs[small_corpus.orthologs[:10]], np.arange(10))
    assert small_corpus.source("synthetic").licence == "CC0"
    assert small_corpus.rank_curve is None


def test_the_description_survives_json_and_its_fingerprint_follows_the_bytes(small_corpus: Corpus) -> None:
    description = small_corpus.description
    again = CorpusDescription.from_dict(json.loads(json.dumps(description.to_dict())))
    assert again == description
    shard = description.shards[0]
    assert (
        read_shard_counts(small_corpus.folder / shard.file, ()).described(small_corpus.folder, shard.file, shard.part)
        == shard
    )
    changed = description.to_dict()
    changed["shards"][0]["sha256"] = "0" * 64
    assert CorpusDescription.from_dict(changed).fingerprint != description.fingerprint


def test_what_is_not_a_whole_corpus_is_refused(small_corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no corpus: it has no corpus.json"):
        open_corpus(tmp_path)
    (tmp_path / ".work").mkdir()
    with pytest.raises(InputError, match=r"is an unfinished corpus; run the same build again"):
        open_corpus(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(small_corpus.folder, copy)
    (copy / small_corpus.description.shards[0].file).unlink()
    with pytest.raises(InputError, match=r"lacks 1 of its 4 shards, such as train/shard-00000.parquet"):
        open_corpus(copy)
    value = json.loads((copy / "corpus.json").read_text()) | {"format_version": 99}
    (copy / "corpus.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"has format 99, this version reads up to 2"):
        open_corpus(copy)
    (copy / "corpus.json").write_text("{")
    with pytest.raises(InputError, match=r"corpus.json cannot be read"):
        open_corpus(copy)
