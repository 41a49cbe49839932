"""A file as a corpus: what is learned, what is left out, and that it is made again byte by byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix

from cytoglot.corpus.from_cells import LABELLED, UNLABELLED, CellCorpus, CellOptions, corpus_of_cells
from cytoglot.corpus.read.examples import CorpusExamples, available_tasks
from cytoglot.data.readers.read import read
from cytoglot.data.splits.assignment import PARTS
from cytoglot.errors import InputError
from cytoglot.sentence.encode import encode


@pytest.fixture(scope="module")
def made(cells: AnnData, tmp_path_factory: pytest.TempPathFactory) -> CellCorpus:
    options = CellOptions(metadata={"organism": "human"})
    folder = tmp_path_factory.mktemp("made") / "corpus"
    return corpus_of_cells(read(cells), folder, label="cell_type", options=options, seed=3)


def test_cells_are_those_of_the_file(made: CellCorpus, cells: AnnData) -> None:
    sentences = encode(cells, genes=made.corpus.vocabulary)
    place = {str(name): row for row, name in enumerate(cells.obs_names)}
    seen: list[str] = []
    for part in ("train", "validation"):
        for block in made.corpus.blocks(part):  # type: ignore[arg-type]
            codes, texts = block.values("cell_type")
            donors, names = block.values("donor_id")
            for i, cell in enumerate(block.cell_ids.to_pylist()):
                row = place[cell]
                np.testing.assert_array_equal(block.ids(i), sentences.ids(row))
                assert texts[codes[i]] == cells.obs["cell_type"].iloc[row]
                assert names[donors[i]] == str(cells.obs["donor"].iloc[row])
                seen.append(cell)
    assert sorted(seen) == sorted([*made.split.train, *made.split.validation])  # test cells are not in it
    assert made.corpus.labels("organism") == ("human",)
    assert made.sentences.cell_ids.tolist() == [str(n) for n in cells.obs_names if n in set(made.split.train)]


def test_the_log_says_how_many_cells_are_kept(made: CellCorpus, cells: AnnData, tmp_path: Path) -> None:
    n = [len(made.split.cells(part)) for part in PARTS]
    assert f"{n[0]} cells for training, {n[1]} for validation, {n[2]} kept for test; split by donor" in made.messages
    other = corpus_of_cells(
        read(cells), tmp_path / "c", label="cell_type", split_by="cell", fractions=(0.5, 0.25, 0.25), seed=3
    )
    assert "120 cells for training, 60 for validation, 60 kept for test; split by cell" in other.messages


def test_genes_rates_and_curve_are_those_of_training_cells(made: CellCorpus, cells: AnnData) -> None:
    train = cells[made.split.mask(cells.obs_names, "train")]
    counts_ng = train.X.toarray()[:, train.var_names.get_indexer(made.corpus.vocabulary.symbols)]
    assert (counts_ng.sum(axis=0) > 0).all()
    assert made.tie_rates is not None
    np.testing.assert_allclose(made.tie_rates, (counts_ng > 0).mean(axis=0), rtol=1e-6)
    assert made.log_ng is not None
    expected = np.log10(1 + 1e4 * counts_ng / train.X.toarray().sum(axis=1, keepdims=True))
    np.testing.assert_allclose(made.log_ng.toarray(), expected, rtol=1e-5)
    assert made.corpus.rank_curve is not None


def test_the_same_cells_give_the_same_bytes(made: CellCorpus, cells: AnnData, tmp_path: Path) -> None:
    options = CellOptions(metadata={"organism": "human"})
    again = corpus_of_cells(read(cells), tmp_path / "other", label="cell_type", options=options, seed=3)
    assert again.corpus.description.fingerprint == made.corpus.description.fingerprint


def test_shares_are_parts_of_each_other(cells: AnnData, tmp_path: Path) -> None:
    chosen = []
    for share in (0.1, 0.5, 1.0):
        found = corpus_of_cells(
            read(cells), tmp_path / str(share), label="cell_type", options=CellOptions(train_share=share)
        )
        chosen.append(set(found.sentences.cell_ids))
        assert len(found.corpus.vocabulary) == 119  # genes are chosen on all training cells, which lack one
    small_share, half, whole = chosen
    assert small_share < half < whole
    assert len(half) == round(0.5 * len(whole))


def test_shuffled_labels_are_a_permutation_of_those_of_training_cells(
    made: CellCorpus, cells: AnnData, tmp_path: Path
) -> None:
    options = CellOptions(shuffle_labels=True)
    other = corpus_of_cells(read(cells), tmp_path / "m", label="cell_type", options=options, split=made.split, seed=3)
    assert sorted(other.labels) == sorted(made.labels)
    assert (other.labels != made.labels).mean() > 0.4
    (mine,), (theirs,) = (list(one.corpus.blocks("validation")) for one in (made, other))
    labels = [np.array(b.values("cell_type")[1])[b.values("cell_type")[0]].tolist() for b in (mine, theirs)]
    assert labels[0] == labels[1]


def test_cells_without_a_label_or_a_gene_are_kept(cells: AnnData, tmp_path: Path) -> None:
    partly = cells.copy()
    partly.obs["cell_type"] = partly.obs["cell_type"].astype(object)
    partly.obs.loc[partly.obs_names[::3], "cell_type"] = "unknown"
    counts = partly.X.toarray()
    counts[1] = 0
    partly.X = csr_matrix(counts)
    found = corpus_of_cells(read(partly), tmp_path / "m", label="cell_type", split_by="cell")
    sources = found.corpus.count("source", "train") or {}
    assert sources == {}  # a source is no metadata
    names = [
        name
        for block in found.corpus.blocks("train")
        for name in np.array(block.values("source")[1])[block.values("source")[0]]
    ]
    assert {name: names.count(name) for name in set(names)} == {
        LABELLED: sum(label is not None for label in found.labels),
        UNLABELLED: sum(label is None for label in found.labels),
    }
    assert found.corpus.description.total("n_cells") == len(found.split.train) + len(found.split.validation)
    asked = {e.record.metadata.get("cell_type") for e in CorpusExamples(found.corpus).sample(50, "cell_generation")}
    assert None not in asked
    assert {"cell_type_annotation", "cell_generation", "unconditional_generation"} <= set(available_tasks(found.corpus))


def test_what_cannot_be_used_is_refused(cells: AnnData, tmp_path: Path) -> None:
    bad = cells.copy()
    bad.obs["empty"] = "unknown"
    with pytest.raises(InputError, match="column 'empty' holds no label at all"):
        corpus_of_cells(read(bad), tmp_path / "m", label="empty")
    options = CellOptions(metadata={"source": "here"})
    with pytest.raises(InputError, match=r"found \['source'\], which cells have of their own"):
        corpus_of_cells(read(bad), tmp_path / "m", label="cell_type", options=options)


def test_ties_are_told_and_written_cells_have_them_in_a_new_order_each_time(cells: AnnData, tmp_path: Path) -> None:
    from cytoglot.corpus.read.records import RecordReader
    from cytoglot.sentence.augment import AugmentSettings

    found = read(cells)
    made = corpus_of_cells(found, tmp_path / "corpus", label="cell_type", seed=3)
    block = next(iter(made.corpus.blocks("train")))
    names, tied = made.corpus.vocabulary.symbols, block.tied
    assert tied is not None
    assert 0.2 < tied.mean() < 1
    reader = RecordReader(made.corpus, seed=0, augment=AugmentSettings())
    rows, orders = reader.open(block), set()
    for row in range(5):
        ids = block.ids(row)
        counts = np.asarray(found[block.cell_ids.to_pylist()[row], [names[i] for i in ids]].X.todense()).ravel()
        expected = np.append(False, counts[1:] == counts[:-1])
        assert tied[block.offsets[row] : block.offsets[row + 1]].tolist() == expected.tolist()
        for epoch in range(4):
            written = rows.cell(row, rows.draws(row, epoch=epoch)).whole()
            assert sorted(written.genes) == sorted(names[i] for i in ids)
            value = dict(zip([names[i] for i in ids], counts.tolist(), strict=True))
            assert [value[gene] for gene in written.genes] == counts.tolist(), "only equal genes change places"
            orders.add(tuple(written.genes))
    assert len(orders) > 15
    assert made.tied is not None
    assert len(made.tied) == len(made.sentences.gene_ids)
