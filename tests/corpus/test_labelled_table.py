"""Shards: what goes in comes out, whole or not at all, and a damaged folder is refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cytoglot.corpus import iterate_shards, read_shards, write_shards, write_table
from cytoglot.data.genes import GeneVocabulary
from cytoglot.errors import InputError
from cytoglot.manifest import Manifest
from cytoglot.sentence.cell_sentence import CellSentences, RankSettings


def make_sentences(n: int, n_genes: int = 30, seed: int = 0) -> CellSentences:
    rng = np.random.default_rng(seed)
    ids = [rng.permutation(n_genes)[: rng.integers(0, 12)] for _ in range(n)]
    return CellSentences(
        cell_ids=np.array([f"cell{i}" for i in range(n)], dtype=object),
        offsets=np.cumsum([0, *map(len, ids)]).astype(np.int64),
        gene_ids=np.concatenate([*ids, np.empty(0, int)]).astype(np.uint16),
        n_expressed=np.array([len(i) + 1 for i in ids], dtype=np.int32),
        vocabulary=GeneVocabulary(symbols=tuple(f"G{i}" for i in range(n_genes))),
        settings=RankSettings(top_genes=12),
    )


def make_obs(sentences: CellSentences) -> pd.DataFrame:
    n = len(sentences)
    return pd.DataFrame(
        {
            "cell_type": pd.Categorical([["B", "T"][i % 2] if i % 7 else None for i in range(n)]),
            "n_counts": np.arange(n) * 1.5,
            "is_doublet": np.arange(n) % 3 == 0,
            "donor": pd.Series([f"d{i % 3}" if i % 5 else None for i in range(n)], dtype=object).to_numpy(),
        },
        index=pd.Index(sentences.cell_ids, dtype=object),
    )


def assert_equal(left: CellSentences, right: CellSentences) -> None:
    assert left.cell_ids.tolist() == right.cell_ids.tolist()
    assert left.offsets.tolist() == right.offsets.tolist()
    assert left.gene_ids.tolist() == right.gene_ids.tolist()
    assert left.n_expressed.tolist() == right.n_expressed.tolist()
    assert (left.vocabulary, left.settings) == (right.vocabulary, right.settings)


@pytest.mark.parametrize("cells_per_shard", [7, 20, 1000])
def test_cells_and_metadata_survive_whatever_the_size_of_a_shard(tmp_path: Path, cells_per_shard: int) -> None:
    sentences = make_sentences(40)
    obs = make_obs(sentences)
    folder = write_shards(sentences, obs, tmp_path / "corpus", cells_per_shard=cells_per_shard)
    back, back_obs = read_shards(folder)
    assert_equal(back, sentences)
    assert len(list(folder.glob("*.parquet"))) == -(-40 // cells_per_shard)
    assert back_obs["cell_type"].astype(object).where(back_obs["cell_type"].notna(), None).tolist() == [
        None if pd.isna(v) else v for v in obs["cell_type"]
    ]
    assert isinstance(back_obs["cell_type"].dtype, pd.CategoricalDtype)
    pd.testing.assert_frame_equal(back_obs[["n_counts", "is_doublet"]], obs[["n_counts", "is_doublet"]])
    assert [None if pd.isna(v) else v for v in back_obs["donor"]] == obs["donor"].tolist()


def test_shards_can_be_read_one_at_a_time_and_each_as_plain_sentences(tmp_path: Path) -> None:
    sentences = make_sentences(25)
    folder = write_shards(sentences, make_obs(sentences), tmp_path / "corpus", cells_per_shard=10)
    parts = list(iterate_shards(folder))
    assert [len(part) for part, _ in parts] == [10, 10, 5]
    assert [cell for part, _ in parts for cell in part.cell_ids] == sentences.cell_ids.tolist()
    assert all(obs.index.tolist() == part.cell_ids.tolist() for part, obs in parts)
    assert_equal(CellSentences.from_parquet(folder / "shard-00001.parquet"), sentences[10:20])


def test_the_manifest_says_what_made_the_cells(tmp_path: Path) -> None:
    sentences = make_sentences(5)
    manifest = Manifest(command="encode", seeds={"seed": 3})
    folder = write_shards(sentences, make_obs(sentences), tmp_path / "corpus", manifest=manifest)
    description = json.loads((folder / "manifest.json").read_text())
    assert description["manifest"]["seeds"] == {"seed": 3}
    assert description["shards"] == [{"file": "shard-00000.parquet", "n_cells": 5}]
    assert description["vocabulary"] == sentences.vocabulary.fingerprint


def test_no_cells_and_no_metadata_are_fine(tmp_path: Path) -> None:
    for n in (0, 3):
        sentences = make_sentences(n)
        obs = pd.DataFrame(index=pd.Index(sentences.cell_ids, dtype=object))
        back, back_obs = read_shards(write_shards(sentences, obs, tmp_path / f"corpus{n}"))
        assert_equal(back, sentences)
        assert back_obs.shape == (n, 0)


def test_shards_are_smaller_than_text(tmp_path: Path) -> None:
    sentences = make_sentences(2000, n_genes=5000)
    write_table(sentences, pd.DataFrame(index=pd.Index(sentences.cell_ids)), tmp_path / "ids.parquet")
    schema = pq.read_schema(tmp_path / "ids.parquet")
    assert str(schema.field("gene_ids").type) == "list<element: uint16 not null>"
    assert pq.read_metadata(tmp_path / "ids.parquet").row_group(0).column(0).compression == "ZSTD"


def test_a_fault_while_writing_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = make_sentences(20)
    folder = write_shards(sentences[:5], make_obs(sentences).iloc[:5], tmp_path / "corpus")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cytoglot.corpus.shards.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        write_shards(sentences, make_obs(sentences), folder)
    monkeypatch.undo()
    assert len(read_shards(folder)[0]) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["corpus"]


def test_metadata_of_other_cells_or_of_no_one_type_is_refused(tmp_path: Path) -> None:
    sentences = make_sentences(4)
    obs = make_obs(sentences)
    with pytest.raises(InputError, match=r"found 3 rows and 4 sentences$"):
        write_shards(sentences, obs.iloc[:3], tmp_path / "x")
    with pytest.raises(InputError, match=r"found 4 rows and 4 sentences with other cell ids"):
        write_shards(sentences, obs.iloc[::-1], tmp_path / "x")
    with pytest.raises(InputError, match=r"obs columns \['gene_ids'\] have names that the shards use"):
        write_shards(sentences, obs.rename(columns={"donor": "gene_ids"}), tmp_path / "x")
    obs["donor"] = [1, "two", 3.0, None]
    with pytest.raises(InputError, match=r"obs column 'donor' cannot be stored: .*give it one type"):
        write_shards(sentences, obs, tmp_path / "x")
    with pytest.raises(InputError, match=r"cells_per_shard must be at least 1, found 0"):
        write_shards(sentences, obs, tmp_path / "x", cells_per_shard=0)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    sentences = make_sentences(20)
    folder = write_shards(sentences, make_obs(sentences), tmp_path / "corpus", cells_per_shard=8)
    with pytest.raises(InputError, match=r"is not a folder of shards: it has no manifest.json"):
        read_shards(tmp_path)
    shard = folder / "shard-00001.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:-50])
    with pytest.raises(InputError, match=r"shard-00001.parquet is damaged: "):
        read_shards(folder)
    shard.write_bytes((folder / "shard-00002.parquet").read_bytes())
    with pytest.raises(InputError, match=r"shard-00001.parquet has 4 cells, its manifest says 8"):
        read_shards(folder)
    shard.unlink()
    with pytest.raises(InputError, match=r"shard-00001.parquet is missing"):
        read_shards(folder)
    (folder / "manifest.json").write_text('{"command": "encode"}')
    with pytest.raises(InputError, match=r"is not the manifest of a folder of shards"):
        read_shards(folder)
    (folder / "manifest.json").write_text('{"format_version": 99, "shards": []}')
    with pytest.raises(InputError, match=r"has format 99, this version reads up to 1"):
        read_shards(folder)
