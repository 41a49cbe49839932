"""Splits of many sources: whole donors, fractions, what happens where donors are few, missing or shared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from cytoglot.corpus.assign.cell_keys import cell_keys
from cytoglot.corpus.assign.group_split import SplitDecision, UnitCounts, decide_splits
from cytoglot.corpus.sources.recipe import SplitRecipe
from cytoglot.errors import InputError

Columns = Mapping[str, pd.Categorical]


def donors(cells: Mapping[str | None, int], column: str = "donor_id") -> dict[str, pd.Categorical]:
    """Return a column with so many cells of each donor."""
    return {column: pd.Categorical(np.repeat(np.array(list(cells), object), list(cells.values())))}


def count(sources: Mapping[str, Columns], studies: Mapping[str, str] | None = None) -> UnitCounts:
    counts = UnitCounts()
    for source, columns in sources.items():
        n = len(next(iter(columns.values())))
        counts.add(source, (studies or {}).get(source, ""), columns, n)
    return counts


def parts(decision: SplitDecision, source: str, columns: Columns, seed: int = 0) -> np.ndarray:
    n = len(next(iter(columns.values())))
    return decision.part_of(source, columns, cell_keys(seed, source, 0, n))


def shares(part: np.ndarray) -> list[float]:
    return (np.bincount(part, minlength=3) / len(part)).tolist()


def test_ten_equal_donors_are_split_eight_one_one() -> None:
    columns = donors({f"d{i}": 100 for i in range(10)})
    decision = decide_splits(count({"a": columns}), SplitRecipe(), 0)
    part = parts(decision, "a", columns)
    assert shares(part) == [0.8, 0.1, 0.1]
    for donor in columns["donor_id"].categories:
        assert len(np.unique(part[columns["donor_id"] == donor])) == 1
    assert decision.columns == {"a": "donor_id"}
    assert decision.warnings == ()
    assert set(decision.units) == {f"a\td{i}" for i in range(10)}
    assert decide_splits(count({"a": columns}), SplitRecipe(), 1).units != decision.units


@settings(max_examples=25, deadline=None)
@given(
    studies=st.lists(st.lists(st.integers(2, 300), min_size=3, max_size=12), min_size=1, max_size=5),
    seed=st.integers(0, 3),
)
def test_every_source_of_three_donors_is_in_every_part(studies: list[list[int]], seed: int) -> None:
    sources = {f"s{i}": donors({f"d{k}": n for k, n in enumerate(cells)}) for i, cells in enumerate(studies)}
    decision = decide_splits(count(sources), SplitRecipe(), seed)
    for source, columns in sources.items():
        assert min(shares(parts(decision, source, columns))) > 0


def test_fractions_are_met_over_all_sources_although_small_ones_cannot() -> None:
    small = {f"small{i}": donors({f"d{k}": 100 for k in range(3)}) for i in range(3)}  # a third each
    large = {"large": donors({f"d{k}": 100 for k in range(40)})}
    decision = decide_splits(count({**small, **large}), SplitRecipe(), 0)
    everything = np.concatenate([parts(decision, s, c) for s, c in {**small, **large}.items()])
    np.testing.assert_allclose(shares(everything), [0.8, 0.1, 0.1], atol=0.025)
    assert decision.warnings == ()
    alone = decide_splits(count(small), SplitRecipe(), 0)
    assert any("33 % / 33 % / 33 % of the cells" in w and "80 % / 10 % / 10 % were asked" in w for w in alone.warnings)
    assert min(shares(parts(decision, "large", large["large"]))) > 0


def test_a_donor_in_two_files_of_a_study_is_in_one_part() -> None:
    first, second = donors({f"d{i}": 50 for i in range(8)}), donors({f"d{i}": 70 for i in range(4, 12)})
    decision = decide_splits(count({"x": first, "y": second}, {"x": "st", "y": "st"}), SplitRecipe(), 0)
    assert {unit.split("\t")[0] for unit in decision.units} == {"st"}
    part_of_donor: dict[str, set[int]] = {}
    for source, columns in (("x", first), ("y", second)):
        part = parts(decision, source, columns)
        assert min(shares(part)) > 0
        for donor, code in zip(columns["donor_id"], part, strict=True):
            part_of_donor.setdefault(donor, set()).add(int(code))
    assert all(len(found) == 1 for found in part_of_donor.values())


def test_donors_of_one_name_in_two_studies_are_two() -> None:
    columns = donors({f"d{i}": 50 for i in range(10)})
    decision = decide_splits(count({"x": columns, "y": columns}), SplitRecipe(), 0)
    assert len(decision.units) == 20


def test_two_donors_train_and_test_and_validation_cells_come_from_training() -> None:
    columns = donors({"d0": 5000, "d1": 5000})
    decision = decide_splits(count({"a": columns}), SplitRecipe(), 0)
    part = parts(decision, "a", columns)
    assert sorted(decision.units.values()) == ["test", "train"]
    assert decision.validation_from_train == ("a",)
    assert any("validation cells are drawn from the training donors" in w for w in decision.warnings)
    np.testing.assert_allclose(shares(part), [0.5 * 8 / 9, 0.5 / 9, 0.5], atol=0.01)
    tested = {str(d) for d in np.asarray(columns["donor_id"])[part == 2]}
    assert len(tested) == 1
    assert tested.isdisjoint(np.asarray(columns["donor_id"])[part != 2])


@pytest.mark.parametrize(
    "columns",
    [
        donors({"only": 5000}),
        donors({None: 5000}),
        donors({"human": 5000}, "organism"),
        donors({f"cell{i}": 1 for i in range(5000)}, "batch"),
    ],
    ids=["one donor", "all missing", "no column", "a batch for each cell"],
)
def test_without_several_donors_cells_are_split_and_a_warning_says_so(columns: Columns) -> None:
    decision = decide_splits(count({"a": columns}), SplitRecipe(), 0)
    assert decision.columns == {"a": "cell"}
    np.testing.assert_allclose(shares(parts(decision, "a", columns)), [0.8, 0.1, 0.1], atol=0.015)
    assert any("split by cell" in w and "a" in w for w in decision.warnings)
    assert decision.units == {}


def test_batch_is_taken_where_donors_say_nothing_and_a_column_asked_for_is_taken() -> None:
    one = {**donors({"only": 60}), **donors({"b0": 20, "b1": 20, "b2": 20}, "batch")}
    both = {**donors({"d0": 30, "d1": 30}), **donors({"b0": 20, "b1": 20, "b2": 20}, "batch")}
    counts = count({"one": one, "both": both})
    assert decide_splits(counts, SplitRecipe(), 0).columns == {"both": "donor_id", "one": "batch"}
    assert decide_splits(counts, SplitRecipe(by="batch"), 0).columns == {"both": "batch", "one": "batch"}
    assert decide_splits(counts, SplitRecipe(by="cell"), 0).columns == {"both": "cell", "one": "cell"}
    assert decide_splits(counts, SplitRecipe(by="dataset_id"), 0).columns == {"both": "cell", "one": "cell"}


def test_cells_without_a_donor_train_and_are_counted() -> None:
    columns = donors({**{f"d{i}": 50 for i in range(20)}, None: 400})
    decision = decide_splits(count({"a": columns}), SplitRecipe(), 0)
    part = parts(decision, "a", columns)
    assert (part[columns["donor_id"].codes < 0] == 0).all()
    assert decision.without_unit == {"a": 400}
    np.testing.assert_allclose(shares(part), [0.8, 0.1, 0.1], atol=0.02)
    assert any("400 cells without a donor_id" in w for w in decision.warnings)


def test_held_out_sources_are_tested_whole_and_so_are_their_donors_elsewhere() -> None:
    held, sibling = donors({"d0": 50, "d1": 50}), donors({f"d{i}": 50 for i in range(1, 9)})
    other = donors({f"d{i}": 50 for i in range(10)})
    counts = count({"held": held, "sibling": sibling, "other": other}, {"held": "st", "sibling": "st"})
    decision = decide_splits(counts, SplitRecipe(held_out_sources=["held"]), 0)
    assert (parts(decision, "held", held) == 2).all()
    part = parts(decision, "sibling", sibling)
    assert (part[sibling["donor_id"] == "d1"] == 2).all()
    assert min(shares(part)) > 0
    assert shares(parts(decision, "other", other)) != [0, 0, 1]
    by_study = decide_splits(counts, SplitRecipe(held_out_sources=["st"]), 0)
    assert by_study.columns == {"held": "held out", "other": "donor_id", "sibling": "held out"}


@pytest.mark.parametrize("fractions", [(0.3, 0.1, 0.6), (0.3, 0.0, 0.7)])
def test_what_a_held_out_source_leaves_trains(fractions: tuple[float, float, float]) -> None:
    held, sibling = donors({"d0": 50}), donors({"d0": 50, "d1": 500})
    decision = decide_splits(
        count({"held": held, "sibling": sibling}, {"held": "st", "sibling": "st"}),
        SplitRecipe(held_out_sources=["held"], fractions=fractions),
        0,
    )
    part = parts(decision, "sibling", sibling)
    assert (part[sibling["donor_id"] == "d0"] == 2).all()
    assert set(part[sibling["donor_id"] == "d1"]) == ({0, 1} if fractions[1] else {0})


@pytest.mark.parametrize(
    ("names", "message"), [(["helt"], "unknown held-out source 'helt'.*held"), (["held", "b"], "all 2 held out")]
)
def test_held_out_sources_that_cannot_be(names: Sequence[str], message: str) -> None:
    counts = count({"held": donors({"d0": 5}), "b": donors({"d0": 5})})
    with pytest.raises(InputError, match=message):
        decide_splits(counts, SplitRecipe(held_out_sources=list(names)), 0)


@pytest.mark.parametrize("fractions", [(1.0, 0.0, 0.0), (0.9, 0.0, 0.1), (0.9, 0.1, 0.0)])
def test_a_part_of_no_fraction_has_no_cell(fractions: tuple[float, float, float]) -> None:
    sources = {
        "ten": donors({f"d{i}": 100 for i in range(10)}),
        "two": donors({"d0": 300, "d1": 300}),
        "one": donors({"d0": 1000}),
    }
    decision = decide_splits(count(sources), SplitRecipe(fractions=fractions), 0)
    for source, columns in sources.items():
        found = np.array(shares(parts(decision, source, columns)))
        assert ((found > 0) == (np.array(fractions) > 0)).all()


@settings(max_examples=25, deadline=None)
@given(data=st.data(), n=st.integers(2, 400), seed=st.integers(0, 3))
def test_spans_may_be_cut_and_counted_in_any_order(data: st.DataObject, n: int, seed: int) -> None:
    rng = np.random.default_rng(n)
    columns = {"donor_id": pd.Categorical.from_codes(rng.integers(-1, 6, n), [f"d{i}" for i in range(6)])}
    keys = cell_keys(seed, "a", 0, n)
    edges = sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=3))})
    spans = [slice(a, b) for a, b in pairwise(edges)]
    counts = UnitCounts()
    for span in data.draw(st.permutations(spans)):
        one = UnitCounts()
        one.add("a", "", {"donor_id": columns["donor_id"][span]}, span.stop - span.start)
        counts.merge(one)
    decision = decide_splits(counts, SplitRecipe(), seed)
    assert decision == decide_splits(count({"a": columns}), SplitRecipe(), seed)
    pieces = [decision.part_of("a", {"donor_id": columns["donor_id"][s]}, keys[s]) for s in spans]
    np.testing.assert_array_equal(np.concatenate(pieces), decision.part_of("a", columns, keys))


def test_a_decision_is_written_and_read() -> None:
    sources = {"a": donors({"d0": 30, "d1": 30, None: 3}), "b": donors({"d0": 40})}
    decision = decide_splits(count(sources), SplitRecipe(), 0)
    assert TypeAdapter(SplitDecision).validate_json(json.dumps(asdict(decision))) == decision


def test_a_donor_that_was_not_there_is_noticed() -> None:
    decision = decide_splits(count({"a": donors({"d0": 30, "d1": 30, "d2": 30})}), SplitRecipe(), 0)
    with pytest.raises(InputError, match=r"source 'a' has changed .* donor_id 'd9' is new"):
        parts(decision, "a", donors({"d0": 3, "d9": 1}))
    unused = pd.Categorical(["d0", "d1"], categories=["d0", "d1", "never"])
    assert len(decision.part_of("a", {"donor_id": unused}, cell_keys(0, "a", 0, 2))) == 2


@pytest.mark.parametrize("by", ["auto", "cell"])
def test_a_source_in_which_no_column_tells_donors_is_split_by_cell(by: str) -> None:
    counts, other = UnitCounts(), UnitCounts()
    other.add("tenx", "", {}, 400)  # as a worker counts it
    counts.merge(other)
    decision = decide_splits(counts, SplitRecipe(by=by), 0)
    part = decision.part_of("tenx", {}, cell_keys(0, "tenx", 0, 400))
    assert shares(part) == pytest.approx([0.8, 0.1, 0.1], abs=0.05)
    assert any("split by cell" in warning and "tenx" in warning for warning in decision.warnings)
