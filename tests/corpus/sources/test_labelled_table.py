"""Sentences with metadata in one file: what goes in comes out, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cytoglot.corpus.sources.labelled_table import write_table
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError
from cytoglot.sentence.cell_sentence import CellSentences, RankSettings
from cytoglot.sentence.parquet import read_sentences


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


def test_cells_and_metadata_survive(tmp_path: Path) -> None:
    sentences = make_sentences(40)
    obs = make_obs(sentences)
    write_table(sentences, obs, tmp_path / "cells.parquet")
    assert_equal(read_sentences(tmp_path / "cells.parquet"), sentences)
    back = pq.read_table(tmp_path / "cells.parquet").to_pandas().set_index("cell_id")
    for column in ("cell_type", "donor"):
        texts, expected = ([None if pd.isna(v) else v for v in table[column]] for table in (back, obs))
        assert texts == expected
    assert isinstance(back["cell_type"].dtype, pd.CategoricalDtype)
    assert back["n_counts"].tolist() == obs["n_counts"].tolist()
    assert back["is_doublet"].tolist() == obs["is_doublet"].tolist()


@pytest.mark.parametrize("n", [0, 3])
def test_no_cells_and_no_metadata_are_fine(tmp_path: Path, n: int) -> None:
    sentences = make_sentences(n)
    write_table(sentences, pd.DataFrame(index=pd.Index(sentences.cell_ids, dtype=object)), tmp_path / "cells.parquet")
    assert_equal(read_sentences(tmp_path / "cells.parquet"), sentences)


def test_ids_are_stored_small(tmp_path: Path) -> None:
    sentences = make_sentences(2000, n_genes=5000)
    write_table(sentences, pd.DataFrame(index=pd.Index(sentences.cell_ids)), tmp_path / "ids.parquet")
    schema = pq.read_schema(tmp_path / "ids.parquet")
    assert str(schema.field("gene_ids").type) == "list<element: uint16 not null>"
    assert pq.read_metadata(tmp_path / "ids.parquet").row_group(0).column(0).compression == "ZSTD"


def test_metadata_of_other_cells_or_of_no_one_type_is_refused(tmp_path: Path) -> None:
    sentences = make_sentences(4)
    obs = make_obs(sentences)
    with pytest.raises(InputError, match=r"found 3 rows and 4 sentences$"):
        write_table(sentences, obs.iloc[:3], tmp_path / "x")
    with pytest.raises(InputError, match=r"found 4 rows and 4 sentences with other cell ids"):
        write_table(sentences, obs.iloc[::-1], tmp_path / "x")
    with pytest.raises(InputError, match=r"obs columns \['gene_ids'\] have names that the file uses"):
        write_table(sentences, obs.rename(columns={"donor": "gene_ids"}), tmp_path / "x")
    obs["donor"] = [1, "two", 3.0, None]
    with pytest.raises(InputError, match=r"obs column 'donor' cannot be stored: .*give it one type"):
        write_table(sentences, obs, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
