"""The numbers of a corpus, by hand from the cells that went in."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData

from cytoglot.corpus.format.folder import PARTS, Corpus, SourceInfo, open_corpus, write_corpus
from cytoglot.corpus.format.shard_file import CellBlock, make_block
from cytoglot.corpus.inspect.statistics import SEVERAL, CorpusStatistics, corpus_statistics
from cytoglot.corpus.read.records import RecordReader, source_of_cells, units_of_cells, units_of_tables
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.errors import InputError
from cytoglot.tasks import Record, tasks
from cytoglot.tasks.record_source import Draws

GENES = tuple("ABCDEFGH")
PROMPT = 64


@pytest.fixture(scope="module")
def numbers(small_corpus: Corpus) -> CorpusStatistics:
    """Of the fixture, with contexts that its short sentences reach."""
    return corpus_statistics(small_corpus, contexts=(PROMPT + 10, 1024))


def _parts(cells: AnnData) -> np.ndarray:
    """Part of each cell: donor 4 is validation, donor 5 is test."""
    names = sorted(set(cells.obs["donor"].astype(str)))
    part = dict.fromkeys(names, "train") | {names[4]: "validation", names[5]: "test"}
    return cells.obs["donor"].astype(str).map(part).to_numpy()


def _lengths(cells: AnnData) -> np.ndarray:
    return np.asarray((cells.X > 0).sum(axis=1)).ravel()


def _block(
    sentences: list[str],
    *,
    donors: list[str | None],
    sources: list[str] | None = None,
    group: list[int] | None = None,
    **metadata: list[str | None],
) -> CellBlock:
    ids = [[GENES.index(gene) for gene in sentence] for sentence in sentences]
    return make_block(
        cell_ids=[f"{i}{donor}" for i, donor in enumerate(donors)],
        offsets=np.cumsum([0, *map(len, ids)]),
        gene_ids=np.array([gene for cell in ids for gene in cell], int),
        n_genes=len(GENES),
        source=sources or ["one"] * len(ids),
        metadata={"donor_id": donors, "batch": [None] * len(ids), **metadata},
        group=None if group is None else np.array(group),
    )


def test_sizes_are_those_of_the_cells(numbers: CorpusStatistics, cells: AnnData, small_corpus: Corpus) -> None:
    part, length = _parts(cells), _lengths(cells)
    for line in numbers.parts:
        assert line.cells == (part == line.part).sum() > 0
        assert line.ranked_ids == length[part == line.part].sum()
    assert [line.shards for line in numbers.parts] == [2, 1, 1]
    assert [line.gene_sets for line in numbers.parts] == [6, 1, 2]
    assert [line.cell_type_terms for line in numbers.parts] == [6, 1, 2]
    assert numbers.n_cells == 240
    files = {path.relative_to(small_corpus.folder).as_posix(): path for path in small_corpus.folder.glob("*/*.parquet")}
    assert {shard["file"]: shard["bytes"] for shard in numbers.shards} == {
        name: path.stat().st_size for name, path in files.items()
    }
    assert sum(shard["ranked_ids"] for shard in numbers.shards) == length.sum()


def test_values_of_columns_are_counted_by_part(numbers: CorpusStatistics, cells: AnnData) -> None:
    by_name = {column.column: column for column in numbers.columns}
    truth = Counter(zip(cells.obs["cell_type"].astype(str), _parts(cells), strict=True))
    assert {(v, part): n for v, parts in by_name["cell_type"].values for part, n in parts.items()} == truth
    totals = [sum(parts.values()) for _, parts in by_name["cell_type"].values]
    assert totals == sorted(totals, reverse=True)
    n_unknown = (cells.obs["donor"].astype(str) == min(cells.obs["donor"].astype(str))).sum()
    assert by_name["disease"].n_known == 240 - n_unknown
    assert by_name["disease"].n_values == 1
    assert by_name["disease"].n_others == 0


def test_rare_values_are_counted_together(monkeypatch: pytest.MonkeyPatch, small_corpus: Corpus) -> None:
    monkeypatch.setattr("cytoglot.corpus.inspect.statistics.LISTED_VALUES", 2)
    column = next(c for c in corpus_statistics(small_corpus).columns if c.column == "donor_id")
    assert column.n_values == 6
    assert len(column.values) == 2
    assert sum(sum(parts.values()) for _, parts in column.values) + column.n_others == column.n_known == 240


def test_genes_per_cell_are_binned_by_part(numbers: CorpusStatistics, cells: AnnData) -> None:
    part, length = _parts(cells), _lengths(cells)
    binned = numbers.genes_per_cell
    for name, counts in binned.counts.items():
        assert counts == np.histogram(length[part == name], binned.edges)[0].tolist()
        assert sum(counts) + binned.n_zero[name] == (part == name).sum()
    doubled = np.array(binned.edges[4:]) / np.array(binned.edges[:-4])
    np.testing.assert_allclose(doubled, 2)


def test_groups_are_counted_by_size(numbers: CorpusStatistics, cells: AnnData) -> None:
    expected = {name: Counter[int]() for name in ("train", "validation", "test")}
    for _, rows in cells.obs.assign(part=_parts(cells)).groupby("donor", observed=True):
        whole, rest = divmod(len(rows), 3)
        expected[rows["part"].iloc[0]].update({3: whole} | ({rest: 1} if rest else {}))
    assert numbers.group_sizes == expected


def test_genes_by_the_cells_that_have_them(numbers: CorpusStatistics, cells: AnnData) -> None:
    n_cells_g = np.asarray((cells.X > 0).sum(axis=0)).ravel()
    truth = dict(zip(cells.var_names, n_cells_g.tolist(), strict=True))
    assert numbers.genes.vocabulary == 130
    assert numbers.genes.expressed == (n_cells_g > 0).sum()
    assert len(numbers.genes.frequent) == 50
    for row in numbers.genes.frequent:
        assert row["cells"] == truth[row["gene"]]
        assert row["detection_rate"] == row["cells"] / 240
    assert min(row["cells"] for row in numbers.genes.frequent) == np.sort(n_cells_g)[-50]


def test_tokens_by_hand(numbers: CorpusStatistics, cells: AnnData) -> None:
    length = _lengths(cells)
    rows = {(row.tokens_per_gene, row.context): row for row in numbers.tokens}
    assert numbers.prompt_tokens == PROMPT
    assert set(rows) == {(1.0, 74), (1.0, 1024), (3.8, 74), (3.8, 1024)}
    for (per_gene, context), row in rows.items():
        tokens = np.ceil(length * per_gene)
        assert row.tokens == np.minimum(tokens, context - PROMPT).sum()
        assert row.tokens_uncut == tokens.sum()
        assert row.cells_cut == (tokens > context - PROMPT).sum()
        assert row.share_of_cells_cut == row.cells_cut / 240
    assert rows[1.0, 74].tokens < rows[1.0, 1024].tokens == length.sum()


def test_tasks_by_what_the_cells_tell(numbers: CorpusStatistics, small_corpus: Corpus) -> None:
    lines = {line.task: line for line in numbers.tasks}
    cells = {part.part: part.cells for part in numbers.parts}
    assert lines["cell_type_annotation"].records == cells
    assert lines["cell_type_annotation"].not_shown == ""
    assert lines["gene_set_naming"].records == {"train": 6, "validation": 1, "test": 2}
    assert "a single possible answer: 'human'" in lines["organism_annotation"].not_shown
    assert lines["assay_annotation"].records == dict.fromkeys(cells, 0)
    assert "assay" in lines["assay_annotation"].not_shown


def _asked_one_by_one(corpus: Corpus) -> dict[str, dict[str, int]]:
    """Task → part → records that it can ask, each put to it."""
    reader, draws = RecordReader(corpus), Draws("any")
    counts = {name: dict.fromkeys(PARTS, 0) for name in tasks}
    for part in PARTS:
        records: list[tuple[str, Record]] = [(u, row) for u in units_of_tables() for row in reader.table(u, part)]
        for block in corpus.blocks(part):
            opened = reader.open(block)
            for unit in units_of_cells():
                source = source_of_cells(unit)
                records += [(unit, source.record(opened, row, draws)) for row in source.rows(opened).tolist()]
        for name in tasks:
            counts[name][part] = sum(unit == tasks[name].unit and tasks[name].can_ask(r) for unit, r in records)
    return counts


def test_tasks_are_counted_as_if_each_record_was_asked(numbers: CorpusStatistics, small_corpus: Corpus) -> None:
    assert {line.task: line.records for line in numbers.tasks} == _asked_one_by_one(small_corpus)


def test_odd_records_are_counted_as_if_each_was_asked(tmp_path: Path) -> None:
    """Empty cells, cells of one gene, of unknown type or organism, and mouse cells that are told in human genes."""
    rng, n = np.random.default_rng(0), 60
    block = _block(
        ["".join(rng.permutation(list(GENES))[: rng.integers(0, 4)]) for _ in range(n)],
        donors=[None] * n,
        sources=list(rng.choice(["one", "two"], n)),
        group=np.where(np.arange(n) < 40, np.arange(n) // 3, -1).tolist(),
        cell_type=list(rng.choice(["B", "T", None, " "], n)),
        organism=list(rng.choice(["human", "mouse", None], n)),
    )
    corpus = write_corpus(
        tmp_path / "corpus",
        {"train": [block]},
        vocabulary=GeneVocabulary(GENES),
        orthologs=np.array([4, 5, -1, -1, 0, 1, -1, -1]),
        sources=[SourceInfo(name="one", organism="human", abstract="Cells of one."), SourceInfo(name="two")],
    )
    counted = {line.task: line.records for line in corpus_statistics(corpus).tasks}
    assert counted == _asked_one_by_one(corpus)
    assert 0 < counted["ortholog_translation"]["train"] < counted["unconditional_generation"]["train"] < n


def test_a_donor_is_told_apart_within_its_study(tmp_path: Path) -> None:
    """p1 is in two parts, p2 in two sources of one study, and another p2 in another study; one cell has no donor."""
    corpus = write_corpus(
        tmp_path / "corpus",
        {
            "train": [_block(["AB"] * 4, donors=["p1", "p2", "p2", None], sources=["one", "one", "two", "one"])],
            "test": [_block(["AB"] * 4, donors=["p1", "p1", "p2", "p1"], sources=["one", "one", "three", "one"])],
        },
        vocabulary=GeneVocabulary(GENES),
        sources=[
            SourceInfo(name="one", study="s", licence="CC0"),
            SourceInfo(name="two", study="s", licence="CC0"),
            SourceInfo(name="three", licence="CC0"),
        ],
    )
    numbers = corpus_statistics(corpus)
    donors = numbers.cells_per_donor
    assert donors.edges == [1, 2, 4, 8]
    assert donors.counts == {"train": [0, 1, 0], "validation": [0, 0, 0], "test": [1, 0, 0], SEVERAL: [0, 0, 1]}
    assert numbers.donors["n"] == 3
    assert numbers.donors["max"] == 4
    assert [source.cells for source in numbers.sources] == [
        {"train": 3, "validation": 0, "test": 3},
        {"train": 1, "validation": 0, "test": 0},
        {"train": 0, "validation": 0, "test": 1},
    ]


def test_warnings_of_the_split_and_of_what_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    write_corpus(
        folder,
        {"train": [_block(["AB", ""], donors=["p1", "p1"], group=[0, 0])]},
        vocabulary=GeneVocabulary(GENES),
        sources=[SourceInfo(name="one", n_cells=2, n_kept=2), SourceInfo(name="lost", licence="CC0", n_cells=5)],
    )
    (folder / "splits.json").write_text(json.dumps({"units": {}, "warnings": ["too few donors"]}), encoding="utf-8")
    numbers = corpus_statistics(open_corpus(folder))
    assert numbers.warnings == [
        "too few donors",
        "no cells in the part(s) validation, test",
        "no licence is stated for one",
        "no cell of lost is in the corpus",
    ]
    assert numbers.genes_per_cell.n_zero["train"] == 1
    assert numbers.group_sizes["train"] == {2: 1}


def test_numbers_are_json_and_the_same_again(numbers: CorpusStatistics, small_corpus: Corpus) -> None:
    text = json.dumps(numbers.to_dict(), allow_nan=False)
    assert json.loads(text)["parts"][0]["cells"] == numbers.parts[0].cells
    again = corpus_statistics(small_corpus, contexts=(PROMPT + 10, 1024))
    assert json.dumps(again.to_dict()) == text


def test_a_corpus_without_cells_has_zeros(tmp_path: Path) -> None:
    empty = write_corpus(tmp_path / "corpus", {}, vocabulary=GeneVocabulary(GENES), sources=[])
    numbers = corpus_statistics(empty)
    assert numbers.n_cells == numbers.genes.expressed == 0
    assert numbers.genes.frequent == []
    assert numbers.genes_per_cell.edges == numbers.cells_per_donor.edges == []
    assert {row.share_of_cells_cut for row in numbers.tokens} == {0.0}


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    corpus = write_corpus(
        tmp_path / "corpus", {"train": [_block(["AB"], donors=["p1"])]}, vocabulary=GeneVocabulary(GENES)
    )
    shard = corpus.folder / corpus.description.shards[0].file
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"shard-00000\.parquet is damaged"):
        corpus_statistics(corpus)
