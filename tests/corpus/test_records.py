"""Records read from a corpus."""

from __future__ import annotations

from cytoglot.corpus.folder import Corpus
from cytoglot.corpus.gene_characters import replace_genes
from cytoglot.corpus.records import RecordReader, draw


def test_each_gene_of_a_cell_has_its_ortholog_or_an_empty_place(small_corpus: Corpus) -> None:
    block = next(iter(small_corpus.blocks("train")))
    ortholog_g, names = small_corpus.orthologs, small_corpus.vocabulary.names
    assert ortholog_g is not None
    plain, private = (RecordReader(small_corpus, characters=c).open(block) for c in (False, True))
    n_known = 0
    for row in range(len(block)):
        others = [int(ortholog_g[i]) for i in block.ids(row)[:7]]
        record = plain.cell(row, draw("key"), top_genes=7)
        assert record.ortholog_genes == tuple(names[i] if i >= 0 else "" for i in others)
        written = private.cell(row, draw("key"), top_genes=7).ortholog_genes
        assert tuple(replace_genes(word, names) for word in written) == record.ortholog_genes
        n_known += sum(map(bool, record.ortholog_genes))
    assert 0 < n_known < 7 * len(block)
