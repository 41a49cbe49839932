"""Every planted fault is found, with its numbers, and a clean corpus has none."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytoglot.corpus.format.folder import PARTS, Corpus, Part, SourceInfo, open_corpus, write_corpus
from cytoglot.corpus.format.shard_file import CellBlock, make_block
from cytoglot.corpus.inspect import exact_duplicates as same_cells
from cytoglot.corpus.inspect.audit import CorpusAudit, audit_corpus
from cytoglot.corpus.inspect.counts import histogram_quantiles
from cytoglot.corpus.read.records import RecordReader, source_of_cells, units_of_cells, units_of_tables
from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.tasks.record_source import Draws
from cytoglot.tasks.task import tasks

N_GENES = 600


class Cell:
    """A cell to be written: its ranked genes and what is known of it."""

    def __init__(self, cell_id: str, genes: Sequence[int], *, source: str = "one", **metadata: str | None) -> None:
        self.cell_id, self.genes, self.source = cell_id, list(genes), source
        self.metadata: dict[str, str | None] = {"cell_type": "B cell", "donor_id": None, "tissue": "blood", **metadata}


Cells = dict[Part, list[Cell]]


def clean_cells() -> Cells:
    """Forty cells of each part, of random genes and of donors of its own; all parts have both cell types."""
    rng = np.random.default_rng(0)
    return {
        part: [
            Cell(
                f"{part} {i}",
                rng.permutation(N_GENES)[: rng.integers(80, 120)].tolist(),
                donor_id=f"{part} donor {i % 2}",
                cell_type=("B cell", "T cell")[i % 2],
            )
            for i in range(40)
        ]
        for part in PARTS
    }


def as_block(cells: Sequence[Cell], columns: Sequence[str]) -> CellBlock:
    return make_block(
        cell_ids=[cell.cell_id for cell in cells],
        offsets=np.concatenate([[0], np.cumsum([len(cell.genes) for cell in cells])]),
        gene_ids=np.array([gene for cell in cells for gene in cell.genes]),
        n_genes=N_GENES,
        source=[cell.source for cell in cells],
        metadata={column: [cell.metadata.get(column) for cell in cells] for column in columns},
    )


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Corpus]:
    """Write cells as a corpus; sources are of one study each unless told otherwise."""

    def write(cells: Cells, *, study: dict[str, str] | None = None) -> Corpus:
        columns = sorted({name for part in cells.values() for cell in part for name in cell.metadata})
        names = sorted({cell.source for part in cells.values() for cell in part})
        return write_corpus(
            tmp_path / "corpus",
            {part: [as_block(some, columns)] for part, some in cells.items() if some},
            vocabulary=GeneVocabulary(tuple(f"G{i}" for i in range(N_GENES))),
            sources=[SourceInfo(name=name, study=(study or {}).get(name, name)) for name in names],
        )

    return write


def messages(audit: CorpusAudit, check: str, level: str) -> list[str]:
    return [f.message for f in audit.findings if (f.check, f.level) == (check, level)]


LEAK_CHECKS = ("shards", "donors", "identical cells", "cell ids", "near-duplicates")


def test_a_clean_corpus_has_no_leak(written: Callable[..., Corpus]) -> None:
    audit = audit_corpus(written(clean_cells()))
    assert {f.check: f.level for f in audit.findings if f.check in LEAK_CHECKS} == dict.fromkeys(LEAK_CHECKS, "ok")
    assert not messages(audit, "labels", "warning")
    assert audit.numbers["near_duplicates"]["examples"] == []
    assert audit.cells == {"train": 40, "validation": 40, "test": 40}


def test_the_corpus_of_the_fixture_has_no_leak(small_corpus: Corpus) -> None:
    audit = audit_corpus(small_corpus)
    assert {f.check: f.level for f in audit.findings if f.check in LEAK_CHECKS} == dict.fromkeys(LEAK_CHECKS, "ok")


def test_a_donor_in_two_parts_is_found_within_its_study_only(written: Callable[..., Corpus]) -> None:
    cells = clean_cells()
    cells["test"][0].metadata["donor_id"] = "train donor 1"
    assert "one 1 donor_id (train donor 1)" in messages(audit_corpus(written(cells)), "donors", "warning")[0]
    cells["test"][0].source = "two"
    assert not messages(audit_corpus(written(cells)), "donors", "warning")
    audit = audit_corpus(written(cells, study={"one": "s", "two": "s"}))
    assert "s 1 donor_id" in messages(audit, "donors", "warning")[0]
    (row,) = audit.numbers["donors"]
    assert row["shared"] == {"train/validation": [], "train/test": ["train donor 1"], "validation/test": []}


def test_doublets_are_no_donor(written: Callable[..., Corpus]) -> None:
    cells = clean_cells()
    for part in PARTS:
        cells[part][0].metadata["donor_id"] = "doublet"
    assert messages(audit_corpus(written(cells)), "donors", "ok")


def test_a_donor_outside_of_the_part_that_the_split_gave_it_is_an_error(written: Callable[..., Corpus]) -> None:
    corpus = written(clean_cells())
    units = {f"one\t{part} donor {i}": part for part in PARTS for i in range(2)}
    split = {"by": "auto", "columns": {"one": "donor_id"}, "units": units}
    (corpus.folder / "splits.json").write_text(json.dumps(split))
    assert not messages(audit_corpus(open_corpus(corpus.folder)), "donors", "error")
    split["units"] = {**units, "one\tvalidation donor 1": "train"}
    (corpus.folder / "splits.json").write_text(json.dumps(split))
    (message,) = messages(audit_corpus(open_corpus(corpus.folder)), "donors", "error")
    assert "donor_id 'validation donor 1' in validation" in message
    for name in ("validation_from_train", "carved"):  # as a build writes it now, and as it was written before
        (corpus.folder / "splits.json").write_text(json.dumps({**split, name: ["one"]}))
        assert not messages(audit_corpus(open_corpus(corpus.folder)), "donors", "error")


@pytest.mark.parametrize("at_once", [1 << 21, 7])
def test_identical_cells_are_counted_across_parts_and_within(
    written: Callable[..., Corpus], monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(same_cells.SameCells.__init__, "__kwdefaults__", {"at_once": at_once})
    cells = clean_cells()
    for row in (0, 1):
        cells["test"][row].genes = list(cells["train"][5].genes)
    cells["validation"][3].genes = list(cells["validation"][4].genes)
    cells["test"][9].genes = cells["train"][9].genes[:19]  # too short to say anything
    cells["train"][9].genes = cells["train"][9].genes[:19]
    audit = audit_corpus(written(cells))
    found = audit.numbers["identical_cells"]
    assert found["across"] == {"train/validation": 0, "train/test": 2, "validation/test": 0}
    assert found["within"] == {"train": 0, "validation": 1, "test": 1}
    assert found["cells_too_short_to_compare"] == 2
    example = found["examples"][0]
    assert example["cell"] == {"source": "one", "cell_id": "train 5", "part": "train"}
    assert example["other"]["part"] == "test"
    assert "2 train/test" in messages(audit, "identical cells", "warning")[0]


def test_the_order_of_genes_counts_for_identical_cells_and_not_for_near_ones(written: Callable[..., Corpus]) -> None:
    cells = clean_cells()
    cells["test"][0].genes = cells["train"][5].genes[::-1]
    audit = audit_corpus(written(cells))
    assert messages(audit, "identical cells", "ok")
    assert "test cells in train: 1 of 40 (2.5%, 1 pairs)" in messages(audit, "near-duplicates", "warning")[0]


def test_cell_ids_are_compared_within_a_study(written: Callable[..., Corpus]) -> None:
    cells = clean_cells()
    cells["test"][0].cell_id, cells["test"][0].source = "train 7", "two"
    assert messages(audit_corpus(written(cells)), "cell ids", "ok")
    audit = audit_corpus(written(cells, study={"one": "s", "two": "s"}))
    assert "1 train/test" in messages(audit, "cell ids", "warning")[0]
    (example,) = audit.numbers["cell_ids"]["examples"]
    assert (example["cell"]["source"], example["other"]["source"]) == ("one", "two")
    assert example["cell"]["cell_id"] == example["other"]["cell_id"] == "train 7"


def test_ids_that_count_rows_are_no_ids(written: Callable[..., Corpus]) -> None:
    cells = clean_cells()
    for part in PARTS:
        for i, cell in enumerate(cells[part]):
            cell.cell_id = str(i)
    audit = audit_corpus(written(cells))
    assert messages(audit, "cell ids", "ok")
    assert audit.numbers["cell_ids"]["cells_with_a_number_for_an_id"] == 120


def test_a_cell_in_another_gene_set_is_a_near_duplicate(written: Callable[..., Corpus]) -> None:
    """Half of the genes were measured, so the sets as they are have a Jaccard index of about 0.5."""
    rng, cells = np.random.default_rng(1), clean_cells()
    measured = set(range(0, N_GENES, 2)) | set(range(101))
    cells["train"] += [
        Cell(f"few {i}", [g for g in rng.permutation(N_GENES)[:150].tolist() if g in measured], source="two")
        for i in range(30)
    ]
    original = cells["test"][4].genes
    cells["train"].append(Cell("copy", [gene for gene in original if gene in measured], source="two"))
    audit = audit_corpus(written(cells))
    near = audit.numbers["near_duplicates"]
    assert [panel["sources"] for panel in near["panels"]] == [["one"], ["two"]]
    (example,) = near["examples"]
    assert (example["cell_id"], example["other_cell_id"], example["jaccard"]) == ("test 4", "copy", 1.0)
    assert not example["same_id"]


def test_near_duplicates_are_those_of_a_comparison_of_all(written: Callable[..., Corpus]) -> None:
    rng, cells = np.random.default_rng(2), clean_cells()
    for part, row, n_changed in (
        ("test", 0, 2),
        ("test", 1, 4),
        ("validation", 2, 1),
        ("test", 3, 30),
        ("train", 6, 2),
    ):
        genes = list(cells["train"][10 + row].genes)
        new = rng.permutation([gene for gene in range(N_GENES) if gene not in genes])[:n_changed]
        cells[part][row].genes = [*new.tolist(), *genes[n_changed:]]
    near = audit_corpus(written(cells)).numbers["near_duplicates"]
    for row in near["compared"]:
        pairs = [
            (i, j)
            for i, a in enumerate(cells[row["part"]])
            for j, b in enumerate(cells[row["among"]])
            if (row["part"] != row["among"] or i != j) and _jaccard(a.genes[:128], b.genes[:128]) >= 0.9
        ]
        assert row["n_pairs"] == len(pairs), row
        assert row["n_twins"] == len({i for i, _ in pairs})
    assert sum(row["n_pairs"] for row in near["compared"]) == 5  # the pair within training is found from both ends


def _jaccard(a: Sequence[int], b: Sequence[int]) -> float:
    return len({*a} & {*b}) / len({*a} | {*b})


def test_a_choice_of_cells_is_looked_up_in_all_others(written: Callable[..., Corpus]) -> None:
    cells = clean_cells()
    for mine, other in zip(cells["test"], cells["train"], strict=True):
        mine.genes = list(other.genes)
    near = audit_corpus(written(cells), max_cells=10).numbers["near_duplicates"]
    (row,) = [row for row in near["compared"] if (row["part"], row["among"]) == ("test", "train")]
    assert (row["n_cells"], row["n_of"], row["n_twins"], row["share"]) == (10, 40, 10, 1.0)
    assert len(near["examples"]) == 10


def test_random_cells_of_a_type_say_what_likeness_to_expect(written: Callable[..., Corpus]) -> None:
    cells = clean_cells()
    for cell in cells["train"]:
        if cell.metadata["cell_type"] == "T cell":
            cell.genes = [*range(90), *cell.genes[:10]] if cell.genes[0] >= 90 else [*range(95)]
    likeness = audit_corpus(written(cells)).numbers["near_duplicates"]["likeness_within_cell_types"]
    assert likeness["pairs"] > 10_000
    assert 0 < likeness["above"] < 1


def test_labels_that_training_never_sees_are_named(written: Callable[..., Corpus]) -> None:
    cells = clean_cells()
    for row in (0, 1, 2):
        cells["test"][row].metadata["cell_type"] = "NK cell"
    cells["validation"][0].metadata["tissue"] = None
    audit = audit_corpus(written(cells))
    assert messages(audit, "labels", "warning") == [
        "values that training never sees: cell_type 'NK cell' (3 test cells)"
    ]
    numbers = audit.numbers["labels_of_parts"]
    assert numbers["cell_type"]["only_in"] == {"train": {}, "validation": {}, "test": {"NK cell": 3}}
    assert numbers["tissue"]["known"] == {"train": 1.0, "validation": 0.975, "test": 1.0}
    (row,) = [row for row in audit.numbers["labels"] if row["part"] == "validation"]
    assert (row["source"], row["cells"], row["tissue"], row["cell_type"]) == ("one", 40, 0.975, 1.0)


def test_cell_types_are_looked_up_in_the_ontology(written: Callable[..., Corpus]) -> None:
    cells = clean_cells()
    for part in PARTS:
        cells[part][0].metadata["cell_type"] = "cluster 17"
    audit = audit_corpus(written(cells))
    assert audit.numbers["ontology"]["unmapped"] == {"cluster 17": 3}
    assert audit.numbers["ontology"]["mapped_cells"] == 117
    assert (
        "2 of 3 cell types name one of 2 Cell Ontology terms (98% of the labelled cells)"
        in (messages(audit, "ontology", "note")[0])
    )


def test_lengths_are_counted_against_the_context(written: Callable[..., Corpus]) -> None:
    cells = clean_cells()
    audit = audit_corpus(written(cells), context_length=164, tokens_per_gene=1.0)  # 100 genes and 64 words
    lengths = {part: np.array([len(cell.genes) for cell in cells[part]]) for part in PARTS}
    over = {row["part"]: row["over"]["164"] for row in audit.numbers["lengths"]["over_context"]
            if row["tokens_per_gene"] == 1 and row["unit"] == "cell"}  # fmt: skip
    assert over == {part: pytest.approx((lengths[part] > 100).mean()) for part in PARTS}
    (all_train,) = [row for row in audit.numbers["lengths"]["genes_per_cell"]
                    if (row["part"], row["source"]) == ("train", "all")]  # fmt: skip
    assert all_train["q50"] == np.quantile(lengths["train"], 0.5, method="inverted_cdf")
    assert (all_train["min"], all_train["max"]) == (lengths["train"].min(), lengths["train"].max())
    assert messages(audit, "lengths", "note")
    assert messages(audit_corpus(open_corpus(Path(audit.corpus))), "lengths", "ok")


def test_quantiles_of_a_histogram_by_hand() -> None:
    found = histogram_quantiles(np.array([0, 2, 0, 1, 1]))  # 1, 1, 3, 4
    assert found == {
        "n": 4, "min": 1, "q05": 1, "q25": 1, "q50": 1, "q75": 3, "q95": 4, "max": 4, "mean": 2.25
    }  # fmt: skip


def test_task_balance_is_what_asking_every_record_gives(small_corpus: Corpus) -> None:
    lines = {line["task"]: line for line in audit_corpus(small_corpus).numbers["tasks"]}
    reader, draws = RecordReader(small_corpus), Draws("anything")
    for part in PARTS:
        records: dict[str, list[Any]] = {unit: reader.table(unit, part) for unit in units_of_tables()}
        for block in small_corpus.blocks(part):
            opened = reader.open(block)
            for unit in units_of_cells():
                source = source_of_cells(unit)
                rows = source.rows(opened).tolist()
                records.setdefault(unit, []).extend(source.record(opened, row, draws) for row in rows)
        for name in tasks:
            task = tasks[name]
            assert lines[name]["records"][part] == sum(map(task.can_ask, records[task.unit])), (name, part)


def test_tasks_that_cannot_be_shown_say_why(small_corpus: Corpus) -> None:
    reasons = {line["task"]: line["not_shown"] for line in audit_corpus(small_corpus).numbers["tasks"]}
    assert {name for name, reason in reasons.items() if not reason} == set(tasks) - {
        "assay_annotation", "condition_annotation", "development_stage_annotation", "disease_annotation",
        "interpretation", "organism_annotation", "sex_annotation", "tissue_annotation",
    }  # fmt: skip
    assert reasons["assay_annotation"] == "no cell can be asked, which needs assay"
    assert reasons["organism_annotation"] == "a single possible answer: 'human'"
    assert reasons["interpretation"] == "a single possible answer: 'Cells that were made by a recipe.'"
    assert reasons["tissue_annotation"] == "a single answer in the test part: 'lung'"


def test_damaged_shards_are_named_and_left_out(written: Callable[..., Corpus]) -> None:
    corpus = written(clean_cells())
    file = corpus.folder / corpus.shards("test")[0].file
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    short = corpus.folder / corpus.shards("validation")[0].file
    short.write_bytes(short.read_bytes()[:-5])
    audit = audit_corpus(open_corpus(corpus.folder))
    (message,) = messages(audit, "shards", "error")
    assert message.startswith("2 of 3 damaged: validation/shard-00000.parquet (")
    assert "test/shard-00000.parquet (its checksum is not the one in corpus.json)" in message
    assert audit.worst == "error"
    assert {row["part"] for row in audit.numbers["labels"]} == {"train"}


def test_the_report_is_json_and_text(written: Callable[..., Corpus]) -> None:
    audit = audit_corpus(written(clean_cells()))
    value = json.loads(json.dumps(audit.to_dict()))
    assert value["worst"] == "note"
    assert set(value["numbers"]) >= {"donors", "identical_cells", "near_duplicates", "labels", "lengths", "tasks"}
    lines = audit.to_text().splitlines()
    assert "40 train, 40 validation, 40 test cells" in lines[0]
    assert sum(f"  {f.level:<7}  {f.check}: " in audit.to_text() for f in audit.findings) == len(audit.findings)
    assert any(line.split() == ["cell_type_annotation", "40", "/", "40", "/", "40"] for line in lines)


def test_the_same_seed_gives_the_same_report(written: Callable[..., Corpus]) -> None:
    corpus = written(clean_cells())
    assert audit_corpus(corpus, seed=3, max_cells=9).to_dict() == audit_corpus(corpus, seed=3, max_cells=9).to_dict()


def test_parts_without_cells_are_no_obstacle(written: Callable[..., Corpus]) -> None:
    audit = audit_corpus(written({"train": clean_cells()["train"], "validation": [], "test": []}))
    assert {f.level for f in audit.findings if f.check in LEAK_CHECKS} == {"ok"}
    reasons = {line["task"]: line["not_shown"] for line in audit.numbers["tasks"]}
    assert reasons["cell_generation"] == "no cell of the test part can be asked, which needs cell_type"


@pytest.mark.data
def test_the_same_cells_in_two_gene_sets_are_found(data_path: Callable[[str], Path], tmp_path: Path) -> None:
    """832 cells with 14,053 genes are among 4,519 with 4,805 genes, whose counts are the same."""
    from cytoglot.data.readers.read import read
    from cytoglot.sentence.encode import encode

    read_files = {
        name: read(data_path(f"{name}.h5ad")) for name in ("kang_ifnb_pbmc_832_fullgenes", "kang_ifnb_pbmc_merged")
    }
    symbols = tuple(dict.fromkeys(symbol for adata in read_files.values() for symbol in map(str, adata.var_names)))
    blocks = []
    for name, adata in read_files.items():
        found = encode(adata, genes=GeneVocabulary(symbols))
        blocks.append(
            make_block(
                cell_ids=found.cell_ids, offsets=found.offsets, gene_ids=found.gene_ids, n_genes=len(symbols),
                source=[name] * len(found), metadata={"cell_type": adata.obs["cell_type"].astype(str).tolist()},
            )
        )  # fmt: skip
    parts: dict[Part, Sequence[CellBlock]] = {"test": blocks[:1], "train": blocks[1:]}
    corpus = write_corpus(
        tmp_path / "kang", parts, vocabulary=GeneVocabulary(symbols),
        sources=[SourceInfo(name=name, study="kang2018") for name in read_files],
    )  # fmt: skip
    audit = audit_corpus(corpus)
    assert messages(audit, "identical cells", "ok")
    assert audit.numbers["cell_ids"]["across"]["train/test"] == 832
    near = audit.numbers["near_duplicates"]
    (row,) = [row for row in near["compared"] if (row["part"], row["among"]) == ("test", "train")]
    assert row["n_twins"] == row["n_cells"] == 832
    assert all(example["same_id"] for example in near["examples"])
    (within,) = [row for row in near["compared"] if row["part"] == "train"]
    assert within["n_twins"] <= 2
