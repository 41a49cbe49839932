"""Duplicates: found across spans, the first one stays, memory in ranges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cytoglot.corpus.assign.duplicates import find_duplicates, sort_hashes
from cytoglot.hashing import MIN_GENES, NO_HASH, content_hashes


def cells(*lists: list[int], dtype: type = np.uint16) -> tuple[np.ndarray, np.ndarray]:
    return np.cumsum([0, *map(len, lists)]), np.array([gene for ids in lists for gene in ids], dtype)


LONG = list(range(100, 100 + MIN_GENES))


def test_order_counts_and_the_width_of_ids_does_not() -> None:
    swapped = [LONG[1], LONG[0], *LONG[2:]]
    hashes = content_hashes(*cells(LONG, swapped, LONG, [*LONG, 5]))
    assert hashes[0] == hashes[2]
    assert len(set(hashes.tolist())) == 3
    np.testing.assert_array_equal(content_hashes(*cells(LONG, swapped, dtype=np.uint32)), hashes[:2])


def test_short_cells_are_no_duplicates() -> None:
    hashes = content_hashes(*cells(LONG[:-1], LONG[:-1], [], LONG))
    assert hashes.tolist()[:3] == [NO_HASH] * 3
    assert hashes[3] != NO_HASH
    assert find_duplicates([sort_hashes(hashes)], ["a"]) == ({}, {})


def test_the_first_in_the_recipe_stays_and_pairs_are_counted(tmp_path: Path) -> None:
    spans = [np.array(s, np.uint64) for s in ([5, 7, 5, 0], [0, 9, 7], [2**64 - 1, 5, 9, 9], [2**64 - 1, 1])]
    paths = []
    for number, hashes in enumerate(spans):
        paths.append(tmp_path / f"{number}.npy")
        np.save(paths[-1], sort_hashes(hashes))
    for at_once in (1, 3, 1000):
        rows, counts = find_duplicates(paths, ["a", "a", "b", "c"], cells_at_once=at_once)
        assert [rows[span].tolist() for span in range(4)] == [[2], [2], [1, 2, 3], [0]]
        assert counts == {("a", "a"): 2, ("b", "a"): 3, ("c", "b"): 1}


@settings(max_examples=60, deadline=None)
@given(
    spans=st.lists(st.lists(st.sampled_from([0, 1, 2, 3, 2**63, 2**64 - 1]), max_size=12), max_size=6),
    at_once=st.integers(1, 40),
)
def test_as_a_set_would_find_them(spans: list[list[int]], at_once: int) -> None:
    rows, found_counts = find_duplicates(
        [sort_hashes(np.array(s, np.uint64)) for s in spans],
        [f"s{i}" for i in range(len(spans))],
        cells_at_once=at_once,
    )
    first: dict[int, int] = {}
    counts: dict[tuple[str, str], int] = {}
    for number, hashes in enumerate(spans):
        expected = []
        for row, value in enumerate(hashes):
            if value and value in first:
                expected.append(row)
                pair = (f"s{number}", f"s{first[value]}")
                counts[pair] = counts.get(pair, 0) + 1
            elif value:
                first[value] = number
        assert rows.get(number, np.empty(0)).tolist() == expected
    assert found_counts == counts


def test_a_table_of_hashes_is_sorted_and_names_the_rows() -> None:
    table = sort_hashes(np.array([9, 0, 4, 9], np.uint64))
    assert table["hash"].tolist() == [4, 9, 9]
    assert table["row"].tolist() == [2, 0, 3]
