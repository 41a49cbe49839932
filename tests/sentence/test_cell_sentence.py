"""Ragged sentences: slicing, joining, text and the Parquet file."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError, VocabularyMismatchError
from cytoglot.manifest import Manifest
from cytoglot.sentence import parquet, text
from cytoglot.sentence.cell_sentence import CellSentences, RankSettings, concat, gene_id_dtype
from cytoglot.sentence.encode import encode_matrix
from cytoglot.sentence.parquet import read_sentences, write_sentences

GENES = GeneVocabulary(("ACTB", "CD3E", "GAPDH", "HLA-DRA", "γ-gene", "A-GENE-NAME-OF-MORE-THAN-SIXTEEN-BYTES"))
IDS = [[2, 0, 5], [], [4], [1, 3, 0, 2, 4, 5]]


def sentences(ids: list[list[int]] = IDS, **changes: Any) -> CellSentences:
    lengths = [len(cell) for cell in ids]
    parts: dict[str, Any] = {
        "cell_ids": np.array([f"cell {number}" for number in range(len(ids))], dtype=object),
        "offsets": np.cumsum([0, *lengths]),
        "gene_ids": np.array([gene for cell in ids for gene in cell], np.uint16),
        "n_expressed": np.array(lengths, np.int32),
        "vocabulary": GENES,
        "settings": RankSettings(),
    }
    return CellSentences(**(parts | changes))


def joined(ids: list[list[int]], delimiter: str = " ") -> list[str]:
    return [delimiter.join(GENES.symbols[gene] for gene in cell) for cell in ids]


def test_words_lengths_and_ranks() -> None:
    found = sentences()
    assert len(found) == 4
    assert found.words(0) == found[0] == found[-4] == ["GAPDH", "ACTB", "A-GENE-NAME-OF-MORE-THAN-SIXTEEN-BYTES"]
    assert list(found)[1] == []
    assert found.lengths.tolist() == [3, 0, 1, 6]
    assert found.ranks().tolist() == [1, 2, 3, 1, 1, 2, 3, 4, 5, 6]
    assert found.cells().tolist() == [0, 0, 0, 2, 3, 3, 3, 3, 3, 3]
    assert found.n_empty == 1
    assert found.truncate(2).gene_ids.tolist() == [2, 0, 4, 1, 3]
    assert found.truncate(2).settings.top_genes == 2
    with pytest.raises(IndexError, match="cell 4 is outside 4 cells"):
        found[4]
    with pytest.raises(FrozenInstanceError):
        found.offsets = np.zeros(1)  # type: ignore[misc]


@pytest.mark.parametrize(
    "key",
    [slice(None), slice(1, 3), slice(None, None, -1), slice(2, 2), [3, 0, 0], np.array([-1, 1]), [], [True, False] * 2],
)
def test_slices_masks_and_indices_pick_cells(key: Any) -> None:
    picked = sentences()[key]
    numbers = (
        np.arange(4)[np.array(key, dtype=None if len(key) else int)]
        if not isinstance(key, slice)
        else np.arange(4)[key]
    )
    assert [picked.ids(cell).tolist() for cell in range(len(picked))] == [IDS[number] for number in numbers]
    assert picked.cell_ids.tolist() == [f"cell {number}" for number in numbers]
    assert picked.n_expressed.tolist() == [len(IDS[number]) for number in numbers]


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        ([True, False], IndexError, r"mask over 4 cells must have shape \(4,\), found \(2,\)"),
        ([0, 7], IndexError, "cell 7 is outside 4 cells"),
        ([0, -5], IndexError, "cell -5 is outside 4 cells"),
        (["cell 0"], TypeError, "picked by a slice, a mask or integers"),
    ],
)
def test_what_picks_no_cells_is_refused(key: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sentences()[key]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offsets": np.array([0, 3])}, "4 cell ids need 5 offsets and 4 values of n_expressed, found 2 and 4"),
        ({"offsets": np.array([0, 3, 2, 4, 10])}, "offsets must rise from 0 to 10"),
        ({"gene_ids": np.zeros(10, np.int64)}, "must be uint16 or uint32, found int64"),
        ({"gene_ids": np.full(10, 6, np.uint16)}, "gene id 6 is outside the vocabulary of 6 genes"),
        ({"tie_rates": np.zeros(5, np.float32)}, r"tie_rates must have shape \(6,\), found \(5,\)"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sentences(**changes)


def test_concat_joins_what_was_sliced() -> None:
    whole = sentences()
    again = concat([whole[:2], whole[2:2], whole[2:]])
    assert list(again) == list(whole)
    assert again.cell_ids.tolist() == whole.cell_ids.tolist()
    with pytest.raises(InputError, match="at least one part"):
        concat([])
    other = replace(whole, vocabulary=GeneVocabulary(tuple("ABCDEF")))
    with pytest.raises(VocabularyMismatchError, match="part 1 speaks of other genes than part 0: 6 genes"):
        concat([whole, other])
    with pytest.raises(InputError, match="part 1 was ranked with RankSettings"):
        concat([whole, whole.truncate(2)])
    with pytest.raises(InputError, match="part 1 was ranked with other tie rates"):
        concat([whole, replace(whole, tie_rates=np.zeros(6, np.float32))])


# Text


@settings(deadline=None, max_examples=60)
@given(
    ids=st.lists(st.lists(st.integers(0, 5), max_size=30), max_size=8),
    delimiter=st.sampled_from([" ", "", ", ", " → ", "a long delimiter of more than sixteen bytes"]),
    task_values=st.integers(1, 20),
)
def test_text_is_the_joined_words(ids: list[list[int]], delimiter: str, task_values: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cytoglot.sentence.threads.TASK_VALUES", task_values)  # several threads write side by side
        found = sentences(ids).text(delimiter)
    assert found.type == pa.string()
    found.validate(full=True)
    assert found.to_pylist() == joined(ids, delimiter)


def test_text_beyond_two_gib_is_a_large_string(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_LARGEST_STRING_ARRAY", 50)
    found = sentences().text()
    assert found.type == pa.large_string()
    found.validate(full=True)
    assert found.to_pylist() == joined(IDS)


# Parquet


def with_everything() -> CellSentences:
    rates = np.array([0.1, 1 / 3, 0, 1, 0.5, 1e-30], np.float32)
    manifest = Manifest(command="encode", config={"a": 1}, inputs={"x.h5ad": "00"}, created="")
    return sentences(tie_rates=rates, settings=RankSettings(ties="rare_first", top_genes=6), manifest=manifest)


@pytest.mark.parametrize("text_too", [False, True])
@pytest.mark.parametrize("group", [2, 3, 8192])
def test_parquet_gives_back_what_was_written(
    tmp_path: Path, text_too: bool, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_CELLS", group)
    written = with_everything()
    write_sentences(written, tmp_path / "s.parquet", text=text_too)
    found = read_sentences(tmp_path / "s.parquet")
    assert list(found) == list(written)
    assert found.cell_ids.tolist() == written.cell_ids.tolist()
    assert found.gene_ids.dtype == np.uint16
    assert found.n_expressed.tolist() == written.n_expressed.tolist()
    assert (found.vocabulary, found.settings, found.manifest) == (GENES, written.settings, written.manifest)
    np.testing.assert_array_equal(found.tie_rates, written.tie_rates)
    table = pq.read_table(tmp_path / "s.parquet")
    assert table["gene_ids"].to_pylist() == IDS
    assert table.column_names == ["cell_id", "gene_ids", *(["sentence"] if text_too else []), "n_expressed"]
    if text_too:
        assert table["sentence"].to_pylist() == joined(IDS)
    assert [p.name for p in tmp_path.iterdir()] == ["s.parquet"]


def test_the_same_sentences_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        write_sentences(with_everything(), tmp_path / name)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_no_cells_and_empty_cells_survive_parquet(tmp_path: Path) -> None:
    for number, ids in enumerate(([], [[], []])):
        write_sentences(sentences(ids), tmp_path / f"{number}.parquet", text=True)
        assert list(read_sentences(tmp_path / f"{number}.parquet")) == ids


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    assert (gene_id_dtype(1 << 16), gene_id_dtype((1 << 16) + 1)) == (np.uint16, np.uint32)
    genes = GeneVocabulary(tuple(f"G{gene}" for gene in range(70_000)))
    counts_ng = np.zeros((1, 70_000))
    counts_ng[0, [3, 69_999]] = 1, 2
    write_sentences(encode_matrix(counts_ng, genes), tmp_path / "s.parquet")
    assert list(read_sentences(tmp_path / "s.parquet")) == [["G69999", "G3"]]


def test_files_that_hold_no_sentences_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent.parquet does not exist; expected a Parquet file written by"):
        read_sentences(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("no parquet at all")
    with pytest.raises(InputError, match="is not a readable Parquet file"):
        read_sentences(tmp_path / "text.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match=r"holds columns \['x'\] but no cytoglot metadata"):
        read_sentences(tmp_path / "other.parquet")
    newer = pa.table({"x": [1]}).replace_schema_metadata({"cytoglot": '{"format_version": 99}'})
    pq.write_table(newer, tmp_path / "newer.parquet")
    with pytest.raises(InputError, match="format 99 need a newer cytoglot; this one reads up to 1"):
        read_sentences(tmp_path / "newer.parquet")
