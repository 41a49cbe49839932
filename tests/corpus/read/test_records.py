"""Records read from a corpus."""

from __future__ import annotations

import pyarrow as pa

from cytoglot.corpus.format.folder import Corpus
from cytoglot.corpus.format.shard_file import CellBlock
from cytoglot.corpus.read.records import RecordReader
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
