"""Records read from a corpus."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cytoglot.corpus.format.folder import Corpus, open_corpus, write_corpus
from cytoglot.corpus.format.shard_file import CellBlock, concat_blocks, make_block
from cytoglot.corpus.read.records import RecordReader, row_groups
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.data.relations import relation_of_lists
from cytoglot.tasks.record_source import Draws


def test_each_gene_of_a_cell_has_its_ortholog_or_an_empty_place(small_corpus: Corpus) -> None:
    block = next(iter(small_corpus.blocks("train")))
    ortholog_g, names = small_corpus.orthologs, small_corpus.vocabulary.names
    assert ortholog_g is not None
    plain = RecordReader(small_corpus).open(block)
    n_known = 0
    for row in range(len(block)):
        others = [int(ortholog_g[i]) for i in block.ids(row)[:7]]
        record = plain.cell(row, Draws("key"), top_genes=7)
        assert tuple(record.ortholog_genes) == tuple(names[i] if i >= 0 else "" for i in others)
        n_known += sum(map(bool, record.ortholog_genes))
    assert 0 < n_known < 7 * len(block)


def test_a_cell_told_in_the_genes_of_another_species_has_no_orthologs(small_corpus: Corpus) -> None:
    block = next(iter(small_corpus.blocks("train")))
    place = block.table.column_names.index("organism")
    mouse = pa.array(["mouse"] * len(block)).dictionary_encode()
    changed = CellBlock(block.table.set_column(place, "organism", mouse))
    record = RecordReader(small_corpus).open(changed).cell(0, Draws("key"))
    assert record.metadata["organism"] == "mouse"
    assert record.ortholog_genes == ()


def related_block(n: int = 6, source: str = "s", prefix: str = "c") -> CellBlock:
    """Cell i of n has the gene i, and leads to the cells i + 1 and i + 2; the last one to a cell that is not there."""
    others = [[f"{prefix}{j}" for j in (i + 1, i + 2)] if i < n - 1 else ["gone"] for i in range(n)]
    return make_block(
        cell_ids=[f"{prefix}{i}" for i in range(n)],
        offsets=np.arange(n + 1),
        gene_ids=np.arange(n),
        n_genes=20,
        source=[source] * n,
        metadata={"dose": [f"{i} uM" for i in range(n)]},
        relations={"next": relation_of_lists(others)},
    )


def test_related_cells_are_found_in_all_row_groups_of_their_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges = [0, 2, 4, 6, 12]  # cells of a row group
    monkeypatch.setattr("cytoglot.corpus.format.folder.row_group_edges", lambda group: edges)
    other = related_block(source="t")  # the same ids in another source are other cells
    block = concat_blocks([related_block(), other])
    corpus = write_corpus(
        tmp_path / "c", {"train": [block]}, vocabulary=GeneVocabulary(tuple(f"G{i}" for i in range(20)))
    )
    assert corpus.description.count("next", "train") == 12
    reader, found = RecordReader(corpus), {}
    for place in row_groups(corpus, "train"):
        cells = reader.read(place)
        assert cells.rows_with("next").tolist() == list(range(len(cells)))
        for row in range(len(cells)):
            related = cells.related("next", row, Draws(row))
            found[cells.sources[row], cells.cell(row, Draws(row)).cell_id] = [
                (cell.cell_id, tuple(cell.genes), cell.metadata["dose"]) for cell in related
            ]
    for source in "st":
        assert found[source, "c1"] == [("c2", ("G2",), "2 uM"), ("c3", ("G3",), "3 uM")]
        assert [cell_id for cell_id, *_ in found[source, "c4"]] == ["c5"]
        assert found[source, "c5"] == []
    assert cells.rows_with("unknown").tolist() == []


def test_relations_go_along_with_their_cells_and_lack_where_a_block_has_none() -> None:
    block = related_block().take(np.array([4, 1]))
    assert block.relations == ("next",)
    assert block.metadata_columns == ("dose",)
    assert block.related("next").cell_ids.tolist() == ["c5", "c6", "c2", "c3"]
    assert block.slice(1, 2).related("next").cell_ids.tolist() == ["c2", "c3"]
    assert block.related("other").offsets.tolist() == [0, 0, 0]


def test_a_corpus_of_the_version_before_is_read(small_corpus: Corpus, tmp_path: Path) -> None:
    shutil.copytree(small_corpus.folder, tmp_path / "old")
    value = json.loads((tmp_path / "old" / "corpus.json").read_text()) | {"format_version": 1}
    for shard in value["shards"]:
        del shard["relations"]
    (tmp_path / "old" / "corpus.json").write_text(json.dumps(value))
    old = open_corpus(tmp_path / "old")
    assert old.description.count("cells", "train") == small_corpus.description.count("cells", "train")
    assert old.description.count("control", "train") == 0
    (first, *_), (other, *_) = row_groups(old, "train"), row_groups(small_corpus, "train")
    assert RecordReader(old).read(first).cell(0, Draws(0)) == RecordReader(small_corpus).read(other).cell(0, Draws(0))
