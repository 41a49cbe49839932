"""Cells are known by what they hold: under other names, in other formats, and never by their names alone."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cytoglot.data.genes.vocabulary import GeneVocabulary
from cytoglot.data.splits.content import CellContent, content_of
from cytoglot.data.splits.matching import KNOWN_BY_NAME_ONLY, match_cells
from cytoglot.data.splits.split import Split
from cytoglot.errors import InputError
from cytoglot.hashing import NO_HASH, cell_hashes

GENES = [f"GENE{i}" for i in range(30)]
COUNTS = np.random.default_rng(0).poisson(0.7, (12, 30))
NAMES = [f"c{i:02}" for i in range(12)]


def content(matrix=COUNTS, genes=GENES, kind="counts", known=GENES) -> CellContent:
    return content_of(matrix, genes, kind=kind, known_genes=GeneVocabulary(tuple(known)))


def split(of=None) -> Split:
    """Six training cells, two validation cells, four test cells."""
    made = Split(
        train=tuple(NAMES[:6]), validation=tuple(NAMES[6:8]), test=tuple(NAMES[8:]), by="cell", seed=0,
        fractions=(0.5, 0.2, 0.3),
    )  # fmt: skip
    return made.with_content(NAMES, content() if of is None else of)


PARTS_OF_NAMES = ["train"] * 6 + ["validation"] * 2 + ["test"] * 4


@pytest.mark.parametrize("by_rank", [False, True])
def test_a_hash_does_not_depend_on_how_the_matrix_is_stored(by_rank):
    expected = cell_hashes(COUNTS, GENES, by_rank=by_rank)
    assert len(set(expected.tolist())) == 12
    order = np.random.default_rng(1).permutation(30)
    zeros = sparse.csr_matrix(COUNTS + 1)
    zeros.data -= 1  # every zero is stored
    halves = sparse.csr_matrix(
        (np.repeat(sparse.csr_matrix(COUNTS).data, 2) / 2, np.repeat(sparse.csr_matrix(COUNTS).indices, 2),
         sparse.csr_matrix(COUNTS).indptr * 2), shape=COUNTS.shape,
    )  # fmt: skip
    shuffled = sparse.csc_matrix(COUNTS[:, order].astype(np.float32))
    for matrix, genes in (
        (sparse.csr_matrix(COUNTS.astype(np.uint8)), GENES),
        (shuffled, [GENES[i] for i in order]),
        (zeros, GENES),
        (halves, GENES),
        (np.asfortranarray(COUNTS.astype(float)), GENES),
    ):
        np.testing.assert_array_equal(cell_hashes(matrix, genes, by_rank=by_rank), expected)


def test_a_hash_changes_with_every_gene_and_value():
    seen = {int(cell_hashes(COUNTS[:1], GENES)[0])}
    for gene in range(30):
        changed = COUNTS[:1].copy()
        changed[0, gene] += 1
        seen.add(int(cell_hashes(changed, GENES)[0]))
    seen.add(int(cell_hashes(COUNTS[:1], [*GENES[1:], GENES[0]])[0]))
    assert len(seen) == 32


def test_an_empty_cell_has_no_content_and_columns_without_a_name_do_not_count():
    assert cell_hashes(np.zeros((1, 30)), GENES).tolist() == [NO_HASH]
    np.testing.assert_array_equal(
        cell_hashes(COUNTS[:, :20], GENES[:20]), cell_hashes(COUNTS, [*GENES[:20], *[""] * 10])
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normalizing_keeps_the_order_by_which_cells_are_compared(dtype):
    logs = np.log1p((COUNTS / COUNTS.sum(1, keepdims=True) * 1e4).astype(dtype))
    np.testing.assert_array_equal(content(logs, kind="log1p").ranks, content().ranks)
    found = match_cells(split(), [f"{name}-1" for name in NAMES], content(logs, kind="log1p"))
    assert found.part.tolist() == PARTS_OF_NAMES
    assert "compared by the order of their genes" in found.messages[-1]


def test_cells_are_known_by_their_names_where_the_content_is_theirs():
    found = match_cells(split(), NAMES, content())
    assert found.part.tolist() == PARTS_OF_NAMES
    assert found.messages == ()
    assert found.counts == {
        "cells": 12, "train": 6, "validation": 2, "test": 4, "new": 0, "renamed": 0, "other_content": 0,
        "equal_content": 0, "test_like_training": 0,
    }  # fmt: skip


def test_renamed_cells_keep_their_parts_whatever_their_order():
    order = np.random.default_rng(3).permutation(12)
    found = match_cells(split(), [f"{NAMES[i]}-1" for i in order], content(COUNTS[order]))
    assert found.part.tolist() == [PARTS_OF_NAMES[i] for i in order]
    assert found.counts["renamed"] == 12
    assert found.messages == (
        "12 cells of the model's training file have other names and were found by content "
        "(6 train, 2 validation, 4 test)",
    )


def test_cells_known_neither_by_name_nor_by_content_are_new():
    counts = COUNTS.copy()
    counts[:3] = np.random.default_rng(8).poisson(0.7, (3, 30))
    found = match_cells(split(), [*["n0", "n1", "n2"], *NAMES[3:]], content(counts))
    assert found.part.tolist() == ["", "", "", *PARTS_OF_NAMES[3:]]
    assert found.counts["new"] == 3
    assert found.messages == ("3 of 12 cells are not of the model's training file and are judged as new",)


def test_names_of_other_cells_are_refused_unless_they_are_said_to_be_others():
    """Half of the names are those of other cells of the split, half of cells that it does not know."""
    counts = np.random.default_rng(9).poisson(0.7, (12, 30))
    counts[:4] = COUNTS[[1, 2, 3, 0]]  # a training cell under the name of another
    with pytest.raises(InputError, match=r"^12 of 12 cells are named as .* \(first 'c00'\).*--new-cells \(new_cells"):
        match_cells(split(), NAMES, content(counts))
    found = match_cells(split(), NAMES, content(counts), new_cells=True)
    assert found.part.tolist() == ["train"] * 4 + [""] * 8
    assert (found.counts["other_content"], found.counts["new"], found.counts["train"]) == (12, 8, 4)
    assert (
        "12 cells are named as cells of the model's training file but hold other values; their content tells 4 of "
        in (found.messages[1])
    )


def test_one_changed_cell_is_enough():
    counts = COUNTS.copy()
    counts[5, 0] += 1
    with pytest.raises(InputError, match=r"1 of 12 cells are named .*first 'c05'"):
        match_cells(split(), NAMES, content(counts))


def test_doubled_counts_are_other_counts():
    with pytest.raises(InputError, match="12 of 12 cells"):
        match_cells(split(), NAMES, content(COUNTS * 2))


def test_genes_that_the_model_does_not_know_do_not_matter():
    known = GENES[:20]
    stored = split(content(known=known))
    for matrix, genes in ((COUNTS[:, :20], GENES[:20]), (COUNTS[:, ::-1], GENES[::-1])):
        assert match_cells(stored, NAMES, content(matrix, genes, known=known)).part.tolist() == PARTS_OF_NAMES


def test_cells_of_equal_content_are_all_kept_and_counted():
    counts = COUNTS.copy()
    counts[9] = counts[0]  # a test cell that holds what a training cell holds
    stored = split(content(counts))
    named = match_cells(stored, NAMES, content(counts))
    assert named.part.tolist() == PARTS_OF_NAMES, "names tell them apart"
    assert (named.counts["equal_content"], named.counts["test_like_training"]) == (2, 1)
    assert named.messages == (
        "2 cells hold the same as another cell of the file; all are kept",
        "1 test cells hold the same as a training or validation cell",
    )
    renamed = match_cells(stored, [f"x{i}" for i in range(12)], content(counts))
    assert renamed.part[9] == "train", "without a name that tells more, it may be the training cell"


def test_empty_cells_are_known_by_name_alone():
    counts = COUNTS.copy()
    counts[[0, 11]] = 0
    stored = split(content(counts))
    assert match_cells(stored, NAMES, content(counts)).part.tolist() == PARTS_OF_NAMES
    renamed = match_cells(stored, [f"x{i}" for i in range(12)], content(counts))
    assert renamed.part[[0, 11]].tolist() == ["", ""]
    assert renamed.counts["equal_content"] == 0


def test_names_that_are_numbers_are_names():
    numbers = [str(i) for i in range(12)]
    made = Split(train=tuple(numbers[:6]), test=tuple(numbers[6:]), by="cell", seed=0, fractions=(0.5, 0, 0.5))
    stored = made.with_content(pd.RangeIndex(12), content())
    assert match_cells(stored, pd.RangeIndex(12), content()).part.tolist() == ["train"] * 6 + ["test"] * 6
    # the last six cells alone, in a file that counts from 0 again
    with pytest.raises(InputError, match="6 of 6 cells are named"):
        match_cells(stored, pd.RangeIndex(6), content(COUNTS[6:]))
    found = match_cells(stored, pd.RangeIndex(6), content(COUNTS[6:]), new_cells=True)
    assert found.part.tolist() == ["test"] * 6


def test_a_split_without_content_knows_names_only_and_says_so():
    old = Split.from_dict({k: v for k, v in split().to_dict().items() if k != "content"})
    found = match_cells(old, [*NAMES[:11], "new"], content())
    assert found.part.tolist() == [*PARTS_OF_NAMES[:11], ""]
    assert found.messages[0] == KNOWN_BY_NAME_ONLY
    with pytest.raises(InputError, match=r"keeps no content of its cells .* give the cells other names, or train"):
        match_cells(old, NAMES, content(), new_cells=True)


def test_a_split_is_read_as_it_was_written_and_damage_is_refused():
    made = split()
    value = json.loads(json.dumps(made.to_dict()))
    assert Split.from_dict(value) == made
    assert value["content"]["values"][0] == f"{int(content().values[0]):016x}"
    value["content"]["values"].pop()
    with pytest.raises(InputError, match="expected the content of 12 cells of a split, found"):
        Split.from_dict(value)
    del value["content"]["values"]
    with pytest.raises(InputError, match="not a stored split: 'values'"):
        Split.from_dict(value)


def test_content_follows_the_sorted_ids_of_a_split():
    order = np.random.default_rng(2).permutation(12)
    shuffled = split().with_content([NAMES[i] for i in order], content(COUNTS[order]))
    assert shuffled == split()
    some = split().with_content(NAMES[:3], content(COUNTS[:3]))
    assert match_cells(some, NAMES, content()).part.tolist() == PARTS_OF_NAMES, "what is not known is told by name"
