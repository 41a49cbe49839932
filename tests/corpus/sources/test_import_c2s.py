"""Import of cell2sentence data sets: words and labels as they were, every oddity reported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cytoglot.corpus.sources.import_c2s import import_c2s, read_c2s
from cytoglot.errors import InputError
from cytoglot.sentence.parquet import read_sentences

TABLE = {
    "cell_name": ["AAA-1", "CCC-1", "GGG-1"],
    "cell_sentence": ["MALAT1 CD3D IL7R", "", "CD3D MALAT1"],
    "cell_type": ["CD4 T", "B", "nan"],
}


def save(folder: Path, *tables: dict[str, list[object]]) -> Path:
    """Write Arrow streams as `datasets` does."""
    folder.mkdir()
    names = [f"data-{i:05d}-of-{len(tables):05d}.arrow" for i in range(len(tables))]
    for name, columns in zip(names, tables, strict=True):
        table = pa.table(columns)
        with pa.ipc.new_stream(str(folder / name), table.schema) as stream:
            stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return folder


def test_words_labels_and_order_are_kept(tmp_path: Path) -> None:
    cells = read_c2s(save(tmp_path / "c2s", TABLE))
    assert list(cells.sentences) == [["MALAT1", "CD3D", "IL7R"], [], ["CD3D", "MALAT1"]]
    assert cells.sentences.cell_ids.tolist() == TABLE["cell_name"]
    assert cells.sentences.vocabulary.symbols == ("CD3D", "IL7R", "MALAT1")
    assert cells.sentences.n_expressed.tolist() == [3, 0, 2]
    assert cells.obs["cell_type"].tolist() == ["CD4 T", "B", "nan"]
    assert cells.obs.index.tolist() == TABLE["cell_name"]
    assert cells.report.messages() == ["column 'cell_type' is missing in 1 cells"]


def test_several_files_make_one_set_whatever_their_order_of_words(tmp_path: Path) -> None:
    split = [{k: v[i : i + 1] for k, v in TABLE.items()} for i in range(3)]
    parts, whole = read_c2s(save(tmp_path / "parts", *split)), read_c2s(save(tmp_path / "whole", TABLE))
    assert list(parts.sentences) == list(whole.sentences)
    assert parts.sentences.vocabulary == whole.sentences.vocabulary
    assert parts.obs.equals(whole.obs)


def test_oddities_are_mended_and_reported(tmp_path: Path) -> None:
    folder = save(
        tmp_path / "c2s",
        {
            "cell_name": ["a", "a", "a-1", "a"],
            "cell_sentence": ["GENEA GENEA GENEB", "Actb  ACTB ", None, "ACTB"],
            "sentence": ["x", "y", "z", "z"],
            "donor": ["d1", None, "d2", None],
        },
    )
    cells = read_c2s(folder)
    assert list(cells.sentences) == [["GENEA", "GENEB"], ["Actb", "ACTB"], [], ["ACTB"]]
    assert len(set(cells.sentences.cell_ids)) == 4
    assert cells.sentences.cell_ids.tolist() == ["a", "a-2", "a-1", "a-3"]
    assert list(cells.obs.columns) == ["c2s_sentence", "donor"]
    assert cells.report.messages() == [
        "1 words repeat a gene of their sentence; the first position was kept",
        "2 words differ from others in case only, such as ACTB, Actb",
        "2 cells had the name of an earlier one and were numbered",
        "columns renamed with the prefix c2s_: sentence",
        "column 'donor' is missing in 2 cells",
    ]


def test_import_writes_a_file_that_reads_as_sentences(tmp_path: Path) -> None:
    summary = import_c2s(save(tmp_path / "c2s", TABLE), tmp_path / "cells.parquet")
    assert (summary.cells, summary.genes, summary.empty_cells) == (3, 3, 1)
    assert summary.columns == ("cell_type",)
    assert summary.output == str(tmp_path / "cells.parquet")
    back = read_sentences(tmp_path / "cells.parquet")
    assert next(iter(back)) == ["MALAT1", "CD3D", "IL7R"]
    assert back.manifest is not None
    assert back.manifest.command == "import-c2s"
    assert pq.read_table(tmp_path / "cells.parquet")["cell_type"].to_pylist() == TABLE["cell_type"]


def test_another_delimiter_and_no_labels(tmp_path: Path) -> None:
    folder = save(tmp_path / "c2s", {"cell_name": ["a", "b"], "cell_sentence": ["X,Y", "Y"]})
    cells = read_c2s(folder, delimiter=",")
    assert list(cells.sentences) == [["X", "Y"], ["Y"]]
    assert cells.obs.shape == (2, 0)
    with pytest.raises(InputError, match=r"1 of 2 words hold white space, such as 'B C'; pass the delim"):
        read_c2s(save(tmp_path / "tab", {"cell_name": ["a"], "cell_sentence": ["A,B C"]}), delimiter=",")


def test_no_cells_are_no_error(tmp_path: Path) -> None:
    empty = {"cell_name": pa.array([], pa.string()), "cell_sentence": pa.array([], pa.string())}
    assert len(read_c2s(save(tmp_path / "c2s", empty)).sentences) == 0


def test_what_datasets_itself_saves_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rng = np.random.default_rng(0)
    words = np.array([f"G{i}" for i in range(50)])
    sentences = [" ".join(rng.permutation(words)[: rng.integers(1, 20)]) for _ in range(300)]
    columns = {"cell_name": [f"c{i}" for i in range(300)], "cell_sentence": sentences, "batch": ["b"] * 300}
    datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "c2s"), num_shards=3)
    cells = read_c2s(tmp_path / "c2s")
    assert cells.sentences.text().to_pylist() == sentences
    assert cells.obs["batch"].tolist() == ["b"] * 300


def test_a_folder_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent is not a cell2sentence data set: expected a folder with state.json"):
        read_c2s(tmp_path / "absent")
    folder = save(tmp_path / "c2s", TABLE)
    file = folder / "data-00000-of-00001.arrow"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cannot be read as an Arrow stream"):
        read_c2s(folder)
    file.unlink()
    with pytest.raises(InputError, match=r"lacks 1 of the 1 files of its state.json: \['data-00000-of-00001.arrow'\]"):
        read_c2s(folder)
    with pytest.raises(InputError, match=r"lacks the columns \['cell_sentence'\]; found: cell_name, sentence"):
        read_c2s(save(tmp_path / "other", {"cell_name": ["a"], "sentence": ["A"]}))
    several = tmp_path / "several"
    several.mkdir()
    (several / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(InputError, match=r"holds several data sets; pass one of: .*several/train, .*several/test"):
        read_c2s(several)
