"""Caps: the numbers by hand, and exactly those cells however they are cut into spans."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from cytoglot.corpus.assign.cell_keys import cell_keys, salted
from cytoglot.corpus.assign.downsampling import CapCounts, CapLimits, CellCaps, cap_targets
from cytoglot.corpus.sources.recipe import CapRecipe


def decide(values: pd.Categorical, keys: np.ndarray, spans: list[slice], targets: dict[str, int]) -> CellCaps:
    counts, limits = CapCounts(), None
    for span in spans:
        counts.add(values[span], keys[span])
    limits = CapLimits(counts, targets)
    for span in spans:
        limits.add(values[span], keys[span])
    return limits.finish()


@pytest.mark.parametrize(
    ("recipe", "kept"),
    [
        (CapRecipe(), {"rare": 3, "middle": 100, "common": 10_000}),
        (CapRecipe(max_cells=50), {"rare": 3, "middle": 50, "common": 50}),
        (CapRecipe(temperature=1), {"rare": 3, "middle": 100, "common": 10_000}),
        (CapRecipe(temperature=0), {"rare": 3, "middle": 100, "common": 100}),
        (CapRecipe(temperature=0.5), {"rare": 3, "middle": 100, "common": 1000}),  # 100 · (10,000 / 100) ** 0.5
        (CapRecipe(temperature=0.5, max_cells=400), {"rare": 3, "middle": 100, "common": 400}),
    ],
)
def test_targets_by_hand(recipe: CapRecipe, kept: dict[str, int]) -> None:
    assert cap_targets({"rare": 3, "middle": 100, "common": 10_000}, recipe) == kept


@given(
    cells=st.dictionaries(st.text(max_size=3), st.integers(1, 10**8), max_size=20),
    temperature=st.none() | st.floats(0, 1),
    max_cells=st.none() | st.integers(1, 10**6),
)
def test_no_label_is_asked_for_more_than_it_has_nor_vanishes_and_order_by_size_stays(
    cells: dict[str, int], temperature: float | None, max_cells: int | None
) -> None:
    targets = cap_targets(cells, CapRecipe(temperature=temperature, max_cells=max_cells))
    assert list(targets) == list(cells)
    for name, target in targets.items():
        assert 1 <= target <= min(cells[name], max_cells or cells[name])
    by_size = sorted(cells, key=cells.__getitem__)
    assert [targets[name] for name in by_size] == sorted(targets.values())


@settings(max_examples=30, deadline=None)
@given(data=st.data(), n=st.integers(1, 3000), seed=st.integers(0, 5))
def test_the_cells_with_the_smallest_keys_stay_exactly(data: st.DataObject, n: int, seed: int) -> None:
    rng = np.random.default_rng(n)
    keys = cell_keys(seed, "a", 0, n)
    values = pd.Categorical.from_codes(rng.choice([-1, 0, 1, 1, 1, 2], n), ["a", "b", "c", "never"])
    counts = CapCounts()
    counts.add(values, keys)
    assert counts.n_unlabelled == (values.codes < 0).sum()
    assert counts.cells == {k: v for k, v in pd.Series(values).value_counts().to_dict().items() if v}
    targets = {name: data.draw(st.integers(1, cells)) for name, cells in counts.cells.items()}
    edges = sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=3))})
    spans = [slice(a, b) for a, b in pairwise(edges)]
    caps = decide(values, keys, data.draw(st.permutations(spans)), targets)
    kept = caps.keep(values, keys)
    assert kept[values.codes < 0].all()
    for name, target in targets.items():
        cells = np.flatnonzero(values == name)
        best = cells[np.argsort(salted(keys[cells], "caps"))][:target]
        assert sorted(best.tolist()) == cells[kept[cells]].tolist()
    assert TypeAdapter(CellCaps).validate_json(json.dumps(asdict(caps))) == caps


def test_workers_can_count_apart_and_categories_may_be_in_any_order() -> None:
    keys = cell_keys(0, "a", 0, 1000)
    values = pd.Categorical.from_codes(np.arange(1000) % 3, ["a", "b", "c"])
    other_order = pd.Categorical(values[500:].astype(object), categories=["c", "z", "a", "b"])
    counts, second = CapCounts(), CapCounts()
    counts.add(values[:500], keys[:500])
    second.add(other_order, keys[500:])
    counts.merge(second)
    targets = {"a": 7, "b": 100}
    limits, more = CapLimits(counts, targets), CapLimits(counts, targets)
    assert limits.needed
    limits.add(values[:500], keys[:500])
    more.add(other_order, keys[500:])
    more.merge(limits)
    kept = more.finish().keep(values, keys)
    assert [int(kept[values == name].sum()) for name in "abc"] == [7, 100, 333]


def test_nothing_to_cap_needs_no_second_look_and_keeps_all() -> None:
    counts = CapCounts()
    keys = cell_keys(0, "a", 0, 10)
    values = pd.Categorical(["a"] * 10)
    counts.add(values, keys)
    limits = CapLimits(counts, cap_targets(counts.cells, CapRecipe(max_cells=10)))
    assert not limits.needed
    assert limits.finish().keep(values, keys).all()
    assert cap_targets({}, CapRecipe(temperature=0.5)) == {}
